"""Descriptions whose pieces carry numbers: a wording that lets a small model copy the right one.

What a room shows is a list of sentences or lines, many of which stand in other rooms, too. A small
model copies by finding the last two tokens earlier in the conversation; behind ``an exit to the
east.`` twenty rooms go on in twenty ways. In chats that are worded here, each piece of a
description begins with its room and a number of its own::

    -= Pantry =-
     @pantry #1 You've entered a pantry. @pantry #2 There is an exit to the east.

The same piece of the same room has the same number all through an episode; the hidden context words
the rooms' first looks so. `NumberedWording.read` takes the numbers out again; nothing in it looks
anything up.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from gym_llmworld.core import Scenario
from gym_llmworld.protocol import Placed

_MARK = r" @[^@#\n]+ #\d+ "


@dataclass(frozen=True)
class Pieces:
    """How a world's descriptions fall into pieces.

    Attributes:
        head: Matches where a description begins; its first group is the place.
        joint: What stands between two pieces; a number takes its place.
        begins: Matches what stands before a piece, the joint or another separator, which stays.
        tail: Matches where a description ends.
    """

    head: re.Pattern[str]
    joint: str
    begins: re.Pattern[str]
    tail: re.Pattern[str] | None = None

    def described(self, text: str) -> str | None:
        """Returns the place that a text describes, in lower case; None if it describes none."""
        head = self.head.search(text)
        return head[1].lower() if head else None

    def number(self, text: str, place: str, numbers: dict[str, int]) -> str:
        """Words a description; pieces that are new in this place are added to ``numbers``."""
        tail = self.tail.search(text) if self.tail else None
        end = tail.start() if tail else len(text)
        head = self.head.search(text)
        first = head.start() if head else 0
        worded, start, mark = "", 0, ""
        for before in [*self.begins.finditer(text, first, end), None]:
            piece = text[start : before.start() if before else end]
            if mark:
                worded += f"{mark}@{place} #{numbers.setdefault(piece, len(numbers) + 1)} "
            worded += piece
            if before is not None:
                separator = before[0]
                mark = " " if separator == self.joint else f"{separator} "
                start = before.end()
        return worded + text[end:]

    def plain(self, text: str) -> str:
        """Takes the numbers out."""
        text = re.sub(rf"(?<=\n){_MARK}", "", text)
        return re.sub(_MARK, lambda _: self.joint, text)


class NumberedWording(Placed):
    """The wording of one episode: numbered descriptions, and the place behind each action.

    Args:
        scenario: Where it starts.
        place: Reads from an observation where the agent is, None when it does not say.
        pieces: How descriptions fall into pieces.
        known: The descriptions that the hidden context holds, place by place.
    """

    def __init__(
        self,
        scenario: Scenario,
        *,
        place: Callable[[str], str | None],
        pieces: Pieces,
        known: Callable[[Scenario], Iterable[tuple[str, str]]],
    ) -> None:
        super().__init__(scenario, place=place)
        self._pieces = pieces
        self._known = known(scenario)
        self._numbers: dict[str, dict[str, int]] | None = None

    def write(self, action: str, observation: str) -> str:
        """Returns the description with numbers, what is none as it is."""
        super().write(action, observation)
        described = self._pieces.described(observation)
        if described is None:
            return observation
        if self._numbers is None:
            self._numbers = {}
            for place, text in self._known:
                self._number(place, text)
        worded = self._number(described, observation)
        return worded if self.read(worded) == observation else observation

    def read(self, text: str) -> str:
        """Returns the text without numbers."""
        return self._pieces.plain(text)

    def _number(self, place: str, text: str) -> str:
        assert self._numbers is not None
        return self._pieces.number(text, place, self._numbers.setdefault(place, {}))


def number_all(pieces: Pieces, known: Iterable[tuple[str, str]]) -> list[str]:
    """Words the descriptions of a hidden context as `NumberedWording` will word them."""
    numbers: dict[str, dict[str, int]] = {}
    return [pieces.number(text, place, numbers.setdefault(place, {})) for place, text in known]
