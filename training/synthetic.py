r"""Synthetic data: does an agent learn as much from imagined episodes as from real ones?

    python -m training.synthetic --data real.jsonl --only-agents search --output runs/synthetic \
        --episodes 400 --max-steps 300 --seeds 0 1 2

Word2World's first use of a world model (arXiv 2512.18832, section 7.2). A collector plays in the
imagined world; what the world model calls a success is kept, and nothing is verified. Four agents
are trained alike, with the same number of optimiser steps: on N real successes (*real*), on N
imagined ones (*imagined*), on N/2 of each (*half*), and on N of each (*both*). What counts is the
share of held-out games that they solve in the real engine; with --eval-data, also how many actions
of held-out real episodes they would take. To be fair, --data should hold episodes of the same
collector. An agent may be its own collector and learn from what it did when it went well
(rejection sampling: STaR, arXiv 2203.14465): --collector llm:AGENT --model AGENT --attempts 4.
Imagined episodes cost no real step; those behind the world model are its own. Started again, the
same command runs only what is missing. Results: results.json and plot.png in --output.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.vector import AutoresetMode

from gym_llmworld.agents import Agent
from gym_llmworld.cli_output import progress_bar
from gym_llmworld.cli_worlds import LLMOptions, agent_maker, world_of
from gym_llmworld.core import Episode, Scenario
from gym_llmworld.episodes import EpisodeWriter, episode_key, read_rows, write_episodes
from gym_llmworld.errors import DataError, WorldModelError
from gym_llmworld.metrics import Progress
from gym_llmworld.playing import Game, ImaginedWorlds, play_games
from gym_llmworld.scenarios import ScenarioStore
from training.card import write_atomically
from training.config import Config
from training.data import Conversations
from training.plots import draw_bars
from training.series import (
    PLOT_FILE,
    RESULTS_FILE,
    Point,
    add_series_options,
    base_config,
    plus_minus,
    run_series,
    spread,
)
from training.success import Exam

ARMS = {"real": (1.0, 0.0), "imagined": (0.0, 1.0), "half": (0.5, 0.5), "both": (1.0, 1.0)}
"""Arm -> real and imagined episodes, as shares of N."""

_PLAYED_FILE = "played.jsonl"
_IMAGINED_FILE = "imagined.jsonl"
_ROUND = 64


@dataclass(frozen=True)
class Collection:
    """How imagined episodes are made.

    Attributes:
        env: Id of the imagined world.
        options: Of ``gym.make_vec``: the world model, above all.
        make: Makes a fresh collector.
        name: Of the collector.
        scenarios: Where episodes start, one after another; may repeat.
        max_steps: Step limit.
        lanes: Imagined worlds per batch.
    """

    env: str
    options: Mapping[str, Any]
    make: Callable[[], Agent]
    name: str
    scenarios: Sequence[Scenario]
    max_steps: int
    lanes: int = 32


def imagine(
    collection: Collection, wanted: int, folder: Path, progress: Progress | None = None
) -> tuple[Path, dict[str, Any]]:
    """Plays in the imagined world until there are enough different successes.

    Every finished episode is kept in ``played.jsonl``, so that a killed run loses those in flight
    only. The first ``wanted`` successes, in the order of the games, make ``imagined.jsonl``.

    Args:
        collection: Who plays what.
        wanted: Successes.
        folder: For both files; made if need be.
        progress: Told successes, and how many are wanted.

    Returns:
        The file of the successes, and what they took: ``episodes`` and ``steps`` played,
        ``claimed`` (share of the episodes that the model calls solved).

    Raises:
        DataError: All games are played, and there are fewer; or ``played.jsonl`` is of another
            collection.
        BackendError: The world model could not be asked.
    """
    folder.mkdir(parents=True, exist_ok=True)
    played = _read(folder / _PLAYED_FILE, collection)
    lanes = min(collection.lanes, len(collection.scenarios))
    envs = gym.make_vec(
        collection.env,
        num_envs=lanes,
        autoreset_mode=AutoresetMode.DISABLED,
        max_episode_steps=collection.max_steps,
        **collection.options,
    )
    with closing(envs), EpisodeWriter(folder / _PLAYED_FILE) as writer:
        for begin in range(0, len(collection.scenarios), _ROUND):
            chosen = _successes(played, begin)
            if progress:
                progress(min(len(chosen), wanted), wanted)
            if len(chosen) >= wanted:
                break
            numbers = range(begin, min(begin + _ROUND, len(collection.scenarios)))
            todo = [number for number in numbers if number not in played]
            games = [Game(collection.scenarios[n], n, collection.max_steps) for n in todo]
            worlds = ImaginedWorlds(envs)
            for i, one in play_games(worlds, collection.make, games, name=collection.name):
                played[todo[i]] = one.episode
                writer.write(one.episode, {"job": todo[i]})
    chosen = _successes(played, len(collection.scenarios))[:wanted]
    if len(chosen) < wanted:
        raise DataError(
            f"{wanted} different imagined successes were asked for, {len(played)} games gave "
            f"{len(chosen)}; pass --games with more of them, more --attempts, or fewer --episodes"
        )
    file = folder / _IMAGINED_FILE
    write_episodes(file, chosen)
    return file, {
        "episodes": len(played),
        "steps": sum(len(episode.steps) for episode in played.values()),
        "claimed": sum(episode.success for episode in played.values()) / len(played),
    }


def _read(file: Path, collection: Collection) -> dict[int, Episode]:
    played = {}
    for row, episode in read_rows(file) if file.is_file() else ():
        number = row.get("job", -1)
        known = collection.scenarios[number] if 0 <= number < len(collection.scenarios) else None
        if known is None or (known.id, collection.name) != (episode.scenario.id, episode.agent):
            raise DataError(
                f"{file} holds episodes of other games or of another collector; pass another "
                "--output, or remove that file"
            )
        played[number] = episode
    return played


def _successes(played: Mapping[int, Episode], end: int) -> list[Episode]:
    """Returns the different successes among the first ``end`` games."""
    found: dict[str, Episode] = {}
    for number in sorted(played):
        if number < end and played[number].success:
            found.setdefault(episode_key(played[number]), played[number])
    return list(found.values())


def arms(
    config: Config,
    real: Conversations,
    imagined: Conversations,
    n: int,
    seeds: Sequence[int],
    exam: Exam,
    heldout: Conversations,
) -> list[Point]:
    """Lists the runs: all arms of the first seed, then of the next.

    Args:
        config: What they have in common.
        real: Real episodes.
        imagined: Imagined ones.
        n: Episodes of each kind in a whole share.
        seeds: Of weights, data order and choice of episodes.
        exam: What the agents are measured by.
        heldout: Real episodes for action exact match; may be empty.

    Raises:
        DataError: There are fewer episodes than ``n``.
    """
    points = []
    for seed in seeds:
        for arm, parts in ARMS.items():
            counts = [round(share * n) for share in parts]
            chosen = [
                replace(item, source=source)
                for source, (pool, count) in enumerate(zip((real, imagined), counts, strict=True))
                for item in pool.sample(count, seed).items
            ]
            about = {"arm": arm, "real_episodes": counts[0], "imagined_episodes": counts[1]}
            name = f"{arm}-{n}-seed{seed}"
            run = replace(config, seed=seed, output=config.output / "points" / name)
            data = Conversations(tuple(chosen))
            points.append(Point(name, about, run, data, heldout, exam=exam))
    return points


def by_arm(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Gathers real success over seeds: split -> arm -> `spread`, with games ``n``."""
    result: dict[str, dict[str, dict[str, Any]]] = {}
    for split in rows[0]["success"]:
        for arm in ARMS:
            found = [row["success"][split] for row in rows if row["arm"] == arm]
            if found:
                summary = {**spread([f["value"] for f in found]), "n": found[0]["n"]}
                result.setdefault(split, {})[arm] = summary
    return result


