"""The vector environment against N scalar environments, and Gymnasium's SyncVectorEnv."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import CustomSpaceError, InvalidAction, ResetNeeded
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from gym_llmworld import WorldModelVectorEnv
from tests.scripted_world import MODEL

N = 4
ID = "LLMWorld-ALFWorld-v0"
# World i wins at its own time, sends nonsense, and one prediction is empty.
SCRIPT = [
    ["a", "b", "win", ""],
    ["b", "win", "c", "d"],
    ["win", "x", "y", "blank"],
    ["c", "y", "win", "e"],
    ["d", "z", "z", "f"],
    ["e", "w", "q", "g"],
]


def make_vec(**kwargs: Any) -> WorldModelVectorEnv:
    envs = gym.make_vec(ID, num_envs=N, **{"model": MODEL, "max_episode_steps": 5, **kwargs})
    inner = envs.unwrapped
    assert isinstance(inner, WorldModelVectorEnv)
    return inner


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, np.ndarray):
        if a.dtype == object:
            return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
        return np.array_equal(a, b)
    return bool(a == b)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_equals_gymnasiums_own_vector_of_scalar_envs(mode: AutoresetMode) -> None:
    ours = make_vec(autoreset_mode=mode)
    theirs = gym.make_vec(
        ID,
        num_envs=N,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": mode},
        model=MODEL,
        max_episode_steps=5,
    )
    assert ours.single_observation_space == theirs.single_observation_space
    got, expected = ours.reset(seed=11), theirs.reset(seed=11)
    assert got[0] == expected[0]
    assert same(got[1], expected[1])
    for actions in SCRIPT:
        mine, other = ours.step(actions), theirs.step(tuple(actions))
        assert mine[0] == other[0]
        for a, b in zip(mine[1:4], other[1:4], strict=True):
            np.testing.assert_array_equal(a, b)
            assert a.dtype == b.dtype
        assert same(mine[4], other[4]), (mine[4], other[4])


def test_one_call_per_step_and_none_for_worlds_being_reset() -> None:
    envs = make_vec()
    envs.reset(seed=0)
    envs.step(["win"] * N)
    assert (envs.stats.model_calls, envs.stats.requests) == (1, N)
    envs.step(["ignored"] * N)  # NEXT_STEP: only resets
    assert (envs.stats.model_calls, envs.stats.requests) == (1, N)
    envs.step(["a"] * N)
    assert (envs.stats.model_calls, envs.stats.requests) == (2, 2 * N)


def test_disabled_autoreset_with_mask() -> None:
    envs = make_vec(autoreset_mode="Disabled")
    envs.reset(seed=0)
    envs.step(["win", "a", "a", "win"])
    observations, rewards, terminated, *_ = envs.step(["b"] * N)
    assert envs.stats.requests == N + 2
    np.testing.assert_array_equal(terminated, [True, False, False, True])
    np.testing.assert_array_equal(rewards, np.zeros(N))
    mask = np.array([True, False, False, False])
    fresh, infos = envs.reset(options={"reset_mask": mask})
    assert fresh[1:] == observations[1:]
    np.testing.assert_array_equal(infos["_won"], mask)
    assert envs.step(["c"] * N)[0][0].startswith("Turn 1")


def test_equal_seeds_give_a_group_with_one_start() -> None:
    envs = make_vec()
    observations, _ = envs.reset(seed=[7] * N)
    assert len(set(observations)) == 1
    scalar = gym.make(ID, model=MODEL)
    assert scalar.reset(seed=7)[0] == observations[0]


def test_start_from_any_state() -> None:
    envs = make_vec()
    envs.reset(seed=0)
    envs.step(["a"] * N)
    starts = envs.snapshot()
    group = make_vec()
    group.reset(seed=[1] * N, options={"start": starts[2]})
    assert len({session.scenario.id for session in group.sessions}) == 1
    assert all(o.endswith("a+b") for o in group.step(["b"] * N)[0])
    group.reset(options={"start": list(starts)})
    assert [s.scenario for s in group.sessions] == [s.scenario for s in envs.sessions]


def test_what_if_and_fork() -> None:
    envs = make_vec()
    envs.reset(seed=0)
    envs.step(["a"] * N)
    calls = envs.stats.model_calls
    futures = envs.what_if([["b", "win"], [], ["c"], ["", "d"]])
    assert envs.stats.model_calls == calls + 1
    assert [len(f) for f in futures] == [2, 0, 1, 2]
    assert futures[0][1].terminated
    assert futures[2][0].observation.endswith("a+c")
    twin = envs.fork()
    twin.step(["z"] * N)
    assert envs.step(["b"] * N)[0][0] == futures[0][0].observation


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda e: e.step(["a"]), ValueError, "expected 4 actions, got 1"),
        (lambda e: e.step(["a", "b", "c", 5]), InvalidAction, "must be a str"),
        (lambda e: e.reset(seed=[1]), ValueError, "expected 4 seeds"),
        (lambda e: e.reset(options={"reset_mask": [True] * N}), ValueError, "boolean array"),
        (
            lambda e: e.reset(options={"reset_mask": np.zeros(N, dtype=np.bool_)}),
            ValueError,
            "at least one True",
        ),
        (lambda e: e.reset(options={"scenario": ["x"]}), ValueError, "needs 4 entries"),
        (lambda e: e.what_if([["a"]]), ValueError, "expected 4 lists"),
    ],
)
def test_bad_calls(call: Any, error: type[Exception], message: str) -> None:
    envs = make_vec()
    envs.reset(seed=0)
    with pytest.raises(error, match=message):
        call(envs)


def test_step_before_reset() -> None:
    with pytest.raises(ResetNeeded):
        make_vec().step(["a"] * N)


def test_statistics_wrapper_and_autoreset_metadata() -> None:
    envs = RecordEpisodeStatistics(gym.make_vec(ID, num_envs=N, model=MODEL))
    envs.reset(seed=0)
    *_, infos = envs.step(("win", "a", "a", "win"))
    np.testing.assert_array_equal(infos["episode"]["r"], [1.0, 0.0, 0.0, 1.0])
    assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP


def test_async_with_shared_memory_is_refused_loudly() -> None:
    def build() -> gym.Env[str, str]:
        return gym.make(ID, model=MODEL)

    with pytest.raises(ValueError, match="shared_memory=False") as refusal:
        AsyncVectorEnv([build, build])
    assert isinstance(refusal.value.__cause__, CustomSpaceError)


@pytest.mark.slow
def test_async_without_shared_memory_equals_sync() -> None:
    def build() -> gym.Env[str, str]:
        # Workers that are spawned, not forked, have imported nothing.
        return gym.make(f"gym_llmworld:{ID}", model=MODEL)

    envs = AsyncVectorEnv([build, build], shared_memory=False)
    try:
        observations, _ = envs.reset(seed=3)
        expected, _ = gym.make_vec(ID, num_envs=2, model=MODEL).reset(seed=3)
        assert observations == expected
    finally:
        envs.close()
