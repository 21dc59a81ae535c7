"""The browser that web pages are played in: one Chromium per process, driven by Playwright.

Playwright is the driver only; the browser is the system's, or the one that
``playwright install chromium`` downloaded. It runs on an event loop in a thread of its own, so that
environments can be used from any thread, and from where a loop is already running (notebooks).
`current_browser` starts it inside the process that uses it. A forked child leaves its parent's
alone and starts its own.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import shutil
import subprocess
import threading
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from gym_llmworld.errors import EngineError, MissingDependency

EXTRA = "web"
BROWSER_VARIABLE = "LLMWORLD_BROWSER"
"""Environment variable: path of the browser to use."""
INSTALL = "apt install chromium, or: playwright install chromium"
"""Commands that install a browser."""

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_SECONDS_TO_START = 120.0
_SECONDS_TO_ANSWER = 60.0
_SECONDS_TO_STOP = 10.0
_OPTIONS = (
    # Pages are files. Nothing else can be reached, by whatever name or address.
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--disable-background-networking",
)

_T = TypeVar("_T")


def check_packages() -> None:
    """Checks that the packages of the extra are there.

    Raises:
        MissingDependency: One is not.
    """
    import importlib.util

    for package in ("playwright", "miniwob"):
        if importlib.util.find_spec(package) is None:
            raise MissingDependency(package, EXTRA)


def find_browser() -> str:
    """Returns the path of a Chromium: of `BROWSER_VARIABLE`, of the PATH, or Playwright's own.

    Raises:
        MissingDependency: Playwright is not installed.
        EngineError: There is none.
    """
    named = os.environ.get(BROWSER_VARIABLE)
    if named:
        found = shutil.which(named)
        if found is None:
            raise EngineError(
                f"{BROWSER_VARIABLE} must be the path of a Chromium, got {named!r}, which is no "
                "program"
            )
        return found
    for name in _NAMES:
        found = shutil.which(name)
        if found is not None:
            return found
    own = _downloaded()
    if own is None:
        raise EngineError(
            f"web pages need a Chromium: expected one of {', '.join(_NAMES)} on the PATH, its path "
            f"in {BROWSER_VARIABLE}, or Playwright's own; found none. Install one with: {INSTALL}"
        )
    return own


def _downloaded() -> str | None:
    """Returns the browser that ``playwright install`` put there; None if there is none."""
    playwright = _playwright()

    async def ask() -> str:
        async with playwright() as driver:
            return str(driver.chromium.executable_path)

    # In a thread of its own: this one may have a running loop.
    with ThreadPoolExecutor(1) as thread:
        own = thread.submit(asyncio.run, ask()).result()
    return own if Path(own).is_file() else None


def _playwright() -> Any:
    try:
        from playwright.async_api import async_playwright
    except ImportError as error:
        raise MissingDependency("playwright", EXTRA) from error
    return async_playwright


def browser_version(path: str) -> str:
    """Returns what a browser says of its version; empty when it says nothing.

    Args:
        path: Of the browser.
    """
    try:
        said = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return said.stdout.strip()


class Browser:
    """A running Chromium.

    Attributes:
        chromium: Playwright's ``Browser``, to be used inside of `run` only.

    Raises:
        MissingDependency: Playwright is not installed.
        EngineError: There is no Chromium, or it does not start.
    """

    chromium: Any

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._path = find_browser()
        self._driver: Any = None
        self.chromium = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="llmworld-browser", daemon=True
        )
        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(_SECONDS_TO_START)
        except MissingDependency:
            self.close()
            raise
        except Exception as error:
            self.close()
            raise EngineError(
                f"the browser {self._path} did not start: {_reason(error)}. Name another one in "
                f"{BROWSER_VARIABLE}, or install one with: {INSTALL}"
            ) from error

    async def _start(self) -> None:
        self._driver = await _playwright()().start()
        self.chromium = await self._driver.chromium.launch(
            executable_path=self._path,
            headless=True,
            # Chromium's sandbox does not work as root, as in containers; there it is left out. The
            # pages are the package's own, and nothing else can be loaded.
            chromium_sandbox=not _is_root(),
            args=list(_OPTIONS),
            # Ctrl-C is for Python: it decides when the browser ends.
            handle_sigint=False,
            handle_sigterm=False,
            handle_sighup=False,
        )

    @property
    def alive(self) -> bool:
        """True while it can be used from this process."""
        ours = self._pid == os.getpid() and self.chromium is not None
        return ours and self._thread.is_alive() and bool(self.chromium.is_connected())

    @property
    def version(self) -> str:
        """Such as ``"150.0.7871.100"``."""
        return str(self.chromium.version)

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Runs something on the browser's loop and waits for it.

        Raises:
            EngineError: The browser failed, died, or does not answer.
        """
        from playwright.async_api import Error

        if not self.alive:
            work.close()
            raise self._lost("has ended")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(_SECONDS_TO_ANSWER)
        except TimeoutError as error:
            future.cancel()
            self.close()
            raise self._lost(f"did not answer within {_SECONDS_TO_ANSWER:.0f} s") from error
        except Error as error:
            if not self.alive:
                raise self._lost("has ended") from error
            raise EngineError(
                f"the page failed in the browser: {_reason(error)}. This episode is lost; reset "
                "begins a new one"
            ) from error

    def later(self, work: Coroutine[Any, Any, object]) -> None:
        """Starts something on the browser's loop, if it still runs, and does not wait for it."""
        if self.alive:
            asyncio.run_coroutine_threadsafe(_quietly(work), self._loop)
        else:
            work.close()

    def close(self) -> None:
        """Ends the browser; pages that are open in it are lost."""
        if self._pid != os.getpid() or self._loop.is_closed():
            return
        with contextlib.suppress(Exception):
            asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(_SECONDS_TO_STOP)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_SECONDS_TO_STOP)
        if not self._thread.is_alive():
            self._loop.close()

    async def _stop(self) -> None:
        if self.chromium is not None:
            await _quietly(self.chromium.close())
        if self._driver is not None:
            await _quietly(self._driver.stop())
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def _lost(self, how: str) -> EngineError:
        return EngineError(
            f"the browser {self._path} {how}. This episode is lost; reset starts a new browser"
        )


async def _quietly(work: Coroutine[Any, Any, object]) -> None:
    with contextlib.suppress(Exception):
        await work


def _is_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0


def _reason(error: BaseException) -> str:
    """Returns the first line of what an error says; Playwright appends logs of many lines."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


_current: Browser | None = None
_starting = threading.Lock()
# What a fork copied is the parent's: it must be neither used nor collected, which would end it.
_forgotten: list[Browser] = []


def current_browser() -> Browser:
    """Returns this process's browser; starts one if there is none, or it has died.

    Raises:
        MissingDependency: Playwright is not installed.
        EngineError: There is no Chromium, or it does not start.
    """
    global _current
    with _starting:
        if _current is None or not _current.alive:
            if _current is not None:
                _current.close()
                _current = None
            _current = Browser()
        return _current


def close_browser() -> None:
    """Ends this process's browser, if there is one."""
    global _current
    if _current is not None:
        _current.close()
        _current = None


def _after_fork() -> None:
    global _current, _starting
    _starting = threading.Lock()
    if _current is not None:
        _forgotten.append(_current)
        _current = None


atexit.register(close_browser)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
