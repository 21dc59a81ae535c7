"""Agents that know no world."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from gym_llmworld.agents import (
    Agent,
    CorruptedAgent,
    NoisyAgent,
    Overrulable,
    RandomAgent,
    ScriptedAgent,
    derive_seeds,
    garble,
)
from gym_llmworld.core import Scenario
from gym_llmworld.errors import ScenarioError

SCENARIO = Scenario(
    "s1", "toy", "train", "do it.", "You see a mug 1.", real={"plan": ["go to shelf 1", "look"]}
)
NOTHING_LISTED: Mapping[str, Any] = {"admissible_commands": None}


class Recorder:
    """Always wants the same, and remembers what it was told."""

    def __init__(self, command: str) -> None:
        self.name = "recorder"
        self.command = command
        self.seen: list[str] = []
        self.overruled_by: list[str] = []

    def reset(self, scenario: Scenario, seed: int) -> None:
        self.seen, self.overruled_by = [], []

    def act(self, observation: str, info: Mapping[str, Any]) -> str:
        self.seen.append(observation)
        return self.command

    def overruled(self, action: str) -> None:
        self.overruled_by.append(action)


def commands_of(agent: Agent, seed: int, steps: int = 30) -> list[str]:
    agent.reset(SCENARIO, seed)
    return [agent.act(SCENARIO.observation, NOTHING_LISTED) for _ in range(steps)]


def test_agents_fulfil_the_protocol() -> None:
    agents = [
        RandomAgent(["look"]),
        ScriptedAgent(),
        NoisyAgent(ScriptedAgent(), 0.5, RandomAgent(["look"])),
        CorruptedAgent(ScriptedAgent(), 0.5),
    ]

    assert all(isinstance(agent, Agent) for agent in agents)
    assert [isinstance(agent, Overrulable) for agent in agents] == [False, False, True, True]


def test_random_agent_prefers_what_the_world_lists() -> None:
    agent = RandomAgent(["look", "wait"])
    agent.reset(SCENARIO, 0)

    listed = {agent.act("", {"admissible_commands": ["open door"]}) for _ in range(20)}
    unlisted = {agent.act("", NOTHING_LISTED) for _ in range(50)}
    unmentioned = {agent.act("", {}) for _ in range(50)}

    assert listed == {"open door"}
    assert unlisted == unmentioned == {"look", "wait"}


def test_random_agent_needs_something_to_say() -> None:
    with pytest.raises(ValueError, match="at least one fallback command"):
        RandomAgent([])


def test_scripted_agent_replays_the_plan_and_then_looks() -> None:
    assert commands_of(ScriptedAgent(), 0, 4) == ["go to shelf 1", "look", "look", "look"]
    assert commands_of(ScriptedAgent(["a"], then="b"), 0, 3) == ["a", "b", "b"]


def test_scripted_agent_without_a_plan_says_so() -> None:
    with pytest.raises(ScenarioError, match=r"'s2' has no plan"):
        ScriptedAgent().reset(Scenario("s2", "toy", "train", "", ""), 0)


def test_noisy_agent_takes_the_explorers_command_with_probability_p() -> None:
    agent = NoisyAgent(Recorder("mine"), 0.3, Recorder("stray"))

    share = commands_of(agent, 0, 2000).count("stray") / 2000

    assert share == pytest.approx(0.3, abs=0.03)  # three standard errors


def test_both_halves_of_a_noisy_agent_know_what_was_done() -> None:
    base, explorer = Recorder("mine"), Recorder("stray")
    done = commands_of(NoisyAgent(base, 0.5, explorer), 1)

    assert base.seen == explorer.seen == [SCENARIO.observation] * 30
    assert base.overruled_by == ["stray"] * done.count("stray")
    assert explorer.overruled_by == ["mine"] * done.count("mine")


def test_corrupted_agent_spoils_with_probability_p_and_tells_its_base() -> None:
    base = Recorder("take mug 1 from shelf 2")
    done = commands_of(CorruptedAgent(base, 0.4), 0, 2000)
    spoilt = [command for command in done if command != base.command]

    assert len(spoilt) / 2000 == pytest.approx(0.4, abs=0.035)
    assert base.overruled_by == spoilt


@pytest.mark.parametrize("p", [-0.1, 1.5])
def test_probabilities_are_checked(p: float) -> None:
    with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
        CorruptedAgent(ScriptedAgent(), p)
    with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
        NoisyAgent(ScriptedAgent(), p, ScriptedAgent())


@pytest.mark.parametrize("command", ["take mug 1 from shelf 2", "open door", "look", "x", ""])
def test_garbling_always_changes_the_command(command: str) -> None:
    rng = np.random.default_rng(0)

    assert all(garble(command, ["pen 1", "mug 1"], rng) != command for _ in range(300))


def test_garbling_makes_the_mistakes_that_language_agents_make() -> None:
    rng = np.random.default_rng(0)
    spoilt = {garble("move mug 1 to shelf 2", ["pen 1"], rng) for _ in range(2000)}

    assert "" in spoilt
    assert "put mug 1 in/on shelf 2" in spoilt  # ALFWorld before 0.4
    assert "move shelf 2 to mug 1" in spoilt
    assert "move pen 1 to shelf 2" in spoilt
    assert "move mug to shelf" in spoilt
    assert "place mug 1 to shelf 2" in spoilt
    assert any("unicorn" in command for command in spoilt)


def test_same_seed_same_commands() -> None:
    def noisy() -> Agent:
        return CorruptedAgent(NoisyAgent(RandomAgent("abc"), 0.5, RandomAgent("xyz")), 0.3)

    assert commands_of(noisy(), 5) == commands_of(noisy(), 5)
    assert commands_of(noisy(), 5) != commands_of(noisy(), 6)


def test_derived_seeds_differ() -> None:
    seeds = [seed for parent in range(50) for seed in derive_seeds(parent, 3)]

    assert len(set(seeds)) == 150
