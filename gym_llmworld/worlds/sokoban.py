"""Sokoban: push every box onto a target; boxes cannot be pulled.

SPA's symbols, limits and state estimate (arXiv 2510.15047, section 3 and appendix A). Styles:
``engine``, the first observation, in which nothing is hidden; ``word2world``, task, rules and the
first observation.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from gym_llmworld.worlds.grids import (
    Board,
    Cell,
    Group,
    Puzzle,
    cells_of,
    moves,
)
from gym_llmworld.worlds.grids_agents import Situation, grid_world, random_move

MOVES = {"Up": (-1, 0), "Down": (1, 0), "Left": (0, -1), "Right": (0, 1)}

# A room without what can move.
_EMPTIED = str.maketrans("PXS√", "__OO")
# Imagined boards may be anything: the expert gives up after so many situations.
_MAX_SITUATIONS = 100_000


@dataclass(frozen=True, slots=True)
class Room:
    """A situation.

    Attributes:
        board: Walls (``#``) and targets (``O``).
        player: Where the player is.
        boxes: Where the boxes are.
    """

    board: Board = field(hash=False)
    player: Cell
    boxes: frozenset[Cell]

    @classmethod
    def read(cls, board: Board) -> Room:
        """Reads a board as it is drawn; it must have a player.

        What stands on a target is drawn as one symbol (``S``, ``√``).
        """
        empty = tuple(row.translate(_EMPTIED) for row in board)
        return cls(empty, cells_of(board, "PS")[0], frozenset(cells_of(board, "X√")))

    def draw(self) -> Board:
        """Draws the room with all that is in it."""
        rows = [list(row) for row in self.board]
        for r, c in self.boxes:
            rows[r][c] = "√" if rows[r][c] == "O" else "X"
        r, c = self.player
        rows[r][c] = "S" if rows[r][c] == "O" else "P"
        return tuple("".join(row) for row in rows)

    def after(self, move: str) -> Room:
        """Returns the room after a move; itself when a wall or a second box is in the way."""
        step = MOVES[move]
        there = _next(self.player, step)
        if self._is_wall(there):
            return self
        if there not in self.boxes:
            return Room(self.board, there, self.boxes)
        beyond = _next(there, step)
        if self._is_wall(beyond) or beyond in self.boxes:
            return self
        return Room(self.board, there, self.boxes - {there} | {beyond})

    def _is_wall(self, cell: Cell) -> bool:
        # What lies outside of a room without walls is none of it either.
        r, c = cell
        inside = 0 <= r < len(self.board) and 0 <= c < len(self.board[0])
        return not inside or self.board[r][c] == "#"

    @property
    def placed(self) -> int:
        """How many boxes stand on targets."""
        return sum(self.board[r][c] == "O" for r, c in self.boxes)

    @property
    def solved(self) -> bool:
        """Every target has its box."""
        return self.placed == len(cells_of(self.board, "O"))


def _next(cell: Cell, step: Cell) -> Cell:
    return cell[0] + step[0], cell[1] + step[1]


def solve(room: Room, most: int) -> list[str] | None:
    """Returns one of the shortest solutions, of at most ``most`` moves; None if there is none."""
    targets = cells_of(room.board, "O")
    queue = deque([(room, list[str]())])
    seen = {room}
    while queue and len(seen) < _MAX_SITUATIONS:
        here, path = queue.popleft()
        if here.solved:
            return path
        if len(path) + _fewest_moves(here, targets) > most:
            continue
        for name in MOVES:
            there = here.after(name)
            if there not in seen:
                seen.add(there)
                queue.append((there, [*path, name]))
    return None


def _fewest_moves(room: Room, targets: Sequence[Cell]) -> int:
    """Returns a lower bound: the way to the next box, and its own way of each box to a target."""
    if not room.boxes or not targets:
        return 0
    pushes = sum(min(_distance(box, target) for target in targets) for box in room.boxes)
    return pushes + min(_distance(room.player, box) for box in room.boxes) - 1


def _distance(one: Cell, other: Cell) -> int:
    return abs(one[0] - other[0]) + abs(one[1] - other[1])


def room_groups(board: Board) -> list[Group]:
    """Returns the player, the boxes and the targets."""
    return [
        Group("Player (P) is at", "Players (P) are at", cells_of(board, "PS")),
        Group("box (X) is at", "boxes (X) are at", cells_of(board, "X√")),
        Group("target (O) is at", "targets (O) are at", cells_of(board, "OS√")),
    ]


PUZZLE = Puzzle(
    key="sokoban",
    symbols="#_O√XPS",
    max_actions=10,
    read_action=moves(list(MOVES)),
    groups=room_groups,
)


def _plan(situation: Situation) -> list[str] | None:
    if len(cells_of(situation.board, "PS")) != 1:
        return None
    return solve(Room.read(situation.board), situation.left)


WORLD = grid_world(
    PUZZLE,
    "Sokoban",
    _plan,
    partial(random_move, tuple(MOVES)),
    wait="Up",
    max_tokens=512,
)
