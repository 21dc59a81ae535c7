"""Grid puzzles as the embedded models write them: what differs from the first board.

A board and its coordinates say everything twice, and most of both never changes. What a small model
writes instead is where things are that move, which cells are otherwise than at first, and how many
actions are left::

    (1,2)P (0,0)_ 7

The cell comes before what is in it, so that what stood there is looked up when the cell is known.
Actions end with where things that move are before them. `BoardWording.read` draws the board and
words its coordinates; nothing in it knows what an action does.
"""

from __future__ import annotations

import re

from gym_llmworld.core import Scenario
from gym_llmworld.worlds.grids import Board, Cell, Puzzle, actions_left

_ACTORS, _THINGS = "PS", "X√"
_MOVING = _ACTORS + _THINGS
_CELL = re.compile(r"\((\d{1,2}),(\d{1,2})\)(\S) ", re.ASCII)
_SHORT = re.compile(rf"((?:{_CELL.pattern})*)(?P<left>\d{{1,2}})", re.ASCII)


class BoardWording:
    """The wording of one episode.

    Args:
        puzzle: Which.
        scenario: Its first observation shows the board that all others are compared with.
    """

    def __init__(self, puzzle: Puzzle, scenario: Scenario) -> None:
        self._puzzle = puzzle
        self._first = puzzle.read_board(scenario.observation)
        self._board = self._first

    def cue(self, action: str) -> str:
        """Returns where things that move are before the action, as the last board showed them."""
        if self._board is None:
            return ""
        moving = [(symbol, cell) for symbol, cell in _cells(self._board) if symbol in _MOVING]
        return "".join(f" {self._said(*one)}" for one in _in_order(moving))

    def write(self, action: str, observation: str) -> str:
        """Returns what differs from the first board; the observation if that would lose some."""
        board, left = self._puzzle.read_board(observation), actions_left(observation)
        self._board = board or self._board
        if board is None or left is None or self._first is None:
            return observation
        if [*map(len, board)] != [*map(len, self._first)]:
            return observation
        changed = [
            here
            for here, before in zip(_cells(board), _cells(self._first), strict=True)
            if here != before or here[0] in _MOVING
        ]
        short = "".join(f"{self._said(*one)} " for one in _in_order(changed)) + str(left)
        return short if self.read(short) == observation else observation

    def read(self, text: str) -> str:
        """Returns the observation that a short form stands for, other text as it is."""
        short = _SHORT.fullmatch(text)
        if self._first is None or short is None:
            return text
        rows = [list(row) for row in self._first]
        for row, column, symbol in _CELL.findall(short[1]):
            r, c = int(row) - self._puzzle.origin, int(column) - self._puzzle.origin
            inside = 0 <= r < len(rows) and 0 <= c < len(rows[0])
            if not inside or symbol not in self._puzzle.symbols:
                return text
            rows[r][c] = symbol
        board = tuple("".join(row) for row in rows)
        state = self._puzzle.state(board, self._puzzle.groups(board))
        return self._puzzle.observation(state, int(short["left"]))

    def _said(self, symbol: str, cell: Cell) -> str:
        row, column = (number + self._puzzle.origin for number in cell)
        return f"({row},{column}){symbol}"


def _cells(board: Board) -> list[tuple[str, Cell]]:
    return [(symbol, (r, c)) for r, row in enumerate(board) for c, symbol in enumerate(row)]


def _in_order(cells: list[tuple[str, Cell]]) -> list[tuple[str, Cell]]:
    """Who acts comes first, then what is acted on, then what is otherwise than at first."""
    return sorted(cells, key=lambda one: (one[0] not in _ACTORS, one[0] not in _THINGS, one[1]))
