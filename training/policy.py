"""Reinforcement learning of an agent: GRPO on imagined or on real episodes.

    python -m training.policy --model runs/agent --output runs/imagined
    python -m training.policy --model runs/agent --env RealWorld-ALFWorld-v0 --output runs/real
    python -m training.policy --model runs/agent --min-confidence 0.5 --guard-action rollback ...

Every update plays ``groups x group_size`` episodes in one batch of worlds: one call of the world
model and one of the agent per step. The episodes of a group share their start, and what an episode
earns more than its group moves the agent towards what it did (GRPO, arXiv 2402.03300, through TRL).
The reward is the environment's: 1 for solving the task.

What a world model believes need not be true. Every few updates the guard replays a sample of the
imagined successes in the real twin and ends the run when too few of them are successes there. Its
real steps are counted apart from those that are learned from.

The same command continues after a kill. ``policy.jsonl`` in --output has a line per update; with
tensorboard installed, ``tensorboard --logdir OUTPUT`` shows the curves. The finished agent plays by
``llmworld compare ENV --agents llm:OUTPUT``.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from rich.console import Console
from transformers import AutoModelForCausalLM, PrinterCallback
from transformers.integrations import is_tensorboard_available
from trl import GRPOConfig

from gym_llmworld.backends.hf import HFBackend
from gym_llmworld.checkpoints import CARD_FILE, agent_style, read_card
from gym_llmworld.cli_output import progress_bar
from gym_llmworld.core import Episode
from gym_llmworld.episodes import read_episodes
from gym_llmworld.errors import DataError, WorldModelError
from gym_llmworld.policy_prompt import PolicyPrompt
from gym_llmworld.scenarios import ScenarioStore
from training.card import alone, claim, write_atomically
from training.credit import EPISODE
from training.guard import ROLLBACK, Guard
from training.policy_config import PolicyConfig, parser
from training.policy_trainer import (
    GOOD_FOLDER,
    PolicyRhythm,
    PolicyTrainer,
    Progress,
    StartSampler,
)
from training.rollouts import Arena, real_worlds
from training.token_policy import TokenPolicy
from training.trainer import last_checkpoint

LOG_FILE = "policy.jsonl"
RUN_FILE = "run.json"
# What may differ when a run goes on: how long it is, where it lies, how it is watched.
_INDIFFERENT = ("updates", "output", "resume", "threads", "checkpoint_every")

Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Learned:
    """A finished run.

    Attributes:
        progress: What was spent.
        refused: The guard ended it.
        rows: Its log, one row per update.
    """

    progress: Progress
    refused: bool
    rows: tuple[dict[str, Any], ...]


@alone
def run(config: PolicyConfig, command: str = "python -m training.policy") -> Learned:
    """Learns, or goes on learning, and writes the finished agent into ``config.output``.

    Raises:
        WorldModelError: Agent, world model or real twin cannot be used.
        DataError: The folder holds a run with other settings, or episodes cannot be started from.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    _check_folder(config)
    found = last_checkpoint(config.output) if config.resume else None
    progress = Progress.read(found[0]) if found else Progress()
    log = config.output / LOG_FILE
    _cut(log, progress.updates)
    arena = arena_of(config)
    with closing(arena):
        guard = _guard(config)
        try:
            with progress_bar("episodes") as show:
                trainer = build_trainer(config, arena, guard, progress, log, show)
                if not (progress.refused or progress.updates >= config.updates):
                    trainer.train(resume_from_checkpoint=str(found[0]) if found else None)
                elif found:
                    trainer._load_from_checkpoint(str(found[0]))
        finally:
            if guard is not None:
                guard.close()
    rows = tuple(json.loads(line) for line in log.read_text(encoding="utf-8").splitlines())
    _finish(config, trainer, command)
    return Learned(trainer.progress, trainer.progress.refused, rows)


def build_trainer(
    config: PolicyConfig,
    arena: Arena,
    guard: Guard | None,
    progress: Progress,
    log: Path,
    show: Callable[[int, int], None] | None = None,
) -> PolicyTrainer:
    """Puts a run together without starting it.

    Args:
        config: The run.
        arena: Where it learns.
        guard: Checks imagined successes; None for no checks.
        progress: What was done before.
        log: JSON Lines file that is appended to.
        show: Told episodes done and episodes of the whole run.

    Raises:
        CheckpointError: The agent cannot serve.
        DataError: There is nothing to start from.
    """
    loaded = HFBackend(config.model, dtype="float32")
    model, tokenizer = loaded.model, loaded.tokenizer
    prompt = PolicyPrompt(agent_style(config.model), config.world.key)

    def policy(model: Any) -> TokenPolicy:
        return TokenPolicy(
            model, tokenizer, prompt, max_tokens=config.max_tokens, temperature=config.temperature
        )

    def watch(done: int, total: int) -> None:
        if show:
            show((trainer.update() - 1) * total + done, config.updates * total)

    rhythm = PolicyRhythm(config, log, guard, _say)
    # TRL calls its rollout function experimental; the version is pinned by its minimum and tests.
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    trainer = PolicyTrainer(
        config,
        arena,
        starts_of(config),
        policy,
        progress,
        watch,
        model=model,
        args=_arguments(config),
        train_dataset=Dataset.from_dict({"prompt": ["start"] * (config.groups * config.updates)}),
        processing_class=tokenizer,
        callbacks=[rhythm],
    )
    rhythm.trainer = trainer
    trainer.remove_callback(PrinterCallback)  # the rhythm prints what matters
    return trainer


