"""`RealTextEnv` on a world that needs no engine: three methods and a source are enough."""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded

from gym_llmworld.core import Scenario
from gym_llmworld.errors import EngineError, ScenarioError
from gym_llmworld.real.base import RealTextEnv, Reply
from gym_llmworld.scenarios import read_scenario
from gym_llmworld.testing import check_text_env
from gym_llmworld.worlds.base import World

WORLD = World("count", "Count", "What?", {}, {}, "", "", "count")


@dataclass
class Play:
    """Counts "up" and "down" from 0; 3 wins, -1 loses, "boom" breaks the engine."""

    number: int = 0
    closed: bool = False
    handle: Any = None

    def reply(self) -> Reply:
        score = float(max(0, self.number))
        return Reply(f"It is {self.number}.", self.number == 3, self.number == -1, score, 3.0)


class Source:
    def get(self, scenario: str | Mapping[str, Any] | Scenario) -> Scenario:
        if not isinstance(scenario, str):
            return read_scenario(scenario, WORLD.key)
        if scenario not in ("train/0", "train/1"):
            raise ScenarioError(f"unknown scenario {scenario!r}")
        return Scenario(scenario, WORLD.key, "train", "Reach 3.", "It is 0.")

    def draw(self, split: str, rng: np.random.Generator) -> Scenario:
        return self.get(f"{split}/{rng.integers(2)}")


class CountEnv(RealTextEnv[Scenario, Play]):
    def __init__(self, max_episode_steps: int | None = None, render_mode: str | None = None):
        super().__init__(WORLD, Source(), "train", max_episode_steps, render_mode)
        self.begun: list[Play] = []

    def _begin(self, start: Scenario) -> tuple[Play, Reply]:
        self.begun.append(play := Play())
        return play, play.reply()

    def _answer(self, play: Play, action: str) -> Reply:
        if action == "boom":
            raise EngineError("the engine died")
        play.number += {"up": 1, "down": -1}.get(action, 0)
        return play.reply()

    def _admissible(self, play: Play) -> Sequence[str]:
        return ["down", "up"]

    def _end(self, play: Play) -> None:
        play.closed = True


@pytest.fixture
def env() -> CountEnv:
    return CountEnv()


@pytest.mark.filterwarnings("ignore:.*render modes:UserWarning")
def test_three_methods_keep_the_contract_of_text_worlds() -> None:
    gym.register("CountUnderTest-v0", entry_point=f"{__name__}:CountEnv")
    try:
        check_text_env(gym.make("CountUnderTest-v0"))
    finally:
        del gym.registry["CountUnderTest-v0"]


def test_an_episode_is_won_or_lost_or_truncated(env: CountEnv) -> None:
    _, info = env.reset(seed=0)
    assert info["score"] == 0.0
    assert info["max_score"] == 3.0
    assert [env.step("up")[1:4] for _ in range(3)] == [(0.0, False, False)] * 2 + [
        (1.0, True, False)
    ]
    with pytest.raises(ResetNeeded, match="has ended"):
        env.step("up")
    env.reset()
    _, reward, terminated, truncated, info = env.step("down")
    assert (reward, terminated, truncated, info["won"]) == (0.0, True, False, False)
    limited = CountEnv(max_episode_steps=1)
    limited.reset()
    assert limited.step("up")[2:4] == (False, True)


def test_a_failed_engine_ends_the_episode_and_a_reset_begins_another(env: CountEnv) -> None:
    env.reset(seed=0)
    with pytest.raises(EngineError, match="the engine died"):
        env.step("boom")
    with pytest.raises(ResetNeeded):
        env.step("up")
    env.reset()
    assert env.step("up")[0] == "It is 1."
    assert [play.closed for play in env.begun] == [True, False]


def test_a_failed_reset_leaves_the_episode_and_frees_what_it_began(env: CountEnv) -> None:
    env.reset(seed=0, options={"scenario": "train/1"})
    env.step("up")
    other = Scenario("train/0", WORLD.key, "train", "", "It is 9.")
    for options, message in (
        ({"scenario": other}, "does not describe its game: expected .*9.*shows .*0"),
        ({"scenario": "x"}, "unknown scenario 'x'"),
        ({"start": 1}, "unknown reset option 'start'; expected scenario, split"),
    ):
        with pytest.raises(ScenarioError, match=message):
            env.reset(options=options)
    assert [play.closed for play in env.begun] == [False, True]
    assert env.scenario.id == "train/1"
    assert env.step("up")[0] == "It is 2."


def test_close_frees_the_engine_once(env: CountEnv) -> None:
    env.close()
    env.reset(seed=0)
    play = env.play
    env.close()
    env.close()
    assert play.closed
    for use in (lambda: env.play, lambda: env.step("up")):
        with pytest.raises(ResetNeeded):
            use()
    env.reset()


def test_a_fork_goes_its_own_way(env: CountEnv) -> None:
    env.reset(seed=0)
    env.step("up")
    fork = env.fork()
    assert fork.step("down")[0] == "It is 0."
    assert env.step("up")[0] == "It is 2."
    assert fork.reset() == env.reset()


def test_an_engine_that_cannot_be_copied_says_so(env: CountEnv) -> None:
    env.reset(seed=0)
    env.play.handle = threading.Lock()
    with pytest.raises(EngineError, match=r"CountEnv cannot be forked.*through the same actions"):
        env.fork()
    env.play.handle = None
    assert copy.deepcopy(env).step("up")[0] == "It is 1."


def test_nothing_is_shown_before_an_episode() -> None:
    env = CountEnv(render_mode="ansi")
    for use in (env.render, lambda: env.scenario):
        with pytest.raises(ResetNeeded):
            use()
