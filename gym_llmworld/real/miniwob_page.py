"""A MiniWoB++ page in the browser: one episode, started from a seed and moved by actions.

The html files are those of the package ``miniwob`` (Liu et al., arXiv 1802.08802), which is not
imported. Its time limit is off and time itself stands still: the page's clock is advanced by one
second after each action, so that an episode follows from the task, its seed and the actions.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import weakref
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from gym_llmworld.accessibility import Item, Tree, tree_of
from gym_llmworld.errors import EngineError, MissingDependency, ScenarioError
from gym_llmworld.real.miniwob_browser import EXTRA, Browser, current_browser
from gym_llmworld.worlds.miniwob import TASKS, Command, read_command

_STARTED = "2020-01-01T00:00:00Z"
_PAUSED = "2020-01-01T00:00:10Z"
_MILLISECONDS = 1000

# Neither what to do nor the timer and the rewards are part of the page; the cover that ends an
# episode is. Texts that are there but not shown (closed tabs) are what the agent cannot see.
_START = """
(seed) => {
  for (const id of ['query', 'reward-display', 'click-canvas']) {
    document.getElementById(id)?.setAttribute('aria-hidden', 'true');
  }
  core.EPISODE_MAX_TIME = 2 ** 30;
  Math.seedrandom(seed);
  core.startEpisodeReal();
  const unseen = [];
  const walker = document.createTreeWalker(
    document.getElementById('area') ?? document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const text = walker.currentNode.data.replace(/\\s+/g, ' ').trim();
    const other = element.closest('script, style, option, #query, #sync-task-cover');
    if (text && !other && !element.checkVisibility()) unseen.push(text);
  }
  return [core.getUtterance(), unseen];
}
"""
_OUTCOME = "() => [WOB_DONE_GLOBAL, WOB_RAW_REWARD_GLOBAL]"
# Lists that open are the system's, not the page's: choosing from one happens here.
_CHOOSE = """
function () {
  const list = this.closest('select');
  if (!list) return false;
  list.focus();
  if (this !== list && !this.disabled && !list.disabled && !this.selected) {
    this.selected = true;
    for (const kind of ['input', 'change']) {
      list.dispatchEvent(new Event(kind, {bubbles: true}));
    }
  }
  return true;
}
"""
_WRITABLE = """
function () {
  const kinds = ['text', 'search', 'url', 'tel', 'email', 'password', 'number'];
  const field = this instanceof HTMLTextAreaElement
    || (this instanceof HTMLInputElement && kinds.includes(this.type));
  return (field && !this.disabled && !this.readOnly) || Boolean(this.isContentEditable);
}
"""
_SELECT_ALL = """
function () {
  this.focus();
  if (this.select) this.select(); else getSelection().selectAllChildren(this);
}
"""


@lru_cache(maxsize=1)
def html_folder() -> Path:
    """Returns the folder of the package's html files.

    Raises:
        MissingDependency: miniwob is not installed.
    """
    spec = importlib.util.find_spec("miniwob")
    if spec is None or spec.origin is None:
        raise MissingDependency("miniwob", EXTRA)
    return Path(spec.origin).parent / "html"


def check_task(task: str) -> None:
    """Checks the name of a task.

    Raises:
        ScenarioError: There is no such task, or it does not work in trees.
    """
    if task not in TASKS:
        raise ScenarioError(f"unknown task {task!r}; expected one of {', '.join(TASKS)}")


@dataclass(frozen=True)
class Outcome:
    """What a page says of the episode.

    Attributes:
        done: It is over.
        reward: The task's own, -1 to 1, without the deduction for time.
    """

    done: bool = False
    reward: float = 0.0

    @property
    def solved(self) -> bool:
        """Whether it is over, with the full reward."""
        return self.done and self.reward >= 1


class Visit:
    """One episode on one page, in a browser context of its own.

    Args:
        task: Name of the html file, without its ending.
        seed: Of ``Math.seedrandom``, as ``miniwob`` sets it.

    Attributes:
        task: As given.
        seed: As given.
        instruction: What the page asks for.
        unseen: Texts of the first page that are not in the tree: behind closed tabs and sections.
        first: What was listed at the start.
        tree: What is listed now.
        outcome: Of the last action.
        browser_version: Of the browser.

    Raises:
        ScenarioError: There is no such task.
        MissingDependency: miniwob or playwright is not installed.
        EngineError: The browser does not start, or fails.
    """

    def __init__(self, task: str, seed: int) -> None:
        check_task(task)
        self.task, self.seed = task, seed
        self.instruction = ""
        self.unseen: tuple[str, ...] = ()
        self.tree: Tree = ()
        self.outcome = Outcome()
        self._path = html_folder() / "miniwob" / f"{task}.html"
        if not self._path.is_file():
            raise EngineError(
                f"the installed miniwob has no page {task!r}; expected version 1.1 or newer"
            )
        self._browser = current_browser()
        self.browser_version = self._browser.version
        self._numbers: dict[int, int] = {}
        self._commands: list[str] = []
        self._loaded = False
        self._context = self._browser.run(_new_context(self._browser))
        # Copies of environments are often dropped without close().
        self._free = weakref.finalize(self, _close, self._browser, self._context)
        self._browser.run(self._begin())
        self.first: Tree = self.tree

    def __deepcopy__(self, memo: dict[int, Any]) -> Visit:
        """Returns another page at the same point, brought there by the same actions."""
        twin = Visit(self.task, self.seed)
        for command in self._commands:
            twin.act(command)
        if (twin.tree, twin.outcome) != (self.tree, self.outcome):
            raise EngineError(
                f"page {self.task!r} with seed {self.seed} does not repeat itself: the same "
                f"{len(self._commands)} actions led elsewhere"
            )
        return twin

    def act(self, action: str) -> bool:
        """Carries out an action.

        Returns:
            False where it is none, or is not possible here; nothing has changed then.

        Raises:
            EngineError: The browser failed.
        """
        command = read_command(action)
        items = {item.number: item for item in self.tree}
        item = None if command is None else items.get(command.number)
        if command is None or (item is None and command.number):
            return False
        if not self._browser.run(self._carry_out(command, item)):
            return False
        self._commands.append(action)
        return True

    def close(self) -> None:
        """Closes the page."""
        if self._free.detach() is not None:
            # A browser that has ended took its pages with it.
            with contextlib.suppress(EngineError):
                self._browser.run(self._context.close())

    async def _begin(self) -> None:
        await self._context.route("**/*", self._guard)
        self._page = await self._context.new_page()
        await self._page.clock.install(time=_STARTED)
        await self._page.clock.pause_at(_PAUSED)
        await self._page.goto(self._path.as_uri())
        self._loaded = True
        self._devtools = await self._context.new_cdp_session(self._page)
        self.instruction, unseen = await self._page.evaluate(_START, self.seed)
        self.unseen = tuple(unseen)
        await self._settle()

    async def _guard(self, route: Any) -> None:
        """Lets nothing through but the package's files, and no page but the first."""
        folder = html_folder().as_uri() + "/"
        leaves = self._loaded and route.request.is_navigation_request()
        if route.request.url.startswith(folder) and not leaves:
            await route.continue_()
        else:
            await route.abort("aborted")

    async def _settle(self) -> None:
        await self._page.clock.run_for(_MILLISECONDS)
        (done, reward), found = await asyncio.gather(
            self._page.evaluate(_OUTCOME), self._devtools.send("Accessibility.getFullAXTree")
        )
        self.outcome = Outcome(bool(done), float(reward))
        self.tree = tree_of(found["nodes"], self._numbers)

    async def _carry_out(self, command: Command, item: Item | None) -> bool:
        if item is None:
            await self._page.keyboard.press(command.text)
        elif not await self._point(command, item):
            return False
        await self._settle()
        return True

    async def _point(self, command: Command, item: Item) -> bool:
        """Does something with an item; returns whether that is possible."""
        [node] = [node for node, number in self._numbers.items() if number == item.number]
        if command.verb == "type" and not await self._ask(node, _WRITABLE):
            return False
        listed = command.verb == "click" and item.role in ("option", "combobox", "menuitem")
        if listed and await self._ask(node, _CHOOSE):
            return True
        place = await self._place(node)
        if place is None:
            return False
        if command.verb == "hover":
            await self._page.mouse.move(*place)
            return True
        await self._page.mouse.click(*place)
        if command.verb == "type":
            await self._ask(node, _SELECT_ALL)
            await self._page.keyboard.press("Delete")
            await self._page.keyboard.type(command.text)
            if command.enter:
                await self._page.keyboard.press("Enter")
        return True

    async def _ask(self, node: int, function: str) -> Any:
        """Calls a function on an item and returns what it returns; None where the item is gone."""
        found = await self._try("DOM.resolveNode", {"backendNodeId": node})
        if found is None:
            return None
        call = {
            "objectId": found["object"]["objectId"],
            "functionDeclaration": function,
            "returnByValue": True,
        }
        answer = await self._devtools.send("Runtime.callFunctionOn", call)
        return answer["result"].get("value")

    async def _try(self, method: str, parameters: dict[str, Any]) -> Any:
        """Asks DevTools something that an item may not have; None where it does not."""
        from playwright.async_api import Error

        try:
            return await self._devtools.send(method, parameters)
        except Error:
            if not self._browser.alive:
                raise
            return None

    async def _place(self, node: int) -> tuple[float, float] | None:
        """Returns the middle of where an item is drawn; None where it is not."""
        which = {"backendNodeId": node}
        await self._try("DOM.scrollIntoViewIfNeeded", which)
        found = await self._try("DOM.getContentQuads", which) or {"quads": []}
        for quad in found["quads"]:
            x, y = sum(quad[0::2]) / 4, sum(quad[1::2]) / 4
            if max(quad[0::2]) > min(quad[0::2]) and max(quad[1::2]) > min(quad[1::2]):
                return x, y
        return None


async def _new_context(browser: Browser) -> Any:
    return await browser.chromium.new_context(
        viewport={"width": 400, "height": 400},
        locale="en-US",
        timezone_id="UTC",
        reduced_motion="reduce",
        offline=True,
        accept_downloads=False,
        service_workers="block",
    )


def _close(browser: Browser, context: Any) -> None:
    browser.later(context.close())
