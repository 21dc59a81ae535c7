"""Supervised fine-tuning of a world model: the next observation, given the context and the history.

    python -m training.sft --data episodes.jsonl --eval-data heldout.jsonl --output runs/alfworld
    python -m training.sft --model Qwen/Qwen2.5-0.5B --prompt-style word2world --data train.json ...

TRL's `SFTTrainer` on whole episodes, with a loss on observations only (Word2World, arXiv
2512.18832, section 4). By default it builds a small model and its tokenizer from scratch, for a
CPU; with ``--model`` it tunes an existing one, in full or with LoRA. The same command continues
after a kill: it starts from the last complete checkpoint in ``--output``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

from gym_llmworld.checkpoints import CARD_FILE
from gym_llmworld.core import Chat
from gym_llmworld.errors import WorldModelError
from training.data import Conversations, read_conversations
from training.exact_match import TokenizedChat, TurnMatch, tokenize, turn_match
from training.scratch import small_llama
from training.tokenizer import train_tokenizer

SCRATCH = "scratch"
_OUTPUT = Path("runs/sft")
LOG_FILE = "training.jsonl"
_PROGRESS_FILE = "progress.json"


def _option(default: Any, text: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Config:
    """A training run; every field is an option of the program and explained there."""

    data: tuple[Path, ...] = _option((), "episodes (.jsonl[.gz]) or Word2World files (.json)")
    eval_data: tuple[Path, ...] = _option((), "held-out episodes, of other games; same formats")
    output: Path = _option(_OUTPUT, "folder for checkpoints, log and the finished model")  # noqa: RUF009
    model: str = _option(SCRATCH, "'scratch', or a folder or hub id to start from")
    prompt_style: str = _option("engine", "how scenarios are worded: engine | word2world")

    layers: int = _option(5, "from scratch: transformer blocks")
    width: int = _option(256, "from scratch: residual width")
    heads: int = _option(4, "from scratch: attention heads")
    hidden: int = _option(512, "from scratch: width of the feed-forward blocks")
    context: int = _option(2048, "longest episode in tokens; longer ones are cut")
    recall_init: bool = _option(True, "from scratch: begin with look-up heads")
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
    eval_episodes: int = _option(100, "held-out episodes in evaluations on the way (0: all)")
    resume: bool = _option(True, "continue from the last complete checkpoint in --output")
    seed: int = _option(0, "of weights, data order and LoRA")
    threads: int = _option(0, "CPU threads (0: torch's choice)")

    def __post_init__(self) -> None:
        """Refuses runs that could not end well, before anything is loaded."""
        if min(self.minutes, self.max_steps, self.epochs, self.checkpoint_minutes) < 0:
            raise ValueError("minutes, max_steps, epochs and checkpoint_minutes must be >= 0")
        for name in ("batch_size", "accumulate", "context"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.lora_rank and self.model == SCRATCH:
            raise ValueError("LoRA needs a model to adapt; pass --model PATH_OR_HUB_ID")


class ObservationTrainer(SFTTrainer):  # type: ignore[misc]
    """`SFTTrainer` that projects only supervised positions, keeps time, and survives kills.

    The stock trainer projects every position onto the vocabulary and computes an entropy besides;
    on a small CPU model that is most of the work. Same loss, tested against the stock one. Across
    several devices the stock computation runs, since it goes through their wrapper.

    Args:
        config: The run.
        card: Written beside the weights of each checkpoint.
        **kwargs: For `SFTTrainer`.
    """

    lr_scheduler: Any

    def __init__(self, config: Config, card: Card, **kwargs: Any) -> None:
        self.config = config
        self.card = card
        self.seconds_before = 0.0
        self.started = time.monotonic()
        super().__init__(**kwargs)

    @property
    def seconds(self) -> float:
        """Training time so far, that of interrupted runs included."""
        return self.seconds_before + time.monotonic() - self.started

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Mean cross entropy over supervised tokens; see `SFTTrainer.compute_loss`."""
        if return_outputs or self.args.world_size > 1 or self.args.n_gpu > 1:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        inner = self.accelerator.unwrap_model(model)
        inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
        labels = inputs["labels"][:, 1:]
        wanted = labels != -100
        with self.accelerator.autocast():
            # The collator pads on the right: causal attention alone keeps padding out, and without
            # a mask the fast kernels apply.
            hidden = inner.get_decoder()(input_ids=inputs["input_ids"], use_cache=False)
            logits = inner.get_output_embeddings()(hidden.last_hidden_state[:, :-1][wanted])
        total = F.cross_entropy(logits.float(), labels[wanted], reduction="sum")
        count = wanted.sum() if num_items_in_batch is None else num_items_in_batch
        self._total_train_tokens += int(inputs["attention_mask"].sum())
        self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
        return total / torch.as_tensor(count, device=total.device).clamp(min=1)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Warm-up by steps, decay by whichever limit is nearer: steps or time."""
        if self.lr_scheduler is None:
            warmup, limit = self.config.warmup_steps, self.config.minutes * 60

            def factor(step: int) -> float:
                done = step / max(1, num_training_steps)
                if limit:
                    done = max(done, self.seconds / limit)
                return min(1.0, (step + 1) / max(1, warmup)) * max(0.02, 1.0 - done)

            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer or self.optimizer, factor
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Leaves the card to `Card`, which knows what the model was trained on."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            self.card.write(folder)
            # Last, and in one piece: without this file the checkpoint counts as incomplete.
            _write_atomically(folder / _PROGRESS_FILE, {"seconds": round(self.seconds, 1)})


class Rhythm(TrainerCallback):  # type: ignore[misc]
    """Stops by the clock; evaluates, logs and checkpoints every few minutes.

    Args:
        config: The run.
        heldout: Episodes for exact match.
        log: JSON Lines file that is appended to.
    """

    def __init__(self, config: Config, heldout: Sequence[TokenizedChat], log: Path) -> None:
        self.config = config
        self.heldout = heldout
        self.log = log
        self.trainer: ObservationTrainer | None = None
        self.last_checkpoint = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts the clock after loading and compiling are over."""
        trainer = self._trainer()
        trainer.started = time.monotonic()
        self.last_checkpoint = trainer.seconds

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Decides whether it is time to stop or to save."""
        seconds = self._trainer().seconds
        if self.config.minutes and seconds >= self.config.minutes * 60:
            control.should_training_stop = True
        due = seconds - self.last_checkpoint >= self.config.checkpoint_minutes * 60
        if due or control.should_training_stop:
            self.last_checkpoint = seconds
            control.should_save = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Appends the loss to the log."""
        if logs and "loss" in logs:
            keys = ("loss", "grad_norm", "learning_rate", "num_tokens", "epoch")
            self._append(state.global_step, {k: float(logs[k]) for k in keys if k in logs})

    def on_save(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        """Measures exact match on held-out episodes, and appends it to the log."""
        if self.heldout and state.is_world_process_zero:
            wanted = self.config.eval_episodes or len(self.heldout)
            # Evenly spaced: several files follow one another.
            some = self.heldout[:: -(-len(self.heldout) // wanted)]
            row = turn_match(self._trainer().accelerator.unwrap_model(model), some).as_row()
            self._append(state.global_step, {"episodes": len(some), **row})
            shown = ", ".join(f"{k} {v}" for k, v in row.items())
            print(f"[step {state.global_step}, {self._trainer().seconds / 60:.1f} min] {shown}")

    def _append(self, step: int, row: dict[str, Any]) -> None:
        line = {"step": step, "minutes": round(self._trainer().seconds / 60, 2), **row}
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _trainer(self) -> ObservationTrainer:
        assert self.trainer is not None, "attach the trainer before training"
        return self.trainer


@dataclass(frozen=True)
class Card:
    """What is known about a model: ``llmworld.json`` for programs, ``README.md`` for people.

    Attributes:
        config: The run.
        command: As typed.
        data: What it was trained on.
        parameters: Number of weights.
        log: The run's JSON Lines log.
    """

    config: Config
    command: str
    data: Conversations
    parameters: int
    log: Path

    def write(self, folder: Path, final: TurnMatch | None = None) -> None:
        """Writes both files into a checkpoint folder; ``final`` is the last evaluation."""
        card = {
            "format": 1,
            "world": self.data.worlds[0] if len(self.data.worlds) == 1 else None,
            "prompt_style": self.config.prompt_style,
            "base": None if self.config.model == SCRATCH else self.config.model,
            "parameters": self.parameters,
            "exact_match": None if final is None else final.as_row(),
        }
        _write_atomically(folder / CARD_FILE, card)
        (folder / "README.md").write_text(self._text(final), encoding="utf-8")

    def _text(self, final: TurnMatch | None) -> str:
        worlds = ", ".join(self.data.worlds) or "Word2World files"
        base = "random weights" if self.config.model == SCRATCH else self.config.model
        if self.config.model == SCRATCH and self.config.recall_init:
            base = "random weights with look-up heads written into layers 1 and 2"
        size = f"{self.parameters / 1e6:.2f}M parameters"
        parts = [
            "---\ntags:\n- world-model\n- gym-llmworld\npipeline_tag: text-generation\n---",
            f"# World model: {worlds}",
            "Predicts the next observation of a text environment from its initial context "
            "(system), the actions (user) and the observations so far (assistant). Made with "
            "gym-llmworld's `training/sft.py`.",
            f"- Size: {size}, from {base}\n"
            f"- Prompt style: `{self.config.prompt_style}`\n"
            f"- Training data: {len(self.data.chats)} episodes from {self.data.scenarios} "
            f"scenarios ({_names(self.config.data)})\n"
            f"- Held-out data: {_names(self.config.eval_data)}\n"
            f"- Code: revision {_revision()}; Python {platform.python_version()}, torch "
            f"{torch.__version__}\n"
            f"- Command: `{self.command}`",
        ]
        if final is not None:
            parts += ["## Exact match on held-out episodes", _final_table(final)]
        parts += ["## Curve", _curve_table(self.log)]
        return "\n\n".join(parts) + "\n"


def _names(files: Sequence[Path]) -> str:
    return ", ".join(file.name for file in files) or "none"


def _final_table(match: TurnMatch) -> str:
    rows = ["| turns | n | exact match |", "|---|---|---|"]
    for name in match.__slots__:
        rate = getattr(match, name)
        shown = "-" if rate.value is None else f"{rate.value:.4f}"
        rows.append(f"| {name} | {rate.n} | {shown} |")
    return "\n".join(rows)


def _curve_table(log: Path) -> str:
    rows = ["| step | minutes | all | changed | lookup | ending |", "|---|---|---|---|---|---|"]
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    for point in map(json.loads, lines):
        if "em_all" in point:
            values = (point[f"em_{k}"] for k in ("all", "changed", "lookup", "ending"))
            shown = " | ".join("-" if v is None else f"{v:.3f}" for v in values)
            rows.append(f"| {point['step']} | {point['minutes']:.1f} | {shown} |")
    return "\n".join(rows)


def _revision() -> str:
    try:
        found = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


def _write_atomically(file: Path, value: Any) -> None:
    draft = file.with_name(file.name + ".part")
    draft.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    os.replace(draft, file)


def last_checkpoint(output: Path) -> tuple[Path, float] | None:
    """Finds the newest complete checkpoint.

    Returns:
        Its folder and the training time before it in seconds; None without one.
    """
    complete = [
        (int(folder.name.rsplit("-", 1)[1]), folder)
        for folder in output.glob("checkpoint-*")
        if (folder / _PROGRESS_FILE).is_file()
    ]
    if not complete:
        return None
    folder = max(complete)[1]
    seconds = json.loads((folder / _PROGRESS_FILE).read_text(encoding="utf-8"))["seconds"]
    return folder, float(seconds)


def load(config: Config, chats: Sequence[Chat], checkpoint: Path | None = None) -> tuple[Any, Any]:
    """Returns the model to start from and its tokenizer.

    From scratch, the tokenizer is learned from ``chats``, or taken from ``checkpoint``, so that a
    run may go on with more data.
    """
    if config.model == SCRATCH:
        if checkpoint is None:
            tokenizer = train_tokenizer(chats)
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
    heldout: Sequence[Chat],
    command: str,
) -> ObservationTrainer:
    """Puts a run together without starting it.

    Raises:
        ValueError: The tokenizer's chat template cannot mark observations.
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
    rhythm = Rhythm(config, [], log)
    rows = [
        {"messages": [{"role": m.role, "content": m.content} for m in chat]} for chat in data.chats
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
    rhythm.heldout = [tokenize(tokenizer, chat) for chat in heldout]
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


def run(config: Config, command: str = "python -m training.sft") -> TurnMatch | None:
    """Trains, or goes on training, and writes the finished model into ``config.output``.

    Returns:
        Exact match of the finished model on all held-out episodes; None without any.

    Raises:
        WorldModelError: Data or checkpoint cannot be used.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    data = read_conversations(config.data, config.prompt_style)
    heldout: Sequence[Chat] = ()
    if config.eval_data:
        heldout = read_conversations(config.eval_data, config.prompt_style).chats
    found = last_checkpoint(config.output) if config.resume else None
    model, tokenizer = load(config, data.chats, found[0] if found else None)
    trainer = build_trainer(config, model, tokenizer, data, heldout, command)
    print(
        f"{trainer.card.parameters / 1e6:.2f}M parameters, {len(tokenizer)} tokens, "
        f"{len(data.chats)} episodes for training, {len(heldout)} held out"
    )
    if found is not None:
        trainer.seconds_before = found[1]
        print(f"continuing from {found[0]} ({found[1] / 60:.1f} minutes trained)")
    trainer.train(resume_from_checkpoint=str(found[0]) if found else None)
    return _finish(trainer, tokenizer, [tokenize(tokenizer, chat) for chat in heldout])


def _finish(
    trainer: ObservationTrainer, tokenizer: Any, heldout: Sequence[TokenizedChat]
) -> TurnMatch | None:
    if not trainer.is_world_process_zero():
        return None
    output = trainer.config.output
    model = trainer.accelerator.unwrap_model(trainer.model)
    if trainer.config.lora_rank:
        model = model.merge_and_unload()
    final = turn_match(model, heldout) if heldout else None
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
    for field in dataclasses.fields(Config):
        flag = "--" + field.name.replace("_", "-")
        text = f"{field.metadata['help']} (default: {_shown(field.default)})"
        text = text.replace("%", "%%")
        if isinstance(field.default, bool):
            action = argparse.BooleanOptionalAction
            built.add_argument(flag, action=action, default=field.default, help=text)
        elif isinstance(field.default, tuple):
            built.add_argument(flag, type=Path, nargs="+", default=(), help=text, metavar="FILE")
        else:
            kind, name = type(field.default), type(field.default).__name__.upper()
            kind = Path if isinstance(field.default, Path) else kind
            built.add_argument(
                flag, type=kind, default=field.default, help=text,
                metavar="PATH" if kind is Path else name,
            )  # fmt: skip
    return built


def _shown(value: Any) -> str:
    return "none" if value == () else str(value)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    values = vars(parser().parse_args(arguments))
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    try:
        final = run(Config(**values), " ".join(["python -m training.sft", *arguments]))
    except (WorldModelError, ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if final is not None:
        print(json.dumps(final.as_row()))
    print(f"finished: {values['output']}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
