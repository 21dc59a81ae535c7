"""One imagined episode: the loop that every Gymnasium user knows.

    python examples/quickstart.py

The observations are written by the world model that ships with the package; the actions by an
agent that reads nothing but those observations.
"""

from __future__ import annotations

import sys

import gymnasium as gym

from gym_llmworld import WorldModelEnv, get_world


def main(model: str | None = None, seed: int = 0) -> float:
    """Plays one episode; returns its reward."""
    env = gym.make("LLMWorld-ALFWorld-v0", model=model)
    world = env.unwrapped
    assert isinstance(world, WorldModelEnv)
    agent = get_world("alfworld").agents["expert"]()

    observation, info = env.reset(seed=seed)
    agent.reset(world.session.scenario, seed)
    print(observation)

    total, done = 0.0, False
    while not done:
        action = agent.act(observation, info)
        observation, reward, terminated, truncated, info = env.step(action)
        print(f"> {action}\n{observation}")
        total += float(reward)
        done = terminated or truncated
    print("solved" if info["won"] else "not solved")
    env.close()
    return total


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
