"""Milestones of ALFWorld's tasks: hand-made episodes, and the real engine's."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

import gymnasium as gym
import pytest

import gym_llmworld  # noqa: F401 - registers the ids
from gym_llmworld.agents import Agent
from gym_llmworld.core import Scenario, Step
from gym_llmworld.playing import BLIND
from gym_llmworld.scenarios import ScenarioStore
from gym_llmworld.worlds.alfworld_agents import AlfworldExpert
from gym_llmworld.worlds.alfworld_belief import AlfworldGoal
from gym_llmworld.worlds.alfworld_explorer import AlfworldExplorer
from gym_llmworld.worlds.alfworld_milestones import milestones

ROOM = "You are in the middle of a room. Looking quickly around you, you see a desk 1, and a safe 1"


def scenario(instruction: str) -> Scenario:
    text = f"{ROOM}.\nYour task is to: {instruction}"
    return Scenario("x", "alfworld", "train", instruction, text)


def told(*observations: str, solved: bool = False) -> list[Step]:
    steps = [Step("-", text) for text in observations]
    if solved:
        steps[-1] = Step("-", observations[-1], reward=1.0, terminated=True)
    return steps


def test_a_thing_is_taken_and_brought() -> None:
    steps = told(
        "You arrive at desk 1. On the desk 1, you see a book 1, and a mug 1.",
        "You pick up the mug 1 from the desk 1.",
        "You move the mug 1 to the desk 1.",
        "You pick up the book 1 from the desk 1.",
        "Nothing happens.",
        "You move the book 1 to the safe 1.",
        solved=True,
    )
    found = milestones(scenario("put a book in safe."), steps)
    assert found == [0, 0, 0, 0, 0.5, 0.5, 1]


def test_a_treatment_counts_until_it_is_undone() -> None:
    steps = told(
        "You arrive at desk 1. On the desk 1, you see a mug 1.",
        "You pick up the mug 1 from the desk 1.",
        "You heat the mug 1 using the microwave 1.",
        "You cool the mug 1 using the fridge 1.",
        "You heat the mug 1 using the microwave 1.",
        "You move the mug 1 to the desk 1.",
    )
    found = milestones(scenario("put a hot mug in safe."), steps)
    assert found == pytest.approx([0, 0, 1 / 3, 2 / 3, 1 / 3, 2 / 3, 0])


def test_two_things_count_one_by_one() -> None:
    steps = told(
        "You pick up the mug 1 from the desk 1.",
        "You move the mug 1 to the safe 1.",
        "You pick up the mug 2 from the desk 1.",
        "You move the mug 2 to the safe 1.",
    )
    # Without the world's word nothing is done: a text may be believed too much.
    expected = [0, 0.25, 0.5, 0.75, 0.75]
    assert milestones(scenario("put two mug in safe."), steps) == expected
    assert (
        milestones(scenario("put two mug in safe."), [*steps[:3], *told("-", solved=True)])[-1] == 1
    )


def test_what_is_to_be_looked_at_counts_in_hand() -> None:
    steps = told("You pick up the mug 1 from the desk 1.", "You turn on the desklamp 1.")
    assert milestones(scenario("look at mug under the desklamp."), steps) == [0, 0.5, 0.5]


def _play(env: gym.Env[str, str], agent: Agent, start: Scenario) -> Sequence[Step]:
    observation, _ = env.reset(seed=0, options={"scenario": start.to_json()})
    agent.reset(start, 0)
    steps = []
    for _ in range(40):
        action = agent.act(observation, BLIND)
        observation, reward, terminated, truncated, _ = env.step(action)
        steps.append(Step(action, observation, float(reward), terminated, truncated))
        if terminated or truncated:
            break
    return steps


def test_in_the_real_engine_experts_climb_and_explorers_seldom_do() -> None:
    pytest.importorskip("alfworld")
    starts = ScenarioStore("alfworld").of_split("valid_seen")
    by_type = {AlfworldGoal.of(start).task_type: start for start in reversed(starts)}
    assert len(by_type) == 6
    with closing(gym.make("RealWorld-ALFWorld-v0", max_episode_steps=40)) as env:
        for start in by_type.values():
            found = milestones(start, _play(env, AlfworldExpert(), start))
            assert found == sorted(found)
            assert (found[0], found[-1]) == (0, 1)
            assert len(set(found)) >= 3
            lost = _play(env, AlfworldExplorer(), start)
            assert not lost[-1].terminated
            assert max(milestones(start, lost)) < 1
