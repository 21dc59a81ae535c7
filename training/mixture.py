r"""One model of several worlds against one model per world, at equal numbers of optimiser steps.

    python -m training.mixture --data alf.jsonl sci.jsonl tw.jsonl --output runs/mixture \
        --eval-data alf_test.jsonl sci_test.jsonl tw_test.jsonl --max-steps 400 --seeds 0 1 2

Word2World (arXiv 2512.18832, figure 5) compares them at equal epochs, where a mixture of K worlds
takes K times as many optimiser steps as each model that it is compared with. Here steps are equal,
in both readings of that. With S steps (--max-steps) for the model of each single world:

* mixed, S steps: as many as each single model. It sees 1/K as many episodes of each world.
* mixed, K x S steps: as many as all single models together. It sees as many episodes of each world
  as that world's own model.

The learning rate of each run decays to its own end. The worlds have equal shares of the mixture.
All models have the same shape, and a tokenizer of their own data. Differences are taken seed by
seed. Started again, the same command runs only what is missing; more --seeds add runs. Results:
results.json and plot.png in --output.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gym_llmworld.errors import DataError, WorldModelError
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
    read_data,
    run_series,
    spread,
)

KINDS = SINGLE, SAME_STEPS, SAME_TOTAL = "single", "mixed_same_steps", "mixed_same_total"


def mixture_points(
    config: Config, data: Conversations, heldout: Conversations, episodes: int, seeds: Sequence[int]
) -> list[Point]:
    """Lists the runs: per seed one model of each world, and two of all.

    Args:
        config: What they have in common; its ``max_steps`` are those of a single model.
        data: Training episodes of all worlds.
        heldout: To evaluate on.
        episodes: How many of each world to use; 0 for all.
        seeds: The first seed first.

    Raises:
        DataError: There is one world only, or one has too few episodes.
    """
    worlds = data.groups
    if len(worlds) < 2 or worlds != heldout.groups:
        raise DataError(
            "expected training and held-out episodes of the same two or more worlds; got "
            f"{', '.join(worlds)} and {', '.join(heldout.groups)}"
        )
    points = []
    for seed in seeds:
        seeded = replace(config, seed=seed)
        parts = [data.of_group(world) for world in worlds]
        if episodes:
            parts = [part.sample(episodes, seed) for part in parts]
        for world, part in zip(worlds, parts, strict=True):
            alone, test = _by_world([part]), heldout.of_group(world)
            points.append(_point(seeded, SINGLE, world, config.max_steps, alone, test))
        mixed, total = _by_world(parts), config.max_steps * len(worlds)
        points.append(_point(seeded, SAME_STEPS, None, config.max_steps, mixed, heldout))
        points.append(_point(seeded, SAME_TOTAL, None, total, mixed, heldout))
    return points


def _by_world(parts: Sequence[Conversations]) -> Conversations:
    """Joins worlds, to be sampled by world, whatever files they came from."""
    return Conversations(
        tuple(replace(item, source=i) for i, part in enumerate(parts) for item in part.items)
    )


def _point(
    config: Config,
    model: str,
    world: str | None,
    steps: int,
    data: Conversations,
    heldout: Conversations,
) -> Point:
    name = "-".join([model, *([world] if world else []), f"seed{config.seed}"])
    run = replace(config, output=config.output / "points" / name, max_steps=steps)
    mix = [1 / len(data.groups)] * len(data.groups)
    return Point(name, {"model": model, "world": world}, run, data, heldout, mix)


def comparison(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Gathers the runs of all seeds that are complete.

    Returns:
        World, and ``"mean of worlds"`` last -> kind of model -> `spread` of its exact match;
        ``<kind>_difference`` -> of the difference to the single model of the same seed; ``n``:
        turns. Empty before the first seed is complete.
    """
    values: dict[int, dict[str, dict[str, float]]] = {}
    turns: dict[str, int] = {}
    for row in rows:
        by_kind = values.setdefault(row["seed"], {})
        for world, em in row["em"].items():
            by_kind.setdefault(row["model"], {})[world] = em["value"]
            turns[world] = em["n"]
    complete = [
        by_kind
        for by_kind in values.values()
        if all(set(by_kind.get(kind, ())) == set(turns) for kind in KINDS)
    ]
    for by_kind in complete:
        for scores in by_kind.values():
            scores["mean of worlds"] = sum(scores.values()) / len(scores)
    if not complete:
        return {}
    return {
        world: {"n": turns.get(world, sum(turns.values())), **_compared(complete, world)}
        for world in [*turns, "mean of worlds"]
    }


