"""The embedded models of the grid puzzles, against the real engines."""

from __future__ import annotations

from collections import Counter

import gymnasium as gym
import pytest

from gym_llmworld.backends import load_backend
from gym_llmworld.checkpoints import embedded_model
from gym_llmworld.collection import play
from gym_llmworld.core import Scenario
from gym_llmworld.evaluation import evaluate_episodes
from gym_llmworld.real.grids_levels import LevelSpec, make_level
from gym_llmworld.testing import check_text_env
from gym_llmworld.worlds import get_world
from gym_llmworld.worlds.frozenlake import PUZZLE, moved
from gym_llmworld.worlds.grids import Board, Cell, cells_of
from tests.grids_shared import ALL, level, real

pytest.importorskip("torch")


def levels(key: str, board: str, count: int) -> list[Scenario]:
    """Returns levels that no model was trained on."""
    return [make_level(ALL[key], LevelSpec("test", board, 5_000 + i)) for i in range(count)]


@pytest.mark.parametrize(
    ("key", "board", "least"),
    # Measured on 200 other levels: see the model cards.
    [("frozenlake", "4x4-firm", 0.7), ("sokoban", "6x6", 0.7), ("sudoku", "4x4", 0.7)],
)
def test_most_turns_go_as_in_the_real_engine(key: str, board: str, least: float) -> None:
    world, env = get_world(key), real(key)
    episodes = [
        play(env, world.agents["noisy"](), scenario, seed=i, max_steps=5)
        for i, scenario in enumerate(levels(key, board, 40))
    ]
    result = evaluate_episodes(
        load_backend(embedded_model(key)), world.protocol("engine"), episodes
    )
    assert len(result.turns) > 60
    assert result.em.all.value is not None
    assert result.em.all.value >= least


@pytest.mark.parametrize("key", ALL)
def test_the_imagined_puzzles_are_environments(key: str) -> None:
    check_text_env(gym.make(get_world(key).imagined_id))


def test_slippery_ice_slips_to_either_side() -> None:
    """In the middle of an empty lake one move in three goes where it should; others go aside."""
    lake = level("frozenlake", "____ _P__ ____ ___G", slippery=True)
    env = gym.make("LLMWorld-FrozenLake-v0")
    seen: Counter[Cell] = Counter()
    for seed in range(60):
        env.reset(seed=seed, options={"scenario": lake.to_json()})
        board = PUZZLE.read_board(env.step("Down")[0])
        seen.update(_players(board))
    expected = {
        moved(PUZZLE.read_board(lake.observation) or (), (1, 1), name)
        for name in ("Left", "Down", "Right")
    }
    assert set(seen) >= expected
    assert sum(seen[cell] for cell in expected) >= 54
    assert max(seen.values()) <= 36


def _players(board: Board | None) -> tuple[Cell, ...]:
    return cells_of(board, "P") if board else ()
