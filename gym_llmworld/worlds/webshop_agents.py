"""WebShop customers that read text only, so that they shop in the real and an imagined world alike.

Pages do not show which options are chosen, so a customer keeps that in mind, and learns through
`overruled` when something else was clicked in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from gym_llmworld.agents import Agent, CorruptedAgent, NoisyAgent, ScriptedAgent
from gym_llmworld.core import Scenario
from gym_llmworld.worlds.webshop_text import (
    Page,
    Wish,
    lowest_price,
    read_instruction,
    read_page,
)

BUY_NOW = "click[buy now]"
_BACK_TO_SEARCH, _PREVIOUS, _NEXT = "click[back to search]", "click[< prev]", "click[next >]"
_FEATURES, _DESCRIPTION, _REVIEWS = "click[features]", "click[description]", "click[reviews]"
_MAX_PAGES = 3
_PUNCTUATION = str.maketrans(",:.", "   ")


@dataclass
class _Memory:
    """What a customer has seen and done, as far as the present page does not show it.

    Attributes:
        page: The present one.
        asin: Of the item that was opened, in lower case; empty among results and before.
        chosen: Option values in force, as clicked.
        read: Asin -> text of its further pages.
    """

    page: Page = field(default_factory=lambda: Page("unknown"))
    asin: str = ""
    chosen: tuple[str, ...] = ()
    read: dict[str, str] = field(default_factory=dict)

    def see(self, observation: str) -> Page:
        """Takes in a page."""
        self.page = page = read_page(observation)
        if page.kind in ("index", "results"):
            self.asin, self.chosen = "", ()
        elif page.kind == "sub":
            self.read[self.asin] = " ".join((self.read.get(self.asin, ""), *page.content))
        return page

    def did(self, action: str, wanted: Sequence[str]) -> None:
        """Notes an action; ``wanted`` are the values that the customer is after."""
        label = action.removeprefix("click[").removesuffix("]").lower()
        if self.page.kind == "results" and label in (row[0].lower() for row in self.page.rows):
            self.asin, self.chosen = label, ()
        elif self.page.kind == "item" and label in self.page.body:
            # Another value may have replaced any of those chosen before.
            self.chosen = (*self.chosen, label) if label in wanted else (label,)


class WebShopCustomer:
    """Searches, opens what fits best, reads until it knows, chooses the options, buys.

    Args:
        care: Probability of doing it right, at every decision about an item: checking it, and each
            option. With 1.0 it is an expert.
        curiosity: Probability of reading an item's description although it is not needed.
        name: What episodes call it.
    """

    def __init__(self, *, care: float = 1.0, curiosity: float = 0.25, name: str = "expert") -> None:
        self.name = name
        self._care, self._curiosity = care, curiosity
        self._rng = np.random.default_rng(0)
        self._wish = Wish((), (), None)
        self._memory = _Memory()
        self._before: tuple[str, tuple[str, ...]] = ("", ())
        self._wanted = ""
        self._rejected: set[str] = set()
        self._desperate = False
        self._intentions: dict[str, _Intention] = {}

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Starts an episode."""
        self._rng = np.random.default_rng(seed)
        self._wish = read_instruction(scenario.instruction)
        self._memory, self._wanted = _Memory(), ""
        self._rejected, self._desperate, self._intentions = set(), False, {}

    def act(self, observation: str, info: Mapping[str, Any]) -> str:
        """Chooses what to do on a page."""
        page = self._memory.see(observation)
        if self._wanted == BUY_NOW and page.kind == "item":
            self._refused()
        self._before = (self._memory.asin, self._memory.chosen)
        self._wanted = self._choose(page)
        self._memory.did(self._wanted, self._values())
        return self._wanted

    def overruled(self, action: str) -> None:
        """Notes what was really done."""
        if action != self._wanted:
            self._wanted = action
            self._memory.asin, self._memory.chosen = self._before
            self._memory.did(action, self._values())

    def _choose(self, page: Page) -> str:
        if page.kind == "results":
            return self._from_results(page)
        if page.kind == "item":
            return self._from_item(page)
        if page.kind == "sub":
            return _PREVIOUS
        # An imagined world goes on after a wrong purchase; a second one must not count.
        return BUY_NOW if page.kind == "done" else f"search[{self._wish.query}]"

    def _from_results(self, page: Page) -> str:
        rows = [row for row in page.rows if row[0].lower() not in self._rejected]
        fitting = [row for row in rows if self._affordable(row[2])]
        if fitting:
            return f"click[{fitting[0][0].lower()}]"
        if page.rows and page.number < _MAX_PAGES and not self._desperate:
            return _NEXT
        # Nothing fits: from now on the first item will do.
        self._desperate = True
        self._rejected.clear()
        return _BACK_TO_SEARCH

    def _from_item(self, page: Page) -> str:
        asin, intention = self._memory.asin, self._intention()
        if asin in self._rejected:
            return _PREVIOUS
        fits = self._fits(page) if intention.checks and not self._desperate else True
        if fits is False:
            self._rejected.add(asin)
            return _PREVIOUS
        if fits is None:
            return _FEATURES
        if intention.curious:
            intention.curious = False
            return _DESCRIPTION
        for value in self._values():
            if value not in self._memory.chosen and value in page.body:
                return f"click[{value}]"
        return BUY_NOW

    def _fits(self, page: Page) -> bool | None:
        """Whether the item is what is wanted; None when its features have to be read for that."""
        missing = [value for _, value in self._wish.options if value not in page.body]
        if missing or not self._affordable(page.price):
            return False
        read = self._memory.read.get(self._memory.asin)
        if self._overlap(f"{page.title} {read or ''}") == len(self._wish.words):
            return True
        return None if read is None else False

    def _affordable(self, printed: str) -> bool:
        price = lowest_price(printed)
        return price is None or self._wish.price is None or price <= self._wish.price

    def _overlap(self, text: str) -> int:
        words = set(text.lower().translate(_PUNCTUATION).split())
        return sum(word in words for word in self._wish.words)

    def _intention(self) -> _Intention:
        """What the customer makes up its mind to do about the open item."""
        asin = self._memory.asin
        if asin not in self._intentions:
            self._intentions[asin] = _Intention(
                checks=self._is_careful(),
                curious=bool(self._rng.random() < self._curiosity),
                values=tuple(self._intended_values()),
            )
        return self._intentions[asin]

    def _intended_values(self) -> Iterator[str]:
        for name, value in self._wish.options:
            if self._is_careful():
                yield value
            elif self._rng.random() < 0.5 and name in self._memory.page.body:
                # The first value on offer, whatever it is; or nothing at all.
                body = self._memory.page.body
                yield body[min(body.index(name) + 1, len(body) - 1)]

    def _values(self) -> tuple[str, ...]:
        intention = self._intentions.get(self._memory.asin)
        return intention.values if intention else ()

    def _is_careful(self) -> bool:
        return bool(self._rng.random() < self._care)

    def _refused(self) -> None:
        """Somebody did not let the purchase through: think again, or look for something else."""
        intention = self._intentions.pop(self._memory.asin, None)
        if intention and intention.values == tuple(value for _, value in self._wish.options):
            # Nothing was wrong with the choice, so it must be the item.
            self._rejected.add(self._memory.asin)


