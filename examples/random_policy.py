"""A plain Gymnasium training loop with a random policy: put yours where ``choose`` is.

    python examples/random_policy.py

Wrappers, episode statistics and step limits are Gymnasium's own. Nothing here knows that the world
is a language model: ``gym.make("RealWorld-ALFWorld-v0")`` runs it in the mirrored environment.
"""

from __future__ import annotations

import re
import sys

import gymnasium as gym
import numpy as np

import gym_llmworld  # noqa: F401 - registers the ids

THING = re.compile(r"[a-z]+ \d+")


def choose(observation: str, places: list[str], rng: np.random.Generator) -> str:
    """Returns a command: something with what is in sight, or a walk."""
    things = [name for name in THING.findall(observation) if name not in places]
    here = next((name for name in THING.findall(observation) if name in places), None)
    options = [f"go to {place}" for place in places] or ["look"]
    if here is not None:
        options += [f"take {thing} from {here}" for thing in things] + [f"open {here}"] * 3
    return str(rng.choice(options))


def main(model: str | None = None, episodes: int = 2, max_steps: int = 15) -> list[float]:
    """Plays some episodes; returns their returns."""
    env = gym.wrappers.RecordEpisodeStatistics(
        gym.make("LLMWorld-ALFWorld-v0", max_episode_steps=max_steps, model=model)
    )
    rng = np.random.default_rng(0)
    returns = []
    for episode in range(episodes):
        observation, info = env.reset(seed=episode)
        places = THING.findall(observation)
        done = False
        while not done:
            observation, _, terminated, truncated, info = env.step(choose(observation, places, rng))
            done = terminated or truncated
        returns.append(float(info["episode"]["r"]))
        print(f"episode {episode}: return {info['episode']['r']}, {info['episode']['l']} steps")
    env.close()
    return returns


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
