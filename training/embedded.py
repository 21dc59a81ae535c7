"""Makes the world models that ship with the package, from nothing, one command per world.

    python -m training.embedded alfworld webshop --output runs/embedded --workers 2
    python -m training.embedded textworld --stage data  # work for CPUs, before a GPU is there
    python -m training.embedded textworld --minutes 20 -- --batch-size 16
    python -m training.embedded alfworld --scale 0.01 --minutes 0.5  # a trial of the whole way

What a model is made of stands in `training/recipes/WORLD.toml`: games, episodes of which agents,
and the options of `training.sft`. The stages are the programs that anybody may call: `llmworld
games`, `llmworld collect`, `python -m training.sft`, `llmworld calibrate`; each is printed before
it runs. All of them go on where they were when the same command is given again. The finished model
is OUTPUT/WORLD/model; --install puts it where `gym.make` looks for it.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from gym_llmworld.errors import DataError, WorldModelError
from gym_llmworld.scenarios import data_folder
from gym_llmworld.worlds import get_world
from training.card import claim, write_atomically

RECIPES = Path(__file__).parent / "recipes"
STAGES = DATA, TRAIN, CALIBRATE = "data", "train", "calibrate"
# What a model consists of: checkpoints and logs stay behind.
_PARTS = (
    "config.json", "generation_config.json", "model.safetensors",
    "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
    "llmworld.json", "README.md", "calibration.json",
)  # fmt: skip
_OPTIONAL_PARTS = ("calibration.json",)
_CALIBRATION = "calibration"
_RELABELLED = "relabelled.jsonl"
_RENAMED = "renamed.jsonl"
_COPIES = 2


@dataclass(frozen=True)
class Recipe:
    """What a shipped model is made of.

    Attributes:
        world: Key of its world.
        games: Split -> ``n``, ``seed`` and further options of `llmworld games`.
        episodes: ``train``, ``dev`` and perhaps ``calibration`` -> ``split``, ``policy``, ``n``,
            ``seed``, and further options of `llmworld collect`.
        sft: Options of `training.sft`.
        max_new_tokens: Longest answer that the model is to give.
        relabelled: Weight of the solved training episodes with other tasks (`training.relabelled`),
            where that of the training episodes is 1; 0 for none.
        renamed: Weight of copies with other names (`training.renamed`), likewise.
    """

    world: str
    games: Mapping[str, Mapping[str, Any]]
    episodes: Mapping[str, Mapping[str, Any]]
    sft: Mapping[str, Any]
    max_new_tokens: int
    relabelled: float = 0.0
    renamed: float = 0.0

    @classmethod
    def read(cls, file: Path) -> Recipe:
        """Reads a recipe.

        Raises:
            DataError: Something is missing or unknown in it.
        """
        found = tomllib.loads(file.read_text(encoding="utf-8"))
        fields = set(cls.__dataclass_fields__)
        needed = fields - {"relabelled", "renamed"}
        if not needed <= set(found) <= fields or not {"train", "dev"} <= set(found["episodes"]):
            raise DataError(
                f"{file.name}: expected {', '.join(sorted(needed))}, and in episodes train and dev;"
                f" got {', '.join(sorted(found))}"
            )
        return cls(**found)

    def scaled(self, share: float) -> Recipe:
        """Returns the recipe with a share of its games and episodes, at least one of each."""

        def fewer(what: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
            return {k: {**v, "n": max(1, math.ceil(v["n"] * share))} for k, v in what.items()}

        return replace(self, games=fewer(self.games), episodes=fewer(self.episodes))

    def data_commands(self, folder: Path, workers: int) -> list[list[str]]:
        """Returns the commands that make games and episodes."""
        games = folder / "games"
        commands = [
            [
                "llmworld", "games", self.world, "--out", str(games), "--split", split,
                *_flags(what), "--workers", str(workers),
            ]
            for split, what in self.games.items()
        ]  # fmt: skip
        for name, what in self.episodes.items():
            options = {"episodes" if k == "n" else k: v for k, v in what.items()}
            commands.append([
                "llmworld", "collect", self.world, "--games", str(games),
                *_flags(options), "--workers", str(workers), "--out", str(folder / f"{name}.jsonl"),
            ])  # fmt: skip
        if self.relabelled:
            commands.append([
                "python", "-m", "training.relabelled", "--data", str(folder / "train.jsonl"),
                "--output", str(folder / _RELABELLED),
                "--seed", str(self.episodes["train"]["seed"]),
            ])  # fmt: skip
        if self.renamed:
            commands.append([
                "python", "-m", "training.renamed", "--data", str(folder / "train.jsonl"),
                "--output", str(folder / _RENAMED), "--copies", str(_COPIES),
                "--seed", str(self.episodes["train"]["seed"]),
            ])  # fmt: skip
        return commands

    def train_command(self, folder: Path, minutes: float | None, extra: Sequence[str]) -> list[str]:
        """Returns the command that trains."""
        options = {**self.sft} if minutes is None else {**self.sft, "minutes": minutes}
        data = [str(folder / "train.jsonl")]
        further = {_RELABELLED: self.relabelled, _RENAMED: self.renamed}
        if any(further.values()):
            data = [f"{data[0]}:1"]
            data += [f"{folder / file}:{weight:g}" for file, weight in further.items() if weight]
        return [
            "python", "-m", "training.sft", "--data", *data,
            "--eval-data", str(folder / "dev.jsonl"), "--output", str(folder / "model"),
            *_flags(options), *extra,
        ]  # fmt: skip

    def calibrate_command(self, folder: Path) -> list[str] | None:
        """Returns the command that fits the model's confidence; None without episodes for it."""
        if _CALIBRATION not in self.episodes:
            return None
        return [
            "llmworld", "calibrate", get_world(self.world).imagined_id,
            "--model", str(folder / "model"), "--data", str(folder / f"{_CALIBRATION}.jsonl"),
            "--out", str(folder / "calibration"), "--install",
        ]  # fmt: skip


