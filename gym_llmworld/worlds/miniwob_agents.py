"""Who acts on MiniWoB++ pages: they read the tree, keep it up to date, and click and type.

What the expert wants follows from the instruction's wording. It looks at the page before each
action, so that it goes on from wherever somebody else has led it; what stands in which field it
remembers, because trees do not say.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from gym_llmworld.accessibility import Item, Tree, apply_changes, read_tree
from gym_llmworld.core import Scenario
from gym_llmworld.worlds.miniwob import REJECTION, Command, admissible, read_command

_FALLBACK = "press [Tab]"
# How often a random player types, presses a key, or names what is not there.
_TYPES, _PRESSES, _STRAYS = 0.3, 0.08, 0.07
_WORD = re.compile(r"[^\s\"'\[\],.]+")
_ORDINALS = {"1st": 0, "2nd": 1, "3rd": 2}


@dataclass
class Page:
    """What an agent knows of its page.

    Attributes:
        instruction: What it asks for.
        tree: As far as it was told.
        typed: Number of a field -> what was last typed into it.
    """

    instruction: str
    tree: Tree
    typed: dict[int, str] = field(default_factory=dict)

    def find(self, *roles: str, name: str | None = None) -> Iterator[Item]:
        """Yields the items of these roles, and this name if one is given, in order."""
        for item in self.tree:
            if item.role in roles and name in (None, item.name):
                yield item

    def click(self, *roles: str, name: str | None = None) -> str | None:
        """Returns a click on the first item of these roles and this name; None without one."""
        item = next(self.find(*roles, name=name), None)
        return None if item is None else f"click [{item.number}]"

    def submit(self) -> str | None:
        """Returns a click on the button that ends the task."""
        for name in ("Submit", "Login", "Search"):
            click = self.click("button", "StaticText", name=name)
            if click is not None:
                return click
        return None

    def fill(self, *texts: str) -> str | None:
        """Returns what is to be typed next for the fields to hold these texts; None for nothing."""
        for item, text in zip(self.find("textbox"), texts, strict=False):
            if self.typed.get(item.number, "") != text:
                return f"type [{item.number}] [{text}] [0]"
        return None


Advice = Callable[[Page, re.Match[str]], str | None]


def _click_named(page: Page, asked: re.Match[str]) -> str | None:
    return page.click("button", "link", "tab", "StaticText", name=asked[1])


def _close_dialog(page: Page, asked: re.Match[str]) -> str | None:
    return page.click("button", name="Close")


def _dialog_button(page: Page, asked: re.Match[str]) -> str | None:
    return page.click("button", name="Close" if asked[1] == "x" else asked[1])


def _button_sequence(page: Page, asked: re.Match[str]) -> str | None:
    first = next(page.find("button", name=asked[1]), None)
    if first is not None and not first.says("focused", "True"):
        return f"click [{first.number}]"
    return page.click("button", name=asked[2])


def _select(page: Page, asked: re.Match[str]) -> str | None:
    """Ticks boxes; of radio buttons, the one."""
    wanted = set() if asked[1] == "nothing" else set(asked[1].split(", "))
    for item in page.find("checkbox", "radio"):
        ticked = item.says("checked", "true")
        if ticked != (item.name in wanted) and not (ticked and item.role == "radio"):
            return f"click [{item.number}]"
    return page.submit()


def _choose(page: Page, asked: re.Match[str]) -> str | None:
    option = next(page.find("option", name=asked[1]), None)
    if option is not None and not option.says("selected", "True"):
        return f"click [{option.number}]"
    return page.submit()


def _expand(page: Page, asked: re.Match[str]) -> str | None:
    for item in page.find("tab"):
        if item.name.startswith("Section") and not item.says("expanded", "True"):
            return f"click [{item.number}]"
    return page.submit()


def _enter(page: Page, asked: re.Match[str]) -> str | None:
    return page.fill(*asked.groups()) or page.submit()


def _enter_twice(page: Page, asked: re.Match[str]) -> str | None:
    return page.fill(asked[1], asked[1]) or page.submit()


def _calculate(page: Page, asked: re.Match[str]) -> str | None:
    for item in page.find("StaticText"):
        if sum_ := re.fullmatch(r"(\d+) ([-+x]) (\d+) =", item.name):
            a, b = int(sum_[1]), int(sum_[3])
            answer = {"+": a + b, "-": a - b, "x": a * b}[sum_[2]]
        elif sum_ := re.fullmatch(r"x ([-+]) (\d+) = (\d+)", item.name):
            answer = int(sum_[3]) - int(sum_[2]) * (1 if sum_[1] == "+" else -1)
        elif sum_ := re.fullmatch(r"(\d+) ([-+]) x = (\d+)", item.name):
            answer = (int(sum_[3]) - int(sum_[1])) * (1 if sum_[2] == "+" else -1)
        else:
            continue
        return page.fill(str(answer)) or page.submit()
    return None


def _look_up(page: Page, asked: re.Match[str]) -> str | None:
    cells = list(page.find("cell"))
    for name, value in pairwise(cells):
        if name.name == asked[1]:
            return page.fill(value.name) or page.submit()
    return None


def _search_movie(page: Page, asked: re.Match[str]) -> str | None:
    wanted = dict(zip(("Genre", "Director", "Year"), asked.groups(), strict=True))
    rows = [item.name for item in page.find("rowheader")]
    return page.fill(*(wanted.get(row, "") for row in rows)) or page.submit()


def _focus(page: Page, asked: re.Match[str]) -> str | None:
    boxes = list(page.find("textbox"))[_ORDINALS[asked[1]] :]
    return f"click [{boxes[0].number}]" if boxes else None


def _form(page: Page, asked: re.Match[str]) -> str | None:
    radios = list(page.find("radio"))[_ORDINALS[asked[1]] :]
    if radios and not radios[0].says("checked", "true"):
        return f"click [{radios[0].number}]"
    place = _ORDINALS[asked[3]]
    return page.fill(*("" for _ in range(place)), asked[2], "", "") or page.submit()


_ADVICE: tuple[tuple[re.Pattern[str], Advice], ...] = tuple(
    (re.compile(pattern), advice)
    for pattern, advice in (
        (r'Click on the "(.+)" button\.', _click_named),
        (r'Click on the link "(.+)"\.', _click_named),
        (r"Click on (Tab #\d+)\.", _click_named),
        (r"Click button (\w+), then click button (\w+)\.", _button_sequence),
        (r"Click button (\w+)\.", _click_named),
        (r'Close the dialog box by clicking the "x"\.', _close_dialog),
        (r'Click the button in the dialog box labeled "(.+)"\.', _dialog_button),
        (r"Select (.+) from the list and click Submit\.", _choose),
        (r"Select (.+) and click Submit\.", _select),
        (r"Expand the section below and click submit\.", _expand),
        (r'Enter the password "(.+)" into both text fields and press submit\.', _enter_twice),
        (r'Enter the username "(.+)" and the password "(.+)" into the text fields .*', _enter),
        (r"Enter the value of (.+) into the text field and press Submit\.", _look_up),
        (r'Enter "(.+)" into the text field and press Submit\.', _enter),
        (r"Solve .* type your answer into the textbox\. .*", _calculate),
        (r"Search for (.+) movies directed by (.+) from year (\d+)\.", _search_movie),
        (r"Focus into the (1st|2nd|3rd) input textbox\.", _focus),
        (
            r'Check the (1st|2nd|3rd) radio button and enter the number "(.+)" into the '
            r"(1st|2nd|3rd) textbox\.",
            _form,
        ),
    )
)


class WebPlayer:
    """Keeps the tree up to date from what it reads, and acts on it.

    Args:
        expert: Does what the instruction asks for; else anything, and now and then something that
            is not possible.
        name: What episodes call it.
    """

    def __init__(self, expert: bool, *, name: str) -> None:
        self.name = name
        self._expert = expert
        self._rng = np.random.default_rng(0)
        self._page = Page("", ())
        self._sent: Command | None = None

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Starts an episode."""
        self._rng = np.random.default_rng(seed)
        self._page = Page(scenario.instruction, read_tree(scenario.observation))
        self._sent = None

    def act(self, observation: str, info: Mapping[str, Any]) -> str:
        """Chooses an action. Where an observation is no change, the tree before it still counts."""
        self._update(observation)
        action = self._advice() if self._expert else self._anything()
        self._sent = read_command(action)
        return action

    def overruled(self, action: str) -> None:
        """Notes what was done instead."""
        self._sent = read_command(action)

    def _update(self, observation: str) -> None:
        sent, self._sent = self._sent, None
        if sent is not None and sent.verb == "type" and observation != REJECTION:
            self._page.typed[sent.number] = sent.text
        if sent is not None and sent.verb == "press":
            # Keys edit the field that has the focus.
            for item in self._page.find("textbox"):
                if item.says("focused", "True"):
                    self._page.typed[item.number] = "?"
        after = apply_changes(self._page.tree, observation)
        if after is not None:
            self._page.tree = after

    def _advice(self) -> str:
        for pattern, advice in _ADVICE:
            asked = pattern.fullmatch(self._page.instruction)
            if asked is not None:
                return advice(self._page, asked) or _FALLBACK
        return _FALLBACK

    def _anything(self) -> str:
        draw = self._rng.random()
        tree = self._page.tree
        fields = [item.number for item in tree if item.role == "textbox"]
        if fields and draw < _TYPES:
            words = _WORD.findall(self._page.instruction) or ["word"]
            enter = int(self._rng.integers(2))
            return f"type [{_pick(fields, self._rng)}] [{_pick(words, self._rng)}] [{enter}]"
        if draw > 1 - _PRESSES:
            return f"press [{_pick(('Tab', 'Enter', 'Backspace', 'Escape'), self._rng)}]"
        if draw > 1 - _PRESSES - _STRAYS:
            numbers = [item.number for item in tree] or [0]
            stray = max(numbers) + int(self._rng.integers(1, 9))
            wrong = (f"click [{stray}]", f"type [{_pick(numbers, self._rng)}] [x] [0]")
            return str(_pick(wrong, self._rng))
        clicks = [a for a in admissible("", tree) if a.startswith("click")]
        return str(_pick(clicks, self._rng)) if clicks else _FALLBACK


def _pick(choices: Any, rng: np.random.Generator) -> Any:
    return choices[int(rng.integers(len(choices)))]
