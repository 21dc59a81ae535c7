"""Imagined rollouts in a batch of worlds against one world at a time: same games, same agent.

    python -m benchmarks.imagined_rollouts --json benchmarks/results/imagined_rollouts.json
    python -m benchmarks.imagined_rollouts --agent llm:runs/agent

Both sides play the same games to their end with `gym_llmworld.playing.play_games`, which is what
`training.policy` learns from: once in N worlds that step together, one batched call of the world
model (and of the agent, where it is a model) per step, and once in a single world, game after game.
They take turns, each with an engine that starts with an empty cache. Beside the wall clock stand
CPU seconds, which a shared machine distorts much less.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
from gymnasium.vector import AutoresetMode

from benchmarks.measure import Report, command_line, parse, set_threads
from gym_llmworld.agents import Agent
from gym_llmworld.cli_worlds import agent_maker, world_of
from gym_llmworld.core import Episode
from gym_llmworld.playing import Game, ImaginedWorlds, play_games
from gym_llmworld.scenarios import ScenarioStore


@dataclass(frozen=True)
class Turn:
    """One side's turn.

    Attributes:
        wall: Seconds.
        cpu: CPU seconds of this process.
        episodes: What was played, in the order of the games.
    """

    wall: float
    cpu: float
    episodes: list[Episode]

    @property
    def steps(self) -> int:
        """Of all episodes."""
        return sum(len(episode.steps) for episode in self.episodes)


def play(
    env_id: str, options: dict[str, Any], make: Callable[[], Agent], games: Sequence[Game],
    lanes: int,
) -> Turn:  # fmt: skip
    """Plays every game once in so many worlds."""
    envs = gym.make_vec(
        env_id,
        num_envs=lanes,
        autoreset_mode=AutoresetMode.DISABLED,
        max_episode_steps=max(game.limit for game in games),
        **options,
    )
    with closing(envs):
        wall, cpu = time.perf_counter(), time.process_time()
        played = dict(play_games(ImaginedWorlds(envs), make, games, name="agent"))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Turn(wall, cpu, [played[i].episode for i in range(len(games))])


def compare(
    env_id: str, options: dict[str, Any], agent: str, count: int, limit: int, turns: int
) -> dict[str, Any]:
    """Lets both sides play the same games in turn; returns the figures."""
    world = world_of(env_id)
    pool = ScenarioStore(world.key).of_split(world.splits[0])
    games = [Game(pool[i % len(pool)], i, limit) for i in range(count)]
    make = agent_maker(world, agent)
    taken: dict[int, list[Turn]] = {count: [], 1: []}
    for number in range(turns):
        for lanes in sorted(taken, reverse=number % 2 == 0):
            taken[lanes].append(play(env_id, options, make, games, lanes))
    rows = {
        f"{lanes} worlds" if lanes > 1 else "one world": {
            "steps_per_second": sum(t.steps for t in done) / sum(t.wall for t in done),
            "steps_per_cpu_second": sum(t.steps for t in done) / sum(t.cpu for t in done),
            "steps": sum(t.steps for t in done),
        }
        for lanes, done in taken.items()
    }
    many, one = rows.values()
    equal = [
        a.steps == b.steps
        for a, b in zip(taken[count][0].episodes, taken[1][0].episodes, strict=True)
    ]
    return {
        "env": env_id,
        "agent": agent,
        "worlds": count,
        "turns": turns,
        "rows": rows,
        "ratio_wall": many["steps_per_second"] / one["steps_per_second"],
        "ratio_cpu": many["steps_per_cpu_second"] / one["steps_per_cpu_second"],
        "equal_episodes": sum(equal) / len(equal),
    }


def arguments() -> argparse.ArgumentParser:
    """Returns the command line."""
    parser = command_line(__doc__)
    parser.add_argument("--env", default="LLMWorld-ALFWorld-v0")
    parser.add_argument("--world-model", help="default: the embedded one")
    parser.add_argument("--agent", default="search", help="of the world, or llm:MODEL")
    parser.add_argument("--worlds", type=int, default=32)
    parser.add_argument("--max-steps", type=int, default=25)
    parser.add_argument("--turns", type=int, default=2)
    return parser


def main(line: Sequence[str] | None = None) -> None:
    """Measures, prints and writes."""
    options = parse(arguments(), line)
    report = Report("imagined_rollouts", options)
    set_threads(options.threads)
    report.figures = compare(
        options.env, {"model": options.world_model}, options.agent, options.worlds,
        options.max_steps, options.turns,
    )  # fmt: skip
    report.list("Imagined rollouts, many worlds against one")
    report.table(
        "Both sides",
        [{"side": side, **row} for side, row in report.figures["rows"].items()],
        {
            "side": "side", "steps/s": "steps_per_second:.1f",
            "per CPU s": "steps_per_cpu_second:.1f", "steps": "steps",
        },
    )  # fmt: skip
    report.close()


if __name__ == "__main__":
    main()
