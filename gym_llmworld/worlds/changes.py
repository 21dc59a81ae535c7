"""Descriptions as a small model writes them: what has changed since they were last seen.

What a room shows is a long list of sentences or lines, most of which stood there last time, too. In
chats that are worded here, a description that was given before is its place and what is otherwise::

    In @pantry
    - There is a closed gateway leading south.
    + There is an open gateway leading south.

The hidden context may hold first looks; a place that nobody has described is described in full.
Nothing here knows what an action does: `ChangesWording.read` changes text in the last description.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import SequenceMatcher

from gym_llmworld.core import Scenario
from gym_llmworld.protocol import Placed

_SHORT = re.compile(r"In @(?P<place>[^\n]+)(?P<changes>(?:\n[-+] .*)?)", re.DOTALL)

# Comparing takes the cube of the pieces where all are alike, as a stuttering model writes them.
_MOST = 40_000

Change = tuple[str, str]
"""A text of the last description, and what stands there now; nothing, and a further piece."""


@dataclass(frozen=True)
class Pieces:
    """How a world's descriptions fall into pieces.

    Attributes:
        head: Matches where a description begins; the group that it fills is the place.
        between: Matches what stands between two pieces.
        joint: What stands before a piece that comes to the end of a description.
        tail: Matches where a description ends.
    """

    head: re.Pattern[str]
    between: re.Pattern[str]
    joint: str
    tail: re.Pattern[str] | None = None

    def described(self, text: str) -> str | None:
        """Returns the place that a text describes, in lower case; None if it describes none."""
        head = self.head.search(text)
        return next(filter(None, head.groups())).lower() if head else None

    def cut(self, text: str) -> tuple[str, str, str]:
        """Returns what stands before a description, the description, and what stands behind it."""
        head = self.head.search(text)
        start = head.start() if head else 0
        tail = self.tail.search(text, start) if self.tail else None
        end = tail.start() if tail else len(text)
        return text[:start], text[start:end], text[end:]

    def split(self, description: str) -> list[str]:
        """Returns pieces, and what stands between them, in turn."""
        parts, end = [], 0
        for match in self.between.finditer(description):
            parts += [description[end : match.start()], match[0]]
            end = match.end()
        return [*parts, description[end:]]


class ChangesWording(Placed):
    """The wording of one episode: changed descriptions, and the place behind each action.

    Args:
        scenario: Where it starts.
        place: Reads from an observation where the agent is, None when it does not say.
        pieces: How descriptions fall into pieces.
        known: The descriptions that the context holds.
    """

    def __init__(
        self,
        scenario: Scenario,
        *,
        place: Callable[[str], str | None],
        pieces: Pieces,
        known: Callable[[Scenario], Iterable[str]],
    ) -> None:
        super().__init__(scenario, place=place)
        self._pieces = pieces
        self._known = known(scenario)
        self._last: dict[str, str] | None = None

    def write(self, action: str, observation: str) -> str:
        """Returns what is otherwise in the description; any other text as it is."""
        super().write(action, observation)
        short = self._short(observation)
        known = short is not None and self.read(short) == observation
        self._note(observation)
        return short if short is not None and known else observation

    def read(self, text: str) -> str:
        """Returns the observation that a short form stands for, any other text as it is."""
        tail = self._pieces.tail.search(text) if self._pieces.tail else None
        end = tail.start() if tail else len(text)
        short = _SHORT.fullmatch(text[:end])
        last = self._descriptions().get(short["place"]) if short else None
        if short is None or last is None:
            return text
        for old, new in _parsed(short["changes"]):
            last = self._changed(last, old, new)
            if last is None:
                return text
        return last + text[end:]

    def _short(self, observation: str) -> str | None:
        place = self._pieces.described(observation)
        last = self._descriptions().get(place) if place is not None else None
        before, description, tail = self._pieces.cut(observation)
        if before or last is None:
            return None
        changes = self._changes(last, description)
        if changes is None:
            return None
        return f"In @{place}{''.join(_told(*change) for change in changes)}{tail}"

    def _changes(self, last: str, now: str) -> list[Change] | None:
        """Returns what to exchange in the last description; None if that cannot be said."""
        if last == now:
            return []
        a, b = self._pieces.split(last), self._pieces.split(now)
        if len(a) * len(b) > _MOST:
            return None
        changes: list[Change] = []
        text = last
        before = 0
        separators = "".join({*a[1::2], *b[1::2]})
        for tag, i, i_end, j, j_end in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
            if tag == "equal":
                before = i_end - i
                continue
            wanted = "".join([*b[:j_end], *a[i_end:]])
            # What is gone must be found once, and what is new stands behind something: as many of
            # the pieces before are repeated as that takes, or else the one behind.
            around = [(more, 0) for more in range(before + 1)]
            if a[i_end : i_end + 2] == b[j_end : j_end + 2]:
                around.append((0, 2))
            for left, right in around:
                old = "".join(a[i - left : i_end + right]).strip(separators)
                new = "".join(b[j - left : j_end + right]).strip(separators)
                if self._changed(text, old, new) == wanted:
                    break
            else:
                return None
            changes.append((old, new))
            text, before = wanted, 0
        return changes

    def _changed(self, text: str, old: str, new: str) -> str | None:
        if not old:
            return text + self._pieces.joint + new
        if text.count(old) != 1:
            return None
        start, _, end = text.partition(old)
        return start + new + end if new else start.rstrip() + end

    def _note(self, observation: str) -> None:
        place = self._pieces.described(observation)
        if place is not None:
            self._descriptions()[place] = self._pieces.cut(observation)[1]

    def _descriptions(self) -> dict[str, str]:
        """Returns the last description of each place."""
        if self._last is None:
            self._last = {}
            for text in self._known:
                self._note(text)
        return self._last


def _told(old: str, new: str) -> str:
    return (f"\n- {old}" if old else "") + (f"\n+ {new}" if new else "")


def _parsed(changes: str) -> list[Change]:
    parsed: list[Change] = []
    for line in re.split(r"\n(?=[-+] )", changes)[1:]:
        said = line[2:]
        if line[0] == "-":
            parsed.append((said, ""))
        elif parsed and parsed[-1][0] and not parsed[-1][1]:
            parsed[-1] = (parsed[-1][0], said)
        else:
            parsed.append(("", said))
    return parsed
