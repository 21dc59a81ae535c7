"""FrozenLake as a Gymnasium environment of text: Gymnasium's own, on boards as SPA's."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any

import numpy as np
from gymnasium.envs.toy_text import frozen_lake

from gym_llmworld.core import Scenario
from gym_llmworld.errors import ScenarioError
from gym_llmworld.real.grids_env import Engine, GridEnv
from gym_llmworld.real.grids_levels import Levels, load_levels, write_levels
from gym_llmworld.worlds.frozenlake import MOVES, PUZZLE, shortest_path
from gym_llmworld.worlds.grids import Board, cells_of

# Gymnasium's and RAGEN's share of ice.
_ICE = 0.8
_TO_GYMNASIUM = str.maketrans("P_OG", "SFHG")


def draw_board(size: int, rng: np.random.Generator) -> Board:
    """Draws a board as RAGEN does: start and goal anywhere, four in five other cells are ice."""
    rows = np.where(rng.random((size, size)) < _ICE, "_", "O")
    start, goal = rng.choice(size * size, 2, replace=False)
    rows.flat[start], rows.flat[goal] = "P", "G"
    return tuple("".join(row) for row in rows)


@lru_cache(maxsize=4096)
def plan(board: Board) -> tuple[str, ...] | None:
    """Returns the shortest way, if it is short enough; on slippery ice one has to be lucky.

    Raises:
        ScenarioError: There is not one player and one goal, or somebody is in a hole.
    """
    if [len(cells_of(board, symbol)) for symbol in "PGX√"] != [1, 1, 0, 0]:
        raise ScenarioError(
            f"this FrozenLake board cannot be started: {board!r:.200}; expected one P, one G "
            "and no X or √"
        )
    path = shortest_path(board)
    return None if path is None or len(path) > PUZZLE.max_actions else tuple(path)


def instruct(facts: Mapping[str, Any]) -> str:
    """Words the task."""
    ice = (
        "The ice is slippery: one move in three goes where you want, the others to either side."
        if facts["slippery"]
        else "The ice is not slippery."
    )
    return (
        "Bring the player over the frozen lake to the goal, around the holes.\n"
        "P: player, _: ice, O: hole, G: goal, X: player in a hole, √: player on the goal. "
        f"Coordinates are (row,column) from the top left, which is (0,0). {ice} Actions: "
        f"{', '.join(MOVES)}; up to 5 at once, joined by ' || ', and {PUZZLE.max_actions} in all."
    )


def _moves(board: Board) -> list[str]:
    return list(MOVES)


LEVELS = Levels(
    puzzle=PUZZLE,
    boards={
        "4x4": partial(draw_board, 4),
        "6x6": partial(draw_board, 6),
        "4x4-firm": partial(draw_board, 4),
        "6x6-firm": partial(draw_board, 6),
    },
    plan=plan,
    instruct=instruct,
    actions=_moves,
    facts={
        "4x4": {"slippery": True},
        "6x6": {"slippery": True},
        "4x4-firm": {"slippery": False},
        "6x6-firm": {"slippery": False},
    },
)

write_games = partial(write_levels, LEVELS)
load_games = load_levels


class Lake:
    """Gymnasium's lake, drawn with SPA's symbols.

    Args:
        board: With a player, a goal, and no player in a hole.
        slippery: A move goes astray in two of three cases.
        seed: Of the ice.
    """

    def __init__(self, board: Board, slippery: bool, seed: int) -> None:
        rows = [row.translate(_TO_GYMNASIUM) for row in board]
        self._lake = frozen_lake.FrozenLakeEnv(desc=rows, is_slippery=slippery)
        self._lake.reset(seed=seed)
        self._ground = [list(row.replace("P", "_")) for row in board]

    @property
    def _under(self) -> str:
        row, column = divmod(int(self._lake.s), len(self._ground[0]))
        return self._ground[row][column]

    @property
    def board(self) -> Board:
        """With the player on it."""
        row, column = divmod(int(self._lake.s), len(self._ground[0]))
        rows = [list(line) for line in self._ground]
        rows[row][column] = {"_": "P", "O": "X", "G": "√"}[self._under]
        return tuple("".join(line) for line in rows)

    @property
    def won(self) -> bool:
        """The player is on the goal."""
        return self._under == "G"

    @property
    def lost(self) -> bool:
        """The player is in a hole."""
        return self._under == "O"

    def act(self, action: str) -> float:
        """Moves; the reward is 1.0 on the goal."""
        _, reward, *_ = self._lake.step(list(MOVES).index(action))  # type: ignore[no-untyped-call]
        return float(reward)

    def actions(self) -> list[str]:
        """Lists all moves; against the edge, the player stays."""
        return list(MOVES)


class FrozenLakeEnv(GridEnv):
    """FrozenLake with SPA's symbols; see `GridEnv`.

    Boards are ``"4x4"`` and ``"6x6"``, slippery as in SPA and Gymnasium (a move goes where it
    should in one of three cases), and ``"4x4-firm"`` and ``"6x6-firm"``. What slips follows from
    the seed of ``reset``. SPA's reward is 1 for the goal.
    """

    levels = LEVELS

    def _engine(self, board: Board, scenario: Scenario, seed: int) -> Engine:
        slippery = scenario.real.get("slippery", True)
        if not isinstance(slippery, bool):
            raise ScenarioError(
                f"scenario {scenario.id!r}: real['slippery'] must be true or false, "
                f"got {slippery!r}"
            )
        return Lake(board, slippery, seed)
