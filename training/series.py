"""Series of training runs, for curves and comparisons: every point once, whatever interrupts it.

A point lies in a folder of its own. A finished one has a ``row.json`` there and is not run again;
one that was interrupted continues from its last complete checkpoint.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import shutil
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gym_llmworld.errors import DataError, MissingDependency
from training.card import write_atomically
from training.config import Config, add_options, config_of
from training.data import Conversations, read_conversations
from training.sft import Trained, train

RESULTS_FILE = "results.json"
PLOT_FILE = "plot.png"
_ROW_FILE = "row.json"
_RUN_FILE = "run.json"
# What does not change the result of a run: where it is kept, and how it is watched.
_INDIFFERENT = ("data", "eval_data", "output", "resume", "threads", "checkpoint_minutes")


@dataclass(frozen=True)
class Point:
    """One training run of a series, and its evaluation.

    Attributes:
        name: Unique in the series; its folder.
        about: What the row of the results says of it.
        config: Of the run.
        data: To learn from.
        heldout: To evaluate on.
        mix: As in `training.sft.train`.
    """

    name: str
    about: Mapping[str, Any]
    config: Config
    data: Conversations
    heldout: Conversations
    mix: Sequence[float] | None = None

    def identity(self) -> dict[str, Any]:
        """Returns everything that the result depends on, except for the code."""
        settings = {
            field.name: getattr(self.config, field.name)
            for field in dataclasses.fields(self.config)
            if field.name not in _INDIFFERENT
        }
        mix = None if self.mix is None else list(self.mix)
        data = {"data": self.data.digest, "heldout": self.heldout.digest, "mix": mix}
        return {**settings, **data}


def add_series_options(parser: argparse.ArgumentParser, without: Iterable[str] = ()) -> None:
    """Adds the options of a run, with several seeds instead of one."""
    add_options(parser, {"seed", "resume", "epochs", *without})
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0], metavar="SEED",
        help="one run of every point for each: of weights, data order and choice of episodes "
        "(default: 0)",
    )  # fmt: skip


def base_config(options: argparse.Namespace) -> Config:
    """Returns what the runs of a series have in common.

    Raises:
        ValueError: Not all runs would be equally long, or there is nothing to evaluate on.
        MissingDependency: Plots need matplotlib.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingDependency("matplotlib", "viz")
    config = config_of(options)
    if not config.data or not config.eval_data:
        raise ValueError("a series needs --data and --eval-data (held-out episodes, other games)")
    if not config.max_steps and not config.minutes:
        raise ValueError("a series compares runs of equal length: pass --max-steps N")
    if len(set(options.seeds)) < len(options.seeds):
        raise ValueError(f"a seed is given twice: {options.seeds}")
    return config


def read_data(config: Config) -> tuple[Conversations, Conversations]:
    """Reads training and held-out episodes, and says so when they share a start.

    Raises:
        DataError: A file is not what its name says, or a world is on one side only.
    """
    data = read_conversations([source.path for source in config.sources], config.prompt_style)
    heldout = read_conversations(config.eval_data, config.prompt_style)
    if data.starts and heldout.starts and data.worlds != heldout.worlds:
        raise DataError(
            f"--data holds {', '.join(data.worlds)}; --eval-data {', '.join(heldout.worlds)}; "
            "expected the same worlds"
        )
    shared = len(data.starts & heldout.starts)
    if shared:
        print(f"warning: {shared} of {heldout.scenarios} held-out scenarios are in --data, too")
    return data, heldout


def run_series(points: Sequence[Point], command: str) -> Iterable[list[dict[str, Any]]]:
    """Runs what is not finished yet, in order.

    Yields:
        The rows so far, after every point.

    Raises:
        DataError: A folder holds a run with other settings.
    """
    for point in points:
        _check(point)
    waiting = sum(not (point.config.output / _ROW_FILE).is_file() for point in points)
    if waiting < len(points):
        print(f"{len(points) - waiting} of {len(points)} points are finished already")
    rows: list[dict[str, Any]] = []
    started, done = time.monotonic(), 0
    for number, point in enumerate(points, 1):
        file = point.config.output / _ROW_FILE
        if not file.is_file():
            print(f"[{number}/{len(points)}] {point.name} ...", flush=True)
            _run(point, command)
            done += 1
        rows.append(json.loads(file.read_text(encoding="utf-8")))
        if done:
            left = (time.monotonic() - started) / done * (waiting - done) / 60
            print(f"[{number}/{len(points)}] {_shown(rows[-1])}; about {left:.0f} min left")
        yield rows


def _shown(row: Mapping[str, Any]) -> str:
    em = ", ".join(f"{world} {em['value']:.3f} (n={em['n']})" for world, em in row["em"].items())
    return f"{row['point']}: exact match {em}, {row['minutes']:.1f} min"


def _check(point: Point) -> None:
    """Refuses to mix runs with different settings in one series."""
    file = point.config.output / _RUN_FILE
    identity = json.loads(json.dumps(point.identity()))
    if file.is_file():
        before = json.loads(file.read_text(encoding="utf-8"))
        for name, value in identity.items():
            if before.get(name) != value:
                raise DataError(
                    f"{point.config.output} holds a run with {name} {before.get(name)!r}, now it "
                    f"is {value!r}; pass another --output, or delete that folder"
                )
        return
    point.config.output.mkdir(parents=True, exist_ok=True)
    write_atomically(file, identity)


def _run(point: Point, command: str) -> None:
    folder = point.config.output
    with (
        (folder / "output.log").open("a", encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
    ):
        trained = train(point.config, point.data, point.heldout, command, point.mix)
    row = {
        "point": point.name,
        **point.about,
        "seed": point.config.seed,
        "train_episodes": len(point.data.items),
        "train_scenarios": point.data.scenarios,
        "parameters": trained.parameters,
        "steps": trained.steps,
        "minutes": round(trained.minutes, 2),
        "em": _em(trained),
    }
    write_atomically(folder / _ROW_FILE, row)
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)


def _em(trained: Trained) -> dict[str, Any]:
    assert trained.scores is not None, "a series has held-out episodes"
    return {
        world: {
            "value": match.all.value,
            "hits": match.all.hits,
            "n": match.all.n,
            **{f"{name}_baseline": v for name, v in trained.baselines[world].items()},
        }
        for world, match in trained.scores.by_world.items()
    }


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Summarises one figure over seeds; the standard deviation of one value is None."""
    return {
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "min": min(values),
        "max": max(values),
        "values": list(values),
    }


def plus_minus(summary: Mapping[str, Any]) -> str:
    """Shows what `spread` returned."""
    std = "" if summary["std"] is None else f" ± {summary['std']:.3f}"
    return f"{summary['mean']:.3f}{std}"
