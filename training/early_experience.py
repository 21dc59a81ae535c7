r"""Early experience: does an agent start better that has learned to be the world first?

    python -m training.early_experience --data real.jsonl --only-agents search --only-success \
        --output runs/early --world-steps 600 --max-steps 300 --seeds 0 1 2 \
        --policy updates=20 groups=8 group_size=4

Word2World's second use of a world model (arXiv 2512.18832, section 7.3): world-model SFT, then
agent SFT, then reinforcement learning (*experience*), against agent SFT and reinforcement learning
from the same start (*agent*). Both agents learn from the same episodes, with the same number of
steps; the world model learns from --world-data. With --world-model-start, a third arm starts from a
world model that exists already, such as one made by RWML (*given*). What counts is the share of
held-out games that an agent solves in the real engine, after SFT and after reinforcement learning.
Started again, the same command runs only what is missing. Results: results.json and plot.png in
--output.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gym_llmworld.errors import WorldModelError
from training.card import write_atomically
from training.config import SCRATCH, WORLD_MODEL, Config
from training.data import Conversations
from training.plots import draw_bars
from training.policy import Learned
from training.policy import run as reinforce
from training.policy_config import PolicyConfig
from training.series import (
    PLOT_FILE,
    RESULTS_FILE,
    add_series_options,
    base_config,
    plus_minus,
    run_series,
    settings,
    spread,
)
from training.sft import load, train
from training.success import ALL, Exam
from training.synthetic import add_exam_options

EXPERIENCE, PLAIN, GIVEN = "experience", "agent", "given"
SFT, RL = "after SFT", "after RL"


@dataclass(frozen=True)
class Material:
    """What all arms share.

    Attributes:
        agent: Chats of an agent.
        world: The same or other episodes as chats of a world model.
        world_run: World-model SFT, but for its start, its seed and its folder.
        policy: Fields of `PolicyConfig` that differ from their defaults.
        exam: What agents are measured by.
    """

    agent: Conversations
    world: Conversations
    world_run: Config
    policy: Mapping[str, Any]
    exam: Exam

    def policy_config(self, model: Path, output: Path, seed: int) -> PolicyConfig:
        """Returns the run of reinforcement learning that starts from ``model``.

        Raises:
            ValueError: It could not end well.
        """
        values = {"seed": seed, **self.policy, "model": str(model), "output": output}
        return PolicyConfig(**values)


@dataclass(frozen=True)
class Arm:
    """One way to an agent, of one seed: a unit of `run_series`.

    Attributes:
        kind: ``experience``, ``agent`` or ``given``.
        config: Of agent SFT; ``model`` is where the arm starts, its output the arm's folder.
        material: What it learns from.
    """

    kind: str
    config: Config
    material: Material

    @property
    def name(self) -> str:
        """Unique in the series."""
        return self.folder.name

    @property
    def folder(self) -> Path:
        """Where the stages lie."""
        return self.config.output

    def identity(self) -> dict[str, Any]:
        """Returns everything that the result depends on, except for the code."""
        material = self.material
        return {
            **settings(self.config),
            "kind": self.kind,
            "agent_data": material.agent.digest,
            "world_data": material.world.digest,
            "world_run": settings(material.world_run),
            "policy": dict(material.policy),
            "exam": material.exam.settings(),
        }

    def run(self, command: str) -> dict[str, Any]:
        """Trains in two or three stages, each continued where a kill has interrupted it."""
        started, exam = time.monotonic(), self.material.exam
        base = self._experienced(command) if self.kind == EXPERIENCE else self._start()
        agent = replace(self.config, model=base, output=self.folder / "agent")
        train(agent, self.material.agent, Conversations(), command)
        after_sft = exam.take(agent.output)
        policy = self.material.policy_config(agent.output, self.folder / "policy", self.config.seed)
        learned = reinforce(policy, command)
        after_rl = exam.take(policy.output)
        return {
            "point": self.name,
            "arm": self.kind,
            "seed": self.config.seed,
            "stages": {SFT: after_sft, RL: after_rl},
            "success": after_rl,
            "reinforcement": _spent(learned),
            "minutes": round((time.monotonic() - started) / 60, 2),
        }

    def _experienced(self, command: str) -> str:
        output = self.folder / "world_model"
        run = self.material.world_run
        run = replace(run, model=self._start(), seed=self.config.seed, output=output)
        train(run, self.material.world, Conversations(), command)
        return str(output)

    def _start(self) -> str:
        """Returns where the arm starts; random weights are the same for all arms of a seed."""
        if self.config.model != SCRATCH:
            return self.config.model
        start = self.folder / "start"
        chats = [*self.material.world.chats, *self.material.agent.chats]
        model, tokenizer = load(self.config, chats)
        model.save_pretrained(start)
        tokenizer.save_pretrained(start)
        return str(start)


def _spent(learned: Learned) -> dict[str, Any]:
    curve = [round(row["success"], 4) for row in learned.rows]
    return {**learned.progress.counts(), "refused": learned.refused, "success": curve}


def arms(
    config: Config, material: Material, seeds: Sequence[int], given: str | None = None
) -> list[Arm]:
    """Lists the arms of every seed.

    Args:
        config: Of agent SFT.
        material: What they share.
        seeds: Of weights, data order and reinforcement learning.
        given: World model that a third arm starts from; None for two arms.
    """
    starts = {EXPERIENCE: config.model, PLAIN: config.model}
    if given is not None:
        starts[GIVEN] = given
    return [
        Arm(
            kind,
            replace(
                config,
                seed=seed,
                model=start,
                output=config.output / "points" / f"{kind}-seed{seed}",
            ),
            material,
        )
        for seed in seeds
        for kind, start in starts.items()
    ]


def by_stage(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Gathers real success on all games over seeds: stage -> arm -> `spread`, with games ``n``."""
    result: dict[str, dict[str, dict[str, Any]]] = {}
    for stage in (SFT, RL):
        for arm in dict.fromkeys(row["arm"] for row in rows):
            found = [row["stages"][stage][ALL] for row in rows if row["arm"] == arm]
            summary = {**spread([f["value"] for f in found]), "n": found[0]["n"]}
            result.setdefault(stage, {})[arm] = summary
    return result


