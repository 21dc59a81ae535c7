"""Supervised fine-tuning, of a world model by default: the next observation, given the history.

    python -m training.sft --data episodes.jsonl --eval-data heldout.jsonl --output runs/alfworld
    python -m training.sft --data alf.jsonl:1 sci.jsonl:2 tw.jsonl:1 --output runs/three_worlds ...
    python -m training.sft --model Qwen/Qwen2.5-0.5B --prompt-style word2world --data train.json ...
    python -m training.sft --role agent --data expert.jsonl --only-success --output runs/agent ...

TRL's `SFTTrainer` on whole episodes, with a loss on observations only (Word2World, arXiv
2512.18832, section 4). By default it builds a small model and its tokenizer from scratch, for a
CPU; with ``--model`` it tunes an existing one, in full or with LoRA. Files of several worlds make
one model of all of them, which serves each of their environments. With ``--role agent`` the loss is
on actions instead, and the model acts: ``llmworld compare --agents llm:runs/agent``; its episodes
may be real or imagined. The same command continues after a kill: it starts from the last complete
checkpoint in ``--output``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig

from gym_llmworld.core import Chat
from gym_llmworld.errors import WorldModelError
from training.card import Card, alone
from training.config import NAMES, SCRATCH, Config, add_options, config_of
from training.data import Conversations, shares
from training.heldout import Heldout, Scores
from training.sampling import EpisodeSampler
from training.scratch import kinds_init, retokenized, small_llama
from training.state_tokenizer import ALWAYS, CELLS, state_tokenizer
from training.tokenizer import train_tokenizer
from training.trainer import (
    ObservationTrainer,
    Rhythm,
    common_arguments,
    finish,
    fit,
    last_checkpoint,
    lora,
)

_UNLEARNED = -100
"""Label without a loss, as torch's cross entropy has it."""

LOG_FILE = "training.jsonl"
_SOURCE, _CONTEXT = "source", "context"


def load(config: Config, chats: Sequence[Chat], checkpoint: Path | None = None) -> tuple[Any, Any]:
    """Returns the model to start from and its tokenizer.

    A new tokenizer is learned from ``chats``, or taken from ``checkpoint``, so that a run may go on
    with more data.
    """
    if config.model == SCRATCH:
        tokenizer = _new_tokenizer(config, chats, checkpoint)
        model = small_llama(
            [tokenizer.decode([i]) for i in range(len(tokenizer))],
            layers=config.layers,
            width=config.width,
            heads=config.heads,
            hidden=config.hidden,
            context=config.context,
            pad_id=tokenizer.pad_token_id,
            eos_id=tokenizer.eos_token_id,
            seed=config.seed,
            recall=config.recall_init,
        )
        return model, tokenizer
    tokenizer = AutoTokenizer.from_pretrained(config.model)
    # Full tuning keeps float32 weights; bfloat16 is the autocast's business.
    model = AutoModelForCausalLM.from_pretrained(config.model, dtype="float32")
    if config.retokenize:
        tokenizer, old = _new_tokenizer(config, chats, checkpoint), tokenizer
        retokenized(model, old, tokenizer)
    if config.kinds_init:
        kinds_init(model, [tokenizer.decode([i]) for i in range(len(tokenizer))])
    return model, tokenizer


def _new_tokenizer(config: Config, chats: Sequence[Chat], checkpoint: Path | None) -> Any:
    if checkpoint is not None:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    elif config.tokenizer == NAMES:
        tokenizer = train_tokenizer(chats, config.merges)
    else:
        texts = (message.content for chat in chats for message in chat)
        tokenizer = state_tokenizer(texts, ALWAYS, CELLS)
    tokenizer.model_max_length = config.context
    return tokenizer


