"""FrozenLake against Gymnasium's own, stepped side by side, and its transition matrix."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from gym_llmworld.real.frozenlake import LEVELS, FrozenLakeEnv, Lake
from gym_llmworld.real.grids_levels import LevelSpec, make_level
from gym_llmworld.worlds.frozenlake import (
    MOVES,
    WORLD,
    luckiest_actions,
    shortest_path,
    winning_chances,
)
from gym_llmworld.worlds.grids import Board
from tests.grids_shared import begun, level

LETTERS = str.maketrans("P_OG", "SFHG")


def boards(kind: str, count: int) -> list[Board]:
    made = [make_level(LEVELS, LevelSpec("test", kind, 1000 + i)) for i in range(count)]
    return [tuple(scenario.real["level"]) for scenario in made]


def oracle(board: Board, slippery: bool) -> gym.Env[int, int]:
    desc = [row.translate(LETTERS) for row in board]
    return gym.make("FrozenLake-v1", desc=desc, is_slippery=slippery).unwrapped


def drawn(board: Board, state: int) -> Board:
    """What SPA shows when Gymnasium says that the player is there."""
    row, column = divmod(state, len(board[0]))
    rows = [list(line.replace("P", "_")) for line in board]
    rows[row][column] = {"_": "P", "O": "X", "G": "√"}[rows[row][column]]
    return tuple("".join(line) for line in rows)


@pytest.mark.parametrize("slippery", [False, True])
@pytest.mark.parametrize("kind", ["4x4", "6x6"])
def test_steps_are_gymnasiums(kind: str, slippery: bool) -> None:
    rng, ends = np.random.default_rng(0), set()
    for seed, board in enumerate(boards(kind, 25)):
        lake, gymnasiums = Lake(board, slippery, seed), oracle(board, slippery)
        gymnasiums.reset(seed=seed)
        assert lake.board == board
        for _ in range(60):
            action = int(rng.integers(4))
            # Gymnasium's documentation: 0 left, 1 down, 2 right, 3 up.
            reward = lake.act(["Left", "Down", "Right", "Up"][action])
            state, expected, terminated, _, _ = gymnasiums.step(action)
            assert lake.board == drawn(board, int(state))
            assert reward == expected
            assert (lake.won or lake.lost) == terminated
            if terminated:
                ends.add((lake.won, lake.lost))
                break
    assert ends == {(True, False), (False, True)}


def test_whole_turns_are_gymnasiums() -> None:
    rng = np.random.default_rng(1)
    for board in boards("4x4-firm", 10):
        gymnasiums = oracle(board, slippery=False)
        gymnasiums.reset(seed=0)
        env = begun(level("frozenlake", " ".join(board), slippery=False))
        over = False
        while not over:
            turn = [int(action) for action in rng.integers(4, size=2)]
            names = [list(MOVES)[action] for action in turn]
            text, reward, terminated, truncated, info = env.step(" || ".join(names))
            taken = 0.0
            for action in turn:
                state, got, ended, _, _ = gymnasiums.step(action)
                taken += float(got)
                if ended:
                    break
            assert text.split("\n")[: len(board)] == list(drawn(board, int(state)))
            assert info["llmworld"]["turn_reward"] == reward == taken
            assert info["won"] == bool(taken)
            over = terminated or truncated
            assert terminated == (ended or text.endswith("You have 0 actions left."))


def test_what_slips_follows_from_the_seed() -> None:
    # Every move from the middle is one of three, each as likely as the others.
    scenario = level("frozenlake", "___ _P_ __G", slippery=True)
    env, seen = begun(scenario), []
    for seed in [*range(300), *range(300)]:
        env.reset(seed=seed, options={"scenario": scenario.to_json()})
        seen.append(tuple(env.step("Up")[0].split("\n")[:3]))
    assert seen[:300] == seen[300:]
    counts = {board: seen[:300].count(board) for board in seen}
    assert counts.keys() == {("_P_", "___", "__G"), ("___", "P__", "__G"), ("___", "__P", "__G")}
    assert all(70 < count < 130 for count in counts.values())


def test_a_turn_ends_in_a_hole_or_on_the_goal() -> None:
    env = begun(level("frozenlake", "PO GO", slippery=False))
    text, reward, terminated, truncated, info = env.step("Right || Left || Down")
    assert text == (
        "_X\nGO\nPlayer at (0,1); holes at (0,1) and (1,1); goal at (1,0).\n"
        "You have 9 actions left."
    )
    assert (reward, terminated, truncated, info["won"]) == (0.0, True, False, False)
    assert WORLD.ends is not None
    assert WORLD.ends(text)
    env = begun(level("frozenlake", "PO GO", slippery=False))
    text, reward, terminated, _, info = env.step("Up || down || Right")
    assert text == (
        "_O\n√O\nPlayer at (1,0); holes at (0,1) and (1,1); goal at (1,0).\n"
        "You have 8 actions left."
    )
    assert (reward, terminated, info["won"], info["llmworld"]["turn_reward"]) == (1, True, True, 1)


@pytest.mark.parametrize("horizon", [1, 4, 10])
def test_chances_are_those_of_gymnasiums_matrix(horizon: int) -> None:
    for board in boards("4x4", 6):
        chances, matrix = winning_chances(board, horizon), _matrix(board)
        values = np.zeros(len(matrix))
        for _ in range(horizon):
            values = np.array(
                [
                    max(
                        sum(p * (r + (0 if end else values[there])) for p, there, r, end in leads)
                        for leads in matrix[state].values()
                    )
                    for state in matrix
                ]
            )
        for (row, column), chance in chances.items():
            if board[row][column] in "P_":
                assert chance == pytest.approx(values[row * 4 + column])


def _matrix(board: Board) -> dict[int, dict[int, list[tuple[float, int, float, bool]]]]:
    env: Any = oracle(board, slippery=True)
    matrix: dict[int, dict[int, list[tuple[float, int, float, bool]]]] = env.P
    return matrix


def test_the_luckiest_actions() -> None:
    # Against the wall above, a slip leads along it; the goal is to the right.
    assert luckiest_actions(("OOO", "P_G", "OOO"), 1, 1) in {(move,) for move in MOVES}
    assert luckiest_actions(("PG", "OO"), 3, 1) == ("Up",)
    # In the end, whatever may lead to the goal is as good.
    assert luckiest_actions(("PG", "OO"), 3, 3)[:2] == ("Up", "Up")


def test_shortest_paths() -> None:
    assert shortest_path(("P__", "OO_", "G__")) == [
        "Right",
        "Right",
        "Down",
        "Down",
        "Left",
        "Left",
    ]
    assert shortest_path(("PO", "OG")) is None


def test_the_engine_is_gymnasiums() -> None:
    env = FrozenLakeEnv(board="6x6")
    env.reset(seed=0)
    lake = env.play.engine
    assert isinstance(lake, Lake)
    assert type(lake._lake).__module__ == "gymnasium.envs.toy_text.frozen_lake"
