"""Awaited environments against the vector environment: same model, same games, same actions.

    python -m benchmarks.async_worlds --json benchmarks/results/async_worlds.json

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
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym

from benchmarks.measure import Report, command_line, parse, set_threads
from benchmarks.stepping import prepare
from gym_llmworld.asynchronous import AsyncWorldModelEnv, make_async
from gym_llmworld.backends import SharedBackend
from gym_llmworld.core import Scenario
from gym_llmworld.imagination import Imagination
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


def compare(world: World, count: int, steps: int, turns: int, threads: int) -> dict[str, Any]:
    """Lets both ways step the same worlds in turn; returns the figures."""
    set_threads(threads)
    prepared = prepare(world.key, count, steps)
    starts = [script.start for script in prepared]
    scripts = [script.actions for script in prepared]
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
        "equal_observations": all(
            a.texts == b.texts for a, b in zip(taken["vector"], taken["async"], strict=True)
        ),
        **rows,
        "ratio": rows["async"]["steps_per_second"] / rows["vector"]["steps_per_second"],
        "cpu_ratio": rows["async"]["steps_per_cpu_second"] / rows["vector"]["steps_per_cpu_second"],
    }


def arguments() -> argparse.ArgumentParser:
    """Returns the command line."""
    parser = command_line(__doc__)
    parser.add_argument("--world", default="alfworld", help="whose embedded model is stepped")
    parser.add_argument("--num-envs", type=int, default=64)
    parser.add_argument("--steps", type=int, default=15, help="of every world")
    parser.add_argument("--turns", type=int, default=2, help="of each way")
    return parser


def main(line: Sequence[str] | None = None) -> None:
    """Reads the command line, measures, prints and writes."""
    options = parse(arguments(), line)
    report = Report("async_worlds", options)
    report.figures = compare(
        get_world(options.world), options.num_envs, options.steps, options.turns, options.threads
    )
    report.list("Awaited environments against the vector environment")
    report.table(
        "Both ways",
        [{"way": way, **report.figures[way]} for way in ("vector", "async")],
        {
            "way": "way", "steps/s": "steps_per_second:.1f",
            "per CPU s": "steps_per_cpu_second:.1f", "calls": "engine_calls",
        },
    )  # fmt: skip
    report.close()


if __name__ == "__main__":
    main()
