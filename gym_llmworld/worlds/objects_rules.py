"""What the object games share: things, what an agent can do with them, and time.

A turn is an action, then the passing of time (a *tick*), then the score, as in
ByteSized32-State-Prediction (arXiv 2406.06485). A board is all of a game's state: whoever reads it
as text can go on playing.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gym_llmworld.objectstate import ObjectState

Thing = dict[str, Any]
"""``{"name", "uuid", "type", "properties", "contains"}``; a name ends with the uuid."""

_NAME = r"(.+ \(ID: \d+\))"
# A model may imagine any number of things; no game has half as many.
_MOST_THINGS = 20


def thing(label: str, kind: str, contains: Sequence[Thing] = (), **properties: Any) -> Thing:
    """Returns a thing that has no uuid yet; see `numbered`."""
    return {"name": label, "type": kind, "properties": properties, "contains": list(contains)}


def numbered(things: Sequence[Thing], rng: np.random.Generator) -> list[Thing]:
    """Gives things uuids in a random order, the first one (the agent) 0, and names that end so."""
    uuids = [0, *(1 + rng.permutation(len(things) - 1)).tolist()]
    for one, uuid in zip(things, uuids, strict=True):
        one["uuid"], one["name"] = uuid, f"{one['name']} (ID: {uuid})"
    for one in things:
        one["contains"] = [inner["name"] for inner in one["contains"]]
    keys = ("name", "uuid", "type", "properties", "contains")
    return sorted(({key: one[key] for key in keys} for one in things), key=lambda t: t["uuid"])


@dataclass
class Board:
    """Where a game stands.

    Attributes:
        things: uuid -> thing.
        points: Score.
        won: The task is solved.
        lost: It can no longer be solved.
    """

    things: dict[int, Thing]
    points: int = 0
    won: bool = False
    lost: bool = False

    @classmethod
    def of(cls, state: ObjectState) -> Board:
        """Returns the board that a state shows."""
        over, won = state.score.get("gameOver"), state.score.get("gameWon")
        things = {uuid: copy.deepcopy(dict(one)) for uuid, one in state.objects.items()}
        points = state.score.get("score")
        known = points if isinstance(points, int) else 0
        return cls(things, known, won is True, over is True and won is not True)

    @property
    def state(self) -> ObjectState:
        """What the board shows."""
        score = {"score": self.points, "gameOver": self.won or self.lost, "gameWon": self.won}
        return ObjectState({uuid: copy.deepcopy(t) for uuid, t in self.things.items()}, score)

    def one(self, kind: str) -> Thing | None:
        """Returns the first thing of a type; None without one."""
        return next(iter(self.all(kind)), None)

    def all(self, kind: str) -> list[Thing]:
        """Returns the things of a type."""
        return [one for one in self.things.values() if one["type"] == kind]

    def named(self, name: str) -> Thing | None:
        """Returns the thing of this name; None without one."""
        return next((one for one in self.things.values() if one["name"] == name), None)

    def holder(self, one: Thing) -> Thing | None:
        """Returns what a thing is in; None for one that stands in the room."""
        return next((t for t in self.things.values() if one["name"] in t["contains"]), None)

    def is_in(self, one: Thing, kind: str) -> bool:
        """Returns whether a thing is in a thing of this type."""
        holder = self.holder(one)
        return holder is not None and holder["type"] == kind

    def inside(self, one: Thing, kind: str) -> Thing | None:
        """Returns the first thing of a type that another one holds."""
        return next((t for t in self.all(kind) if t["name"] in one["contains"]), None)

    def move(self, one: Thing, to: Thing | None) -> None:
        """Puts a thing into another one, or into the room."""
        holder = self.holder(one)
        if holder is not None:
            holder["contains"].remove(one["name"])
        if to is not None:
            to["contains"].append(one["name"])

    def remove(self, one: Thing) -> None:
        """Takes a thing out of the game."""
        self.move(one, None)
        del self.things[one["uuid"]]

    def add(self, label: str, kind: str, to: Thing | None, **properties: Any) -> Thing:
        """Brings a new thing into the game; its uuid follows the greatest one."""
        uuid = max(self.things) + 1
        made = {
            "name": f"{label} (ID: {uuid})",
            "uuid": uuid,
            "type": kind,
            "properties": properties,
            "contains": [],
        }
        self.things[uuid] = made
        self.move(made, to)
        return made


@dataclass(frozen=True)
class Verb:
    """Something that an agent can do.

    Attributes:
        words: With ``{}`` for each thing that it is done with, such as ``"put {} in {}"``.
        allowed: Whether it has an effect on these things.
        do: The effect.
    """

    words: str
    allowed: Callable[..., bool]
    do: Callable[..., None]

    @property
    def arity(self) -> int:
        """Number of things it is done with."""
        return self.words.count("{}")

    def read(self, action: str) -> tuple[str, ...] | None:
        """Returns the names of the things in an action; None if it is another one."""
        pattern = re.escape(self.words).replace(r"\{\}", _NAME)
        found = re.fullmatch(pattern, action)
        return found.groups() if found else None


def _held(board: Board, one: Thing) -> bool:
    return board.is_in(one, "Agent")


def _reachable(board: Board, one: Thing) -> bool:
    holder = board.holder(one)
    return holder is None or holder["properties"].get("isOpen", True) is True


def _can_take(board: Board, one: Thing) -> bool:
    movable = one["properties"].get("isMoveable") is True
    return movable and not _held(board, one) and _reachable(board, one)


def _can_put(board: Board, one: Thing, to: Thing) -> bool:
    fits = to["properties"].get("isContainer") is True
    return _held(board, one) and fits and to["properties"].get("isOpen", True) is True


def _take(board: Board, one: Thing) -> None:
    board.move(one, board.one("Agent"))


def _is(name: str, value: bool) -> Callable[[Board, Thing], bool]:
    return lambda board, one: one["properties"].get(name) is value


def _make(name: str, value: bool) -> Callable[[Board, Thing], None]:
    def change(board: Board, one: Thing) -> None:
        one["properties"][name] = value

    return change


WAIT = "wait"
COMMON = (
    Verb(WAIT, lambda board: True, lambda board: None),
    Verb("take {}", _can_take, _take),
    Verb("put {} in {}", _can_put, lambda board, one, to: board.move(one, to)),
    Verb("open {}", _is("isOpen", False), _make("isOpen", True)),
    Verb("close {}", _is("isOpen", True), _make("isOpen", False)),
    Verb("turn on {}", _is("isOn", False), _make("isOn", True)),
    Verb("turn off {}", _is("isOn", True), _make("isOn", False)),
)


@dataclass(frozen=True)
class Game:
    """The rules of a game.

    Attributes:
        key: Name.
        task: What the agent is asked to do.
        rules: How things behave, in words, for models that do not know the game.
        max_points: Score of a solved game.
        build: Draws the things of a game; the agent first.
        tick: Lets time pass.
        judge: Returns the score, whether the task is solved, and whether it no longer can be.
        advise: Returns a good action; see `gym_llmworld.worlds.objects`.
        verbs: What can be done beyond `COMMON`.
    """

    key: str
    task: str
    rules: str
    max_points: int
    build: Callable[[np.random.Generator], list[Thing]]
    tick: Callable[[Board], None]
    judge: Callable[[Board], tuple[int, bool, bool]]
    advise: Callable[[Board], str]
    verbs: tuple[Verb, ...] = field(default=())

    def start(self, rng: np.random.Generator) -> Board:
        """Draws a game."""
        board = Board({t["uuid"]: t for t in numbered(self.build(rng), rng)})
        board.points, board.won, board.lost = self.judge(board)
        return board

    def act(self, board: Board, action: str) -> bool:
        """Carries out an action, and lets time pass; an action without effect takes time as well.

        Returns:
            False for what is no action of this game: nothing happens then, not even time.
        """
        for verb in (*COMMON, *self.verbs):
            names = verb.read(action)
            things = None if names is None else [board.named(name) for name in names]
            if things is None or None in things:
                continue
            if verb.allowed(board, *things):
                verb.do(board, *things)
            self.tick(board)
            board.points, board.won, board.lost = self.judge(board)
            return True
        return False

    def actions(self, board: Board) -> list[str]:
        """Lists the actions that have an effect now."""
        return [action for action, allowed in self._all(board) if allowed]

    def vain_actions(self, board: Board) -> list[str]:
        """Lists the actions that this game knows and that have no effect now."""
        return [action for action, allowed in self._all(board) if not allowed]

    def _all(self, board: Board) -> Iterator[tuple[str, bool]]:
        for verb in (*COMMON, *self.verbs):
            things = itertools.islice(board.things.values(), _MOST_THINGS)
            for some in itertools.permutations(things, verb.arity):
                names = [one["name"] for one in some]
                yield verb.words.format(*names), verb.allowed(board, *some)


def agent(*contains: Thing) -> Thing:
    """Returns the agent; what it contains is in its hands."""
    return thing("agent", "Agent", contains)


def pick(rng: np.random.Generator, *options: Any) -> Any:
    """Draws one of some values."""
    return options[int(rng.integers(len(options)))]


def extras(rng: np.random.Generator, *labels: str) -> list[Thing]:
    """Draws up to two things that have nothing to do with the task."""
    chosen = rng.permutation(list(labels))[: int(rng.integers(3))]
    return [thing(str(label), "Item", isMoveable=True) for label in chosen]


def present(board: Board, kind: str) -> Thing:
    """Returns the thing of a type that a game always has; an empty one on a board that lost it."""
    return board.one(kind) or {**thing("nothing", kind), "uuid": -1}


def number(one: Thing, name: str) -> int:
    """Returns a property that is a number; 0 if it is none."""
    value = one["properties"].get(name)
    return value if isinstance(value, int) else 0


def bring(board: Board, one: Thing, to: Thing) -> str:
    """Returns the next action that brings a thing into another one."""
    if board.is_in(one, "Agent"):
        if to["properties"].get("isOpen") is False:
            return f"open {to['name']}"
        return f"put {one['name']} in {to['name']}"
    holder = board.holder(one)
    if holder is not None and holder["properties"].get("isOpen") is False:
        return f"open {holder['name']}"
    return f"take {one['name']}"
