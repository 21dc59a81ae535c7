r"""SPA against RL without it, in one command: Pass@1 and Pass@k over training, with ablations.

    python -m training.selfplay_comparison --output runs/selfplay --seeds 0 1 2 \
        --worlds frozenlake:4x4-firm sokoban sudoku --transfer frozenlake:4x4-firm:6x6-firm
    python -m training.selfplay_comparison --model Qwen/Qwen2.5-1.5B-Instruct --output runs/paper \
        --worlds frozenlake sokoban sudoku --max-tokens 400 --updates 1000 --groups 32 \
        --learning-rate 1e-6 --value-learning-rate 1e-5 --batch-size 64 --micro-batch-size 1 \
        --keep 0.25 --sft-learning-rate 1e-4 --sft-epochs 5 --sft-batch-size 16 --levels 128

Arms (SPA, arXiv 2510.15047, tables 2 to 7, figures 4, 5 and 9), equal but for what they are named
after, all evaluated in plain format on levels that nobody trained on:

  vanilla         RL on the bare board
  state           RL on the board with coordinates (state estimate)
  spa             self-play, fine-tuning with the true states, then RL
  no-transition   the same, but the states are [MASKED] and not learned
  random-coords   the same as spa, with coordinates that mean nothing
  random-play     the same as spa, but three random actions a turn instead of the policy's play
  easy-to-hard    --transfer: spa on a larger board, with the self-play of the smaller one

From scratch (the default) all arms of a seed start from one small model that knows the format from
random play and nothing of the world, because it has no instruction prior (`training.selfplay
base`). So its self-play is nearly random, and random-play close to spa by construction. Started
again, the command runs what is missing. results.json (command, seeds, summary, rows) and plot.png
are written to --output after every point.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from gym_llmworld.errors import MissingDependency, WorldModelError
from gym_llmworld.real.grids_env import Coordinates
from training.card import write_atomically
from training.plots import draw_curves
from training.selfplay import (
    fine_tune,
    make_base,
    measure_perplexity,
    self_play,
    train_rl,
)
from training.selfplay_arms import ARMS, Point, Scale, points
from training.selfplay_base import Shape
from training.selfplay_data import LEVELS, Arena, Setting, Style, validation_levels
from training.selfplay_metrics import evaluate
from training.selfplay_policy import PolicyPlayer, claim, load_policy
from training.selfplay_rl import RL
from training.selfplay_rows import VALIDATION_FILE, read_rows
from training.selfplay_sft import Fit
from training.series import PLOT_FILE, RESULTS_FILE, plus_minus, spread

_ROW_FILE = "row.json"
# Enough states to measure their perplexity.
_PERPLEXITY_EPISODES = 128


def run(point: Point, scale: Scale, output: Path) -> dict[str, Any]:
    """Runs all stages of a point, or what is missing of them; returns its row."""
    folder = output / "points" / point.name
    if (folder / _ROW_FILE).is_file():
        return dict(json.loads((folder / _ROW_FILE).read_text(encoding="utf-8")))
    started, what = time.monotonic(), point.what
    setting = Setting(point.world, point.board, what.coordinates, "plain", scale.max_tokens)
    start, perplexities = _base(point, scale, output), {}
    if what.play:
        data = _data(point, scale, output, what.coordinates, what.play)
        how = dataclasses.replace(scale.sft, seed=point.seed)
        style: Style = "plain" if scale.model is None else "worldmodel"
        tuned = fine_tune(start, data, how, folder / "sft", states=what.states, style=style)
        rows = read_rows(data / VALIDATION_FILE)
        for name, model in (("before", start), ("after", tuned)):
            perplexities[name] = measure_perplexity(*load_policy(model), rows)
        start = tuned
    log = train_rl(
        start, setting, dataclasses.replace(scale.rl, seed=point.seed), folder / "rl",
        levels=scale.levels, samples=scale.samples, every=scale.every,
    )  # fmt: skip
    row = {
        "point": point.name,
        **{key: getattr(point, key) for key in ("task", "world", "board", "arm", "seed")},
        "curve": [{"update": line["update"], **line["validation"]} for line in log
                  if "validation" in line],
        "by_board": _by_board(point, scale, folder / "rl"),
        "perplexity": perplexities,
        "minutes": round((time.monotonic() - started) / 60, 2),
    }  # fmt: skip
    write_atomically(folder / _ROW_FILE, row)
    return row


def _base(point: Point, scale: Scale, output: Path) -> str | Path:
    if scale.model is not None:
        return scale.model
    how = dataclasses.replace(scale.base, seed=point.seed)
    return make_base(
        point.world, point.boards, scale.max_tokens, scale.base_episodes * len(point.boards),
        scale.shape, how, output / "starts" / point.start / "base", scale.base_actions,
    )  # fmt: skip


def _data(point: Point, scale: Scale, output: Path, coordinates: Coordinates, play: str) -> Path:
    folder = output / "starts" / point.start
    setting = Setting(point.world, point.sft_board, coordinates, "worldmodel", scale.max_tokens)
    name = f"{point.sft_board}-{coordinates}-{play}"
    player = None if play == "random" else _base(point, scale, output)
    return self_play(player, setting, scale.episodes, point.seed, folder / name)


def _by_board(point: Point, scale: Scale, policy: Path) -> dict[str, Any]:
    """Measures a finished policy on all boards, so that level sizes can be compared."""
    model, codec = load_policy(policy)
    found = {}
    for board in point.boards:
        setting = Setting(point.world, board, point.what.coordinates, "plain", scale.max_tokens)
        player = PolicyPlayer(model, codec, scale.max_tokens)
        levels = validation_levels(board, scale.levels)
        found[board] = evaluate(player, Arena(setting), levels, scale.samples, seed=1)
    return found


def base_perplexity(point: Point, scale: Scale, output: Path) -> dict[str, Any]:
    """Returns the perplexity of true states to the common start, with and without coordinates."""
    file = output / "perplexity" / f"{point.start}-{point.board}.json"
    if not file.is_file():
        start = _base(point, scale, output)
        few = dataclasses.replace(scale, episodes=min(scale.episodes, _PERPLEXITY_EPISODES))
        measured = {}
        settings: tuple[Coordinates, ...] = ("on", "off")
        for coordinates in settings:
            data = _data(point, few, output / "perplexity", coordinates, "random")
            measured[coordinates] = measure_perplexity(
                *load_policy(start), read_rows(data / VALIDATION_FILE)
            )
        write_atomically(file, measured)
    return dict(json.loads(file.read_text(encoding="utf-8")))


def summary(rows: Sequence[Mapping[str, Any]], samples: int) -> dict[str, Any]:
    """Gathers the first and the last measurement of each arm over seeds, task by task."""
    found: dict[str, Any] = {}
    for row in rows:
        arms = found.setdefault(row["task"], {})
        arms.setdefault(row["arm"], []).append(row["curve"])
    keys = ("pass@1", f"pass@{samples}")
    return {
        world: {
            arm: {
                "seeds": len(curves),
                "before": {k: spread([curve[0][k] for curve in curves]) for k in keys},
                "after": {k: spread([curve[-1][k] for curve in curves]) for k in keys},
            }
            for arm, curves in arms.items()
        }
        for world, arms in found.items()
    }


def curves(
    rows: Sequence[Mapping[str, Any]], key: str
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Returns task -> arm -> points of a learning curve over seeds."""
    values: dict[str, dict[str, dict[int, list[float]]]] = {}
    for row in rows:
        arms = values.setdefault(row["task"], {})
        for point in row["curve"]:
            arms.setdefault(row["arm"], {}).setdefault(point["update"], []).append(point[key])
    return {
        world: {
            arm: [{"x": update, **spread(found)} for update, found in sorted(updates.items())]
            for arm, updates in arms.items()
        }
        for world, arms in values.items()
    }


