"""Awaited environments against the vector environment: same model, same games, same actions.

    python benchmarks/async_worlds.py --json benchmarks/results/async_worlds.json

Two ways to step N worlds of the embedded model:

* ``vector``: ``envs.step``, all worlds in lock-step;
* ``async``: N asyncio tasks, each of which awaits its own steps.

They take turns, each time with an engine of its own that starts with an empty cache, so that other
work on the machine slows both alike and neither profits from the other's cache. Beside the wall
clock stand CPU seconds, which a shared machine distorts much less. Resets are not timed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym

from gym_llmworld.asynchronous import AsyncWorldModelEnv, make_async
from gym_llmworld.backends import SharedBackend
from gym_llmworld.core import Scenario
from gym_llmworld.imagination import Imagination
from gym_llmworld.scenarios import ScenarioStore
from gym_llmworld.vector import WorldModelVectorEnv
from gym_llmworld.worlds import World, get_world


@dataclass(frozen=True)
class Turn:
    """One way's turn.

    Attributes:
        wall: Seconds.
        cpu: CPU seconds of this process.
        calls: Of the engine.
        texts: What each world answered, in order.
    """

    wall: float
    cpu: float
    calls: int
    texts: list[list[str]]


def lock_step(world: World, starts: Sequence[Scenario], scripts: Sequence[Sequence[str]]) -> Turn:
    """Steps a vector environment."""
    envs = gym.make_vec(world.imagined_id, num_envs=len(starts), autoreset_mode="Disabled")
    inner = envs.unwrapped
    assert isinstance(inner, WorldModelVectorEnv)
    envs.reset(seed=0, options={"scenario": [start.id for start in starts]})
    wall, cpu = time.perf_counter(), time.process_time()
    rounds = [envs.step(actions)[0] for actions in zip(*scripts, strict=True)]
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    calls = engine_calls(inner.imagination)
    envs.close()
    return Turn(wall, cpu, calls, [list(texts) for texts in zip(*rounds, strict=True)])


async def tasks(world: World, starts: Sequence[Scenario], scripts: Sequence[Sequence[str]]) -> Turn:
    """Steps as many awaited environments."""
    envs = [make_async(world.imagined_id, max_episode_steps=-1) for _ in starts]
    for env, start in zip(envs, starts, strict=True):
        await env.reset_async(seed=0, options={"scenario": start.id})
    wall, cpu = time.perf_counter(), time.process_time()
    texts = await asyncio.gather(*map(episode, envs, scripts))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    calls = engine_calls(envs[0].imagination)
    for env in envs:
        await env.close_async()
    return Turn(wall, cpu, calls, texts)


async def episode(env: AsyncWorldModelEnv, actions: Sequence[str]) -> list[str]:
    """Takes the steps of one world, as long as it goes on."""
    texts: list[str] = []
    for action in actions:
        observation, _, terminated, truncated, _ = await env.step_async(action)
        texts.append(observation)
        if terminated or truncated:
            break
    # A vector environment shows the end of a finished world again.
    return texts + texts[-1:] * (len(actions) - len(texts))


def engine_calls(imagination: Imagination) -> int:
    """Returns how many calls the engine has answered."""
    assert isinstance(imagination.backend, SharedBackend)
    return imagination.backend.stats.calls


def compare(world: World, count: int, steps: int, turns: int) -> dict[str, Any]:
    """Lets both ways step the same worlds in turn; returns the figures."""
    pool = ScenarioStore(world.key).of_split("train")
    starts = [pool[i % len(pool)] for i in range(count)]
    plans = [start.real["plan"] for start in starts]
    # Never to the end: a solved world would no longer be asked.
    scripts = [[plan[i % max(1, len(plan) - 1)] for i in range(steps)] for plan in plans]
    taken: dict[str, list[Turn]] = {"vector": [], "async": []}
    for number in range(turns):
        for name in sorted(taken, reverse=number % 2 == 0):
            if name == "vector":
                taken[name].append(lock_step(world, starts, scripts))
            else:
                taken[name].append(asyncio.run(tasks(world, starts, scripts)))
    rows = {
        name: {
            "steps_per_second": turns * count * steps / sum(turn.wall for turn in done),
            "steps_per_cpu_second": turns * count * steps / sum(turn.cpu for turn in done),
            "engine_calls": sum(turn.calls for turn in done),
        }
        for name, done in taken.items()
    }
    return {
        "world": world.key,
        "worlds": count,
        "steps": steps,
        "turns": turns,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "equal_observations": all(
            a.texts == b.texts for a, b in zip(taken["vector"], taken["async"], strict=True)
        ),
        **rows,
        "ratio": rows["async"]["steps_per_second"] / rows["vector"]["steps_per_second"],
        "cpu_ratio": rows["async"]["steps_per_cpu_second"] / rows["vector"]["steps_per_cpu_second"],
    }


def main() -> None:
    """Reads the command line, measures, prints and writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--world", default="alfworld", help="whose embedded model is stepped")
    parser.add_argument("--num-envs", type=int, default=64)
    parser.add_argument("--steps", type=int, default=15, help="of every world")
    parser.add_argument("--turns", type=int, default=2, help="of each way")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()

    figures = compare(get_world(options.world), options.num_envs, options.steps, options.turns)
    for name, value in figures.items():
        print(f"{name:20} {value}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
