"""Levels of the grid puzzles: named by a seed, proven solvable, in splits that share no board.

A level is ``<split>/<board>/<seed>``. Splits have ranges of seeds of their own (SPA trains from
10000 upward and validates on 123 to 250), and boards of their own as well: small boards come up
under several seeds, so what a board looks like decides which split may have it.
"""

from __future__ import annotations

import itertools
import os
import random
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from gym_llmworld.core import Scenario
from gym_llmworld.episodes import read_scenarios
from gym_llmworld.errors import ScenarioError
from gym_llmworld.real.scenario_drafts import (
    SCENARIOS_FILE,
    Progress,
    in_random_order,
    read_made_scenarios,
    write_made_scenarios,
)
from gym_llmworld.scenarios import SHIPPED_FILE, ScenarioStore, data_folder, read_scenario
from gym_llmworld.worlds.grids import Board, Puzzle
from gym_llmworld.worlds.grids_agents import turns_of

GENERATOR = 1

SEEDS = {"train": range(10_000, 1_000_000), "valid": range(1_000), "test": range(1_000, 10_000)}
# Of ten boards, one is for validation, one for the test.
_SHARES = {0: "valid", 1: "test"}
_MAX_DRAWS = 100_000


@dataclass(frozen=True, eq=False)
class Levels:
    """How levels of a puzzle come about.

    Attributes:
        puzzle: Which.
        boards: Name of a kind of board -> draws one, which need not be solvable. SPA's comes first.
        plan: Returns actions that solve a board within the limits; None when nothing does. Raises a
            `ScenarioError` for what is no board of this puzzle.
        instruct: Words the task, given the facts.
        actions: Returns what can be done on a first board.
        facts: Name of a kind of board -> what boards do not show, as in ``Scenario.hidden``.
    """

    puzzle: Puzzle
    boards: Mapping[str, Callable[[np.random.Generator], Board]]
    plan: Callable[[Board], Sequence[str] | None]
    instruct: Callable[[Mapping[str, Any]], str]
    actions: Callable[[Board], Sequence[str]]
    facts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def usual(self) -> str:
        """The kind of board that SPA plays on."""
        return next(iter(self.boards))

    def check_board(self, board: str) -> None:
        """Checks the name of a kind of board.

        Raises:
            ScenarioError: There is no such kind.
        """
        if board not in self.boards:
            raise ScenarioError(
                f"{self.puzzle.key} has no board {board!r}; expected one of "
                f"{', '.join(self.boards)}"
            )

    def solved(self, board: Board) -> Sequence[str]:
        """Returns actions that solve a board.

        Raises:
            ScenarioError: There are none, or it is no board.
        """
        if not self.puzzle.is_board(board):
            raise ScenarioError(
                f"no {self.puzzle.key} board: {board!r:.200}; expected rows of equal length, made "
                f"of {self.puzzle.symbols!r}"
            )
        plan = self.plan(board)
        if plan is None:
            raise ScenarioError(
                f"this {self.puzzle.key} board cannot be solved: {board!r:.200}; expected a "
                f"solution of at most {self.puzzle.max_actions} actions"
            )
        return plan


@dataclass(frozen=True, slots=True)
class LevelSpec:
    """A level by its name.

    Attributes:
        split: Of `SEEDS`.
        board: Kind of board.
        seed: One of the split's.
    """

    split: str
    board: str
    seed: int

    @property
    def id(self) -> str:
        """Of the scenario."""
        return f"{self.split}/{self.board}/{self.seed}"

    @classmethod
    def parse(cls, text: str) -> LevelSpec | None:
        """Reads an id; None when it is none."""
        split, _, rest = text.partition("/")
        board, _, seed = rest.partition("/")
        if not (seed.isascii() and seed.isdecimal()):
            return None
        spec = cls(split, board, int(seed))
        return spec if spec.seed in SEEDS.get(split, ()) else None


def check_split(split: str) -> None:
    """Checks the name of a split.

    Raises:
        ScenarioError: There is no such split.
    """
    if split not in SEEDS:
        raise ScenarioError(f"unknown split {split!r}; expected one of {', '.join(SEEDS)}")


def split_of(board: Board) -> str:
    """Returns the only split that may have this board."""
    return _SHARES.get(zlib.crc32("\n".join(board).encode()) % 10, "train")


@lru_cache(maxsize=4096)
def make_level(levels: Levels, spec: LevelSpec) -> Scenario:
    """Draws boards until one can be solved and is one of the split's.

    Raises:
        ScenarioError: There is no such kind of board.
    """
    levels.check_board(spec.board)
    rng = np.random.default_rng([GENERATOR, zlib.crc32(spec.board.encode()), spec.seed])
    for _ in range(_MAX_DRAWS):
        board = levels.boards[spec.board](rng)
        plan = levels.plan(board) if split_of(board) == spec.split else None
        if plan is not None:
            return _scenario(levels, spec, board, plan)
    raise ScenarioError(f"no board can be solved in {_MAX_DRAWS} drawn for level {spec.id!r}")