def _flags(options: Mapping[str, Any]) -> list[str]:
    return [part for k, v in options.items() for part in (f"--{k.replace('_', '-')}", str(v))]


def make(
    recipe: Recipe,
    folder: Path,
    stages: Sequence[str],
    *,
    workers: int = 1,
    minutes: float | None = None,
    extra: Sequence[str] = (),
) -> None:
    """Runs stages of a recipe, or what is missing of them.

    Args:
        recipe: What to make.
        folder: For games, episodes and the model.
        stages: Of `STAGES`.
        workers: Processes of the real engines.
        minutes: Of training, instead of the recipe's.
        extra: Further options of `training.sft`.

    Raises:
        DataError: The folder is of another recipe.
        CalledProcessError: A stage failed.
    """
    told = {"world": recipe.world, "games": recipe.games, "episodes": recipe.episodes}
    claim(folder / "recipe.json", told, holds="data of a recipe")
    if DATA in stages:
        for command in recipe.data_commands(folder, workers):
            _call(command)
    if TRAIN in stages:
        _call(recipe.train_command(folder, minutes, extra))
        _bound(folder / "model", recipe.max_new_tokens)
        halve(folder / "model")
    calibrate = recipe.calibrate_command(folder)
    if CALIBRATE in stages and calibrate is not None:
        _call(calibrate)


def _call(command: Sequence[str]) -> None:
    print(f"$ {shlex.join(command)}", flush=True)
    program, *arguments = command
    runs = {"python": [sys.executable], "llmworld": [sys.executable, "-m", "gym_llmworld.cli"]}
    subprocess.run([*runs[program], *arguments], check=True)


def _bound(model: Path, max_new_tokens: int) -> None:
    """Notes how long an answer may get, so that one that runs astray ends soon."""
    file = model / "generation_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    write_atomically(file, {**config, "max_new_tokens": max_new_tokens})


def halve(model: Path) -> None:
    """Stores weights in 16 bits, half the size; they load, and compute, in 32 as before.

    What they predict stays the same up to rounding (see the model cards), but a confidence that was
    fitted before has to be fitted again: it knows the weights by their bytes.
    """
    file = model / "model.safetensors"
    weights = load_file(file)
    small = {name: weight.to(torch.float16) for name, weight in weights.items()}
    draft = file.with_suffix(".part")
    save_file(small, draft, metadata={"format": "pt"})
    # Safetensors writes files that nobody else may read.
    draft.chmod(file.stat().st_mode)
    draft.replace(file)


def install(recipe: Recipe, folder: Path) -> Path:
    """Copies a finished model to where the package looks for the embedded one; returns where.

    Raises:
        DataError: The model is not finished.
    """
    model, target = folder / "model", data_folder(recipe.world) / "model"
    missing = [p for p in _PARTS if p not in _OPTIONAL_PARTS and not (model / p).is_file()]
    if missing:
        raise DataError(f"{model} is no finished model: {', '.join(missing)} missing; train first")
    target.mkdir(parents=True, exist_ok=True)
    for part in _PARTS:
        # A confidence that was fitted to other weights is worse than none.
        (target / part).unlink(missing_ok=True)
        if (model / part).is_file():
            shutil.copy2(model / part, target / part)
    return target


def parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    known = sorted(file.stem for file in RECIPES.glob("*.toml"))
    built = argparse.ArgumentParser(
        prog="python -m training.embedded",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    built.add_argument("worlds", nargs="+", choices=known, metavar="WORLD", help=", ".join(known))
    built.add_argument(
        "--output", type=Path, default=Path("runs/embedded"), metavar="PATH",
        help="a folder per world comes into it (default: %(default)s)",
    )  # fmt: skip
    built.add_argument(
        "--stage", nargs="+", choices=STAGES, default=list(STAGES),
        help="only these (default: all): data needs the real engine, train and calibrate do not",
    )  # fmt: skip
    built.add_argument("--workers", type=int, default=1, help="processes of the real engine")
    built.add_argument("--minutes", type=float, help="of training (default: the recipe's)")
    built.add_argument(
        "--scale", type=float, default=1.0, help="share of games and episodes to make, for a trial"
    )
    built.add_argument(
        "--install", action="store_true", help="replace the model that ships by the finished one"
    )
    return built


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status. What follows ``--`` goes to `training.sft`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    own = arguments.index("--") if "--" in arguments else len(arguments)
    options, extra = parser().parse_args(arguments[:own]), arguments[own + 1 :]
    try:
        if not 0 < options.scale <= 1:
            raise ValueError(f"--scale must be in (0, 1], got {options.scale}")
        for world in options.worlds:
            recipe = Recipe.read(RECIPES / f"{world}.toml").scaled(options.scale)
            folder = options.output / world
            make(
                recipe, folder, options.stage,
                workers=options.workers, minutes=options.minutes, extra=extra,
            )  # fmt: skip
            if options.install:
                print(f"installed: {install(recipe, folder)}")
    except (WorldModelError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        print(f"error: the last command ended with {error.returncode}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