def policy_settings(texts: Sequence[str]) -> dict[str, Any]:
    """Reads ``NAME=VALUE`` for fields of `PolicyConfig`.

    Raises:
        ValueError: There is no such field, or it takes other values.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(PolicyConfig)}
    known = {k: v for k, v in defaults.items() if k not in ("model", "output", "seed", "resume")}
    found: dict[str, Any] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if name not in known:
            raise ValueError(f"--policy {text}: expected NAME=VALUE with one of {', '.join(known)}")
        kind: Any = Path if known[name] is None else type(known[name])
        try:
            found[name] = kind(value)
        except ValueError as error:
            raise ValueError(f"--policy {text}: expected a {kind.__name__}") from error
    return found


def _table(stages: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Any:
    from rich.table import Table

    table = Table(title="held-out games solved in the real engine")
    for column in ("arm", *stages, "games", "seeds"):
        table.add_column(column)
    for arm, row in stages[RL].items():
        shown = [plus_minus(bars[arm]) for bars in stages.values()]
        table.add_row(arm, *shown, str(row["n"]), str(len(row["values"])))
    return table


def parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    built = argparse.ArgumentParser(
        prog="python -m training.early_experience",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    built.add_argument(
        "--world-data", type=Path, nargs="+", default=(), metavar="FILE",
        help="episodes that the world model learns from, all of them (default: those of --data)",
    )  # fmt: skip
    built.add_argument(
        "--world-steps", type=int, default=300, metavar="N",
        help="optimiser steps of world-model SFT; of agent SFT: --max-steps (default: 300)",
    )  # fmt: skip
    built.add_argument(
        "--world-model-start", default=None, metavar="PATH",
        help="third arm: agent SFT and reinforcement learning from this world model",
    )  # fmt: skip
    built.add_argument(
        "--policy", nargs="+", default=[], metavar="NAME=VALUE",
        help="of reinforcement learning, see python -m training.policy --help: updates=20 groups=8",
    )  # fmt: skip
    add_exam_options(built)
    add_series_options(built, {"role", "eval_data", "eval_episodes", "minutes"})
    return built


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    from rich.console import Console

    arguments = list(sys.argv[1:] if argv is None else argv)
    options = parser().parse_args(arguments)
    command = " ".join(["python -m training.early_experience", *arguments])
    try:
        config = base_config(options, agents=True)
        if options.world_steps < 1:
            raise ValueError(f"--world-steps must be >= 1, got {options.world_steps}")
        material = _material(options, config)
        rows: list[dict[str, Any]] = []
        for rows in run_series(
            arms(config, material, options.seeds, options.world_model_start), command
        ):
            stages = by_stage(rows)
            results = {"command": command, "seeds": options.seeds, "stages": stages, "rows": rows}
            write_atomically(config.output / RESULTS_FILE, results)
            draw_bars(
                stages,
                config.output / PLOT_FILE,
                "Agents that were the world first, and agents that were not",
                f"held-out games solved in the real engine; mean and range over seeds "
                f"{options.seeds}",
                quantity="success",
            )
    except (WorldModelError, ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    Console().print(_table(by_stage(rows)))
    print(f"finished: {config.output / RESULTS_FILE}, {config.output / PLOT_FILE}")
    return 0


def world_model_run(config: Config, data: Sequence[Path], steps: int) -> Config:
    """Returns the world model's run beside an agent's: what only agents learn by is left out.

    Args:
        config: Of agent SFT.
        data: Its episodes; none: the agent's.
        steps: Of the optimiser.
    """
    return replace(
        config,
        role=WORLD_MODEL,
        only_success=False,
        only_agents="",
        teacher="",
        data=tuple(data) or config.data,
        max_steps=steps,
    )


def _material(options: argparse.Namespace, config: Config) -> Material:
    world = world_model_run(config, options.world_data, options.world_steps)
    policy = policy_settings(options.policy)
    # Refused here, not after hours of SFT.
    learning = PolicyConfig(**{**policy, "model": "agent"})
    exam = Exam.of(learning.world, options.exam, options.exam_games, options.episode_steps)
    return Material(
        config.read([source.path for source in config.sources]),
        world.read([source.path for source in world.sources]),
        world,
        policy,
        exam,
    )


if __name__ == "__main__":
    raise SystemExit(main())
