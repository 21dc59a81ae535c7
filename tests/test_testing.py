"""The public conformance kit on both twins, and on an environment that breaks each rule."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import pytest

from gym_llmworld import WorldModelEnv
from gym_llmworld.testing import check_text_env
from gym_llmworld.worlds import get_world, world_keys
from tests.miniwob_shared import needs_browser
from tests.scripted_world import MODEL

# The extra `web` is not part of what tests need.
TWINS = pytest.mark.parametrize(
    "key",
    [
        pytest.param(key, marks=needs_browser) if key == "miniwob" else pytest.param(key)
        for key in world_keys()
    ],
)


@pytest.mark.parametrize("key", world_keys())
def test_the_imagined_twin_conforms(key: str) -> None:
    check_text_env(gym.make(get_world(key).imagined_id, model=MODEL))


@TWINS
def test_the_real_twin_conforms(key: str) -> None:
    check_text_env(gym.make(get_world(key).real_id))


@TWINS
def test_the_twins_are_alike(key: str) -> None:
    world = get_world(key)
    imagined, real = gym.make(world.imagined_id, model=MODEL), gym.make(world.real_id)
    assert imagined.observation_space == real.observation_space
    assert imagined.action_space == real.action_space
    assert imagined.metadata == real.metadata
    for seed in range(3):
        there = imagined.reset(seed=seed)
        here = real.reset(options={"scenario": there[1]["llmworld"]["scenario"]})
        assert here[0] == there[0]
        assert here[1].keys() == there[1].keys()
        assert here[1]["admissible_commands"] == there[1]["admissible_commands"]
        drawn = real.reset(seed=seed)[1]["llmworld"]["scenario"]
        # ScienceWorld's twin draws from all variations of the engine, not from what ships.
        assert key == "scienceworld" or drawn == here[1]["llmworld"]["scenario"]


class _Broken(WorldModelEnv):
    """Breaks one rule."""

    def __init__(self, rule: str) -> None:
        super().__init__("alfworld", model=MODEL)
        self.rule = rule

    def reset(self, **kwargs: Any) -> tuple[str, dict[str, Any]]:
        observation, info = super().reset(**kwargs)
        if self.rule == "info lacks":
            del info["won"]
        return observation, info

    def step(self, action: Any) -> tuple[str, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(str(action))
        if self.rule == "ended the episode" and "[SUCCESS]" in str(action):
            terminated = True
        return observation, reward, terminated, truncated, info


@pytest.mark.filterwarnings("ignore:.*Not able to test alternative render modes")
@pytest.mark.parametrize("rule", ["info lacks", "ended the episode", "must raise gymnasium.error"])
def test_a_broken_rule_is_named(rule: str) -> None:
    with pytest.raises(AssertionError, match=rule):
        check_text_env(_Broken(rule))