def _scenario(levels: Levels, spec: LevelSpec, board: Board, plan: Sequence[str]) -> Scenario:
    puzzle, facts = levels.puzzle, levels.facts.get(spec.board, {})
    state = puzzle.state(board, puzzle.groups(board))
    return Scenario(
        id=spec.id,
        world=puzzle.key,
        split=spec.split,
        instruction=levels.instruct(facts),
        observation=puzzle.observation(state, puzzle.max_actions),
        admissible=tuple(levels.actions(board)),
        hidden=dict(facts),
        real={
            **facts,
            "level": list(board),
            "board": spec.board,
            "seed": spec.seed,
            "generator": GENERATOR,
            "plan": turns_of(plan),
        },
    )


class LevelSource:
    """Where an environment takes its levels from: listed, or made on demand.

    Args:
        levels: Of which puzzle.
        games: A folder made by `write_levels` or a ``scenarios.jsonl``. None for the levels that
            ship with the package; any other can be named by its id.
        board: Kind of board to draw; None for what is listed.

    Raises:
        ScenarioError: There is nothing at ``games``, no such kind of board, or both are given.
    """

    def __init__(self, levels: Levels, games: str | None, board: str | None) -> None:
        if games is not None and board is not None:
            raise ScenarioError(
                f"games={games!r} says which boards are played; leave out board={board!r}"
            )
        if board is not None:
            levels.check_board(board)
        key = levels.puzzle.key
        self._levels, self._board, self._listed_only = levels, board, games is not None
        listed = games is not None or (data_folder(key) / SHIPPED_FILE).is_file()
        self._store = ScenarioStore(key, games) if listed else None

    def __deepcopy__(self, memo: dict[int, Any]) -> LevelSource:
        """Returns itself: nothing in it changes."""
        return self

    def draw(self, split: str, rng: np.random.Generator) -> Scenario:
        """Returns a level of a split, each as likely as the other.

        Raises:
            ScenarioError: There is no such split.
        """
        check_split(split)
        if self._store is not None and self._board is None:
            return self._store.draw(split, rng)
        seeds = SEEDS[split]
        seed = seeds[int(rng.integers(len(seeds)))]
        return make_level(self._levels, LevelSpec(split, self._board or self._levels.usual, seed))

    def get(self, scenario: str | Mapping[str, Any] | Scenario) -> Scenario:
        """Returns a level by id, or reads the dict that `Scenario.to_json` writes.

        Raises:
            ScenarioError: There is no such level, or it is one of another world.
        """
        key = self._levels.puzzle.key
        if not isinstance(scenario, str):
            return read_scenario(scenario, key)
        if self._listed_only:
            assert self._store is not None
            return self._store.get(scenario)
        spec = LevelSpec.parse(scenario)
        if spec is not None:
            return make_level(self._levels, spec)
        raise ScenarioError(
            f"unknown scenario {scenario!r}; expected <split>/<board>/<seed>, for example "
            f"test/{self._levels.usual}/{SEEDS['test'][0]}, with seeds "
            + ", ".join(f"{s[0]} to {s[-1]} for {name}" for name, s in SEEDS.items())
        )


def write_levels(
    levels: Levels,
    out_dir: str | os.PathLike[str],
    split: str,
    n: int,
    seed: int = 0,
    *,
    boards: Sequence[str] = (),
    workers: int = 1,
    progress: Progress | None = None,
) -> Path:
    """Makes levels and writes the scenarios that start them.

    Args:
        levels: Of which puzzle.
        out_dir: Created if missing; an interrupted call goes on where it was.
        split: ``train``, ``valid`` or ``test``: they share no board.
        n: How many.
        seed: Of the draw.
        boards: Kinds of boards, in turn; empty for SPA's alone.
        workers: Processes.
        progress: Called with how many are done and ``n``.

    Returns:
        The path of ``<out_dir>/<split>/scenarios.jsonl``.

    Raises:
        ScenarioError: There is no such split or kind of board, the split has fewer levels, or other
            kinds of boards are there already.
    """
    check_split(split)
    kinds = tuple(boards) or (levels.usual,)
    for kind in kinds:
        levels.check_board(kind)
    if n > len(SEEDS[split]):
        raise ScenarioError(
            f"split {split!r} has {len(SEEDS[split])} levels; expected n <= that, got {n}"
        )
    file = Path(out_dir) / split / SCENARIOS_FILE
    if file.is_file():
        there = {str(scenario.real.get("board")) for scenario in read_scenarios(file)}
        if not there <= {*kinds}:
            raise ScenarioError(
                f"{file} holds boards {', '.join(sorted(there))}; expected no others than "
                f"{', '.join(kinds)}: pass another folder, or --boards {','.join(sorted(there))}"
            )
    return write_made_scenarios(
        file,
        _specs(split, kinds, random.Random(f"{split}/{seed}")),
        n,
        make=partial(make_level, levels),
        name=attrgetter("id"),
        generator=GENERATOR,
        workers=workers,
        progress=progress,
    )


def _specs(split: str, boards: Sequence[str], rng: random.Random) -> Iterator[LevelSpec]:
    """Yields levels of a split, each seed once, in random order; kinds of boards take turns."""
    seeds = in_random_order(SEEDS[split], rng)
    return (LevelSpec(split, *pair) for pair in zip(itertools.cycle(boards), seeds, strict=False))


def load_levels(games: str | os.PathLike[str], split: str) -> list[Scenario]:
    """Reads the scenarios of a split from a folder made by `write_levels`.

    Raises:
        ScenarioError: There is no such folder or split.
    """
    check_split(split)
    return read_made_scenarios(games, split)
