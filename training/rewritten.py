"""Episodes whose every text says something else: names that are exchanged for others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from gym_llmworld.core import Episode


def rewritten(episode: Episode, change: Callable[[str], str], copy: int) -> Episode:
    """Returns an episode in which every text is another one, hidden context included.

    Args:
        episode: A real one. The copy cannot be started in its engine.
        change: Returns what a text becomes.
        copy: Number that the new scenario's id ends in.
    """
    scenario = episode.scenario
    known = scenario.admissible
    changed = replace(
        scenario,
        id=f"{scenario.id}/renamed-{copy}",
        instruction=change(scenario.instruction),
        observation=change(scenario.observation),
        admissible=known and tuple(map(change, known)),
        hidden=_everywhere(scenario.hidden, change),
        # The engine would start the game with its own names.
        real={},
    )
    steps = tuple(
        replace(step, action=change(step.action), observation=change(step.observation))
        for step in episode.steps
    )
    return replace(episode, scenario=changed, steps=steps, agent=f"{episode.agent}, renamed")


def _everywhere(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(key): _everywhere(inner, change) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_everywhere(inner, change) for inner in value)
    return value