def compare(listed: Sequence[Point], scale: Scale, output: Path, command: str) -> dict[str, Any]:
    """Runs what is not finished; writes the results so far after every point, and returns them.

    Raises:
        DataError: The folder holds runs of another scale.
    """
    claim(output, dataclasses.asdict(scale))
    rows: list[dict[str, Any]] = []
    perplexities: dict[str, Any] = {}
    results: dict[str, Any] = {}
    for number, point in enumerate(listed, 1):
        print(f"[{number}/{len(listed)}] {point.name}", flush=True)
        if point.board == point.sft_board:
            perplexities[f"{point.start}-{point.board}"] = base_perplexity(point, scale, output)
        rows.append(run(point, scale, output))
        results = {
            "command": command,
            "seeds": sorted({row["seed"] for row in rows}),
            "summary": summary(rows, scale.samples),
            "base_perplexity": perplexities,
            "rows": rows,
        }
        write_atomically(output / RESULTS_FILE, results)
        panels = {
            f"{world}: {key}": arms
            for key in ("pass@1", f"pass@{scale.samples}")
            for world, arms in curves(rows, key).items()
        }
        draw_curves(panels, output / PLOT_FILE, "RL of policies in the real puzzles", "updates")
    return results


def _scale(options: argparse.Namespace) -> Scale:
    rl = RL(
        updates=options.updates, advantage=options.advantage, groups=options.groups,
        keep=options.keep, learning_rate=options.learning_rate,
        value_learning_rate=options.value_learning_rate, batch_size=options.batch_size,
        micro_batch_size=options.micro_batch_size, passes=options.passes,
        negative=options.negative,
    )  # fmt: skip
    return Scale(
        model=options.model,
        shape=Shape(layers=options.layers, width=options.width, hidden=2 * options.width),
        max_tokens=options.max_tokens,
        base_episodes=options.base_episodes,
        base_actions=options.base_actions,
        base=Fit(options.base_epochs, options.sft_learning_rate, options.sft_batch_size),
        episodes=options.episodes,
        sft=Fit(options.sft_epochs, options.sft_learning_rate, options.sft_batch_size),
        rl=rl,
        levels=options.levels,
        samples=options.samples,
        every=options.every,
    )


