"""What a training run is told: one option of the program per field."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gym_llmworld.policy_prompt import BARE, STYLES
from training.data import Conversations, Filter, PromptStyles, Source, read_conversations

SCRATCH = "scratch"
NAMES, STATES = "names", "states"
WORLD_MODEL, AGENT = "world-model", "agent"
_OUTPUT = Path("runs/sft")


def _option(default: Any, text: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Config:
    """A training run; every field is an option of the program and explained there."""

    data: tuple[Path, ...] = _option(
        (),
        "episodes (.jsonl[.gz], of any worlds) or Word2World files (.json), each PATH or "
        "PATH:WEIGHT. Without weights every episode of every file is seen once per pass. With "
        "weights (a file without one counts as 1) a pass still has as many episodes as all files "
        "hold together, but each file's share of them is its weight / the sum of all weights; a "
        "file goes through all its episodes, in a new random order each time, before one repeats",
    )
    eval_data: tuple[Path, ...] = _option((), "held-out episodes, of other games; same formats")
    output: Path = _option(_OUTPUT, "folder for checkpoints, log and the finished model")  # noqa: RUF009
    model: str = _option(SCRATCH, "'scratch', or a folder or hub id to start from")
    role: str = _option(
        WORLD_MODEL,
        "what is learned of the episodes: world-model (observations) or agent (actions)",
    )
    only_success: bool = _option(
        False, "learn from solved episodes alone (imagined ones: where the model says so)"
    )
    only_agents: str = _option("", "learn from episodes of these agents alone, such as expert,tour")
    teacher: str = _option(
        "",
        "of agents: name of one of the world's own, such as search; what it would not have done is "
        "context and not learned",
    )
    agent_style: str = _option(
        BARE,
        "of agents: bare (the answer is the action), reminded (the same, and every observation "
        "ends with the task) or react (a thought, empty in the labels, and the action)",
    )
    prompt_style: str = _option(
        "engine",
        "of world models, how scenarios are worded: engine | word2world | any other style of the "
        "world; styles of single worlds follow behind commas: engine,textworld=nomap; "
        "engine+nomap: every episode both ways, for a model that knows both",
    )

    layers: int = _option(5, "from scratch: transformer blocks")
    width: int = _option(256, "from scratch: residual width")
    heads: int = _option(4, "from scratch: attention heads")
    hidden: int = _option(512, "from scratch: width of the feed-forward blocks")
    tokenizer: str = _option(
        NAMES,
        "new ones: names (of text worlds: names and stock phrases are one token) or states (of "
        "grid puzzles: rows of boards and numbers are)",
    )
    merges: int = _option(
        600, "new tokenizers of names: tokens for parts of words, beyond the 256 bytes"
    )
    retokenize: bool = _option(
        False,
        "with --model: learn a new tokenizer from the data; its tokens begin as what the model "
        "knows of their parts",
    )
    context: int = _option(2048, "longest episode in tokens; longer ones are cut")
    recall_init: bool = _option(True, "from scratch: begin with look-up heads")
    kinds_init: bool = _option(
        False,
        "with --model: begin with the vector of a kind (' apple', as tasks say it) at the mean of "
        "its numbered names (' apple 1'), where the tokenizer makes both one token",
    )
    lora_rank: int = _option(
        0, "0 tunes all weights; otherwise LoRA of this rank, merged at the end"
    )

    minutes: float = _option(0.0, "stop after this much training time (0: no limit)")
    max_steps: int = _option(0, "stop after this many optimiser steps (0: no limit)")
    epochs: float = _option(0.0, "stop after this many passes (0: no limit; 1 if none is given)")
    batch_size: int = _option(6, "episodes per device and step")
    accumulate: int = _option(1, "batches per optimiser step")
    learning_rate: float = _option(8e-4, "peak; linear warm-up, then linear decay to 2 % of it")
    warmup_steps: int = _option(20, "steps of warm-up")
    weight_decay: float = _option(0.01, "of AdamW")
    beta2: float = _option(0.98, "of AdamW")

    checkpoint_minutes: float = _option(5.0, "checkpoint and evaluate this often (0: every step)")
    eval_episodes: int = _option(
        100, "held-out episodes in evaluations on the way, divided evenly among worlds (0: all)"
    )
    resume: bool = _option(True, "continue from the last complete checkpoint in --output")
    seed: int = _option(0, "of weights, data order and LoRA")
    threads: int = _option(0, "CPU threads (0: torch's choice)")
    bf16: bool = _option(
        False,
        "compute in bfloat16 on CPUs, too, with weights in float32: 1.6 to 1.9 times as fast where "
        "the processor has AMX, slower where it has not; GPUs always do",
    )

    def __post_init__(self) -> None:
        """Refuses runs that could not end well, before anything is loaded."""
        if min(self.minutes, self.max_steps, self.epochs, self.checkpoint_minutes) < 0:
            raise ValueError("minutes, max_steps, epochs and checkpoint_minutes must be >= 0")
        for name in ("batch_size", "accumulate", "context", "merges"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.lora_rank and self.model == SCRATCH:
            raise ValueError("LoRA needs a model to adapt; pass --model PATH_OR_HUB_ID")
        if self.kinds_init and self.model == SCRATCH:
            raise ValueError(
                "kinds_init changes a trained model; pass --model PATH_OR_HUB_ID (from scratch, "
                "kinds and their numbered names begin alike anyway)"
            )
        if self.retokenize and self.model == SCRATCH:
            raise ValueError(
                "retokenize changes a trained model; pass --model PATH_OR_HUB_ID (from scratch, "
                "the tokenizer is learned from the data anyway)"
            )
        if self.teacher and self.role != AGENT:
            raise ValueError(f"teacher is for agents; pass --role {AGENT}, or no --teacher")
        for name, known in (
            ("role", (WORLD_MODEL, AGENT)),
            ("agent_style", STYLES),
            ("tokenizer", (NAMES, STATES)),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}"
                )
        PromptStyles.parse(self.prompt_style)
        _ = self.sources

    @property
    def sources(self) -> tuple[Source, ...]:
        """The files of ``data``, and their weights."""
        return tuple(Source.parse(str(file)) for file in self.data)

    def read(self, files: Sequence[Path]) -> Conversations:
        """Reads episodes as this run learns from them; see `read_conversations`."""
        agents = tuple(name.strip() for name in self.only_agents.split(",") if name.strip())
        return read_conversations(
            files,
            self.prompt_style,
            agent_style=self.agent_style if self.role == AGENT else None,
            kept=Filter(self.only_success, agents, self.teacher),
        )


def add_options(parser: argparse.ArgumentParser, without: Collection[str] = ()) -> None:
    """Adds one option per field of `Config`, except for those in ``without``."""
    for field in dataclasses.fields(Config):
        if field.name in without:
            continue
        flag = "--" + field.name.replace("_", "-")
        text = f"{field.metadata['help']} (default: {_shown(field.default)})"
        text = text.replace("%", "%%")
        if isinstance(field.default, bool):
            action = argparse.BooleanOptionalAction
            parser.add_argument(flag, action=action, default=field.default, help=text)
        elif isinstance(field.default, tuple):
            parser.add_argument(flag, type=Path, nargs="+", default=(), help=text, metavar="FILE")
        else:
            kind, name = type(field.default), type(field.default).__name__.upper()
            kind = Path if isinstance(field.default, Path) else kind
            parser.add_argument(
                flag, type=kind, default=field.default, help=text,
                metavar="PATH" if kind is Path else name,
            )  # fmt: skip


def _shown(value: Any) -> str:
    return "none" if value == () else str(value)


def config_of(arguments: argparse.Namespace, **changes: Any) -> Config:
    """Returns the run that the options of `add_options` describe.

    Raises:
        ValueError: The run could not end well; see `Config`.
    """
    names = {field.name for field in dataclasses.fields(Config)}
    values = {k: v for k, v in vars(arguments).items() if k in names}
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return Config(**{**values, **changes})