def build_trainer(
    config: Config,
    model: Any,
    tokenizer: Any,
    data: Conversations,
    heldout: Conversations,
    command: str,
    mix: Sequence[float] | None = None,
) -> ObservationTrainer:
    """Puts a run together without starting it; see `train` for the arguments.

    Raises:
        ValueError: The tokenizer's chat template cannot mark observations, or the weights of the
            data leave a file without an episode.
    """
    config.output.mkdir(parents=True, exist_ok=True)
    log = config.output / LOG_FILE
    arguments = SFTConfig(
        assistant_only_loss=True,
        max_length=config.context,
        packing=False,
        per_device_train_batch_size=config.batch_size,
        train_sampling_strategy="group_by_length",
        logging_steps=10,
        **common_arguments(config),
    )
    rhythm = Rhythm(config, log)
    rows = [
        {
            "messages": [{"role": m.role, "content": m.content} for m in item.chat],
            _SOURCE: item.source,
            _CONTEXT: list(item.context),
        }
        for item in data.items
    ]
    parameters = sum(weight.numel() for weight in model.parameters())
    trainer = ObservationTrainer(
        config,
        Card(config, command, data, parameters, log),
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=lora(config),
        callbacks=[rhythm],
    )
    if trainer.chat_template is not None:
        # TRL knows this family: its training template says the same text and marks generations.
        tokenizer.chat_template = trainer.chat_template
    rhythm.trainer = trainer
    rhythm.heldout = Heldout.of(tokenizer, heldout)
    if any(item.context for item in data.items):
        trainer.train_dataset = trainer.train_dataset.map(_without_context)
    # TRL drops episodes whose context alone fills the model's: the columns say which are left.
    usable = trainer.train_dataset
    trainer.sampler = EpisodeSampler(
        [len(ids) for ids in usable["input_ids"]],
        usable[_SOURCE],
        mix,
        config.batch_size * config.accumulate,
        config.seed,
    )
    return trainer


def _without_context(row: dict[str, Any]) -> dict[str, Any]:
    """Takes the loss from the turns that are context only; a turn is a run of labels."""
    labels, turn, within = [], -1, False
    for label in row["labels"]:
        turn += label != _UNLEARNED and not within
        within = label != _UNLEARNED
        labels.append(_UNLEARNED if turn in row[_CONTEXT] else label)
    return {"labels": labels}


@dataclass(frozen=True)
class Trained:
    """A finished run.

    Attributes:
        scores: On all held-out episodes; None without any.
        baselines: See `Heldout.baselines`.
        parameters: Number of weights.
        steps: Optimiser steps.
        minutes: Training time, evaluations on the way included.
    """

    scores: Scores | None
    baselines: Mapping[str, Mapping[str, float | None]]
    parameters: int
    steps: int
    minutes: float


def run(config: Config, command: str = "python -m training.sft") -> Trained:
    """Reads the data, trains or goes on training, and writes the model into ``config.output``.

    Raises:
        WorldModelError: Data or checkpoint cannot be used.
    """
    files = [source.path for source in config.sources]
    data, heldout = config.read(files), Conversations()
    if config.eval_data:
        heldout = config.read(config.eval_data)
    return train(config, data, heldout, command, shares(config.sources))


@alone
def train(
    config: Config,
    data: Conversations,
    heldout: Conversations,
    command: str,
    mix: Sequence[float] | None = None,
) -> Trained:
    """Trains, or goes on training, and writes the finished model into ``config.output``.

    Args:
        config: The run; its files are not read.
        data: To learn from.
        heldout: To evaluate on.
        command: As typed, for the model card.
        mix: Share of each ``source`` of ``data`` in the sampled episodes; see `EpisodeSampler`.

    Raises:
        ValueError: The shares leave a source without an episode.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    found = last_checkpoint(config.output) if config.resume else None
    model, tokenizer = load(config, data.chats, found[0] if found else None)
    trainer = build_trainer(config, model, tokenizer, data, heldout, command, mix)
    print(
        f"{trainer.card.parameters / 1e6:.2f}M parameters, {len(tokenizer)} tokens, "
        f"{len(data.items)} episodes for training, {len(heldout.items)} held out"
    )
    steps, minutes = fit(trainer, found)
    turns = Heldout.of(tokenizer, heldout)
    scores = finish(trainer, tokenizer, turns)
    return Trained(scores, turns.baselines(), trainer.card.parameters, steps, minutes)


def parser() -> argparse.ArgumentParser:
    """Builds the command line: one option per field of `Config`."""
    built = argparse.ArgumentParser(
        prog="python -m training.sft",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(built)
    return built


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = parser().parse_args(arguments)
    try:
        trained = run(config_of(options), " ".join(["python -m training.sft", *arguments]))
    except (WorldModelError, ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if trained.scores is not None:
        print(json.dumps(trained.scores.as_row()))
    print(f"finished: {options.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
