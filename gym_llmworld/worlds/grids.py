"""What SPA's grid puzzles share: boards as text, their coordinates, several actions a turn.

A state is a board and, as *state estimate*, one line with the coordinates of what stands on it
(SPA, arXiv 2510.15047, section 2.1 and appendix A). An observation is a state and how many actions
are left. A turn is up to five actions, joined by ``" || "``.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from gym_llmworld.core import Scenario

Board = tuple[str, ...]
"""Rows from the top, one character a cell."""

Cell = tuple[int, int]
"""Row and column, from 0."""

MAX_TURNS = 5
MAX_ACTIONS_PER_TURN = 5
SEPARATOR = " || "
REJECTION = "Invalid action."

_LEFT = re.compile(r"^You have (\d+) actions left\.$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Group:
    """Cells of one kind.

    Attributes:
        one: What stands before the coordinates of a single cell.
        many: What stands before those of several.
        cells: Where they are; in the order of the board.
    """

    one: str
    many: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Turn:
    """What an agent's text asks for.

    Attributes:
        actions: Those that can be read, in order and in canonical form.
        well_formed: Every action could be read, and there were not too many.
    """

    actions: tuple[str, ...]
    well_formed: bool


@dataclass(frozen=True)
class Puzzle:
    """How a puzzle reads as text.

    Attributes:
        key: Of the world.
        symbols: What cells can look like.
        max_actions: Of an episode.
        read_action: Returns one action in canonical form; None when it is none.
        groups: What stands on a board, in the order of the state estimate.
        origin: Number of the first row and column in text.
        one_line: The rows of the board stand side by side, as SPA prints Sudoku.
        joint: Between the last two coordinates of a list.
        nothing: The state estimate when there is nothing on the board.
    """

    key: str
    symbols: str
    max_actions: int
    read_action: Callable[[str], str | None]
    groups: Callable[[Board], Sequence[Group]]
    origin: int = 0
    one_line: bool = False
    joint: str = " and "
    nothing: str = ""

    def read_turn(self, text: str) -> Turn:
        """Reads a turn; what is no action is left out, and so is what exceeds five."""
        parts = text.split(SEPARATOR.strip())
        read = [self.read_action(part.strip()) for part in parts[:MAX_ACTIONS_PER_TURN]]
        actions = tuple(action for action in read if action is not None)
        return Turn(actions, len(actions) == len(parts))

    def canonical(self, text: str) -> str | None:
        """Returns what is carried out of a turn; None without an action, when nothing changes."""
        return SEPARATOR.join(self.read_turn(text).actions) or None

    def state(self, board: Board, groups: Sequence[Group] | None) -> str:
        """Words a state: the board and, with ``groups``, their coordinates."""
        drawn = self.draw(board)
        return drawn if groups is None else f"{drawn}\n{self.estimate(groups)}"

    def observation(self, state: str, left: int) -> str:
        """Words what an agent sees: a state, and how many actions are left."""
        return f"{state}\nYou have {left} actions left."

    def draw(self, board: Board) -> str:
        """Draws a board."""
        if self.one_line:
            return "| " + " | ".join(" ".join(row) for row in board)
        return "\n".join(board)

    def read_board(self, observation: str) -> Board | None:
        """Returns the board that an observation or a state begins with; None without one."""
        first, *rest = observation.split("\n")
        if self.one_line:
            rows = [row.replace(" ", "") for row in first.split("|")[1:]]
        else:
            rows = list(itertools.takewhile(self._is_row, (first, *rest)))
        return tuple(rows) if self.is_board(rows) else None

    def is_board(self, rows: Sequence[str]) -> bool:
        """Returns whether rows have equal lengths and known symbols."""
        return bool(rows) and all(self._is_row(row) for row in rows) and len({*map(len, rows)}) == 1

    def _is_row(self, row: str) -> bool:
        return bool(row) and set(row) <= set(self.symbols)

    def estimate(self, groups: Sequence[Group]) -> str:
        """Words coordinates as SPA does, for example ``Player at (3,2); goal at (2,0).``."""
        said = [self._said(group) for group in groups if group.cells]
        return "; ".join(said) + "." if said else self.nothing

    def _said(self, group: Group) -> str:
        *most, last = (f"({r + self.origin},{c + self.origin})" for r, c in group.cells)
        places = ", ".join(most) + self.joint + last if most else last
        return f"{group.many if most else group.one} {places}"

    def scattered(self, board: Board, rng: np.random.Generator) -> list[Group]:
        """Returns the groups of a board, each cell somewhere else: coordinates that mean nothing.

        The ablation of SPA, figure 5. No two things of a kind stand on one cell.
        """
        columns = len(board[0])

        def drawn(count: int) -> tuple[Cell, ...]:
            places = rng.choice(len(board) * columns, count, replace=False)
            return tuple((p // columns, p % columns) for p in sorted(places.tolist()))

        return [Group(g.one, g.many, drawn(len(g.cells))) for g in self.groups(board)]


def cells_of(board: Board, symbols: str) -> tuple[Cell, ...]:
    """Returns where a board shows any of these symbols, row by row."""
    return tuple(
        (r, c) for r, row in enumerate(board) for c, symbol in enumerate(row) if symbol in symbols
    )


def moves(names: Sequence[str]) -> Callable[[str], str | None]:
    """Returns a reader of named moves, in any case; it can be pickled."""
    return partial(_named, {name.lower(): name for name in names})


def _named(known: Mapping[str, str], text: str) -> str | None:
    return known.get(text.lower())


def actions_left(observation: str) -> int | None:
    """Returns how many actions an observation says are left; None when it does not say."""
    found = _LEFT.search(observation)
    return int(found[1]) if found else None


def is_exhausted(observation: str) -> bool:
    """Returns whether no action is left, which ends an episode."""
    return actions_left(observation) == 0


def told_context(scenario: Scenario) -> str:
    """Words a scenario for models that know nothing of these worlds: task, rules, what is seen."""
    return f"{scenario.instruction}\n\n{scenario.observation}"


def engine_context(scenario: Scenario) -> str:
    """Words a scenario for models trained on these worlds: the first observation.

    Nothing is hidden in these worlds; but ice is slippery or not, and does not look it.
    """
    if "slippery" not in scenario.hidden:
        return scenario.observation
    ice = "Slippery" if scenario.hidden["slippery"] else "Firm"
    return f"{ice} ice.\n{scenario.observation}"


CONTEXTS: Mapping[str, Callable[[Scenario], str]] = {
    "engine": engine_context,
    "word2world": told_context,
}
"""Prompt styles of all grid puzzles.

No published checkpoint knows these worlds. ``word2world`` is what the package takes for a model
that does not say its style, such as one behind a server, so this one is told the rules.
"""