@dataclass
class _Intention:
    """What a customer makes up its mind to do about an item.

    Attributes:
        checks: See whether it fits before buying.
        curious: Read its description.
        values: Option values to choose.
    """

    checks: bool
    curious: bool
    values: tuple[str, ...]


# Reading and choosing shows more of a shop than turning pages that nobody can foresee.
_WEIGHTS = {
    _BACK_TO_SEARCH: 0.4,
    _PREVIOUS: 1.0,
    _NEXT: 0.5,
    BUY_NOW: 0.4,
    _FEATURES: 1.5,
    _DESCRIPTION: 1.5,
    _REVIEWS: 0.6,
}


class WebShopExplorer:
    """Clicks on what it sees, at random.

    Args:
        blunders: Share of actions that the page does not offer.
        detours: Share of searches for something else than the goal's own words.
        name: What episodes call it.
    """

    def __init__(
        self, *, blunders: float = 0.08, detours: float = 0.25, name: str = "random"
    ) -> None:
        self.name = name
        self._blunders, self._detours = blunders, detours
        self._rng = np.random.default_rng(0)
        self._wish = Wish((), (), None)
        self._seen: list[str] = []

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Starts an episode."""
        self._rng = np.random.default_rng(seed)
        self._wish = read_instruction(scenario.instruction)
        self._seen = []

    def act(self, observation: str, info: Mapping[str, Any]) -> str:
        """Draws an action."""
        page = read_page(observation)
        asins = [f"click[{row[0].lower()}]" for row in page.rows]
        self._seen += [asin for asin in asins if asin not in self._seen]
        if self._rng.random() < self._blunders:
            return self._pick([*self._seen, *_WEIGHTS, "click[search]", self._search()])
        if page.kind == "results":
            turns = [_BACK_TO_SEARCH, _NEXT] + ([_PREVIOUS] if page.number > 1 else [])
            return self._draw(asins, turns)
        if page.kind == "item":
            buttons = [way for way in _WEIGHTS if way != _NEXT]
            return self._draw([f"click[{value}]" for value in page.body], buttons)
        if page.kind == "sub":
            return self._draw([], [_BACK_TO_SEARCH, _PREVIOUS])
        return BUY_NOW if page.kind == "done" else self._search()

    def _search(self) -> str:
        words = self._wish.words
        if not words or self._rng.random() >= self._detours:
            return f"search[{self._wish.query}]"
        count = int(self._rng.integers(1, len(words) + 1))
        kept = sorted(self._rng.choice(len(words), size=count, replace=False))
        return f"search[{' '.join(words[i] for i in kept)}]"

    def _draw(self, things: Sequence[str], buttons: Sequence[str]) -> str:
        """Draws a button by its weight, or a thing: all of them weigh as much as three buttons."""
        weights = [3.0 / len(things) for _ in things] + [_WEIGHTS[button] for button in buttons]
        shares = np.array(weights) / sum(weights)
        return [*things, *buttons][int(self._rng.choice(len(shares), p=shares))]

    def _pick(self, choices: Sequence[str]) -> str:
        return choices[int(self._rng.integers(len(choices)))]


def _noisy(p: float, name: str) -> Agent:
    return NoisyAgent(WebShopCustomer(), p, WebShopExplorer(), name=name)


def _corrupted() -> Agent:
    return CorruptedAgent(_noisy(0.2, "noisy"), 0.35)


# Partials rather than lambdas, so that collection can send them to worker processes.
WEBSHOP_AGENTS: dict[str, Callable[[], Agent]] = {
    "expert": WebShopCustomer,
    "hasty": partial(WebShopCustomer, care=0.7, name="hasty"),
    "noisy": partial(_noisy, 0.3, "noisy"),
    "noisy50": partial(_noisy, 0.5, "noisy50"),
    "random": WebShopExplorer,
    "corrupted": _corrupted,
    "plan": partial(ScriptedAgent, then=BUY_NOW),
}
