"""ALFWorld by recall: what is known stands behind each command.

A room's receptacles and what lies in them are a long context, and to answer a command a small
model needs little of it. Here a command is followed by where the agent stands and what it holds,
with an equals sign for what the command names, too. Then follows, as `gym_llmworld.worlds.recall`
does it for rooms of prose, what was last told of the things that it names, again with an equals
sign where the agent stands, and the commands that named them since; and, where the task names such
things, the task, what they have in common with it, and further commands about nothing else::

    move plate 2 to cabinet 2 | = | =
    - cabinet 2 = open: cup 1
    - countertop 3: plate 2
    * take plate 2 from countertop 3
    = find two plate and put them in cabinet. plate, cabinet
    + move plate 1 to cabinet 1

A question mark says that nobody has told what lies there, or that nobody has told of a thing at
all. The look-up goes by names, and knows nothing of what a command does: what lies where now is the
model's to say. A list is told by what is otherwise than when it was last told::

    You arrive at desk 1. On the desk 1, you see as before plus mug 1.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
_UNKNOWN = "?"
_MOST_TURNS = 4


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


@dataclass(frozen=True)
class _Named:
    """A command or a fact.

    Attributes:
        text: Its words.
        names: The names in it, read once: every cue looks through all of them.
    """

    text: str
    names: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> _Named:
        return cls(text, tuple(_NAMES.findall(text)))


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
        self._turns: list[_Named] = []
        self._facts: list[_Named] = []
        self._read_hidden(scenario.hidden)

    def cue(self, action: str) -> str:
        """Returns where the agent is, what it holds, and a line for all that is known."""
        at, held = self._player.location or _MIDDLE, self._player.held
        named = _NAMES.findall(action)
        same = [_NAMED if name in named else name for name in (at, held) if name]
        here = " | ".join(["", *same]) + ("" if held else " |")
        return "\n".join([here, *self._known(named, at, held)])

    def write(self, action: str, observation: str) -> str:
        """Returns the observation with its list as what is otherwise; remembers both."""
        told = self._shortened(observation)
        self._player.update(observation)
        if observation.strip() != REFUSAL and not _LOOKS.match(action):
            self._turns.append(_Named.of(action))
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
        together = ["from one place: " + ", ".join(group) for group in hidden.get("together", ())]
        lit = [f"{name} is on" for name, on in hidden.get("toggles", {}).items() if on]
        self._facts += map(_Named.of, (*together, *lit))

    def _known(self, named: Sequence[str], at: str, held: str | None) -> Iterator[str]:
        """Yields what is known about what a command names, or else about where the agent is."""
        asked = named or [at]
        touched = [*named, held] if held else named
        common = [kind for kind in dict.fromkeys(map(kind_of, touched)) if kind in self._wanted]
        kinds = self._wanted.union(map(kind_of, touched))
        turns = dict[int, str]()
        for place, told in self._places.items():
            things = [
                thing
                for thing in told.things or ()
                if thing in asked or (place in asked and kind_of(thing) in kinds)
            ]
            if things or place in asked:
                yield f"- {place}{_marks(told, here=place == at)}" + (
                    f": {', '.join(things)}" if things else ""
                )
            if place in asked:
                turns |= self._turns_that(place.__eq__, told.since)
        for fact in self._facts:
            names = set(fact.names)
            # What is reached from one place matters to who stands at another of its places.
            if not names.isdisjoint(asked) and (len(names) == 1 or at in names.difference(named)):
                yield f"- {fact.text}"
        for name in asked:
            if name not in self._places:
                about = self._turns_that(name.__eq__)
                if not about and not self._heard_of(name):
                    yield f"{_UNKNOWN} {name}"
                turns |= about
        yield from (f"* {turns[i]}" for i in sorted(turns))
        if common:
            yield f"= {self._task} {', '.join(common)}"
            others = self._turns_that(lambda name: kind_of(name) in self._wanted, every=True)
            yield from (f"+ {others[i]}" for i in sorted(others) if i not in turns)

    def _heard_of(self, name: str) -> bool:
        lists = [told.things or () for told in self._places.values()]
        told_of = [*lists, *(fact.names for fact in self._facts), (self._player.held, _MIDDLE)]
        return any(name in names for names in told_of)

    def _turns_that(
        self, name: Callable[[str], bool], since: int = 0, *, every: bool = False
    ) -> dict[int, str]:
        """Returns the latest commands with a name of some sort, by their number.

        Args:
            name: Tells of which sort.
            since: Number of the first command to look at.
            every: All of their names have to be of the sort.
        """
        test = all if every else any
        turns = enumerate(self._turns[since:], since)
        found = [(i, turn) for i, turn in turns if turn.names and test(map(name, turn.names))]
        return {i: turn.text for i, turn in found[-_MOST_TURNS:]}

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


def _marks(told: _Told, *, here: bool) -> str:
    """Words whether the agent is there, the door, and that nobody has said what lies there."""
    unknown = _UNKNOWN if told.things is None else ""
    return "".join(f" {mark}" for mark in (_NAMED if here else "", told.door, unknown) if mark)


def without_contents(scenario: Scenario) -> AlfworldWording:
    """Words an episode of a world whose hidden contents nobody has been told."""
    return AlfworldWording(replace(scenario, hidden={}))
