"""Sokoban as a Gymnasium environment of text: an engine and a level generator of our own.

Moves and rewards are gym-sokoban's (MIT), which a test compares. That package itself is
unmaintained, draws pixels at every step and needs an old Gym.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any

import numpy as np

from gym_llmworld.core import Scenario
from gym_llmworld.errors import ScenarioError
from gym_llmworld.real.grids_env import Engine, GridEnv
from gym_llmworld.real.grids_levels import Levels, load_levels, write_levels
from gym_llmworld.worlds.grids import Board, cells_of
from gym_llmworld.worlds.sokoban import MOVES, PUZZLE, Room, solve

STEP, PLACED, FINISHED = -0.1, 1.0, 10.0
"""Reward of a move, of a box that comes onto a target (less, of one that leaves), of the end."""

_WALLS = 0.25


def draw_board(size: int, boxes: int, rng: np.random.Generator) -> Board:
    """Draws a walled room with a quarter of its inside built up, and things anywhere in it."""
    things, inner = "P" + "X" * boxes + "O" * boxes, size - 2
    cells = np.full((size, size), "#")
    while np.count_nonzero(cells == "_") < len(things):
        cells[1:-1, 1:-1] = np.where(rng.random((inner, inner)) < _WALLS, "#", "_")
    free = np.argwhere(cells == "_")
    chosen = free[rng.choice(len(free), len(things), replace=False)]
    for place, symbol in zip(chosen, things, strict=True):
        cells[tuple(place)] = symbol
    return tuple("".join(row) for row in cells)


@lru_cache(maxsize=4096)
def plan(board: Board) -> tuple[str, ...] | None:
    """Returns a shortest solution, if there is one within the limit.

    Raises:
        ScenarioError: There is not one player, or not as many boxes as targets, or nothing to do.
    """
    players, boxes, targets = (len(cells_of(board, s)) for s in ("PS", "X√", "OS√"))
    if players != 1 or boxes != targets or not cells_of(board, "X"):
        raise ScenarioError(
            f"this Sokoban board cannot be started: {board!r:.200}; expected one player (P or S), "
            f"as many boxes as targets, and a box to push; got {players} players, {boxes} boxes, "
            f"{targets} targets"
        )
    found = solve(Room.read(board), PUZZLE.max_actions)
    return None if found is None else tuple(found)


def instruct(facts: Mapping[str, Any]) -> str:
    """Words the task."""
    return (
        "Push every box onto a target.\n"
        "#: wall, _: empty, O: target, √: box on target, X: box, P: player, S: player on target. "
        "Coordinates are (row,column) from the top left, which is (0,0). To push a box, move "
        "against it from the other side; boxes cannot be pulled. Actions: "
        f"{', '.join(MOVES)}; up to 5 at once, joined by ' || ', and {PUZZLE.max_actions} in all."
    )


def _moves(board: Board) -> list[str]:
    return list(MOVES)


LEVELS = Levels(
    puzzle=PUZZLE,
    boards={"6x6": partial(draw_board, 6, 1), "10x10": partial(draw_board, 10, 2)},
    plan=plan,
    instruct=instruct,
    actions=_moves,
)

write_games = partial(write_levels, LEVELS)
load_games = load_levels


class Warehouse:
    """A room in which boxes are pushed.

    Args:
        board: As it is drawn.
    """

    def __init__(self, board: Board) -> None:
        self._room = Room.read(board)

    @property
    def board(self) -> Board:
        """As it is drawn."""
        return self._room.draw()

    @property
    def won(self) -> bool:
        """Every box is on a target."""
        return self._room.solved

    @property
    def lost(self) -> bool:
        """Never: a stuck box does not end an episode."""
        return False

    def act(self, action: str) -> float:
        """Moves or pushes; what is in the way stays."""
        before, self._room = self._room, self._room.after(action)
        reward = STEP + PLACED * (self._room.placed - before.placed)
        return reward + (FINISHED if self._room.solved else 0.0)

    def actions(self) -> list[str]:
        """Lists all moves; against a wall, the player stays."""
        return list(MOVES)


class SokobanEnv(GridEnv):
    """Sokoban with SPA's symbols; see `GridEnv`.

    Boards are ``"6x6"`` with one box, as in SPA, and ``"10x10"`` with two; all can be solved in ten
    moves. SPA's reward is -0.1 a move, 1 for a box that comes onto a target and -1 for one that
    leaves it, 10 for the end.
    """

    levels = LEVELS

    def _engine(self, board: Board, scenario: Scenario, seed: int) -> Engine:
        return Warehouse(board)