_OPTIONS: tuple[tuple[str, Any, str], ...] = (
    ("max-tokens", 64, "longest answer"),
    ("layers", 3, "from scratch: transformer blocks"),
    ("width", 128, "from scratch: residual width; feed-forward blocks are twice as wide"),
    ("base-episodes", 1200, "from scratch: random play per board that teaches the format"),
    ("base-epochs", 2.0, "from scratch: passes over it"),
    ("base-actions", 0, "from scratch: most actions of its turns (0: five)"),
    ("episodes", 1280, "of self-play"),
    ("sft-epochs", 3.0, "passes over self-play"),
    ("sft-batch-size", 8, "episodes per optimiser step of fine-tuning and of the base"),
    ("sft-learning-rate", 2e-3, "of fine-tuning, and of the base from scratch"),
    ("updates", 40, "of RL"),
    ("groups", 8, "levels per update, 8 episodes each"),
    ("keep", 0.5, "share of the groups that is learned from, those with the most varied returns"),
    ("batch-size", 8, "episodes per optimiser step of RL"),
    ("micro-batch-size", 64, "of them in memory at the same time"),
    ("passes", 1, "over the episodes of an update"),
    ("negative", 1.0, "weight of what went worse than expected; 0: only repeat what went well"),
    ("learning-rate", 3e-4, "of the policy in RL"),
    ("value-learning-rate", 1e-3, "of its value head"),
    ("levels", 32, "to measure on, of 128"),
    ("samples", 8, "games for each of them, k of Pass@k"),
    ("every", 20, "updates between measurements"),
    ("threads", 0, "CPU threads (0: torch's choice)"),
)


def parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    built = argparse.ArgumentParser(
        prog="python -m training.selfplay_comparison",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    built.add_argument("--output", type=Path, required=True, help="folder", metavar="PATH")
    built.add_argument("--model", help="folder or hub id to start from (default: from scratch)")
    built.add_argument(
        "--worlds", nargs="*", default=list(LEVELS), metavar="WORLD[:BOARD]",
        help=f"puzzles, of {', '.join(LEVELS)} (default: all, on the paper's boards; none behind "
        "it: only --transfer)",
    )  # fmt: skip
    built.add_argument(
        "--transfer", nargs="+", default=[], metavar="WORLD:SMALL:LARGE",
        help="also train on larger boards, once with self-play on the smaller ones; policies of "
        "this world are then measured on both",
    )  # fmt: skip
    built.add_argument(
        "--arms", nargs="+", default=list(ARMS), metavar="ARM", help="see above (default: all)"
    )
    built.add_argument(
        "--seeds", type=int, nargs="+", default=[0], metavar="SEED", help="(default: 0)"
    )
    built.add_argument(
        "--advantage", choices=("ppo", "grpo"), default="ppo", help="return minus a learned value "
        "(ppo), or within its group (grpo)",
    )  # fmt: skip
    for name, default, text in _OPTIONS:
        built.add_argument(
            f"--{name}", type=type(default), default=default, metavar="N",
            help=f"{text} (default: {default})",
        )  # fmt: skip
    return built


def _table(results: Mapping[str, Any], samples: int) -> Any:
    from rich.table import Table

    table = Table(title="success on validation levels, last measurement")
    for column in ("world", "arm", "Pass@1", f"Pass@{samples}", "Pass@1 before RL", "seeds"):
        table.add_column(column)
    for world, arms in results["summary"].items():
        for arm, found in arms.items():
            after, before = found["after"], found["before"]
            table.add_row(
                world, arm, plus_minus(after["pass@1"]), plus_minus(after[f"pass@{samples}"]),
                plus_minus(before["pass@1"]), str(found["seeds"]),
            )  # fmt: skip
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = parser().parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    command = " ".join(["python -m training.selfplay_comparison", *arguments])
    try:
        if importlib.util.find_spec("matplotlib") is None:
            raise MissingDependency("matplotlib", "viz")
        listed = points(options.worlds, options.transfer, options.arms, options.seeds)
        results = compare(listed, _scale(options), options.output, command)
    except (WorldModelError, ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    from rich.console import Console

    Console().print(_table(results, options.samples))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
