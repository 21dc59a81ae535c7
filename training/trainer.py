"""TRL's trainer, fitted to world models: what is computed, when to stop, what survives a kill."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import TrainerCallback
from trl import SFTTrainer

from training.card import Card, write_atomically
from training.config import Config
from training.heldout import Heldout, Scores
from training.sampling import EpisodeSampler

PROGRESS_FILE = "progress.json"


class Timed:
    """What TRL's trainers lack here: a clock that survives kills, a schedule by it, our card.

    To be mixed in before a trainer class of TRL's.

    Attributes:
        config: The run.
        card: Written beside the weights of each checkpoint.
        seconds_before: Training time of interrupted runs.
        started: When this one began.
    """

    config: Config
    card: Card
    optimizer: Any
    lr_scheduler: Any
    seconds_before: float
    started: float

    def begin(self, config: Config, card: Card) -> None:
        """Sets the clock; to be called before the trainer's own constructor."""
        self.config, self.card = config, card
        self.seconds_before, self.started = 0.0, time.monotonic()

    @property
    def seconds(self) -> float:
        """Training time so far, that of interrupted runs included."""
        return self.seconds_before + time.monotonic() - self.started

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
        super()._save_checkpoint(model, trial)  # type: ignore[misc]
        arguments, state = self.args, self.state  # type: ignore[attr-defined]
        if arguments.should_save:
            folder = Path(arguments.output_dir) / f"checkpoint-{state.global_step}"
            self.card.write(folder)
            # Last, and in one piece: without this file the checkpoint counts as incomplete.
            write_atomically(folder / PROGRESS_FILE, {"seconds": round(self.seconds, 1)})


class ObservationTrainer(Timed, SFTTrainer):  # type: ignore[misc]
    """`SFTTrainer` that projects only supervised positions, keeps time, and survives kills.

    The stock trainer projects every position onto the vocabulary and computes an entropy besides;
    on a small CPU model that is most of the work. Same loss, tested against the stock one. Across
    several devices the stock computation runs, since it goes through their wrapper.

    Args:
        config: The run.
        card: Written beside the weights of each checkpoint.
        **kwargs: For `SFTTrainer`.
    """

    def __init__(self, config: Config, card: Card, **kwargs: Any) -> None:
        self.begin(config, card)
        self.sampler: EpisodeSampler | None = None
        super().__init__(**kwargs)

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

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        # The stock one draws from the global generator: a run that continues in its second pass
        # would see the order of the first again.
        assert self.sampler is not None, "set the sampler before training"
        return self.sampler


class Rhythm(TrainerCallback):  # type: ignore[misc]
    """Stops by the clock; evaluates, logs and checkpoints every few minutes.

    Args:
        config: The run.
        log: JSON Lines file that is appended to.
    """

    def __init__(self, config: Config, log: Path) -> None:
        self.config = config
        self.heldout = Heldout({})
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
            some = self.heldout.some(self.config.eval_episodes)
            scores = some.match(self._trainer().accelerator.unwrap_model(model))
            self._append(state.global_step, {"episodes": len(some), **scores.as_row()})
            print(f"[step {state.global_step}, {self._trainer().seconds / 60:.1f} min]", end=" ")
            shown = [f"{k} {v}" for k, v in scores.all.as_row().items()]
            if len(scores.by_world) > 1:
                shown += [f"{w} {m.as_row()['em_all']}" for w, m in scores.by_world.items()]
            print(", ".join(shown))

    def _append(self, step: int, row: dict[str, Any]) -> None:
        line = {"step": step, "minutes": round(self._trainer().seconds / 60, 2), **row}
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _trainer(self) -> ObservationTrainer:
        assert self.trainer is not None, "attach the trainer before training"
        return self.trainer


def common_arguments(config: Config) -> dict[str, Any]:
    """Returns what the arguments of TRL's trainers have in common, whatever they learn from."""
    gpu = torch.cuda.is_available()
    by_epochs = config.epochs or (0.0 if config.minutes or config.max_steps else 1.0)
    return {
        "output_dir": str(config.output),
        "gradient_accumulation_steps": config.accumulate,
        # Time alone may limit a run: then there are as many passes as it takes.
        "num_train_epochs": by_epochs or 10_000,
        "max_steps": config.max_steps or -1,
        "learning_rate": config.learning_rate,
        "weight_decay": config.weight_decay,
        "adam_beta2": config.beta2,
        "optim": "adamw_torch_fused",
        "max_grad_norm": 1.0,
        "bf16": gpu or config.bf16,
        "use_cpu": not gpu,
        "activation_checkpointing": False,
        "save_strategy": "no",
        "save_total_limit": 2,
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": not sys.stderr.isatty(),
        "dataloader_pin_memory": gpu,
        "seed": config.seed,
        "data_seed": config.seed,
    }


def lora(config: Config) -> Any:
    """Returns peft's settings of a run; None where all weights are tuned."""
    if not config.lora_rank:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=config.lora_rank,
        lora_alpha=2 * config.lora_rank,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def fit(trainer: Any, found: tuple[Path, float] | None) -> tuple[int, float]:
    """Trains, or goes on training.

    Args:
        trainer: A `Timed` one.
        found: What `last_checkpoint` returned.

    Returns:
        Optimiser steps and minutes, those before ``found`` included.
    """
    if found is None:
        trainer.train(resume_from_checkpoint=None)
        return trainer.state.global_step, trainer.seconds / 60
    folder, seconds = found
    trainer.seconds_before = seconds
    print(f"continuing from {folder} ({seconds / 60:.1f} minutes trained)")
    config, steps = trainer.config, checkpoint_step(folder)
    if 0 < config.max_steps <= steps or 0 < config.minutes * 60 <= seconds:
        # Going on, even the shortest way, would take one more step.
        trainer._load_from_checkpoint(str(folder))
        return steps, seconds / 60
    trainer.train(resume_from_checkpoint=str(folder))
    return trainer.state.global_step, trainer.seconds / 60


def finish(trainer: Any, tokenizer: Any, heldout: Heldout) -> Scores | None:
    """Evaluates the trained model, and writes it with its card, from the first process.

    Args:
        trainer: A `Timed` one.
        tokenizer: Written beside the weights.
        heldout: To evaluate on; may be empty.
    """
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


def last_checkpoint(output: Path) -> tuple[Path, float] | None:
    """Finds the newest complete checkpoint.

    Returns:
        Its folder and the training time before it in seconds; None without one.
    """
    complete = [
        folder for folder in output.glob("checkpoint-*") if (folder / PROGRESS_FILE).is_file()
    ]
    if not complete:
        return None
    folder = max(complete, key=checkpoint_step)
    seconds = json.loads((folder / PROGRESS_FILE).read_text(encoding="utf-8"))["seconds"]
    return folder, float(seconds)


def checkpoint_step(folder: Path) -> int:
    """Returns how many optimiser steps a checkpoint has behind it."""
    return int(folder.name.rsplit("-", 1)[1])
