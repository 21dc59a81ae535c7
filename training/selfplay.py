r"""SPA: a policy learns by self-play what its actions do, and only then by reward.

    python -m training.selfplay base --world frozenlake --output runs/spa/base
    python -m training.selfplay play --model runs/spa/base --world frozenlake --output runs/spa/data
    python -m training.selfplay sft --model runs/spa/base --data runs/spa/data --output runs/spa/sft
    python -m training.selfplay rl --model runs/spa/sft --world frozenlake --output runs/spa/rl
    python -m training.selfplay evaluate --model runs/spa/rl --world frozenlake

The stages of SPA (arXiv 2510.15047) on the grid puzzles FrozenLake, Sokoban and Sudoku:

  base        only without a pretrained model: a small one that knows the format from random play
  play        the policy plays in the real environment and says in <observation> and <prediction>
              which state it sees and expects; both are replaced by the true ones
  sft         it learns from these answers, states included, nothing of what the environment says
  rl          multi-turn PPO (or GRPO's advantage) in plain format, from the environment's rewards
  evaluate    Pass@1 and Pass@k, by board and by length of the shortest solution
  perplexity  of the true states, as shown, as repeated and as predicted

Defaults are the paper's; with a pretrained model: --model Qwen/Qwen2.5-0.5B-Instruct. From scratch
take larger learning rates: sft 1e-3, rl 3e-4 (see training.selfplay_comparison, which runs all
stages of all arms). Every stage goes on after kill -9 when the same command is given again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from gym_llmworld.errors import WorldModelError
from training.selfplay_base import RandomPlayer, Shape, base_policy
from training.selfplay_data import (
    FORMATS,
    LEVELS,
    Arena,
    Player,
    Setting,
    Style,
    training_levels,
    validation_levels,
)
from training.selfplay_metrics import evaluate, state_perplexity
from training.selfplay_policy import (
    Codec,
    PolicyPlayer,
    claim,
    is_complete,
    load_policy,
    save_policy,
)
from training.selfplay_rl import RL, reinforce
from training.selfplay_rows import (
    TRAIN_FILE,
    VALIDATION_FILE,
    Row,
    asked_in,
    conversations,
    read_rows,
    rows_of,
    without_states,
    write_rows,
)
from training.selfplay_sft import Fit, fit

_WORKING = "training"
# Self-play has levels of its own, away from those of RL.
_FIRST_LEVEL = 500_000
_TOGETHER = 128


def make_base(
    world: str, boards: Sequence[str], max_tokens: int, episodes: int, shape: Shape, how: Fit,
    output: Path, actions: int = 0,
) -> Path:  # fmt: skip
    """Trains a policy that knows the format only; see `base_policy`. Returns its folder."""
    claim(output, {
        "stage": "base", "world": world, "boards": boards, "max_tokens": max_tokens,
        "episodes": episodes, "actions": actions, **vars(shape), **vars(how),
    })  # fmt: skip
    if not is_complete(output):
        model, codec = base_policy(
            world, boards, max_tokens, episodes, shape, how, output / _WORKING, actions
        )
        size = sum(weight.numel() for weight in model.parameters())
        save_policy(model, codec, output, {"stage": "base", "world": world, "parameters": size})
    return output


def self_play(
    model: str | Path | None, setting: Setting, episodes: int, seed: int, output: Path
) -> Path:
    """Plays, and writes what was said with the true states; see `write_rows`.

    Args:
        model: Whose play; None for three random actions a turn with a fixed thought (the paper's
            random baseline).
        setting: What is played; its style is ``worldmodel``.
        episodes: How many, each on a level of its own.
        seed: Of levels, ice and sampling.
        output: Folder of the files; its parts survive a kill.

    Returns:
        The folder.
    """
    claim(output, {
        "stage": "play", "model": model, **vars(setting), "episodes": episodes, "seed": seed,
    })  # fmt: skip
    if (output / VALIDATION_FILE).is_file():
        return output
    arena = Arena(setting)
    player: Player = RandomPlayer(actions=range(3, 4))
    forbidden: Sequence[str] = ()
    if model is not None:
        weights, codec = load_policy(model)
        player, forbidden = PolicyPlayer(weights, codec, setting.max_tokens), codec.control_tokens
    parts = output / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for begin in range(0, episodes, _TOGETHER):
        part = parts / f"{begin}.json"
        if not part.is_file():
            count = min(_TOGETHER, episodes - begin)
            first = _FIRST_LEVEL + seed * 10_000 + begin
            levels = training_levels(setting.board, count, first)
            # One seed for all would have every game slip, and random players move, in one way.
            games = arena.play(player, levels, range(first, first + count))
            if isinstance(player, PolicyPlayer):
                player.forget()
            draft = part.with_suffix(".part")
            draft.write_text(json.dumps(list(rows_of(games, forbidden))), encoding="utf-8")
            draft.replace(part)
            print(f"[{begin + count}/{episodes} episodes]", flush=True)
        rows += json.loads(part.read_text(encoding="utf-8"))
    write_rows(rows, output)
    shutil.rmtree(parts)
    return output


def fine_tune(
    model: str | Path, data: Path, how: Fit, output: Path, *,
    states: bool = True, style: Style = "worldmodel",
) -> Path:  # fmt: skip
    """Learns from self-play, and writes the policy into ``output``, which it returns.

    Args:
        model: To start from.
        data: Folder of `self_play`, or of files that SPA published.
        how: To train.
        output: Folder.
        states: False hides the states from it: the ablation without transition modelling.
        style: Which format the questions ask for. Published rows ask for ``worldmodel`` and RL for
            ``plain``; a small model does not carry over what it learns from one to the other.
    """
    claim(output, {
        "stage": "sft", "model": model, "data": data, "states": states, "style": style, **vars(how),
    })  # fmt: skip
    if not is_complete(output):
        weights, codec = load_policy(model)
        chats = [asked_in(chat, style) for chat in conversations(read_rows(data / TRAIN_FILE))]
        if states:
            transcripts = [codec.labelled(chat) for chat in chats]
        else:
            transcripts = [codec.labelled(without_states(chat), "thoughts") for chat in chats]
        weights = fit(weights, codec, transcripts, how, output / _WORKING)
        about = {"stage": "sft", "data": str(data), "states": states, "style": style}
        save_policy(weights, codec, output, about)
    return output


def train_rl(
    model: str | Path, setting: Setting, how: RL, output: Path, *,
    levels: int = 128, samples: int = 8, every: int = 10,
) -> list[dict[str, Any]]:  # fmt: skip
    """Trains by reward, and writes the policy into ``output``.

    Args:
        model: To start from.
        setting: What is played.
        how: Hyper-parameters.
        output: Folder.
        levels: To measure on, on the way.
        samples: Games for each of them.
        every: Updates between measurements.

    Returns:
        The log; see `reinforce`.
    """
    claim(output, {
        "stage": "rl", "model": model, **vars(setting), **vars(how), "levels": levels,
        "samples": samples, "every": every,
    })  # fmt: skip
    file = output / "rl.jsonl"
    if is_complete(output):
        return [json.loads(line) for line in file.read_text().splitlines()]
    weights, codec = load_policy(model)
    arena, ids = Arena(setting), validation_levels(setting.board, levels)

    def measure(update: int, player: PolicyPlayer) -> dict[str, Any] | None:
        if update % every and update != how.updates:
            return None
        found = evaluate(player, arena, ids, samples)
        print(
            f"[update {update}/{how.updates}] Pass@1 {found['pass@1']:.3f}, "
            f"Pass@{samples} {found[f'pass@{samples}']:.3f}, {found['tokens']:.0f} tokens a turn",
            flush=True,
        )
        return {"validation": found}

    log = reinforce(weights, codec, arena, how, output / _WORKING, measure)
    file.write_text("".join(json.dumps(line) + "\n" for line in log), encoding="utf-8")
    save_policy(weights, codec, output, {"stage": "rl", "updates": how.updates})
    shutil.rmtree(output / _WORKING)
    return log


def measure_perplexity(model: Any, codec: Codec, rows: Sequence[Row]) -> dict[str, Any]:
    """Returns `state_perplexity` of rows as plain values."""
    measured = state_perplexity(model, codec, conversations(rows))
    return {name: dataclasses.asdict(value) for name, value in measured.items()}


# --- the command line ----------------------------------------------------------------------------


def _add_fields(parser: argparse.ArgumentParser, kind: Any, **defaults: Any) -> None:
    """Adds an option for each plain field of a dataclass, explained by its docstring."""
    told = dict(
        line.strip().split(": ", 1) for line in (kind.__doc__ or "").splitlines() if ": " in line
    )
    for field in dataclasses.fields(kind):
        default = defaults.get(field.name, field.default)
        if isinstance(default, tuple):
            continue
        parser.add_argument(
            "--" + field.name.replace("_", "-"), type=type(default), default=default,
            help=f"{told[field.name].rstrip('.')} (default: {default})", metavar="N"
            if not isinstance(default, str) else "NAME",
        )  # fmt: skip


def _filled(kind: Any, options: argparse.Namespace) -> Any:
    names = {field.name for field in dataclasses.fields(kind)}
    return kind(**{k: v for k, v in vars(options).items() if k in names})


def _add_setting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--world", choices=tuple(LEVELS), required=True, help="which puzzle")
    parser.add_argument(
        "--board", help="kind of board, such as 4x4, 6x6, 4x4-firm (default: the paper's)"
    )
    parser.add_argument(
        "--coordinates", choices=("on", "off", "random"), default="on",
        help="state estimate: coordinates beside the board (on), none, or meaningless ones",
    )  # fmt: skip
    parser.add_argument(
        "--max-tokens", type=int, default=400, help="longest answer (default: 400)", metavar="N"
    )


def _setting(options: argparse.Namespace, style: Any) -> Setting:
    board = options.board or LEVELS[options.world].usual
    LEVELS[options.world].check_board(board)
    return Setting(options.world, board, options.coordinates, style, options.max_tokens)


def _base(options: argparse.Namespace) -> None:
    boards = options.boards or [LEVELS[options.world].usual]
    for board in boards:
        LEVELS[options.world].check_board(board)
    make_base(
        options.world, boards, options.max_tokens, options.episodes, _filled(Shape, options),
        _filled(Fit, options), options.output, options.actions,
    )  # fmt: skip


def _play(options: argparse.Namespace) -> None:
    model = None if options.model == "random" else options.model
    setting = _setting(options, "worldmodel")
    self_play(model, setting, options.episodes, options.seed, options.output)


def _sft(options: argparse.Namespace) -> None:
    how = _filled(Fit, options)
    fine_tune(
        options.model, options.data, how, options.output, states=options.states,
        style=options.style,
    )  # fmt: skip


def _rl(options: argparse.Namespace) -> None:
    train_rl(
        options.model, _setting(options, "plain"), _filled(RL, options), options.output,
        levels=options.levels, samples=options.samples, every=options.every,
    )  # fmt: skip


def _evaluate(options: argparse.Namespace) -> None:
    model, codec = load_policy(options.model)
    setting = _setting(options, "plain")
    player = PolicyPlayer(model, codec, setting.max_tokens)
    levels = validation_levels(setting.board, options.levels)
    print(json.dumps(evaluate(player, Arena(setting), levels, options.samples), indent=2))


def _perplexity(options: argparse.Namespace) -> None:
    model, codec = load_policy(options.model)
    rows = read_rows(options.data / VALIDATION_FILE)
    print(json.dumps(measure_perplexity(model, codec, rows), indent=2))


def parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    form = argparse.RawDescriptionHelpFormatter
    built = argparse.ArgumentParser(
        prog="python -m training.selfplay", description=__doc__, formatter_class=form
    )
    stages = built.add_subparsers(dest="stage", required=True, metavar="STAGE")
    made: dict[str, argparse.ArgumentParser] = {}
    for name, text in (line.split(None, 1) for line in _STAGES):
        made[name] = stages.add_parser(name, help=text, description=text)
        made[name].set_defaults(run=globals()[f"_{name}"])
        made[name].add_argument("--threads", type=int, default=0, help="CPU threads", metavar="N")
    for name in ("play", "sft", "rl", "evaluate", "perplexity"):
        made[name].add_argument("--model", required=True, help=_MODEL)
    for name in ("base", "play", "sft", "rl"):
        made[name].add_argument("--output", type=Path, required=True, help="folder", metavar="PATH")
    for name in ("sft", "perplexity"):
        made[name].add_argument("--data", type=Path, required=True, help=_DATA, metavar="PATH")
    for name in ("play", "rl", "evaluate"):
        _add_setting(made[name])
    for name in ("rl", "evaluate"):
        made[name].add_argument("--levels", type=int, default=128, help="to measure on (128)")
        made[name].add_argument("--samples", type=int, default=8, help="k of Pass@k (8)")
    base = made["base"]
    base.add_argument("--world", choices=tuple(LEVELS), required=True, help="which puzzle")
    base.add_argument("--boards", nargs="+", help="kinds of boards (default: the paper's)")
    base.add_argument("--max-tokens", type=int, default=400, help="longest answer (400)")
    base.add_argument("--episodes", type=int, default=1600, help="of random play (1600)")
    base.add_argument("--actions", type=int, default=0, help="most of a turn (0: five)")
    _add_fields(base, Shape)
    _add_fields(base, Fit, epochs=3.0, learning_rate=1e-3)
    made["play"].add_argument("--episodes", type=int, default=1280, help="how many (1280)")
    made["play"].add_argument("--seed", type=int, default=0, help="of levels and sampling (0)")
    made["sft"].add_argument(
        "--states", action=argparse.BooleanOptionalAction, default=True,
        help="learn the states; without, they are [MASKED] (the paper's ablation)",
    )  # fmt: skip
    made["sft"].add_argument(
        "--style", choices=tuple(FORMATS), default="worldmodel",
        help="format that the questions ask for; from scratch take `plain`, as in RL, since a "
        "small model does not carry over from one to the other (default: worldmodel, as published)",
    )  # fmt: skip
    _add_fields(made["sft"], Fit)
    made["rl"].add_argument("--every", type=int, default=10, help="updates between measurements")
    _add_fields(made["rl"], RL)
    return built


_STAGES = (
    "base a small policy from scratch that knows the format from random play",
    "play self-play in the real environment; rows with the true states as parquet",
    "sft fine-tuning on self-play, loss on think and answer spans",
    "rl multi-turn PPO or GRPO in plain format",
    "evaluate Pass@1 and Pass@k",
    "perplexity of true states under a policy",
)
_MODEL = "folder or hub id; play: `random` for the paper's random-action baseline"
_DATA = "folder with wm_train.parquet and wm_val.parquet, of `play` or as SPA published them"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    options = parser().parse_args(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        options.run(options)
    except (WorldModelError, ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
