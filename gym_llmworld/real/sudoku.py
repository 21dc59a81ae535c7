"""Sudoku as a Gymnasium environment of text: an engine and a generator of our own."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any

import numpy as np

from gym_llmworld.core import Scenario
from gym_llmworld.errors import ScenarioError
from gym_llmworld.real.grids_env import Engine, GridEnv
from gym_llmworld.real.grids_levels import Levels, load_levels, write_levels
from gym_llmworld.worlds.grids import Board, Cell, cells_of
from gym_llmworld.worlds.sudoku import (
    EMPTY,
    PUZZLE,
    digits,
    filled,
    is_consistent,
    is_square,
    peers,
    placement,
    solutions,
)


def draw_board(size: int, blanks: int, rng: np.random.Generator) -> Board:
    """Draws a solved board, and empties cells of it; whether it has one solution is open."""
    board = _solved_board(size, rng)
    for place in rng.choice(size * size, blanks, replace=False):
        board = filled(board, divmod(int(place), size), EMPTY)
    return board


def _solved_board(size: int, rng: np.random.Generator) -> Board:
    """Fills cell by cell, with the digits in a random order at each, going back where stuck."""
    board: Board = (EMPTY * size,) * size
    cells: list[Cell] = [divmod(place, size) for place in range(size * size)]
    orders = [rng.permutation(list(digits(board))) for _ in cells]

    def fill(board: Board, at: int) -> Board | None:
        if at == len(cells):
            return board
        used = set(peers(board, cells[at]))
        options = (digit for digit in orders[at] if digit not in used)
        tried = (fill(filled(board, cells[at], digit), at + 1) for digit in options)
        return next((done for done in tried if done), None)

    solved = fill(board, 0)
    assert solved is not None, "an empty board has solutions"
    return solved


@lru_cache(maxsize=4096)
def plan(board: Board) -> tuple[str, ...] | None:
    """Returns moves that fill in the solution; None when there is none, or more than one.

    Raises:
        ScenarioError: It is no board of Sudoku, nothing is empty, or digits contradict each other.
    """
    empty = cells_of(board, EMPTY)
    if not is_square(board) or not empty or not is_consistent(board):
        raise ScenarioError(
            f"this Sudoku board cannot be started: {board!r:.200}; expected 4 rows of 4 or 9 of 9, "
            "an empty cell ('.'), and no digit twice in a row, column or box"
        )
    found = list(itertools.islice(solutions(board), 2))
    if len(found) != 1:
        return None
    return tuple(f"{r + 1},{c + 1},{found[0][r][c]}" for r, c in empty)


def instruct(facts: Mapping[str, Any]) -> str:
    """Words the task."""
    return (
        "Fill the empty cells so that no row, column or box has a digit twice.\n"
        "The rows stand side by side, each after a |; .: empty. Rows and columns are numbered from "
        "1. Actions: row,col,value, such as 1,2,3; up to 5 at once, joined by ' || ', and "
        f"{PUZZLE.max_actions} in all. What breaks a rule is not filled in; you may change your "
        "own digits."
    )


def legal_moves(board: Board, open_cells: tuple[Cell, ...]) -> list[str]:
    """Lists the moves that the rules allow now."""
    return [
        f"{r + 1},{c + 1},{digit}"
        for r, c in open_cells
        for digit in digits(board)
        if digit not in peers(board, (r, c))
    ]


def _first_moves(board: Board) -> list[str]:
    return legal_moves(board, cells_of(board, EMPTY))


LEVELS = Levels(
    puzzle=PUZZLE,
    boards={"4x4": partial(draw_board, 4, 6)},
    plan=plan,
    instruct=instruct,
    actions=_first_moves,
)

write_games = partial(write_levels, LEVELS)
load_games = load_levels


class Sheet:
    """A puzzle on paper.

    Args:
        board: With empty cells; those with digits are given.
    """

    def __init__(self, board: Board) -> None:
        self.board = board
        self._open = cells_of(board, EMPTY)

    @property
    def won(self) -> bool:
        """No cell is empty: only digits that keep the rules are ever filled in."""
        return not cells_of(self.board, EMPTY)

    @property
    def lost(self) -> bool:
        """Never: a wrong digit does not end an episode."""
        return False

    def act(self, action: str) -> float:
        """Fills in a digit unless it breaks a rule; the reward is 1.0 for the last one."""
        cell, digit = placement(action)
        if cell in self._open and digit in digits(self.board):
            if digit not in peers(self.board, cell):
                self.board = filled(self.board, cell, digit)
            return float(self.won)
        return 0.0

    def actions(self) -> list[str]:
        """Lists the moves that the rules allow."""
        return legal_moves(self.board, self._open)


class SudokuEnv(GridEnv):
    """Sudoku with SPA's boards in one line; see `GridEnv`.

    Boards are ``"4x4"`` with six empty cells and one solution. A digit that breaks a rule is not
    filled in; own digits can be changed, given ones cannot. SPA's reward is 1 for the end.
    """

    levels = LEVELS

    def _engine(self, board: Board, scenario: Scenario, seed: int) -> Engine:
        return Sheet(board)
