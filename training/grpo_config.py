"""What refinement is told beyond the options of every training run."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gym_llmworld.errors import DataError
from training.config import Config, add_options
from training.embedders import DEFAULT_EMBEDDER
from training.rewards import Weighted

# Options of training runs that choose what an agent learns from; here a world model does.
_ROLE = ("role", "agent_style", "only_success", "only_agents")


@dataclass(frozen=True)
class Refinement:
    """What GRPO is told beyond `training.config.Config`.

    Attributes:
        rewards: Terms of the reward.
        tau: Threshold of the embedding rewards.
        embedder: Their model.
        reasoning: Asks for a reasoning span before the prediction.
        prompts: Transitions per step.
        group: Samples of each.
        temperature: Of the samples.
        beta: Weight of the divergence from the model at the start.
        clip: Of the probability ratio.
        max_tokens: Longest answer; 0: a little more than the longest true observation.
        keep: File of the easy filter; see `training.difficulty`.
    """

    rewards: tuple[Weighted, ...] = (Weighted("exact"),)
    tau: float = 0.2
    embedder: str = DEFAULT_EMBEDDER
    reasoning: bool = False
    prompts: int = 16
    group: int = 8
    temperature: float = 1.0
    beta: float = 0.0
    clip: float = 0.2
    max_tokens: int = 0
    keep: Path | None = None

    def __post_init__(self) -> None:
        """Refuses runs that could not end well."""
        if self.group < 2 or self.prompts < 1 or self.max_tokens < 0:
            raise ValueError(
                "expected group >= 2 (rewards count against each other), prompts >= 1 and "
                f"max_tokens >= 0, got {self.group}, {self.prompts} and {self.max_tokens}"
            )
        if not (self.temperature > 0 and self.tau > 0 and self.beta >= 0 and self.clip > 0):
            raise ValueError("expected temperature, tau and clip > 0, and beta >= 0")

    @property
    def lines(self) -> list[str]:
        """What a model card says of it."""
        terms = " + ".join(f"{term.weight:g} x {term.name}" for term in self.rewards)
        if any(term.name.startswith("embedding") for term in self.rewards):
            terms += f" (tau {self.tau:g}, {self.embedder})"
        return [
            f"- Reward: {terms}",
            f"- GRPO: {self.prompts} transitions x {self.group} samples a step, temperature "
            f"{self.temperature:g}, beta {self.beta:g}, clip {self.clip:g}"
            + (", with a reasoning span" if self.reasoning else ""),
            f"- Transitions: {f'those that {self.keep.name} keeps' if self.keep else 'all'}",
        ]


def add_refinement_options(built: argparse.ArgumentParser) -> None:
    """Adds the options of `Refinement`."""
    base, group = Refinement(), built.add_argument_group("GRPO")
    group.add_argument(
        "--reward", nargs="+", default=["exact"], metavar="NAME[:WEIGHT]",
        help="see above (default: exact)",
    )  # fmt: skip
    group.add_argument(
        "--embedder", default=base.embedder,
        help="a sentence-transformers folder or hub id, such as Qwen/Qwen3-Embedding-8B "
        "(default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--reasoning", action="store_true",
        help="ask for <think>...</think> <next_state>...</next_state>",
    )  # fmt: skip
    group.add_argument(
        "--keep", type=Path, help="transitions.jsonl of training.difficulty: leaves easy ones out"
    )
    for name, text in (
        ("tau", "threshold of the embedding rewards"),
        ("prompts", "transitions per step"),
        ("group", "samples of each transition"),
        ("temperature", "of the samples"),
        ("beta", "weight of the divergence from the model at the start; RLVR-World: 0.001"),
        ("clip", "of the probability ratio"),
        ("max_tokens", "of an answer; 0: a little more than the longest true one"),
    ):
        default = getattr(base, name)
        flag, told = "--" + name.replace("_", "-"), f"{text} (default: {default})"
        group.add_argument(flag, type=type(default), default=default, help=told)


def add_run_options(
    built: argparse.ArgumentParser, without: Collection[str] = (), **defaults: Any
) -> None:
    """Adds the options of `Config` that concern a world model which is there already.

    Args:
        built: Parser.
        without: Fields to leave out.
        defaults: Other defaults than those of `Config`; None for what the model says.
    """
    add_options(built, {*without, *defaults, *_ROLE})
    for field in dataclasses.fields(Config):
        if field.name in defaults:
            default = defaults[field.name]
            told = "as the model's" if default is None else default
            built.add_argument(
                "--" + field.name.replace("_", "-"),
                type=type(field.default),
                default=default,
                help=f"{field.metadata['help']} (default: {told})".replace("%", "%%"),
            )


def refinement_of(options: argparse.Namespace) -> Refinement:
    """Returns what the options of `add_refinement_options` describe.

    Raises:
        ValueError: An option is out of range.
    """
    names = ("tau", "embedder", "reasoning", "prompts", "group", "temperature", "beta", "clip")
    chosen = {name: getattr(options, name) for name in (*names, "max_tokens", "keep")}
    return Refinement(tuple(Weighted.parse(text) for text in options.reward), **chosen)


def plain_files(config: Config) -> list[Path]:
    """Returns the files of ``config.data``, which may have no weights here.

    Raises:
        ValueError: One has a weight.
    """
    weighted = [source.path for source in config.sources if source.weight is not None]
    if weighted:
        raise ValueError(
            f"{weighted[0]} has a weight; transitions of all files are drawn alike here, so pass "
            "--data without weights, and fewer episodes of what should count less"
        )
    return [source.path for source in config.sources]


def kept_ids(file: Path) -> frozenset[str]:
    """Returns the transitions that the easy filter keeps.

    Raises:
        DataError: The file is none of `training.difficulty`'s.
    """
    kept = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            kept += [str(row["id"])] if row["kept"] else []
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f'{file}, line {number}: expected {{"id", "kept", ...}} as `python -m '
                f"training.difficulty` writes, got {line[:80]!r}"
            ) from error
    return frozenset(kept)
