r"""Refines a world model by reinforcement learning: a reward for what it predicts.

    python -m training.grpo --model gym_llmworld/data/alfworld/model --data episodes.jsonl \
        --eval-data heldout.jsonl --reward exact --max-steps 200 --output runs/alfworld_rlvr
    python -m training.grpo --reward embedding --tau 0.2 --keep runs/easy/transitions.jsonl ...
    python -m training.grpo --reward changed:1 format:0.1 --reasoning --lora-rank 16 --model ...

GRPO on single transitions, cut from episodes of any world: RLVR-World (arXiv 2505.13934) with a
verifiable reward, RWML (arXiv 2602.05842) with similarity in an embedding space. The model has to
be trained already (`training.sft`): where no sample of a group is right, or all are, nothing is
learned. The same command continues after a kill, from the last complete checkpoint in --output.

Rewards (NAME or NAME:WEIGHT; several are summed):
  exact                 1 for the true observation, or the true object state
  changed               credit for what changed, exactness on top (RLVR-World's task-specific one)
  lines-f1              F1 of lines (RLVR-World's for web pages)
  rouge                 ROUGE-L, rounded to fifths (RWML's for tool responses)
  embedding             1 if 1 - cos < tau (RWML)
  embedding-continuous  1 - (1 - cos) / tau, at least 0
  format                1 for the form that was asked for, around something that is to the point
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig

from gym_llmworld.backends.hf import stop_tokens
from gym_llmworld.backends.hf_chat import ChatEncoder
from gym_llmworld.checkpoints import AGENT, PUBLISHED_STYLE, read_card
from gym_llmworld.errors import CheckpointError, DataError, WorldModelError
from gym_llmworld.protocol import REASONED
from training.card import Card, alone
from training.config import SCRATCH, Config, config_of
from training.data import Conversations, PromptStyles, read_conversations
from training.embedders import Embedder, SentenceEmbedder
from training.groups import sharing_works
from training.grpo_config import (
    Refinement,
    add_refinement_options,
    add_run_options,
    kept_ids,
    plain_files,
    refinement_of,
)
from training.grpo_trainer import RefinementRhythm, RefinementTrainer, SharedRollouts
from training.heldout import Heldout, Scores
from training.rewards import Reading, make_rewards
from training.sft import LOG_FILE
from training.trainer import common_arguments, finish, fit, last_checkpoint, lora
from training.transitions import Transition, longest_answer, read_transitions

# Options of supervised training that mean nothing here.
_OTHER = (
    "layers", "width", "heads", "hidden", "tokenizer", "merges", "recall_init", "retokenize",
    "batch_size", "prompt_style",
)  # fmt: skip


@dataclass(frozen=True)
class RefinedCard(Card):
    """The card of a refined model.

    Attributes:
        refinement: How it was refined.
    """

    refinement: Refinement = field(default_factory=Refinement)

    def _text(self, final: Scores | None) -> str:
        text = super()._text(final).replace("`training/sft.py`", "`training/grpo.py`")
        return text + "\n\n".join(["\n## Refinement", "\n".join(self.refinement.lines)]) + "\n"


def fitting(
    transitions: Sequence[Transition],
    tokenizer: Any,
    config: Config,
    refinement: Refinement,
) -> tuple[list[Transition], int]:
    """Chooses the transitions to learn from.

    Returns:
        Those that are kept and whose prompt and answer fit into the context, and the longest
        answer to allow, in tokens.

    Raises:
        DataError: None is left.
    """
    if refinement.keep is not None:
        kept = kept_ids(refinement.keep)
        transitions = [one for one in transitions if one.id in kept]
    encoder = ChatEncoder(tokenizer, config.model)
    longest = refinement.max_tokens or longest_answer(transitions, encoder)
    prompts = encoder.encode([one.prompt for one in transitions])
    usable = [
        one
        for one, ids in zip(transitions, prompts, strict=True)
        if not isinstance(ids, Exception) and len(ids) + longest <= config.context
    ]
    if not usable:
        raise DataError(
            f"of {len(transitions)} transitions none fits: prompt and answer ({longest} tokens) "
            f"take more than --context {config.context}, or --keep names none of them"
        )
    if len(usable) < len(transitions):
        print(f"{len(transitions) - len(usable)} of {len(transitions)} transitions are too long")
    return usable, longest


def build_trainer(
    config: Config,
    refinement: Refinement,
    model: Any,
    tokenizer: Any,
    transitions: Sequence[Transition],
    card: Card,
    heldout: Conversations,
    *,
    embedder: Embedder | None = None,
    share: bool = True,
) -> RefinementTrainer:
    """Puts a run together without starting it.

    Args:
        config: The run.
        refinement: Its GRPO part.
        model: To refine.
        tokenizer: Its tokenizer.
        transitions: To learn from.
        card: Written beside the weights.
        heldout: To evaluate on.
        embedder: Instead of the one that ``refinement`` names.
        share: Answers share their prompt where the model allows for it; else TRL's own way.

    Raises:
        ValueError: The samples of a step cannot be divided among ``--accumulate`` batches.
        DataError: There are too few transitions.
    """
    config.output.mkdir(parents=True, exist_ok=True)
    usable, longest = fitting(transitions, tokenizer, config, refinement)
    samples = refinement.prompts * refinement.group
    if samples % config.accumulate:
        raise ValueError(
            f"{samples} samples a step cannot be divided into --accumulate {config.accumulate}"
        )
    arguments = GRPOConfig(
        per_device_train_batch_size=samples // config.accumulate,
        num_generations=refinement.group,
        max_completion_length=longest,
        temperature=refinement.temperature,
        beta=refinement.beta,
        epsilon=refinement.clip,
        reward_weights=[term.weight for term in refinement.rewards],
        logging_steps=1,
        **common_arguments(config),
    )
    reason = sharing_works(model, config.context) if share else "not wanted"
    if share and reason is not None:
        print(f"answers cannot share their prompt ({reason}): slower, as TRL does it")
    rollouts = None
    if reason is None and arguments.world_size == 1:
        rollouts = SharedRollouts(
            tokenizer,
            config.model,
            group=refinement.group,
            max_tokens=longest,
            temperature=refinement.temperature,
            seed=config.seed,
        )
    turn_end = ChatEncoder(tokenizer, config.model).turn_end
    reading = Reading(refinement.reasoning, stop_tokens(model, tokenizer, turn_end))
    embedder = embedder or SentenceEmbedder(refinement.embedder)
    rhythm = RefinementRhythm(config, config.output / LOG_FILE)
    trainer = RefinementTrainer(
        config,
        card,
        refinement.prompts,
        rollouts,
        model=model,
        reward_funcs=make_rewards(refinement.rewards, reading, embedder, refinement.tau),
        args=arguments,
        train_dataset=Dataset.from_list([one.row(refinement.reasoning) for one in usable]),
        processing_class=tokenizer,
        peft_config=lora(config),
        callbacks=[rhythm],
    )
    rhythm.trainer = trainer
    rhythm.heldout = Heldout.of(tokenizer, heldout) if heldout.items else Heldout({})
    return trainer


@dataclass(frozen=True)
class Refined:
    """A finished run.

    Attributes:
        scores: On all held-out episodes; None without any.
        steps: Optimiser steps.
        minutes: Training time, evaluations on the way included.
        transitions: Those that were learned from.
    """

    scores: Scores | None
    steps: int
    minutes: float
    transitions: int


def run(config: Config, refinement: Refinement, command: str) -> Refined:
    """Reads the data, refines or goes on refining, and writes the model into ``config.output``.

    Raises:
        WorldModelError: Data or checkpoint cannot be used.
    """
    files = plain_files(config)
    data, heldout = read_conversations(files, config.prompt_style), Conversations()
    if config.eval_data:
        heldout = read_conversations(config.eval_data, config.prompt_style)
    transitions = read_transitions(files, config.prompt_style)
    return refine(config, refinement, data, transitions, heldout, command)


@alone
def refine(
    config: Config,
    refinement: Refinement,
    data: Conversations,
    transitions: Sequence[Transition],
    heldout: Conversations,
    command: str,
    embedder: Embedder | None = None,
) -> Refined:
    """Refines, or goes on refining, and writes the finished model into ``config.output``.

    Args:
        config: The run; its files are not read.
        refinement: Its GRPO part.
        data: The episodes, for the model card.
        transitions: To learn from.
        heldout: To evaluate on.
        command: As typed, for the model card.
        embedder: Instead of the one that ``refinement`` names.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    found = last_checkpoint(config.output) if config.resume else None
    model = AutoModelForCausalLM.from_pretrained(config.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(config.model)
    parameters = sum(weight.numel() for weight in model.parameters())
    log = config.output / LOG_FILE
    told = config
    if refinement.reasoning:
        told = replace(config, prompt_style=PromptStyles.parse(config.prompt_style).reasoned())
    card = RefinedCard(told, command, data, parameters, log, refinement=refinement)
    trainer = build_trainer(
        config, refinement, model, tokenizer, transitions, card, heldout, embedder=embedder
    )
    learned = len(trainer.train_dataset)
    print(
        f"{parameters / 1e6:.2f}M parameters, {learned} transitions for training, "
        f"{len(heldout.items)} episodes held out"
    )
    steps, minutes = fit(trainer, found)
    scores = finish(trainer, tokenizer, Heldout.of(tokenizer, heldout))
    return Refined(scores, steps, minutes, learned)


def parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    built = argparse.ArgumentParser(
        prog="python -m training.grpo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_refinement_options(built)
    add_run_options(
        built,
        _OTHER,
        output=Path("runs/grpo"),
        context=None,
        learning_rate=2e-5,
        warmup_steps=5,
        weight_decay=0.0,
    )
    built.add_argument(
        "--prompt-style",
        default="",
        help="how scenarios are worded (default: as the model's llmworld.json says)",
    )
    return built


def style_of(model: str) -> str:
    """Returns the prompt style that a checkpoint says it was trained on, as `PromptStyles` reads.

    Raises:
        CheckpointError: Its ``llmworld.json`` is not JSON, or it is an agent.
    """
    card = read_card(model)
    if card.get("role") == AGENT:
        raise CheckpointError(f"{model} is an agent; expected a world model to refine")
    style = card.get("prompt_style", PUBLISHED_STYLE)
    if isinstance(style, Mapping):
        return ",".join(f"{world}={name}" for world, name in style.items())
    return str(style)


def context_of(model: str) -> int:
    """Returns the longest conversation, in tokens, that a checkpoint was made for."""
    config = AutoConfig.from_pretrained(model).get_text_config()
    return int(getattr(config, "max_position_embeddings", None) or Config.context)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = parser().parse_args(arguments)
    try:
        if options.model == SCRATCH:
            raise ValueError(
                "there is nothing to refine in a model from scratch; pass --model PATH_OR_HUB_ID, "
                "for example of `python -m training.sft`, or gym_llmworld/data/alfworld/model"
            )
        options.prompt_style = options.prompt_style or style_of(options.model)
        if REASONED in options.prompt_style:
            options.prompt_style = options.prompt_style.replace(REASONED, "")
            options.reasoning = True
        options.context = options.context or context_of(options.model)
        config = config_of(options)
        refined = run(config, refinement_of(options), " ".join([parser().prog, *arguments]))
    except (WorldModelError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if refined.scores is not None:
        print(json.dumps(refined.scores.as_row()))
    print(f"finished: {options.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
