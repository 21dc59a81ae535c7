"""Sudoku: fill the empty cells so that no row, column or box has a digit twice.

SPA's 4x4 boards in one line, moves (``row,col,value``, from 1), limits and state estimate (arXiv
2510.15047, section 3). Styles: ``engine``,
the first observation, in which nothing is hidden; ``word2world``, task, rules and the first
observation.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import numpy as np

from gym_llmworld.worlds.grids import (
    Board,
    Cell,
    Group,
    Puzzle,
    cells_of,
)
from gym_llmworld.worlds.grids_agents import Situation, grid_world

EMPTY = "."
_MOVE = re.compile(r"(\d{1,2})\s*,\s*(\d{1,2})\s*,\s*(\d{1,2})", re.ASCII)


def read_move(text: str) -> str | None:
    """Returns a move without blanks; None when it is none."""
    found = _MOVE.fullmatch(text)
    return ",".join(str(int(number)) for number in found.groups()) if found else None


def placement(move: str) -> tuple[Cell, str]:
    """Returns the cell (from 0) of a canonical move, and the digit."""
    row, column, digit = move.split(",")
    return (int(row) - 1, int(column) - 1), digit


def peers(board: Board, cell: Cell) -> Iterator[str]:
    """Yields what stands in a cell's row, column and box, the cell itself included."""
    row, column = cell
    size = math.isqrt(len(board))
    top, left = row - row % size, column - column % size
    yield from board[row]
    yield from (line[column] for line in board)
    for line in board[top : top + size]:
        yield from line[left : left + size]


def filled(board: Board, cell: Cell, digit: str) -> Board:
    """Returns a board with another digit in a cell."""
    row, column = cell
    line = board[row][:column] + digit + board[row][column + 1 :]
    return (*board[:row], line, *board[row + 1 :])


def digits(board: Board) -> str:
    """Returns the digits of a board of this size."""
    return "".join(str(number + 1) for number in range(len(board)))


def solutions(board: Board) -> Iterator[Board]:
    """Yields all solutions of a board whose digits do not contradict each other."""
    empty = cells_of(board, EMPTY)
    if not empty:
        yield board
        return
    fitting = {cell: set(digits(board)) - set(peers(board, cell)) for cell in empty}
    cell = min(empty, key=lambda c: len(fitting[c]))
    for digit in sorted(fitting[cell]):
        yield from solutions(filled(board, cell, digit))


def is_consistent(board: Board) -> bool:
    """Returns whether no digit stands twice in a row, column or box."""
    given = cells_of(board, digits(board))
    return not any(board[r][c] in peers(filled(board, (r, c), EMPTY), (r, c)) for r, c in given)


def is_square(board: Board) -> bool:
    """Returns whether a board is 4x4 or 9x9, with digits that fit."""
    return (
        len(board) in (4, 9)
        and all(len(row) == len(board) for row in board)
        and set("".join(board)) <= {EMPTY, *digits(board)}
    )


def empty_groups(board: Board) -> list[Group]:
    """Returns the empty cells."""
    one, many = "Empty position to be filled is at", "Empty positions to be filled are at"
    return [Group(one, many, cells_of(board, EMPTY))]


PUZZLE = Puzzle(
    key="sudoku",
    symbols=".123456789",
    max_actions=50,
    read_action=read_move,
    groups=empty_groups,
    origin=1,
    one_line=True,
    joint=", ",
    nothing="No empty positions.",
)


def _plan(situation: Situation) -> list[str] | None:
    """Fills in the solution; digits that turn out wrong are put right, as far as the rules let."""
    scenario = situation.scenario
    first = PUZZLE.read_board(scenario.observation)
    if first is None or not is_square(first) or not is_square(situation.board):
        return None
    solved = next(solutions(first), None) if is_consistent(first) else None
    if solved is None or len(solved) != len(situation.board):
        return None
    plan, board = list[str](), situation.board
    wrong = [(r, c) for r, c in cells_of(first, EMPTY) if board[r][c] != solved[r][c]]
    # A digit fits once the wrong ones around it are gone: those cells that can be filled, first.
    while wrong:
        fitting = [(r, c) for r, c in wrong if solved[r][c] not in peers(board, (r, c))]
        if not fitting:
            break
        (r, c) = fitting[0]
        wrong.remove((r, c))
        board = filled(board, (r, c), solved[r][c])
        plan.append(f"{r + 1},{c + 1},{solved[r][c]}")
    return plan


def _draw(board: Board, rng: np.random.Generator) -> str:
    """Draws a move; mostly for an empty cell."""
    size = max(len(board), 1)
    empty = cells_of(board, EMPTY)
    if empty and rng.random() < 0.8:
        row, column = empty[int(rng.integers(len(empty)))]
    else:
        row, column = (int(number) for number in rng.integers(0, size + 1, 2))
    return f"{row + 1},{column + 1},{int(rng.integers(1, size + 1))}"


WORLD = grid_world(
    PUZZLE,
    "Sudoku",
    _plan,
    _draw,
    wait="1,1,1",
    max_tokens=256,
)
