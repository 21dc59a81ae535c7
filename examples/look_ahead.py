"""Look behind every door before taking a single step: what-if questions and forks.

    python examples/look_ahead.py

An imagined world can be asked what *would* happen. Here the agent asks where the thing that it
needs is: one batched model call for all places at once, then one per closed door in a fork. In the
real world each of these looks would be a step.
"""

from __future__ import annotations

import re
import sys

import gymnasium as gym

from gym_llmworld import WorldModelEnv

THING = re.compile(r"([a-z]+) \d+")


def find(env: WorldModelEnv, wanted: str) -> dict[str, str]:
    """Returns ``{thing: place}`` for all wanted things that the model believes in."""
    places = [match.group() for match in THING.finditer(env.session.observation)]
    found: dict[str, str] = {}
    for place, step in zip(places, env.what_if([f"go to {p}" for p in places]), strict=True):
        seen = step.observation
        if "is closed" in seen:
            door = env.fork()
            door.step(f"go to {place}")
            seen = door.what_if([f"open {place}"])[0].observation
            door.close()
        for match in THING.finditer(seen):
            if match.group(1) == wanted:
                found[match.group()] = place
    return found


def main(model: str | None = None, seed: int = 3) -> dict[str, str]:
    """Searches a household; returns what was found where."""
    made = gym.make("LLMWorld-ALFWorld-v0", model=model)
    env = made.unwrapped
    assert isinstance(env, WorldModelEnv)
    env.reset(seed=seed)
    scenario = env.session.scenario
    wanted = str(scenario.real.get("object", "mug")).lower()
    print(f"Task: {scenario.instruction}")
    found = find(env, wanted)
    for thing, place in found.items():
        print(f"The {thing} should be in or on the {place}.")
    if not found:
        print(f"No {wanted} anywhere, as far as the model knows.")
    assert env.session.steps == (), "looking ahead moves nothing"
    print(f"Asked {env.stats.requests} times in {env.stats.model_calls} calls, took no step.")
    made.close()
    return found


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
