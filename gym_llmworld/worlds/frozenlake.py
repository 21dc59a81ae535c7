"""FrozenLake: over the ice to the goal, around the holes; on slippery ice, if one is lucky.

Gymnasium's toy-text environment with SPA's symbols, limits and state estimate (arXiv 2510.15047,
section 3 and appendix A). Styles: ``engine``, whether the ice is slippery and the first
observation; ``word2world``, task, rules and the first observation.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Mapping
from functools import lru_cache, partial

from gym_llmworld.core import Scenario
from gym_llmworld.worlds.grids import (
    Board,
    Cell,
    Group,
    Puzzle,
    cells_of,
    is_exhausted,
    moves,
)
from gym_llmworld.worlds.grids_agents import Situation, grid_world, random_move

MOVES = {"Left": (0, -1), "Down": (1, 0), "Right": (0, 1), "Up": (-1, 0)}
"""In Gymnasium's order: a slip goes to either neighbour in it."""

# The expert tries out all sequences of so many actions.
_MAX_FORESEEN = 3


def lake_groups(board: Board) -> list[Group]:
    """Returns the player, the holes and the goal."""
    return [
        Group("Player at", "Players at", cells_of(board, "PX√")),
        Group("hole at", "holes at", cells_of(board, "OX")),
        Group("goal at", "goals at", cells_of(board, "G√")),
    ]


PUZZLE = Puzzle(
    key="frozenlake",
    symbols="P_OGX√",
    max_actions=10,
    read_action=moves(list(MOVES)),
    groups=lake_groups,
)


def shortest_path(board: Board) -> list[str] | None:
    """Returns the first of the shortest ways to the goal over firm ice; None if there is none."""
    starts, goals, holes = cells_of(board, "P"), cells_of(board, "G"), set(cells_of(board, "O"))
    queue = deque((start, list[str]()) for start in starts)
    seen = {*starts, *holes}
    while queue:
        cell, path = queue.popleft()
        if cell in goals:
            return path
        for name in MOVES:
            there = moved(board, cell, name)
            if there not in seen:
                seen.add(there)
                queue.append((there, [*path, name]))
    return None


def moved(board: Board, cell: Cell, name: str) -> Cell:
    """Returns where a move leads that does not slip; the edge of the board holds."""
    row, column = cell[0] + MOVES[name][0], cell[1] + MOVES[name][1]
    return min(max(row, 0), len(board) - 1), min(max(column, 0), len(board[0]) - 1)


Slips = Mapping[Cell, Mapping[str, tuple[Cell, ...]]]
"""Cell -> move -> where it may lead, each as likely as the other."""


def luckiest_actions(board: Board, left: int, count: int) -> tuple[str, ...]:
    """Returns the ``count`` actions after which slippery ice leaves the best chances.

    Args:
        board: With a player on it.
        left: Actions that are left, the chosen ones included.
        count: How many are carried out before the board is seen again.
    """
    slips, later = _slips(board), winning_chances(board, left - count)
    start = cells_of(board, "P")[0]

    def chance(cell: Cell, sequence: tuple[str, ...]) -> float:
        if not sequence or cell not in slips:
            return later[cell]
        return sum(chance(there, sequence[1:]) for there in slips[cell][sequence[0]]) / 3

    return max(itertools.product(MOVES, repeat=count), key=lambda s: chance(start, s))


@lru_cache(maxsize=256)
def winning_chances(board: Board, horizon: int) -> Mapping[Cell, float]:
    """Returns cell -> probability to reach the goal from there within so many actions.

    The ice is slippery, and the board is seen after every action.
    """
    slips = _slips(board)
    chances = {cell: 0.0 for cell in slips} | {cell: 0.0 for cell in cells_of(board, "O")}
    chances |= {cell: 1.0 for cell in cells_of(board, "G")}
    for _ in range(horizon):
        chances |= {
            cell: max(sum(chances[there] for there in leads) / 3 for leads in ways.values())
            for cell, ways in slips.items()
        }
    return chances


@lru_cache(maxsize=256)
def _slips(board: Board) -> Slips:
    names = list(MOVES)
    return {
        cell: {
            name: tuple(moved(board, cell, names[(i + turn) % 4]) for turn in (-1, 0, 1))
            for i, name in enumerate(names)
        }
        for cell in cells_of(board, "P_")
    }


def _plan(situation: Situation) -> list[str] | tuple[str, ...] | None:
    board = situation.board
    if len(cells_of(board, "P")) != 1 or not cells_of(board, "G") or cells_of(board, "X√"):
        return None
    if not situation.scenario.hidden.get("slippery"):
        return shortest_path(board)
    count = min(math.ceil(situation.left / situation.turns), _MAX_FORESEEN)
    return luckiest_actions(board, situation.left, count)


def _temperature(scenario: Scenario) -> float:
    # Where one slips to is luck; the likeliest place alone would be another game.
    return 1.0 if scenario.hidden.get("slippery") else 0.0


def is_over(observation: str) -> bool:
    """Returns whether the player has drowned, or has no action left."""
    board = PUZZLE.read_board(observation)
    return is_exhausted(observation) or (board is not None and bool(cells_of(board, "X")))


WORLD = grid_world(
    PUZZLE,
    "FrozenLake",
    _plan,
    partial(random_move, tuple(MOVES)),
    wait="Up",
    max_tokens=256,
    temperature=_temperature,
    ends=is_over,
)
