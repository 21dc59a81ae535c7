"""Advantages per command: hand-computed groups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from gym_llmworld.core import Episode, Scenario, Step
from gym_llmworld.playing import Played
from training.credit import command_advantages
from training.token_policy import Rollout, Start

SCENARIO = Scenario("x", "alfworld", "train", "put a mug in safe.", "A room.")


def counted(scenario: Scenario, steps: Sequence[Step]) -> list[float]:
    """Reads the done share from the observations."""
    return [0.0, *(float(step.observation) for step in steps)]


def rollout(*shares: float, before: Sequence[float] = ()) -> Rollout:
    steps = [Step(f"act {i}", str(s), float(s == 1), s == 1) for i, s in enumerate(shares)]
    given = tuple(Step("given", str(share)) for share in before)
    found = Rollout(Start(SCENARIO, given), 9)
    found.played = Played(Episode(SCENARIO, tuple(steps), "model", "x"), 0, stopped=False)
    return found


def scaled(values: Sequence[Sequence[float]]) -> list[Any]:
    everything = [v for row in values for v in row]
    scale = math.sqrt(sum(v * v for v in everything) / len(everything))
    return [pytest.approx([v / scale for v in row]) for row in values]


def test_commands_are_compared_where_as_much_was_done() -> None:
    group = [rollout(0.0, 0.5, 1.0), rollout(0.5, 0.5), rollout(0.0)]
    # What comes after: 2, 2, 1.5 | 0.5, 0 | 0. With nothing done: 2, 2, 0.5, 0; with half: 1.5, 0.
    expected = [[2 - 1.125, 2 - 1.125, 0.75], [0.5 - 1.125, -0.75], [-1.125]]
    assert command_advantages(group, 3, counted, 1.0) == scaled(expected)


def test_later_is_worth_less_with_a_discount() -> None:
    group = [rollout(0.0, 1.0), rollout(0.0, 0.0)]
    mean = (1 + 2 + 0 + 0) / 4
    assert command_advantages(group, 2, counted, 0.5) == scaled([[1 - mean, 2 - mean], [-mean] * 2])


def test_groups_are_apart_and_steps_before_a_start_do_not_count() -> None:
    groups = [rollout(0.0), rollout(1.0), rollout(0.5, before=[0.5]), rollout(1.0, before=[0.5])]
    first = command_advantages(groups, 2, counted, 1.0)
    assert first == scaled([[-1], [1], [-0.75], [0.75]])


def test_nothing_to_tell_apart_is_no_error() -> None:
    assert command_advantages([rollout(0.0), rollout(0.0)], 2, counted, 1.0) == [[0.0], [0.0]]
    assert command_advantages([], 2, counted, 1.0) == []
