"""Hand-made levels of the grid puzzles."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from gym_llmworld.core import Scenario
from gym_llmworld.real.frozenlake import LEVELS as LAKES
from gym_llmworld.real.grids_levels import Levels
from gym_llmworld.real.sokoban import LEVELS as ROOMS
from gym_llmworld.real.sudoku import LEVELS as SHEETS
from gym_llmworld.worlds import get_world

ALL: dict[str, Levels] = {"frozenlake": LAKES, "sokoban": ROOMS, "sudoku": SHEETS}


def level(key: str, board: str, **facts: Any) -> Scenario:
    """Returns a scenario of a board whose rows are separated by blanks."""
    puzzle, rows = ALL[key].puzzle, tuple(board.split())
    state = puzzle.state(rows, puzzle.groups(rows))
    return Scenario(
        id="mine",
        world=key,
        split="test",
        instruction="",
        observation=puzzle.observation(state, puzzle.max_actions),
        hidden=facts,
        real={"level": list(rows), **facts},
    )


def real(key: str, **options: Any) -> gym.Env[str, str]:
    return gym.make(get_world(key).real_id, **options)


def begun(scenario: Scenario, seed: int = 0) -> gym.Env[str, str]:
    """Returns the real environment at the start of a level."""
    env = real(scenario.world)
    env.reset(seed=seed, options={"scenario": scenario.to_json()})
    return env
