"""Actions with what is known about them: a world model that looks things up and need not remember.

A world of many rooms is a long context, and a small model forgets most of it. In chats that are
worded here, an action is followed by what an episode (and what is hidden of its start) has said of
it so far: the last description of the place that is asked for, or the lines of the place and of
the inventory that have most words in common with each thing that is named, and what came of the
latest actions about it::

    open fridge @kitchen
    - a fridge. The fridge door is closed.
    + a fridge. The fridge door is open. In the fridge is: a wood cup (containing orange juice).
    * activate fridge: The fridge is not something that can be activated.

A number that the same action was told before is told again with the difference: what is measured
runs evenly, and a small model adds badly. ::

    use thermometer in inventory on soap @kitchen
    * use thermometer in inventory on soap: ... a temperature of 38 degrees celsius +10 (1 ago)

What is to be done stands behind an equals sign where it has the action's verb, after the latest
actions that had it. A line with a plus is hidden until something is opened: signs are those of the
answer, which takes lines away and adds others. With a tilde it was known of what has been moved
since. The look-up goes by words (retrieval for language models: Lewis et al., arXiv 2005.11401) and
knows nothing of what an action does: what has become of all that is the model's to say.
Descriptions are told as `gym_llmworld.worlds.changes` words them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

from gym_llmworld.core import Scenario
from gym_llmworld.worlds.changes import ChangesWording, Pieces

_T = TypeVar("_T")
_WORD = re.compile(r"[a-z0-9]+")
_NUMBER = re.compile(r"\d")
# No longer than any that is measured: a model may write a number that Python refuses to read.
_INTEGER = re.compile(r"-?\b\d{1,6}\b")
_DIFFERENCE = re.compile(r"(-?\b\d{1,6}) ([+-]\d{1,6})\b")
_JOINS = re.compile(r"\b(?:to|in|into|on|onto|with|using|from)\b")
_UNTOLD = frozenset(
    _WORD.findall(
        "a an the and at of to in into on onto with using from up down around is are it that which "
        "nothing called substance containing door"
    )
)
# What a stuttering model has said is not repeated in full again and again.
_LONGEST = 4000
_LONGEST_ANSWER = 160
_MOST_LINES = 4
_MOST_TURNS = 2
_MOST_SINCE = 24


@lru_cache(maxsize=8192)
def words_of(text: str) -> frozenset[str]:
    """Returns the words by which things are looked up."""
    return frozenset(_WORD.findall(text.lower())) - _UNTOLD


def arguments(action: str) -> list[frozenset[str]]:
    """Returns the words of each thing that an action names, behind its verb."""
    _, _, named = action.partition(" ")
    return [words for part in _JOINS.split(named) if (words := words_of(part))]


@dataclass(frozen=True)
class _Turn:
    """What came of an action.

    Attributes:
        action: As it was taken.
        place: Where.
        answer: Its first line, and how its numbers have changed.
        when: How many turns had been taken then.
        idle: It cannot have changed anything that a description tells.
        about: The lines that were known about it then.
    """

    action: str
    place: str | None
    answer: str
    when: int
    idle: bool
    about: tuple[str, ...]

    def told(self, here: str | None, now: int | None = None) -> str:
        """Returns the turn in words.

        Args:
            here: Where the agent is; the place is told if it is another.
            now: How many turns have been taken; how long ago a number was read is told, too.
        """
        where = "" if self.place in (here, None) else f" @{self.place}"
        measured = _NUMBER.search(self.answer)
        # That something was done is said by telling it.
        answer = f": {self.answer}" if self.idle or measured else ""
        ago = f" ({now - self.when} ago)" if measured and now is not None else ""
        return f"* {self.action}{where}{answer}{ago}"


@dataclass(frozen=True)
class Lookup:
    """What a world says of itself, for `RecallWording`.

    Attributes:
        place: Reads from an action's answer where the agent is then; None when it does not say.
        pieces: How descriptions fall into lines; the place of the inventory's is ``carried``.
        known: The descriptions that hidden context holds.
        opened: What closed things hold by hidden context, by place: the lines that will describe
            them once they are open.
        asked: What an action asks to be described, given where the agent is; None for other
            actions.
        idle: Tells of an action and its answer whether they cannot have changed anything that a
            description tells.
        void: Tells of an answer whether the action was not understood; nobody will ask for it.
        carried: Name under which the inventory is described.
        goals: What is to be done, one sentence each.
    """

    place: Callable[[str, str], str | None]
    pieces: Pieces
    known: Callable[[Scenario], Iterable[str]]
    opened: Callable[[Scenario], Mapping[str, Sequence[str]]]
    asked: Callable[[str, str | None], str | None]
    idle: Callable[[str, str], bool]
    void: Callable[[str], bool]
    carried: str
    goals: Callable[[Scenario], Iterable[str]]


class RecallWording(ChangesWording):
    """The wording of one episode.

    Args:
        scenario: Where it starts.
        lookup: What its world says of itself.
    """

    def __init__(self, scenario: Scenario, lookup: Lookup) -> None:
        super().__init__(
            scenario,
            place=lambda text: lookup.place("", text),
            pieces=lookup.pieces,
            known=lookup.known,
        )
        self._lookup = lookup
        self._opened = {
            place: tuple(f"+ {line.lstrip()}" for line in lines)
            for place, lines in lookup.opened(scenario).items()
        }
        self._goals = tuple(dict.fromkeys(lookup.goals(scenario)))
        self._turns: list[_Turn] = []
        self._taken = 0
        self._measured: dict[str, str] = {}
        # Of each place: the turns before its last look, and what was otherwise then.
        self._described: dict[str, int] = {}
        self._restless: dict[str, frozenset[str]] = {}

    def cue(self, action: str) -> str:
        """Returns the place, and a line for all that is known about the action."""
        return super().cue(action) + "".join(f"\n{line}" for line in self._recalled(action))

    def write(self, action: str, observation: str) -> str:
        """Returns what is otherwise in a description, other text as it is; remembers both."""
        here, described = self._latest, self._pieces.described(observation)
        before = self._lines(described)
        about = () if described is not None else tuple(self._about(action, each=1))
        told = super().write(action, observation)
        self._taken += 1
        # A look at another room describes it, and leaves the agent where it is.
        self._latest = self._lookup.place(action, observation) or here
        if described is not None:
            self._described[described] = len(self._turns)
            # What is told of for the first time has not changed.
            lines = frozenset(self._lines(described)) if before else frozenset()
            self._restless[described] = lines - frozenset(before)
        elif not self._lookup.void(observation):
            told = self._by_difference(action, observation)
            answer = observation.partition("\n")[0].strip()[:_LONGEST_ANSWER]
            answer += "".join(f" {change}" for _, change in _DIFFERENCE.findall(told))
            idle = self._lookup.idle(action, observation)
            self._turns.append(_Turn(action, here, answer, self._taken, idle, about))
        return told

    def read(self, text: str) -> str:
        """Returns the observation that a text with differences stands for."""
        return super().read(_DIFFERENCE.sub(_sum, text))

    def _by_difference(self, action: str, observation: str) -> str:
        """Returns an answer, each number that the same action got before as that and a difference.

        What is measured again and again runs evenly, and a small model adds badly.
        """
        before = self._measured.get(action, "")
        if len(observation) <= _LONGEST_ANSWER:
            self._measured[action] = observation
        if _INTEGER.split(before) != _INTEGER.split(observation):
            return observation
        numbers = iter(_INTEGER.findall(before))
        names = _INTEGER.findall(action)

        def told(found: re.Match[str]) -> str:
            old = next(numbers)
            if found[0] in names:
                return found[0]
            return f"{old} {int(found[0]) - int(old):+d}"

        short = _INTEGER.sub(told, observation)
        return short if self.read(short) == observation else observation

    def _recalled(self, action: str) -> Iterator[str]:
        place = self._lookup.asked(action, self._latest)
        if place in self._descriptions():
            yield from self._whole(place)
            return
        found = self._about(action, each=_MOST_LINES)
        for wanted in arguments(action):
            turns = best_matches(wanted, self._turns, lambda turn: turn.action)
            found.update(self._told(turns[-_MOST_TURNS:]))
        verb = action.partition(" ")[0]
        if goals := [goal for goal in self._goals if verb in words_of(goal)]:
            # What is to be done in an order has been begun by the same verb.
            turns = [turn for turn in self._turns if turn.action.startswith(f"{verb} ")]
            found.update(self._told(turns[-_MOST_LINES:]))
            found.update(dict.fromkeys(f"= {goal}" for goal in goals[:_MOST_LINES]))
        yield from found

    def _told(self, turns: Sequence[_Turn]) -> dict[str, None]:
        now = self._taken + 1
        return dict.fromkeys(turn.told(self._latest, now) for turn in turns)

    def _about(self, action: str, each: int) -> dict[str, None]:
        """Returns the lines about each thing that an action names, at most so many, in order."""
        lines = [*self._lines(self._latest), *self._lines(self._lookup.carried)]
        lines += self._held_back(self._latest, lines)
        found: dict[str, None] = {}
        for wanted in arguments(action):
            found.update(dict.fromkeys(best_matches(wanted, lines, lambda line: line)[:each]))
        return found

    def _whole(self, place: str) -> Iterator[str]:
        """Yields what was last seen of a place and may be otherwise, and what has happened since.

        All of it at the first look; then what somebody has named, what was otherwise the last time
        and what is told by a number.
        """
        lines = self._lines(place)
        # Doors have two sides: what names a place may have changed it from elsewhere.
        name = words_of(place)
        since = [
            turn
            for turn in self._turns[self._described.get(place, 0) :]
            if not turn.idle
            and (place in (turn.place, self._lookup.carried) or name <= words_of(turn.action))
        ]
        named = frozenset().union(*(words for turn in since for words in arguments(turn.action)))
        if place in self._described and place != self._lookup.carried:
            restless = self._restless[place]
            lines = [
                line
                for line in lines
                if line in restless or _NUMBER.search(line) or words_of(line) & named
            ]
        yield from lines
        for line in self._held_back(place, lines):
            if words_of(line.partition(".")[0]) & named:
                yield line
        shown = {line[2:] for line in lines}
        moved = dict.fromkeys(line[2:] for turn in since[-_MOST_SINCE:] for line in turn.about)
        yield from (f"~ {line}" for line in moved if line not in shown)
        told = [turn.told(place) for turn in since[-_MOST_SINCE:]]
        for i, line in enumerate(told):
            if line not in told[:i]:
                times = told.count(line)
                yield f"{line} ({times} times)" if times > 1 else line

    def _lines(self, place: str | None) -> list[str]:
        """Returns the lines of the last description of a place, without its head."""
        description = self._descriptions().get(place or "", "")
        if len(description) > _LONGEST:
            return []
        return [f"- {line}" for line in self._pieces.split(description)[2::2]]

    def _held_back(self, place: str | None, lines: Sequence[str]) -> list[str]:
        """Returns what closed things of a place hold, those of ``lines`` that still are closed."""
        return [
            opened
            for opened in self._opened.get(place or "", ())
            if any(
                line[1:].startswith(opened[1:].partition(".")[0]) and "closed" in line
                for line in lines
            )
        ]


def best_matches(
    wanted: frozenset[str], items: Sequence[_T], text: Callable[[_T], str]
) -> list[_T]:
    """Returns the items that have most words in common with what is wanted, in their order."""
    shared = [len(wanted & words_of(text(item))) for item in items]
    most = max(shared, default=0)
    return [item for item, n in zip(items, shared, strict=True) if n == most] if most else []


def _sum(found: re.Match[str]) -> str:
    return str(int(found[1]) + int(found[2]))