def _compared(complete: Sequence[Mapping[str, Mapping[str, float]]], world: str) -> dict[str, Any]:
    result = {}
    for kind in KINDS:
        result[kind] = spread([scores[kind][world] for scores in complete])
        if kind != SINGLE:
            result[f"{kind}_difference"] = spread(
                [scores[kind][world] - scores[SINGLE][world] for scores in complete]
            )
    return result


def _titles(steps: int, worlds: int) -> dict[str, str]:
    return {
        SINGLE: f"single, {steps} steps each",
        SAME_STEPS: f"mixed, {steps} steps",
        SAME_TOTAL: f"mixed, {worlds} x {steps} steps",
    }


def _table(compared: Mapping[str, Mapping[str, Any]], titles: Mapping[str, str]) -> Any:
    from rich.table import Table

    table = Table(title="exact match per turn on held-out episodes")
    for column in ("world", "model", "exact match", "difference", "turns"):
        table.add_column(column)
    for world, row in compared.items():
        for kind, title in titles.items():
            difference = row.get(f"{kind}_difference")
            shown = "" if difference is None else plus_minus(difference)
            table.add_row(world, title, plus_minus(row[kind]), shown, str(row["n"]))
        table.add_section()
    return table


def _plot(
    compared: Mapping[str, Mapping[str, Any]], titles: Mapping[str, str], file: Path, subtitle: str
) -> None:
    groups = {
        f"{world}\n(n={row['n']})": {title: row[kind] for kind, title in titles.items()}
        for world, row in compared.items()
    }
    draw_bars(groups, file, "Exact match per turn on held-out episodes", subtitle)


def parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    built = argparse.ArgumentParser(
        prog="python -m training.mixture",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    built.add_argument(
        "--episodes", type=int, default=0, metavar="N",
        help="random episodes of each world to train on (default: 0, all of them)",
    )  # fmt: skip
    add_series_options(built, without=("minutes",))
    return built


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    from rich.console import Console

    arguments = list(sys.argv[1:] if argv is None else argv)
    options = parser().parse_args(arguments)
    command = " ".join(["python -m training.mixture", *arguments])
    try:
        config = base_config(options)
        if any(source.weight is not None for source in config.sources):
            raise ValueError("the worlds have equal shares here; leave the weights of --data out")
        if options.episodes < 0:
            raise ValueError(f"--episodes must be >= 0, got {options.episodes}")
        data, heldout = read_data(config)
        points = mixture_points(config, data, heldout, options.episodes, options.seeds)
        titles = _titles(config.max_steps, len(data.groups))
        subtitle = f"mean and range over seeds {options.seeds}"
        compared: dict[str, dict[str, Any]] = {}
        for rows in run_series(points, command):
            compared = comparison(rows)
            results = {"command": command, "seeds": options.seeds, "comparison": compared}
            write_atomically(config.output / RESULTS_FILE, {**results, "rows": rows})
            if compared:
                _plot(compared, titles, config.output / PLOT_FILE, subtitle)
    except (WorldModelError, ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    console = Console()
    console.print(_table(compared, titles))
    console.print(f"seeds {options.seeds}; ± is the standard deviation over seeds")
    print(f"finished: {config.output / RESULTS_FILE}, {config.output / PLOT_FILE}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