def _arguments(config: PolicyConfig) -> GRPOConfig:
    gpu = torch.cuda.is_available()
    per_step = config.episodes // config.minibatches
    return GRPOConfig(
        output_dir=str(config.output),
        num_generations=config.group_size,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=per_step // config.batch_size,
        generation_batch_size=config.episodes,
        max_steps=config.updates * config.minibatches,
        temperature=config.temperature,
        # Every episode weighs the same: otherwise the long ones, which fail, outweigh the solved.
        loss_type="grpo",
        beta=config.beta,
        epsilon=config.epsilon,
        epsilon_high=config.epsilon_high,
        learning_rate=config.learning_rate,
        lr_scheduler_type="linear" if config.decay else "constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        bf16=gpu,
        use_cpu=not gpu,
        gradient_checkpointing=False,
        save_strategy="no",
        save_total_limit=2,
        logging_strategy="no",
        eval_strategy="no",
        # Starts and answers follow from the number of the update, not from the data loader.
        ignore_data_skip=True,
        report_to="tensorboard" if is_tensorboard_available() else "none",
        disable_tqdm=True,
        dataloader_pin_memory=gpu,
        seed=config.seed,
        data_seed=config.seed,
    )


def starts_of(config: PolicyConfig) -> StartSampler:
    """Returns what draws the starts of a run.

    Raises:
        DataError: No recorded episode has a middle.
    """
    scenarios = ScenarioStore(config.world.key, config.games or None).of_split(config.split)
    recorded: list[Episode] = []
    if config.start_episodes is not None:
        recorded = list(read_episodes(config.start_episodes))
        if not any(len(episode.steps) > 1 for episode in recorded):
            raise DataError(
                f"{config.start_episodes}: no episode has a middle to start from; expected some "
                "with at least two steps"
            )
    return StartSampler(
        scenarios, recorded, config.middle, config.groups, config.max_steps, config.seed
    )


def arena_of(config: PolicyConfig) -> Arena:
    """Returns the worlds of a run; see `Arena.open`."""
    return Arena.open(
        config.env,
        config.lanes or config.episodes,
        config.max_steps,
        config.world_options,
        config.min_confidence,
    )


def _guard(config: PolicyConfig) -> Guard | None:
    if not config.guarded:
        return None
    return Guard(
        real_worlds(config.world.real_id, 1, config.max_steps, config.real_options),
        sample=config.guard_sample,
        threshold=config.guard_threshold,
        least=config.guard_minimum,
        seed=config.seed,
    )


def _check_folder(config: PolicyConfig) -> None:
    """Refuses to go on with other settings than a run began with."""
    file = config.output / RUN_FILE
    if not config.resume:
        file.unlink(missing_ok=True)
    fields = (field.name for field in dataclasses.fields(config))
    claim(
        file,
        {name: getattr(config, name) for name in fields if name not in _INDIFFERENT},
        defaults={"decay": 0, "credit": EPISODE, "discount": 1.0},
    )


def _cut(log: Path, updates: int) -> None:
    """Drops what a killed run has logged after its last checkpoint."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    kept = []
    for line in lines:
        try:
            if json.loads(line)["update"] <= updates:
                kept.append(line + "\n")
        except ValueError:  # half a line: the kill came while it was written
            continue
    draft = log.with_name(log.name + ".part")
    draft.write_text("".join(kept), encoding="utf-8")
    os.replace(draft, log)


def _finish(config: PolicyConfig, trainer: PolicyTrainer, command: str) -> None:
    """Writes the finished agent; of a run that was rolled back, the last one that was trusted."""
    if not trainer.is_world_process_zero():
        return
    model = trainer.accelerator.unwrap_model(trainer.model)
    progress = trainer.progress
    if progress.refused and config.guard_action == ROLLBACK:
        good = config.output / GOOD_FOLDER
        source = str(good) if good.is_dir() else config.model
        model = AutoModelForCausalLM.from_pretrained(source, dtype="float32")
    model.save_pretrained(config.output)
    trainer.processing_class.save_pretrained(config.output)
    card = {
        "format": 1,
        "world": config.world.key,
        **read_card(config.model),
        "role": "agent",
        "agent_style": agent_style(config.model),
        "base": config.model,
        "trained_in": config.env,
        "refused_by_guard": progress.refused,
        "spent": progress.counts(),
        "command": command,
    }
    write_atomically(config.output / CARD_FILE, card)


def _say(row: dict[str, Any]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"update {row['update']}: success {row['success']:.2f}, length {row['length']:.1f}, "
        f"unusable {row['unusable']:.0%}, refused {row['refused']:.0%}, "
        f"halted {row['halted']:.0%}, entropy {row.get('entropy', 0):.2f}, {row['seconds']:.0f} s"
    )
    guard = row.get("guard")
    if guard and guard["n"]:
        console.print(
            f"  guard: {guard['confirmed']} of {guard['n']} imagined successes are real ones"
            + ("" if guard["trusted"] else "; too few, the run ends here"),
            style="" if guard["trusted"] else "bold red",
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status, 3 when the guard has ended the run."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = parser("python -m training.policy", __doc__).parse_args(arguments)
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        config = PolicyConfig(**vars(options))
        learned = run(config, " ".join(["python -m training.policy", *arguments]))
    except (WorldModelError, ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(learned.progress.counts()))
    if learned.refused:
        print(
            f"the guard ended the run after update {learned.progress.updates}; the last check that "
            f"was passed is that of update {learned.progress.good_update}",
            file=sys.stderr,
        )
        return 3
    print(f"finished: {config.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
