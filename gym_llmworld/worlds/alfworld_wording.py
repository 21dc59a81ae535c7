"""ALFWorld by recall: what is known stands behind each command.

A room's receptacles and what lies in them are a long context, and to answer a command a small
model needs little of it. Here a command is followed by where the agent stands and what it holds,
with an equals sign for what the command names, too. Then follows, as `gym_llmworld.worlds.recall`
does it for rooms of prose, what was last told of the things that it names and the commands that
named them since; and, where the task names such things, the commands about it, the task, and what
they have in common::

    heat mug 2 with microwave 1 | = | =
    - microwave 1 closed: mug 1
    * take mug 2 from desk 1
    = put a hot mug in cabinet. mug

The look-up goes by names, and knows nothing of what a command does: what lies where now is the
model's to say. A list is told by what is otherwise than when it was last told::

    You arrive at desk 1. On the desk 1, you see as before plus mug 1.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gym_llmworld.core import Scenario
from gym_llmworld.worlds.alfworld_belief import REFUSAL, AlfworldBelief, kind_of
from gym_llmworld.worlds.alfworld_text import in_engine_order, listing

# No more digits than any thing has: a model may write a number that Python refuses to read.
_NAME = r"[a-z]+ \d{1,6}"
_NAMES = re.compile(_NAME)
_LIST = re.compile(
    rf"(?P<head>(?:On the (?P<on>{_NAME})|The (?P<within>{_NAME}) is open\. In it), you see )"
    r"(?P<list>[^.]*)\."
)
_SHUT = re.compile(rf"(?:The (?P<shut>{_NAME}) is closed|You close the (?P<closed>{_NAME}))\.")
_AS_BEFORE = re.compile(rf"as before((?: less {_NAME})*)((?: plus {_NAME})*)")
# What these lead to stands in every cue: the place, and what was told there.
_LOOKS = re.compile(r"(?:go|look|examine|inventory|help)\b")
_WORD = re.compile(r"[a-z]+")
_MIDDLE = "room"
_NAMED = "="
_MOST_TURNS = 3


@dataclass(frozen=True)
class _Told:
    """What was last told of a receptacle.

    Attributes:
        things: What lies there; None if nobody has said so.
        since: How many turns had been taken then.
        door: Open or closed; empty where there is none, or nobody has said so.
    """

    things: tuple[str, ...] | None = None
    since: int = 0
    door: str = ""


class AlfworldWording:
    """The wording of one episode.

    Args:
        scenario: Where it starts.
    """

    def __init__(self, scenario: Scenario) -> None:
        self._task = scenario.instruction
        self._wanted = frozenset(_WORD.findall(scenario.instruction))
        self._player = AlfworldBelief()
        self._player.update(scenario.observation)
        self._places = {name: _Told() for name in self._player.places}
        self._turns: list[str] = []
        self._facts: list[str] = []
        self._read_hidden(scenario.hidden)

    def cue(self, action: str) -> str:
        """Returns where the agent is, what it holds, and a line for all that is known."""
        at, held = self._player.location or _MIDDLE, self._player.held
        named = _NAMES.findall(action)
        same = [_NAMED if name in named else name for name in (at, held) if name]
        here = " | ".join(["", *same]) + ("" if held else " |")
        lines = self._known(named or [at], [*named, held] if held else named)
        return "\n".join([here, *lines])

    def write(self, action: str, observation: str) -> str:
        """Returns the observation with its list as what is otherwise; remembers both."""
        told = self._shortened(observation)
        self._player.update(observation)
        if observation.strip() != REFUSAL and not _LOOKS.match(action):
            self._turns.append(action)
        for found in _LIST.finditer(observation):
            door = "open" if found["within"] else ""
            things = tuple(_NAMES.findall(found["list"]))
            self._places[found["on"] or found["within"]] = _Told(things, len(self._turns), door)
        for found in _SHUT.finditer(observation):
            name = found["shut"] or found["closed"]
            before = self._places.get(name, _Told())
            self._places[name] = _Told(before.things, before.since, "closed")
        return told

    def read(self, text: str) -> str:
        """Returns the observation that a text with such a list stands for, other text as it is."""
        return _LIST.sub(self._whole, text)

    def _read_hidden(self, hidden: Mapping[str, Any]) -> None:
        for place in hidden.get("receptacles", ()):
            door = ("open" if place["open"] else "closed") if place["openable"] else ""
            self._places[place["name"]] = _Told(tuple(place["contents"]), 0, door)
        self._facts += [
            "from one place: " + ", ".join(group) for group in hidden.get("together", ())
        ]
        self._facts += [f"{name} is on" for name, on in hidden.get("toggles", {}).items() if on]

    def _known(self, named: Sequence[str], asked: Sequence[str]) -> Iterator[str]:
        """Yields what is known about some names, and what a task has in common with some."""
        kinds = {kind_of(name) for name in named}
        turns = dict[int, str]()
        for place, told in self._places.items():
            things = [
                thing
                for thing in told.things or ()
                if thing in named or (place in named and kind_of(thing) in kinds)
            ]
            if things or place in named:
                door, held = f" {told.door}" if told.door else "", ", ".join(things)
                yield f"- {place}{door}" + (f": {held}" if things else "")
            if place in named:
                turns |= self._turns_that(place.__eq__, told.since)
        for fact in self._facts:
            if not set(named).isdisjoint(_NAMES.findall(fact)):
                yield f"- {fact}"
        for name in named:
            if name not in self._places:
                turns |= self._turns_that(name.__eq__)
        common = [kind for kind in dict.fromkeys(map(kind_of, asked)) if kind in self._wanted]
        if common:
            turns |= self._turns_that(lambda name: kind_of(name) in self._wanted)
        yield from (f"* {turns[i]}" for i in sorted(turns))
        if common:
            yield f"= {self._task} {', '.join(common)}"

    def _turns_that(self, name: Callable[[str], bool], since: int = 0) -> dict[int, str]:
        """Returns the latest commands with a name of some sort, by their number."""
        numbers = range(since, len(self._turns))
        found = [i for i in numbers if any(map(name, _NAMES.findall(self._turns[i])))]
        return {i: self._turns[i] for i in found[-_MOST_TURNS:]}

    def _shortened(self, observation: str) -> str:
        short = _LIST.sub(self._short, observation)
        return short if self.read(short) == observation else observation

    def _short(self, found: re.Match[str]) -> str:
        told = self._places.get(found["on"] or found["within"], _Told())
        if told.things is None:
            return found[0]
        now = _NAMES.findall(found["list"])
        gone = "".join(f" less {name}" for name in told.things if name not in now)
        new = "".join(f" plus {name}" for name in now if name not in told.things)
        return f"{found['head']}as before{gone}{new}."

    def _whole(self, found: re.Match[str]) -> str:
        told = self._places.get(found["on"] or found["within"], _Told())
        change = _AS_BEFORE.fullmatch(found["list"])
        if change is None or told.things is None:
            return found[0]
        gone, new = _NAMES.findall(change[1]), _NAMES.findall(change[2])
        names = {*told.things, *new} - {*gone}
        return f"{found['head']}{listing(in_engine_order(names))}."
