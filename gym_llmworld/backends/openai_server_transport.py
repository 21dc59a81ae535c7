"""How requests reach an OpenAI-compatible server: kept connections, bounded, retried.

One background thread sends the requests of all callers side by side; see `Transport`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import ipaddress
import itertools
import json
import os
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from gym_llmworld.backends.openai_server_replies import Reader, overflows, retry_after
from gym_llmworld.errors import BackendError

if TYPE_CHECKING:
    import httpx

FIRST_PAUSE = 0.5
"""Seconds before the first retry; doubled for each further one."""
LONGEST_PAUSE = 8.0
LONGEST_RETRY_AFTER = 60.0
"""A server that asks for more seconds of patience than this is not asked again."""

_T = TypeVar("_T")
_CONNECT_SECONDS = 10.0
_REQUEST_TIMEOUT, _TOO_MANY = 408, 429
_GATEWAY = (502, 503, 504)
# Not the module's generator: a retry must not move the random numbers of the caller's program.
_jitter = random.SystemRandom()


class Unreachable(BackendError):
    """The server, rather than its answer to one chat, is missing."""


class Transport:
    """Sends requests to one server until they are answered.

    The calling thread waits while the background thread of its process works; a forked child gets
    its own thread and connections.

    Args:
        reader: Names the server and words its failures.
        concurrency: Requests under way at a time, for all threads together.
        timeout: Seconds for one attempt.
        retries: Further attempts.
    """

    def __init__(self, reader: Reader, *, concurrency: int, timeout: float, retries: int) -> None:
        self._reader = reader
        self._concurrency, self._timeout, self._retries = concurrency, timeout, retries
        self._closed = False
        self._lines: dict[int, Line] = {}

    def run(self, work: Callable[[Line], Coroutine[Any, Any, _T]]) -> _T:
        """Runs a coroutine on the background thread and waits for it.

        Raises:
            BackendError: The transport is closed, or was closed meanwhile.
        """
        url = self._reader.url
        if self._closed:
            raise BackendError(f"the client of {url} is closed")
        # A forked child owns neither its parent's thread nor, alone, its sockets.
        pid = os.getpid()
        line = self._lines.get(pid) or self._lines.setdefault(pid, Line(self._make_clients))
        try:
            return line.run(work)
        except concurrent.futures.CancelledError:
            raise BackendError(f"the client of {url} was closed while it waited") from None

    async def exchange(
        self,
        client: httpx.AsyncClient,
        method: str,
        path: str,
        payload: dict[str, Any] | None = None,
    ) -> httpx.Response:
        """Sends a request until there is an answer that another attempt would not change.

        Raises:
            Unreachable: There is no server.
            BackendError: It never answered, or in a broken encoding.
        """
        import httpx

        # ASCII escapes carry any string, lone surrogates included.
        body = None if payload is None else json.dumps(payload).encode("ascii")
        reader, started = self._reader, time.monotonic()
        for attempt in itertools.count(1):
            gone, pause = True, None
            try:
                async with asyncio.timeout(self._timeout):
                    response = await client.request(method, path, content=body)
            except TimeoutError:
                gone, what = False, f"no complete answer within timeout={self._timeout:g} seconds"
            except httpx.TransportError as error:
                what = _root(error)
            except httpx.DecodingError as error:
                raise BackendError(
                    f"{reader.url} answered with a broken encoding: {reader.clean(str(error))}"
                ) from None
            else:
                status = response.status_code
                if not _worth_retrying(status) or overflows(response.content):
                    return response
                gone, pause = status in _GATEWAY, retry_after(response)
                what = f"status {status}, {reader.excerpt(response.content)}"
            impatient = pause is not None and pause > LONGEST_RETRY_AFTER
            if attempt > self._retries or impatient:
                what = f"{what}; tried {attempt} times in {time.monotonic() - started:.1f} seconds"
                if impatient:
                    what += f", and asked to wait {pause:.0f} more"
                raise _failure(reader.url, reader.clean(what), gone)
            await asyncio.sleep(_pause(attempt) if pause is None else _spread(pause))
        raise AssertionError("unreachable")

    def close(self) -> None:
        """Ends the connections and what is under way on them; calling it twice is fine."""
        self._closed = True
        line = self._lines.get(os.getpid())
        if line is not None:
            line.close()

    def _make_clients(self) -> list[httpx.AsyncClient]:
        """Makes one client per request that may be under way.

        A pool of connections looks through all of them for every request: of one client with 32
        connections a request takes three times the processor time that it takes here.
        """
        import httpx

        url = self._reader.url
        headers = {"Content-Type": "application/json"}
        if self._reader.key:
            headers["Authorization"] = f"Bearer {self._reader.key}"
        # A proxy for the outside world cannot reach a server of this machine.
        trust_env = not _is_loopback(url)
        context = httpx.create_ssl_context(trust_env=trust_env)
        timeout = httpx.Timeout(None, connect=min(self._timeout, _CONNECT_SECONDS))
        try:
            return [
                httpx.AsyncClient(
                    base_url=f"{url}/",
                    headers=headers,
                    timeout=timeout,
                    trust_env=trust_env,
                    verify=context,
                )
                for _ in range(self._concurrency)
            ]
        except httpx.InvalidURL as error:
            raise ValueError(f"{url!r} is not a URL: {error}") from error


class Line:
    """A thread with an event loop, and the clients that live there, of one process.

    Args:
        make_clients: Called once; opens nothing yet.
    """

    def __init__(self, make_clients: Callable[[], list[httpx.AsyncClient]]) -> None:
        self._make_clients = make_clients
        self._lock = threading.Lock()
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stop = asyncio.Event()
        # The one used last comes first: few worlds keep few connections.
        self._idle: asyncio.LifoQueue[httpx.AsyncClient] = asyncio.LifoQueue()

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        """Lends a client, waiting for one to come back if need be."""
        client = await self._idle.get()
        try:
            yield client
        finally:
            self._idle.put_nowait(client)

    def run(self, work: Callable[[Line], Coroutine[Any, Any, _T]]) -> _T:
        """Runs a coroutine on the thread and waits for it; gives it up when interrupted.

        Raises:
            CancelledError: The line is closed.
        """
        with self._lock:
            if self._closed:
                raise concurrent.futures.CancelledError
            if self._loop is None:
                self._loop = self._start()
            future = asyncio.run_coroutine_threadsafe(work(self), self._loop)
        try:
            return future.result()
        finally:
            future.cancel()

    def close(self) -> None:
        """Cancels what runs, closes the connections and waits for the thread to end."""
        with self._lock:
            self._closed = True
            loop, self._loop = self._loop, None
        if loop is not None and self._thread is not None:
            loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()

    def _start(self) -> asyncio.AbstractEventLoop:
        clients = self._make_clients()
        for client in clients:
            self._idle.put_nowait(client)
        ready: concurrent.futures.Future[asyncio.AbstractEventLoop] = concurrent.futures.Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(clients, ready)),
            name="llmworld-openai",
            daemon=True,
        )
        self._thread.start()
        return ready.result()

    async def _serve(
        self,
        clients: Sequence[httpx.AsyncClient],
        ready: concurrent.futures.Future[asyncio.AbstractEventLoop],
    ) -> None:
        ready.set_result(asyncio.get_running_loop())
        await self._stop.wait()
        running = asyncio.all_tasks() - {asyncio.current_task()}
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for client in clients:
            await client.aclose()


def _failure(url: str, what: str, gone: bool) -> BackendError:
    if gone:
        return Unreachable(
            f"no server answers at {url}: {what}. Start it (for a checkpoint: llmworld serve "
            "FOLDER), wait until it has loaded, or correct the URL"
        )
    return BackendError(
        f"{url} did not answer a request: {what}. Look into the server's log; where it is "
        "only slow or busy, lower concurrency or raise timeout or retries"
    )


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _worth_retrying(status: int) -> bool:
    return status in (_REQUEST_TIMEOUT, _TOO_MANY) or status >= 500


def _pause(attempt: int) -> float:
    return min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(attempt - 1, 30)) * _jitter.uniform(0.5, 1.0)


def _spread(pause: float) -> float:
    """Keeps all who were told to wait equally long from coming back at one moment."""
    return pause + _jitter.uniform(0.0, FIRST_PAUSE)


def _root(error: BaseException) -> str:
    """Words a lost connection by the operating system's reason for it, where there is one."""
    words = str(error) or type(error).__name__
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and str(cause):
            words = str(cause)
        cause = cause.__cause__ or cause.__context__
    return words