def _table(summary: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Any:
    from rich.table import Table

    table = Table(title="held-out games solved in the real engine")
    for column in ("episodes", "split", "success", "of real", "games", "seeds"):
        table.add_column(column)
    for split, bars in summary.items():
        for arm, row in bars.items():
            real = bars.get("real", {}).get("mean")
            ratio = f"{row['mean'] / real:.2f}" if real else "-"
            n, seeds = str(row["n"]), str(len(row["values"]))
            table.add_row(arm, split, plus_minus(row), ratio, n, seeds)
    return table


def parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    built = argparse.ArgumentParser(
        prog="python -m training.synthetic",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    built.add_argument(
        "--env", default="LLMWorld-ALFWorld-v0", help="imagined world (default: %(default)s)"
    )
    built.add_argument(
        "--world-model", default=None, metavar="MODEL", help="default: the embedded one"
    )
    built.add_argument(
        "--collector", default="search", metavar="AGENT",
        help="who plays in the imagined world: an agent of it, or llm:MODEL (default: search)",
    )  # fmt: skip
    built.add_argument(
        "--collector-temperature", type=float, default=None, metavar="T",
        help="of the answers of llm: collectors (default: 0, greedy; 1 with --attempts)",
    )  # fmt: skip
    built.add_argument(
        "--attempts", type=int, default=1, metavar="K",
        help="play all games up to so many times, until there are enough successes; an agent that "
        "is its own collector then learns from the best of them (default: 1)",
    )  # fmt: skip
    built.add_argument(
        "--games", default=None, metavar="FOLDER",
        help="of 'llmworld games': where imagined episodes start (default: scenarios that ship)",
    )  # fmt: skip
    built.add_argument(
        "--episodes", type=int, default=100, metavar="N",
        help="real, and imagined, episodes of a whole share (default: 100)",
    )  # fmt: skip
    add_exam_options(built)
    add_series_options(built, {"role", "only_success", "prompt_style"})
    return built


def add_exam_options(built: argparse.ArgumentParser) -> None:
    """Adds the options of `Exam`."""
    built.add_argument(
        "--exam", default=None, metavar="FOLDER",
        help="of 'llmworld games': held-out games (default: those that ship)",
    )  # fmt: skip
    built.add_argument(
        "--exam-games", type=int, default=60, metavar="N",
        help="held-out games per split, played in the real engine (default: 60; 0: all)",
    )  # fmt: skip
    built.add_argument(
        "--episode-steps", type=int, default=30, metavar="N",
        help="step limit of every episode, imagined and real (default: 30)",
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    from rich.console import Console

    arguments = list(sys.argv[1:] if argv is None else argv)
    options = parser().parse_args(arguments)
    command = " ".join(["python -m training.synthetic", *arguments])
    try:
        if min(options.episodes, options.episode_steps, options.attempts) < 1:
            raise ValueError("--episodes, --episode-steps and --attempts must be >= 1")
        llm = LLMOptions.of(None, options.collector_temperature, again=options.attempts > 1)
        config = replace(base_config(options, agents=True), only_success=True)
        world = world_of(options.env)
        real = config.read([source.path for source in config.sources])
        store = ScenarioStore(world.key, options.games)
        split = world.splits[0]
        collection = Collection(
            options.env,
            {"model": options.world_model, "scenarios": options.games, "split": split},
            agent_maker(world, options.collector, llm=llm),
            options.collector,
            store.of_split(split) * options.attempts,
            options.episode_steps,
        )
        with progress_bar("imagined successes") as progress:
            file, cost = imagine(collection, options.episodes, config.output, progress)
        imagined = replace(config, only_agents="").read([file])
        exam = Exam.of(world, options.exam, options.exam_games, options.episode_steps)
        rows: list[dict[str, Any]] = []
        heldout = config.read(config.eval_data) if config.eval_data else Conversations()
        points = arms(config, real, imagined, options.episodes, options.seeds, exam, heldout)
        for rows in run_series(points, command):
            summary = by_arm(rows)
            results = {
                "command": command,
                "seeds": options.seeds,
                "imagined": cost,
                "success": summary,
                "rows": rows,
            }
            write_atomically(config.output / RESULTS_FILE, results)
            draw_bars(
                summary,
                config.output / PLOT_FILE,
                "Agents trained on real and on imagined episodes",
                f"held-out games solved in the real engine; N={options.episodes}, mean and range "
                f"over seeds {options.seeds}",
                quantity="success",
            )
    except (WorldModelError, ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    Console().print(_table(by_arm(rows)))
    print(f"finished: {config.output / RESULTS_FILE}, {config.output / PLOT_FILE}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
