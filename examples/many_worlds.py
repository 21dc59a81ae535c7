"""Many imagined worlds at once: one batched model call per step.

    python examples/many_worlds.py

Worlds whose episode ends start another one in the same step (``SAME_STEP``); Gymnasium's other two
autoreset modes work, too.
"""

from __future__ import annotations

import sys
import time

import gymnasium as gym
from gymnasium.vector import AutoresetMode

from gym_llmworld import WorldModelVectorEnv, get_world


def main(model: str | None = None, num_envs: int = 8, steps: int = 20) -> int:
    """Steps the worlds; returns how many episodes were solved."""
    envs = gym.make_vec(
        "LLMWorld-ALFWorld-v0",
        num_envs=num_envs,
        model=model,
        autoreset_mode=AutoresetMode.SAME_STEP,
    )
    worlds = envs.unwrapped
    assert isinstance(worlds, WorldModelVectorEnv)
    agents = [get_world("alfworld").agents["noisy"]() for _ in range(num_envs)]

    observations, _ = envs.reset(seed=0)
    for i, agent in enumerate(agents):
        agent.reset(worlds.sessions[i].scenario, seed=i)

    solved = 0
    started = time.perf_counter()
    for step in range(steps):
        actions = [agent.act(text, {}) for agent, text in zip(agents, observations, strict=True)]
        observations, _, terminated, truncated, _ = envs.step(tuple(actions))
        solved += int(terminated.sum())
        for i in range(num_envs):
            if terminated[i] or truncated[i]:
                agents[i].reset(worlds.sessions[i].scenario, seed=num_envs * (step + 1) + i)
    rate = steps * num_envs / (time.perf_counter() - started)
    print(f"{num_envs} worlds, {rate:.1f} steps per second, {solved} episodes solved")
    envs.close()
    return solved


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
