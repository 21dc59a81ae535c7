r"""Scaling curves of world models: exact match against episodes, and against parameters.

    python -m training.scaling --data train.jsonl --eval-data heldout.jsonl --output runs/scaling \
        --episodes 100 300 1000 --shapes 2x128 4x192 5x256 --max-steps 400 --seeds 0 1 2

Every point is a training run of the same number of optimiser steps (--max-steps; or of the same
time, --minutes) and an evaluation on all held-out episodes. (Word2World, arXiv 2512.18832, figures
2 and 3, counts epochs instead, so that its small data sets are trained for fewer steps.) The
episode curve trains the model of --layers, --width, --heads, --hidden on ever larger samples; of
one seed each sample holds the smaller ones. The parameter curve trains every shape on the largest
of them. A point's tokenizer is learned from its own episodes. Started again, the same command runs
only what is missing; longer lists of --episodes, --shapes and --seeds add points. Results:
results.json and plot.png in --output.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gym_llmworld.errors import WorldModelError
from training.card import write_atomically
from training.config import SCRATCH, Config
from training.data import Conversations, shares
from training.plots import Line, Panel, draw
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

_SHAPE = re.compile(r"([1-9]\d*)x([1-9]\d*)")
_HEAD_SIZE = 64
_LEAST_HEADS = 4


@dataclass(frozen=True)
class Shape:
    """Sizes of a model from scratch, as in `Config`."""

    layers: int
    width: int
    heads: int
    hidden: int

    @classmethod
    def parse(cls, text: str) -> Shape:
        """Reads ``LAYERSxWIDTH``; heads of 64 (at least 4 heads), feed-forward twice as wide.

        Raises:
            ValueError: Not of this form, or no such model can be built.
        """
        found = _SHAPE.fullmatch(text)
        if found is None:
            raise ValueError(f"shape {text!r}: expected LAYERSxWIDTH, for example 4x192")
        layers, width = int(found[1]), int(found[2])
        heads = max(_LEAST_HEADS, width // _HEAD_SIZE)
        if width % (4 * heads):
            raise ValueError(
                f"shape {text!r}: expected a width divisible by 16, and from 320 on by 64; got "
                f"{width}"
            )
        return cls(layers, width, heads, 2 * width)

    @classmethod
    def of(cls, config: Config) -> Shape:
        """Returns the shape of a run."""
        return cls(config.layers, config.width, config.heads, config.hidden)

    def __str__(self) -> str:
        return f"{self.layers}x{self.width}"


def scaling_points(
    config: Config,
    data: Conversations,
    heldout: Conversations,
    sizes: Sequence[int],
    shapes: Sequence[Shape],
    seeds: Sequence[int],
) -> list[Point]:
    """Lists the runs behind both curves; what belongs to both is run once.

    Args:
        config: What they have in common.
        data: All training episodes.
        heldout: To evaluate on.
        sizes: Numbers of episodes; none: all of them.
        shapes: Of the parameter curve; may be empty.
        seeds: One run of each for every seed, the first seed first.

    Raises:
        DataError: There are fewer episodes than a size asks for.
    """
    base, sizes = Shape.of(config), sorted(set(sizes)) or [len(data.items)]
    wanted = [(size, base) for size in sizes]
    wanted += [(sizes[-1], shape) for shape in dict.fromkeys(shapes) if shape != base]
    points = []
    for seed in seeds:
        for size, shape in wanted:
            name = f"{size}-episodes-{shape}-seed{seed}"
            run = replace(
                config,
                output=config.output / "points" / name,
                seed=seed,
                **vars(shape),
            )
            curves = ["episodes"] if shape == base else []
            curves += ["parameters"] if size == sizes[-1] else []
            about = {"curves": curves, "episodes": size, "shape": str(shape)}
            sample = data.sample(size, seed)
            points.append(Point(name, about, run, sample, heldout, shares(config.sources)))
    return points


def curve(rows: Iterable[Mapping[str, Any]], name: str) -> dict[str, list[dict[str, Any]]]:
    """Gathers the runs of one curve over seeds.

    Args:
        rows: Of the results.
        name: ``"episodes"`` or ``"parameters"``.

    Returns:
        World -> points: ``x`` (mean over seeds), `spread` of exact match, and turns ``n``.
    """
    key = "episodes" if name == "episodes" else "shape"
    groups: dict[Any, list[Mapping[str, Any]]] = {}
    for row in rows:
        if name in row["curves"]:
            groups.setdefault(row[key], []).append(row)
    worlds: dict[str, list[dict[str, Any]]] = {}
    for label, group in groups.items():
        x = sum(row[name] for row in group) / len(group)
        for world, em in group[0]["em"].items():
            summary = spread([row["em"][world]["value"] for row in group])
            point = {"x": x, "label": label, "n": em["n"], **summary}
            worlds.setdefault(world, []).append(point)
    return {world: sorted(points, key=lambda point: point["x"]) for world, points in worlds.items()}


def _plot(rows: Sequence[Mapping[str, Any]], file: Path, subtitle: str) -> None:
    majority = {w: em["majority_baseline"] for w, em in rows[0]["em"].items()}
    panels = []
    for name in ("episodes", "parameters"):
        lines = [
            Line(world, points, majority[world]) for world, points in curve(rows, name).items()
        ]
        if any(len(line.points) > 1 for line in lines):
            panels.append(Panel(name, lines))
    if panels:
        draw(panels, file, "Exact match per turn on held-out episodes", subtitle)


def _table(rows: Sequence[Mapping[str, Any]]) -> Any:
    from rich.table import Table

    table = Table(title="exact match per turn on held-out episodes")
    for column in ("curve", "at", "world", "exact match", "turns", "seeds"):
        table.add_column(column)
    for name in ("episodes", "parameters"):
        for world, points in curve(rows, name).items():
            for point in points:
                at = f"{point['x']:,.0f}" + (f" ({point['label']})" if name != "episodes" else "")
                n, seeds = str(point["n"]), str(len(point["values"]))
                table.add_row(name, at, world, plus_minus(point), n, seeds)
    return table


def parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    built = argparse.ArgumentParser(
        prog="python -m training.scaling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    built.add_argument(
        "--episodes", type=int, nargs="+", default=[], metavar="N",
        help="points of the episode curve (default: all episodes, one point)",
    )  # fmt: skip
    built.add_argument(
        "--shapes", nargs="+", default=[], metavar="LAYERSxWIDTH",
        help="points of the parameter curve, beside the shape of --layers and --width: heads of 64 "
        "(at least 4), feed-forward blocks twice as wide (default: none)",
    )  # fmt: skip
    add_series_options(built)
    return built


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    from rich.console import Console

    arguments = list(sys.argv[1:] if argv is None else argv)
    options = parser().parse_args(arguments)
    command = " ".join(["python -m training.scaling", *arguments])
    try:
        config = base_config(options)
        shapes = [Shape.parse(text) for text in options.shapes]
        if min(options.episodes, default=1) < 1:
            raise ValueError(f"--episodes must be >= 1, got {min(options.episodes)}")
        if shapes and config.model != SCRATCH:
            raise ValueError("--shapes are of models from scratch; leave --model or --shapes out")
        data, heldout = read_data(config)
        points = scaling_points(config, data, heldout, options.episodes, shapes, options.seeds)
        rows: list[dict[str, Any]] = []
        length = f"{config.max_steps} optimiser steps" if config.max_steps else ""
        length += f" {config.minutes:g} minutes" if config.minutes else ""
        subtitle = f"{length.strip()} per point; mean and range over seeds {options.seeds}"
        for rows in run_series(points, command):
            curves = {name: curve(rows, name) for name in ("episodes", "parameters")}
            results = {"command": command, "seeds": options.seeds, "curves": curves, "rows": rows}
            write_atomically(config.output / RESULTS_FILE, results)
            _plot(rows, config.output / PLOT_FILE, subtitle)
    except (WorldModelError, ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    Console().print(_table(rows))
    print(f"finished: {config.output / RESULTS_FILE}, {config.output / PLOT_FILE}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
