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
from training.card import Card
from training.config import SCRATCH, Config, add_options, config_of
from training.data import Conversations, shares
from training.heldout import Heldout, Scores
from training.sampling import EpisodeSampler
from training.scratch import small_llama
from training.tokenizer import train_tokenizer
from training.trainer import ObservationTrainer, Rhythm, checkpoint_step, last_checkpoint

LOG_FILE = "training.jsonl"
_SOURCE = "source"


def load(config: Config, chats: Sequence[Chat], checkpoint: Path | None = None) -> tuple[Any, Any]:
    """Returns the model to start from and its tokenizer.

    From scratch, the tokenizer is learned from ``chats``, or taken from ``checkpoint``, so that a
    run may go on with more data.
    """
    if config.model == SCRATCH:
        if checkpoint is None:
            tokenizer = train_tokenizer(chats, config.merges)
        else:
            tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        tokenizer.model_max_length = config.context
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
    return AutoModelForCausalLM.from_pretrained(config.model, dtype="float32"), tokenizer


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
    gpu = torch.cuda.is_available()
    by_epochs = config.epochs or (0.0 if config.minutes or config.max_steps else 1.0)
    arguments = SFTConfig(
        output_dir=str(config.output),
        assistant_only_loss=True,
        max_length=config.context,
        packing=False,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.accumulate,
        train_sampling_strategy="group_by_length",
        # Time alone may limit a run: then there are as many passes as it takes.
        num_train_epochs=by_epochs or 10_000,
        max_steps=config.max_steps or -1,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        adam_beta2=config.beta2,
        optim="adamw_torch_fused",
        max_grad_norm=1.0,
        bf16=gpu,
        use_cpu=not gpu,
        activation_checkpointing=False,
        save_strategy="no",
        save_total_limit=2,
        eval_strategy="no",
        logging_steps=10,
        report_to="none",
        disable_tqdm=not sys.stderr.isatty(),
        dataloader_pin_memory=gpu,
        seed=config.seed,
        data_seed=config.seed,
    )
    rhythm = Rhythm(config, log)
    rows = [
        {
            "messages": [{"role": m.role, "content": m.content} for m in item.chat],
            _SOURCE: item.source,
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
        peft_config=_lora(config),
        callbacks=[rhythm],
    )
    if trainer.chat_template is not None:
        # TRL knows this family: its training template says the same text and marks generations.
        tokenizer.chat_template = trainer.chat_template
    rhythm.trainer = trainer
    rhythm.heldout = Heldout.of(tokenizer, heldout)
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


def _lora(config: Config) -> Any:
    if not config.lora_rank:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=config.lora_rank,
        lora_alpha=2 * config.lora_rank,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


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
    if found is not None:
        trainer.seconds_before = found[1]
        print(f"continuing from {found[0]} ({found[1] / 60:.1f} minutes trained)")
    if found is not None and _reached(config, *found):
        # Going on, even the shortest way, would take one more step.
        trainer._load_from_checkpoint(str(found[0]))
        steps, minutes = checkpoint_step(found[0]), found[1] / 60
    else:
        trainer.train(resume_from_checkpoint=str(found[0]) if found else None)
        steps, minutes = trainer.state.global_step, trainer.seconds / 60
    turns = Heldout.of(tokenizer, heldout)
    scores = _finish(trainer, tokenizer, turns)
    return Trained(scores, turns.baselines(), trainer.card.parameters, steps, minutes)


def _reached(config: Config, checkpoint: Path, seconds: float) -> bool:
    by_steps = 0 < config.max_steps <= checkpoint_step(checkpoint)
    return by_steps or 0 < config.minutes * 60 <= seconds


def _finish(trainer: ObservationTrainer, tokenizer: Any, heldout: Heldout) -> Scores | None:
    if not trainer.is_world_process_zero():
        return None
    output = trainer.config.output
    model = trainer.accelerator.unwrap_model(trainer.model)
    if trainer.config.lora_rank:
        model = model.merge_and_unload()
    final = heldout.match(model) if heldout else None
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    trainer.card.write(output, final)
    return final


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
