"""Fine-tuning of a policy on chats: `transformers.Trainer` with labels of our own."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    DataCollatorForTokenClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from training.selfplay_policy import Codec, Transcript, mark_complete, newest_checkpoint

_IGNORED = -100


@dataclass(frozen=True)
class Fit:
    """How to fine-tune; SPA's values (released configuration), except for the learning rate.

    Attributes:
        epochs: Passes over the data.
        learning_rate: Peak; a tenth of the steps warms up, then a cosine falls to 0.
        batch_size: Episodes per optimiser step.
        seed: Of the order.
    """

    epochs: float = 5.0
    learning_rate: float = 1e-4
    batch_size: int = 16
    seed: int = 0


def fit(model: Any, codec: Codec, transcripts: Sequence[Transcript], how: Fit, folder: Path) -> Any:
    """Fine-tunes a model on the tokens that transcripts mark as written.

    Args:
        model: Changed in place, unless a checkpoint in ``folder`` is further.
        codec: Pads.
        transcripts: Of `Codec.labelled`; what exceeds the model's context is cut.
        how: Hyper-parameters.
        folder: For checkpoints; deleted in the end.

    Returns:
        The model.
    """
    context = int(model.config.get_text_config().max_position_embeddings)
    cpu = not torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=how.epochs,
        per_device_train_batch_size=how.batch_size,
        learning_rate=how.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        adam_beta1=0.9,
        adam_beta2=0.95,
        weight_decay=0.01,
        max_grad_norm=1.0,
        train_sampling_strategy="group_by_length",
        save_strategy="epoch",
        save_total_limit=2,
        logging_steps=20,
        report_to="none",
        use_cpu=cpu,
        bf16=not cpu,
        disable_tqdm=not sys.stderr.isatty(),
        dataloader_pin_memory=not cpu,
        seed=how.seed,
        data_seed=how.seed,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=_Examples([labels_of(t, context) for t in transcripts]),
        data_collator=DataCollatorForTokenClassification(codec.tokenizer),
        callbacks=[_Complete()],
    )
    found = newest_checkpoint(folder)
    trainer.train(resume_from_checkpoint=str(found) if found else None)
    shutil.rmtree(folder, ignore_errors=True)
    return model


def labels_of(transcript: Transcript, context: int) -> dict[str, list[int]]:
    """Returns the columns of an example; labels are -100 where nothing is learned."""
    pairs = zip(transcript.ids, transcript.written, strict=True)
    labels = [token if written else _IGNORED for token, written in pairs]
    ids = transcript.ids[:context]
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels[:context]}


class _Examples(torch.utils.data.Dataset[dict[str, list[int]]]):
    def __init__(self, rows: list[dict[str, list[int]]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return self.rows[index]


class _Complete(TrainerCallback):  # type: ignore[misc]
    """Marks a checkpoint as complete, once all of it is written."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        mark_complete(Path(args.output_dir) / f"checkpoint-{state.global_step}")
