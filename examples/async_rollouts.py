"""Rollouts as asyncio tasks: each goes at its own pace, all share one engine.

    python examples/async_rollouts.py

An agent that thinks (here it sleeps) holds nobody up: whatever has been asked while the engine was
in a call goes into the next one.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time

from gym_llmworld import get_world
from gym_llmworld.asynchronous import AsyncWorldModelEnv, make_async


async def rollout(env: AsyncWorldModelEnv, seed: int, steps: int) -> float:
    """Plays one episode; returns its reward."""
    agent, thinking = get_world("alfworld").agents["noisy"](), random.Random(seed)
    observation, info = await env.reset_async(seed=seed)
    agent.reset(env.session.scenario, seed)
    total = 0.0
    for _ in range(steps):
        await asyncio.sleep(thinking.uniform(0.0, 0.02))
        observation, reward, terminated, truncated, info = await env.step_async(
            agent.act(observation, info)
        )
        total += reward
        if terminated or truncated:
            break
    return total


async def play(model: str | None, num_envs: int, steps: int) -> int:
    """Plays an episode in every environment; returns how many were solved."""
    envs = [make_async("LLMWorld-ALFWorld-v0", model=model) for _ in range(num_envs)]
    started = time.perf_counter()
    rewards = await asyncio.gather(*(rollout(env, i, steps) for i, env in enumerate(envs)))
    seconds = time.perf_counter() - started
    taken = sum(env.stats.steps for env in envs)
    print(f"{num_envs} tasks, {taken / seconds:.1f} steps per second, {sum(rewards):.0f} solved")
    for env in envs:
        await env.close_async()
    return round(sum(rewards))


def main(model: str | None = None, num_envs: int = 8, steps: int = 20) -> int:
    """Runs the event loop; returns how many episodes were solved."""
    return asyncio.run(play(model, num_envs, steps))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
