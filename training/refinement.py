r"""Compares ways of refining a world model: more supervised training, RLVR-World, RWML.

    python -m training.refinement --model runs/base --data obj.jsonl \
        --eval-data obj_test.jsonl alf_test.jsonl --world objectgames --max-steps 60 \
        --seeds 0 1 2 --output runs/refinement --results training/results/grpo.json

Each method starts from the same model and learns from episodes of one world (--world) alone:

  sft              supervised training goes on
  rlvr             GRPO with RLVR-World's reward (--rlvr-reward)
  rwml             GRPO with RWML's binary embedding reward, easy transitions thinned out
  rwml-unfiltered  the same without the filter
  rwml-continuous  the same with a continuous reward, with the filter

Once with equal optimiser steps (--max-steps), and once with equal wall time (--equal-minutes). What
is measured on held-out episodes: exact match of the refined world, on all and on changed states,
beside the copy baseline; of all other worlds, before and after (forgetting); and which share of the
weights moved by more than 0.1 % (Zhu et al. 2025, as RWML counts them). In worlds with object
states "changed" is a changed state, elsewhere an observation unlike the one before.

Started again, it runs what is missing. --results is valid after every run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gym_llmworld.errors import DataError, WorldModelError
from training.card import write_atomically
from training.config import SCRATCH, Config, config_of
from training.data import Conversations, read_conversations
from training.difficulty import Filter
from training.difficulty import run as run_filter
from training.embedders import DEFAULT_EMBEDDER
from training.exam import Exam, moved_share
from training.grpo import context_of, refine, style_of
from training.grpo_config import Refinement, add_run_options, plain_files
from training.rewards import Weighted
from training.series import plus_minus, spread
from training.sft import train
from training.transitions import read_transitions

METHODS = SFT, RLVR, RWML, UNFILTERED, CONTINUOUS = (
    "sft", "rlvr", "rwml", "rwml-unfiltered", "rwml-continuous",
)  # fmt: skip
BUDGETS = STEPS, TIME = "steps", "time"

_ROW_FILE = "row.json"


@dataclass(frozen=True)
class Plan:
    """The comparison.

    Attributes:
        config: What all runs have in common; starts from ``config.model``.
        world: To refine.
        methods: Of `METHODS`.
        seeds: One run of each method for each.
        minutes: Of the runs with equal wall time; 0 for none.
        refinement: What the GRPO runs have in common.
        rlvr_reward: Name of RLVR's reward.
        grpo_rate: Learning rate of the GRPO runs.
        data_tau: Threshold of the filter.
        filter_steps: Optimiser steps of the filter model's training.
    """

    config: Config
    world: str
    methods: tuple[str, ...] = METHODS
    seeds: tuple[int, ...] = (0,)
    minutes: float = 0.0
    refinement: Refinement = field(default_factory=Refinement)
    rlvr_reward: str = "exact"
    grpo_rate: float = 2e-5
    data_tau: float = 0.1
    filter_steps: int = 50

    def runs(self) -> list[tuple[str, str, int]]:
        """Returns budget, method and seed of every run; all methods of a seed together."""
        budgets = [STEPS] if self.config.max_steps else []
        budgets += [TIME] if self.minutes else []
        return [(b, m, s) for s in self.seeds for b in budgets for m in self.methods]


@dataclass(frozen=True)
class Material:
    """What the runs learn from, and are examined on.

    Attributes:
        data: Episodes of the world to refine.
        heldout: Of all worlds.
    """

    data: Conversations
    heldout: Conversations


def read_material(plan: Plan) -> Material:
    """Reads the files of a plan.

    Raises:
        DataError: They hold no episodes of the world to refine.
    """
    config = plan.config
    style = config.prompt_style
    data = read_conversations(plain_files(config), style)
    heldout = read_conversations(config.eval_data, style)
    if data.groups != (plan.world,) or plan.world not in heldout.groups:
        raise DataError(
            f"expected --data of {plan.world} alone and --eval-data of it, and of others to see "
            f"what is forgotten; got {', '.join(data.groups)} and {', '.join(heldout.groups)}"
        )
    return Material(data, heldout)


def compare(
    plan: Plan, command: str, show: Callable[[list[dict[str, Any]]], None]
) -> list[dict[str, Any]]:
    """Runs what is not finished yet, in order.

    Args:
        plan: What to run.
        command: As typed, for model cards.
        show: Called with all rows so far after every run.

    Returns:
        The rows; the first one is the model at the start.
    """
    material = read_material(plan)
    folder, start = plan.config.output, plan.config.model
    tokenizer = AutoTokenizer.from_pretrained(start)
    exam = Exam(tokenizer, material.heldout)
    rows = [_cached(folder / "start", lambda: {"method": "start", "em": exam.take(_load(start))})]
    for number, (budget, method, seed) in enumerate(plan.runs(), 1):
        name = f"{budget}-{method}-seed{seed}"
        print(f"[{number}/{len(plan.runs())}] {name} ...", flush=True)

        def finished(
            budget: str = budget, method: str = method, seed: int = seed, name: str = name
        ) -> dict[str, Any]:
            output = folder / name
            with _quietly(output):
                steps, minutes = _run(plan, material, budget, method, seed, output, command)
            model = _load(str(output))
            row = {"budget": budget, "method": method, "seed": seed, "steps": steps}
            row |= {"minutes": round(minutes, 2), "em": exam.take(model)}
            row["moved"] = moved_share(_load(start).state_dict(), model.state_dict())
            for checkpoint in output.glob("checkpoint-*"):
                shutil.rmtree(checkpoint)
            return row

        rows.append(_cached(folder / name, finished))
        show(rows)
    return rows


def _cached(folder: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    file = folder / _ROW_FILE
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(file, make())
    row: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return row


def _load(model: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)


@contextlib.contextmanager
def _quietly(folder: Path) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    with (
        (folder / "output.log").open("a", encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
    ):
        yield


def _run(
    plan: Plan,
    material: Material,
    budget: str,
    method: str,
    seed: int,
    output: Path,
    command: str,
) -> tuple[int, float]:
    """Refines one model; returns optimiser steps and minutes."""
    config = replace(plan.config, output=output, seed=seed, eval_data=())
    if budget == TIME:
        config = replace(config, max_steps=0, minutes=plan.minutes)
    if method == SFT:
        trained = train(config, material.data, Conversations(), command)
        return trained.steps, trained.minutes
    keep = None
    if method in (RWML, CONTINUOUS):
        keep = plan.config.output / f"easy-seed{seed}" / "transitions.jsonl"
        if not keep.is_file():
            _thin_out(plan, seed, keep.parent, command)
    name = {RLVR: plan.rlvr_reward, CONTINUOUS: "embedding-continuous"}.get(method, "embedding")
    refinement = replace(plan.refinement, rewards=(Weighted(name),), keep=keep)
    config = replace(config, learning_rate=plan.grpo_rate, weight_decay=0.0)
    transitions = read_transitions(plain_files(config), config.prompt_style)
    refined = refine(config, refinement, material.data, transitions, Conversations(), command)
    return refined.steps, refined.minutes


def _thin_out(plan: Plan, seed: int, output: Path, command: str) -> None:
    chosen = Filter(tau=plan.data_tau, embedder=plan.refinement.embedder, seed=seed)
    fit = replace(plan.config, output=output, seed=seed, max_steps=plan.filter_steps, minutes=0.0)
    print(run_filter(fit, chosen, None, command))


def table(rows: Sequence[Mapping[str, Any]], world: str) -> str:
    """Returns the comparison as text: means and standard deviations over the seeds."""
    start = rows[0]["em"]
    lines = [f"start: {_em(start, world)}"]
    keys = dict.fromkeys((row["budget"], row["method"]) for row in rows[1:])
    for budget, method in keys:
        some = [row for row in rows[1:] if (row["budget"], row["method"]) == (budget, method)]
        told = {
            kind: spread([row["em"][world][kind]["value"] or 0.0 for row in some])
            for kind in ("all", "changed")
        }
        others = [w for w in start if w != world]
        lost = {
            w: spread([row["em"][w]["all"]["value"] - start[w]["all"]["value"] for row in some])
            for w in others
        }
        moved = spread([row["moved"] for row in some])
        parts = [f"{kind} {plus_minus(value)}" for kind, value in told.items()]
        parts += [f"{w} {plus_minus(value)} of its start" for w, value in lost.items()]
        parts.append(f"moved {plus_minus(moved)}")
        lines.append(f"equal {budget}, {method} (n={len(some)} seeds): {', '.join(parts)}")
    return "\n".join(lines)


def _em(em: Mapping[str, Any], world: str) -> str:
    own = em[world]
    told = [f"{kind} {own[kind]['value']:.3f} (n={own[kind]['n']})" for kind in ("all", "changed")]
    return ", ".join([*told, f"copy {own['copy_baseline']:.3f}"])


def parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    built = argparse.ArgumentParser(
        prog="python -m training.refinement",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    base = Refinement()
    group = built.add_argument_group("the comparison")
    group.add_argument("--world", required=True, help="key of the world to refine")
    group.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    group.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="SEED")
    group.add_argument(
        "--equal-minutes", type=float, default=0.0, help="runs of so much time as well (0: none)"
    )
    group.add_argument("--results", type=Path, help="JSON file to write, such as a table's source")
    group.add_argument("--rlvr-reward", choices=["exact", "changed", "lines-f1"], default="exact")
    group.add_argument("--grpo-rate", type=float, default=2e-5, help="learning rate of GRPO runs")
    group.add_argument("--tau", type=float, default=base.tau, help="of RWML's rewards")
    group.add_argument("--data-tau", type=float, default=0.1, help="of the easy filter")
    group.add_argument("--filter-steps", type=int, default=50, help="of the filter model's fit")
    group.add_argument("--embedder", default=DEFAULT_EMBEDDER)
    group.add_argument("--prompts", type=int, default=base.prompts, help="transitions per step")
    group.add_argument("--group", type=int, default=base.group, help="samples of each transition")
    group.add_argument("--beta", type=float, default=base.beta, help="weight of the divergence")
    add_run_options(
        built,
        {"seed", "epochs", "prompt_style", "minutes"},
        output=Path("runs/refinement"),
        context=None,
        learning_rate=2e-4,
        warmup_steps=5,
    )
    return built


def plan_of(options: argparse.Namespace) -> Plan:
    """Returns what the options describe.

    Raises:
        ValueError: Runs would have no end, no start or nothing to be examined on.
    """
    if options.model == SCRATCH:
        raise ValueError("pass --model: the world model that every method starts from")
    options.prompt_style = style_of(options.model)
    options.context = options.context or context_of(options.model)
    config = config_of(options, minutes=0.0)
    if not config.max_steps and not options.equal_minutes:
        raise ValueError("pass --max-steps, --equal-minutes or both: methods are compared at equal")
    if not config.data or not config.eval_data:
        raise ValueError("pass --data and --eval-data")
    return Plan(
        config=config,
        world=options.world,
        methods=tuple(options.methods),
        seeds=tuple(dict.fromkeys(options.seeds)),
        minutes=options.equal_minutes,
        refinement=Refinement(
            tau=options.tau,
            embedder=options.embedder,
            prompts=options.prompts,
            group=options.group,
            beta=options.beta,
        ),
        rlvr_reward=options.rlvr_reward,
        grpo_rate=options.grpo_rate,
        data_tau=options.data_tau,
        filter_steps=options.filter_steps,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = parser().parse_args(arguments)
    command = " ".join([parser().prog, *arguments])
    try:
        plan = plan_of(options)

        def show(rows: list[dict[str, Any]]) -> None:
            if options.results is not None:
                seeds = sorted({row["seed"] for row in rows[1:]})
                found = {"command": command, "seeds": seeds, "world": plan.world, "rows": rows}
                write_atomically(options.results, found)

        rows = compare(plan, command, show)
        print(table(rows, plan.world))
    except (WorldModelError, ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
