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
from pathlib import Path
from typing import Any, Protocol

from gym_llmworld.errors import DataError, MissingDependency
from training.card import claim, write_atomically
from training.config import AGENT, Config, add_options, config_of
from training.data import Conversations, shares
from training.sft import Trained, train
from training.success import Exam, success_text

RESULTS_FILE = "results.json"
PLOT_FILE = "plot.png"
_ROW_FILE = "row.json"
_RUN_FILE = "run.json"
# What does not change the result of a run: where it is kept, and how it is watched.
_INDIFFERENT = ("data", "eval_data", "output", "resume", "threads", "checkpoint_minutes")


class Unit(Protocol):
    """What a series runs: something with a folder, whose result is one row."""

    @property
    def name(self) -> str:
        """Unique in the series."""
        ...

    @property
    def folder(self) -> Path:
        """Where it keeps what it has done."""
        ...

    def identity(self) -> dict[str, Any]:
        """Returns everything that the result depends on, except for the code."""
        ...

    def run(self, command: str) -> dict[str, Any]:
        """Runs it, or goes on with it, and returns its row."""
        ...


@dataclass(frozen=True)
class Point:
    """One training run of a series, and its evaluation.

    Attributes:
        name: Unique in the series; its folder.
        about: What the row of the results says of it.
        config: Of the run.
        data: To learn from.
        heldout: To evaluate on; may be empty where there is an exam.
        mix: As in `training.sft.train`.
        exam: Games that the trained agent plays; None for none.
    """

    name: str
    about: Mapping[str, Any]
    config: Config
    data: Conversations
    heldout: Conversations
    mix: Sequence[float] | None = None
    exam: Exam | None = None

    @property
    def folder(self) -> Path:
        """Where the run keeps what it has done."""
        return self.config.output

    def identity(self) -> dict[str, Any]:
        """Returns everything that the result depends on, except for the code."""
        mix = None if self.mix is None else list(self.mix)
        data = {"data": self.data.digest, "heldout": self.heldout.digest, "mix": mix}
        exam = {} if self.exam is None else {"exam": self.exam.settings()}
        return {**settings(self.config), **data, **exam}

    def run(self, command: str) -> dict[str, Any]:
        """Trains and evaluates."""
        trained = train(self.config, self.data, self.heldout, command, self.mix)
        row = {
            "point": self.name,
            **self.about,
            "seed": self.config.seed,
            "train_episodes": len(self.data.items),
            "train_scenarios": self.data.scenarios,
            "parameters": trained.parameters,
            "steps": trained.steps,
            "minutes": round(trained.minutes, 2),
            "em": _em(trained),
        }
        return row if self.exam is None else {**row, "success": self.exam.take(self.folder)}


def settings(config: Config) -> dict[str, Any]:
    """Returns what the result of a run depends on, beside its data."""
    return {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name not in _INDIFFERENT
    }


def add_series_options(parser: argparse.ArgumentParser, without: Iterable[str] = ()) -> None:
    """Adds the options of a run, with several seeds instead of one."""
    add_options(parser, {"seed", "resume", "epochs", *without})
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0], metavar="SEED",
        help="one run of every point for each: of weights, data order and choice of episodes "
        "(default: 0)",
    )  # fmt: skip


def base_config(options: argparse.Namespace, *, agents: bool = False) -> Config:
    """Returns what the runs of a series have in common.

    Args:
        options: Of the command line.
        agents: The runs make agents, which play; then held-out episodes may be missing.

    Raises:
        ValueError: Not all runs would be equally long, or there is nothing to evaluate on.
        MissingDependency: Plots need matplotlib.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingDependency("matplotlib", "viz")
    config = config_of(options, **({"role": AGENT} if agents else {}))
    if not config.data or not (config.eval_data or agents):
        needed = "--data" if agents else "--data and --eval-data (held-out episodes, other games)"
        raise ValueError(f"a series needs {needed}")
    if agents and shares(config.sources) is not None:
        raise ValueError("files have no weights here: pass --data FILE instead of FILE:WEIGHT")
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
    data = config.read([source.path for source in config.sources])
    heldout = config.read(config.eval_data)
    if data.starts and heldout.starts and data.worlds != heldout.worlds:
        raise DataError(
            f"--data holds {', '.join(data.worlds)}; --eval-data {', '.join(heldout.worlds)}; "
            "expected the same worlds"
        )
    shared = len(data.starts & heldout.starts)
    if shared:
        print(f"warning: {shared} of {heldout.scenarios} held-out scenarios are in --data, too")
    return data, heldout


def run_series(points: Sequence[Unit], command: str) -> Iterable[list[dict[str, Any]]]:
    """Runs what is not finished yet, in order.

    Yields:
        The rows so far, after every point.

    Raises:
        DataError: A folder holds a run with other settings.
    """
    for point in points:
        _check(point)
    waiting = sum(not (point.folder / _ROW_FILE).is_file() for point in points)
    if waiting < len(points):
        print(f"{len(points) - waiting} of {len(points)} points are finished already")
    rows: list[dict[str, Any]] = []
    started, done = time.monotonic(), 0
    for number, point in enumerate(points, 1):
        file = point.folder / _ROW_FILE
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
    parts = []
    if em := row.get("em"):
        shown = ", ".join(f"{world} {m['value']:.3f} (n={m['n']})" for world, m in em.items())
        parts.append(f"exact match {shown}")
    if "success" in row:
        parts.append(success_text(row["success"]))
    return f"{row['point']}: {'; '.join(parts)}, {row['minutes']:.1f} min"


def _check(point: Unit) -> None:
    """Refuses to mix runs with different settings in one series."""
    # Settings that were added since then stood at their defaults.
    defaults = {field.name: field.default for field in dataclasses.fields(Config)}
    claim(point.folder / _RUN_FILE, point.identity(), defaults=defaults)


def _run(point: Unit, command: str) -> None:
    folder = point.folder
    with (
        (folder / "output.log").open("a", encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
    ):
        row = point.run(command)
    write_atomically(folder / _ROW_FILE, row)
    for checkpoint in folder.rglob("checkpoint-*"):
        shutil.rmtree(checkpoint)


def _em(trained: Trained) -> dict[str, Any]:
    if trained.scores is None:
        return {}
    return {
        world: {
            **match.all.to_json(),
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
