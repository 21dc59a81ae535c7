"""TextWorld without a map: what an episode has shown so far stands behind each command.

As `gym_llmworld.worlds.recall`, whose look-up by words this is, with what TextWorld's player could
have drawn and noted: where ways led (and that they lead back), the sentences of the quest and of
the recipe that name a thing, and the points so far::

    go south @hall
    - @kitchen
    - On the table you can see a note.
    * take note from table @kitchen

A question mark stands before a direction in which nobody has gone: what is there, no one can know.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from gym_llmworld.core import Scenario
from gym_llmworld.worlds.changes import Pieces
from gym_llmworld.worlds.recall import Lookup, RecallWording, arguments, best_matches, words_of
from gym_llmworld.worlds.textworld_text import DONE, GO, TAIL, place_of, points_in

_CARRIED = "carrying"
_BACK = {"north": "south", "south": "north", "east": "west", "west": "east"}
_VOID = re.compile(r"You can't see any|I only understood|That's not a verb|What do you want|You'll")
_DIRECTIONS = "Directions:"
_SENTENCE_END = re.compile(r"(?<=[.!?:]) +")
_MOST_SENTENCES = 4

SENTENCES = Pieces(
    head=re.compile(rf"^-= (.+) =-$|\AYou are ({_CARRIED})\b", re.MULTILINE),
    between=re.compile(r"(?<=[.!?]) (?=\S)|\n+"),
    joint="\n\n",
    tail=re.compile(TAIL),
)


def _first_observation(scenario: Scenario) -> tuple[str]:
    return (scenario.observation,)


def _asked(action: str, here: str | None) -> str | None:
    if action in ("look", "l"):
        return here
    return _CARRIED if action in ("inventory", "i", "take inventory") else None


def _to_do(scenario: Scenario) -> list[str]:
    return [line for line in _SENTENCE_END.split(scenario.instruction) if line.strip()]


_LOOKUP = Lookup(
    place=lambda action, text: place_of(text),
    pieces=SENTENCES,
    known=_first_observation,
    opened=lambda scenario: {},
    asked=_asked,
    idle=lambda action, observation: DONE.match(observation) is None,
    void=lambda observation: _VOID.match(observation) is not None,
    carried=_CARRIED,
    goals=lambda scenario: (),
)


class WalkedWording(RecallWording):
    """The wording of one episode.

    Args:
        scenario: Where it starts; its hidden context is not read.
    """

    def __init__(self, scenario: Scenario) -> None:
        super().__init__(scenario, _LOOKUP)
        self._ways: dict[tuple[str, str], str] = {}
        self._to_do = _to_do(scenario)
        self._points = 0

    def write(self, action: str, observation: str) -> str:
        """Returns what is otherwise in a description, other text as it is; remembers both."""
        before = self._latest
        told = super().write(action, observation)
        way, there = GO.fullmatch(action), self._latest
        if way is not None and before and there and before != there:
            self._ways[before, way[1]] = there
            self._ways[there, _BACK[way[1]]] = before
        self._points += points_in(observation)
        if _DIRECTIONS in observation:
            recipe = observation.partition(_DIRECTIONS)[2].splitlines()
            self._to_do += [s for line in recipe if (s := line.strip()) and s not in self._to_do]
        return told

    def _recalled(self, action: str) -> Iterator[str]:
        way = GO.fullmatch(action)
        if way is None:
            yield from super()._recalled(action)
            yield from self._counting(arguments(action) or [words_of(action)])
            return
        there = self._ways.get((self._latest or "", way[1]))
        yield f"? {way[1]}" if there is None else f"- @{there}"
        doors = [line for line in self._lines(self._latest) if way[1] in words_of(line)]
        yield from doors
        about_door = [
            turn
            for turn in self._turns
            if not turn.idle
            and any(
                named <= words_of(line) for named in arguments(turn.action)[:1] for line in doors
            )
        ]
        yield from self._told(about_door[-1:])
        if there is not None:
            yield from self._whole(there)
        yield from self._counting([frozenset({way[1]})] if there is None else [words_of(there)])

    def _counting(self, wanted: Iterable[frozenset[str]]) -> Iterator[str]:
        """Yields the sentences of quest and recipe that name a thing, and the points so far."""
        for words in wanted:
            found = best_matches(words, self._to_do, lambda line: line)
            yield from (f"= {line}" for line in found[:_MOST_SENTENCES])
        yield f"= {self._points} so far"
