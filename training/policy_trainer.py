"""TRL's `GRPOTrainer` for agents: rollouts in a batch of worlds, counters, what survives a kill.

GRPO (Shao et al., arXiv 2402.03300) compares the episodes of a group, which share their start. TRL
steps environments one after another; here its ``rollout_func`` hands over whole updates instead.
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback, set_seed
from trl import GRPOTrainer

from gym_llmworld.core import Episode, Scenario
from gym_llmworld.policy_prompt import AnswerStatus
from training.card import write_atomically
from training.credit import COMMAND, command_advantages
from training.guard import ROLLBACK, Guard
from training.policy_config import PolicyConfig
from training.rollouts import Arena
from training.token_policy import Rollout, Start, TokenPolicy
from training.trainer import PROGRESS_FILE

GOOD_FOLDER = "good"
_ALIKE = 4
"""Episodes per forward pass of the loss."""
_METRICS = (
    "loss", "learning_rate", "grad_norm", "entropy", "kl", "clip_ratio/region_mean",
    "frac_reward_zero_std",
)  # fmt: skip


@dataclass
class Progress:
    """What a run has done so far; written with every checkpoint.

    Attributes:
        seconds: Wall-clock time, interrupted runs included.
        updates: Batches of episodes learned from.
        episodes: Episodes in them.
        real_steps: Steps of the real engine to learn from.
        imagined_steps: Steps of the world model to learn from.
        guard_steps: Steps of the real engine that only checked.
        policy_tokens: Tokens that the policy wrote.
        world_tokens: Tokens that the world model wrote.
        good_update: Update of the last check that was passed; 0 is the start.
        refused: The guard has ended the run.
        unchecked: Imagined successes since the last check, a sample.
    """

    seconds: float = 0.0
    updates: int = 0
    episodes: int = 0
    real_steps: int = 0
    imagined_steps: int = 0
    guard_steps: int = 0
    policy_tokens: int = 0
    world_tokens: int = 0
    good_update: int = 0
    refused: bool = False
    unchecked: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def read(cls, checkpoint: Path) -> Progress:
        """Reads what stands in a complete checkpoint."""
        return cls(**json.loads((checkpoint / PROGRESS_FILE).read_text(encoding="utf-8")))

    def counts(self) -> dict[str, Any]:
        """Returns the counters alone."""
        values = dataclasses.asdict(self)
        del values["unchecked"], values["refused"]
        return {**values, "seconds": round(self.seconds, 1)}


class StartSampler:
    """Draws where the groups of an update start; the same for the same seed and update.

    Args:
        scenarios: The games.
        recorded: Episodes; a share of the groups starts in the middle of one.
        middle: That share.
        groups: Starts per update.
        max_steps: Step limit; no episode starts at its end.
        seed: Of the run.
    """

    def __init__(
        self,
        scenarios: Sequence[Scenario],
        recorded: Sequence[Episode],
        middle: float,
        groups: int,
        max_steps: int,
        seed: int,
    ) -> None:
        self._scenarios = scenarios
        self._recorded = [episode for episode in recorded if len(episode.steps) > 1]
        self._middle, self._groups = middle, groups
        self._max_steps, self._seed = max_steps, seed

    def draw(self, update: int) -> list[Start]:
        """Returns one start per group."""
        rng = np.random.default_rng([self._seed, 1, update])
        count = min(self._groups, len(self._scenarios))
        order = rng.choice(len(self._scenarios), size=count, replace=False)
        starts = []
        for group in range(self._groups):
            seed = int(rng.integers(2**31))
            if self._recorded and rng.random() < self._middle:
                episode = self._recorded[int(rng.integers(len(self._recorded)))]
                most = min(len(episode.steps), self._max_steps)
                steps = episode.steps[: int(rng.integers(1, most))]
                starts.append(Start(episode.scenario, steps, seed))
            else:
                scenario = self._scenarios[int(order[group % count])]
                starts.append(Start(scenario, (), seed))
        return starts


def env_reward(
    completions: Sequence[Any], episode_reward: Sequence[float], **_: Any
) -> list[float]:
    """Returns the environment's rewards, which TRL passes on from beside the rollouts' tokens."""
    return list(episode_reward)


class PolicyTrainer(GRPOTrainer):  # type: ignore[misc]
    """`GRPOTrainer` whose rollouts come from a batch of worlds.

    Args:
        config: The run.
        arena: The worlds.
        starts: Where groups start.
        make_policy: Wraps the model in training.
        progress: What was done before.
        watch: Called after each episode with episodes done and episodes of the update.
        **kwargs: For `GRPOTrainer`.
    """

    def __init__(
        self,
        config: PolicyConfig,
        arena: Arena,
        starts: StartSampler,
        make_policy: Callable[[Any], TokenPolicy],
        progress: Progress,
        watch: Callable[[int, int], None] | None = None,
        **kwargs: Any,
    ) -> None:
        self.config = config
        self.arena = arena
        self.starts = starts
        self.progress = progress
        self.latest: dict[str, Any] = {}
        self.watch = watch
        self._rejection = config.world.rejection
        self._make_policy = make_policy
        self._policy: TokenPolicy | None = None
        # Of the last play, by an episode's tokens: refused or not, advantage; of each token.
        self._refused: _ByTokens = {}
        self._advantages: _ByTokens = {}
        self._refused_share = 0.0
        self._seconds_before = progress.seconds
        self._started = time.monotonic()
        super().__init__(reward_funcs=[env_reward], rollout_func=_rollouts, **kwargs)

    @property
    def policy(self) -> TokenPolicy:
        """The model in training, as it acts."""
        if self._policy is None:
            self._policy = self._make_policy(self.accelerator.unwrap_model(self.model))
        return self._policy

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> Any:
        """Lets the learning rate fall as the run says, wherever this part of the run ends."""
        steps = self.config.decay * self.config.minibatches or num_training_steps
        return super().create_scheduler(steps, optimizer)

    def update(self) -> int:
        """Returns the number of the update that is being played or learned from, from 1."""
        return int(self.state.global_step) // self.config.minibatches + 1

    def play(self) -> list[Rollout]:
        """Plays the episodes of an update, group by group, and counts."""
        config, arena, update = self.config, self.arena, self.update()
        before = (arena.real_steps, arena.imagined_steps, arena.world_tokens)
        started = time.monotonic()
        starts = [s for s in self.starts.draw(update) for _ in range(config.group_size)]
        rng = np.random.default_rng([config.seed, 2, update])
        seeds = [int(seed) for seed in rng.integers(2**31, size=len(starts))]
        # TRL shuffles an update's episodes: in the same way whether or not a kill came before.
        set_seed(int(rng.integers(2**31)))
        finished: dict[int, Rollout] = {}
        for index, rollout in arena.play(self.policy, starts, seeds, config.max_steps):
            finished[index] = rollout
            if self.watch:
                self.watch(len(finished), len(starts))
        rollouts = [finished[index] for index in range(len(starts))]
        refused = [rollout.refused(self._rejection) for rollout in rollouts]
        self._refused = _by_tokens(rollouts, refused)
        written = sum(sum(rollout.mask) for rollout in rollouts)
        vain = math.fsum(sum(self._refused[_key(r.prompt, r.completion)]) for r in rollouts)
        self._refused_share = vain / max(1, written)
        milestones = config.world.milestones
        if config.credit == COMMAND and milestones is not None:
            size, discount = config.group_size, config.discount
            advantages = command_advantages(rollouts, size, milestones, discount)
            self._advantages = _by_tokens(rollouts, advantages)
        spent = Progress(
            seconds=self._seconds_before + time.monotonic() - self._started,
            updates=update,
            episodes=len(rollouts),
            real_steps=arena.real_steps - before[0],
            imagined_steps=arena.imagined_steps - before[1],
            policy_tokens=sum(sum(rollout.mask) for rollout in rollouts),
            world_tokens=arena.world_tokens - before[2],
        )
        self._count(spent, rollouts)
        self.latest = {
            **summary(rollouts, self._rejection),
            "rollout_seconds": round(time.monotonic() - started, 2),
        }
        return rollouts

    def _count(self, spent: Progress, rollouts: Sequence[Rollout]) -> None:
        progress = self.progress
        for name in ("episodes", "real_steps", "imagined_steps", "policy_tokens", "world_tokens"):
            setattr(progress, name, getattr(progress, name) + getattr(spent, name))
        progress.seconds, progress.updates = spent.seconds, spent.updates
        if self.config.guarded:
            won = [rollout.episode for rollout in rollouts if rollout.success]
            draw = random.Random(f"{self.config.seed} {spent.updates}")
            chosen = draw.sample(won, min(self.config.guard_sample, len(won)))
            progress.unchecked += [episode.to_json() for episode in chosen]

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
        inputs = {**inputs, "advantages": self._weighted(inputs["advantages"])}
        # TRL pads an update to its longest episode, and computes what has no gradient.
        penalty, by_command = self.config.refusal_penalty, self.config.credit == COMMAND
        kept = compact(inputs, drop=self.beta == 0.0 and not penalty and not by_command)
        # Episodes of like lengths go together: a third of a mixed batch is padding. The loss is a
        # mean over episodes, so parts add up; those left out count as what they are, zeros.
        losses = []
        for rows in kept["completion_mask"].sum(1).argsort().split(_ALIKE):
            part = compact(_rows(kept, rows), drop=False)
            share = len(rows) / len(inputs["advantages"])
            if by_command:
                part["advantages"] = self._weighted(_of_tokens(self._advantages, part))
            elif penalty:
                part["advantages"] = part["advantages"][:, None]
            if penalty:
                part["advantages"] = part["advantages"] - penalty * self.in_vain(part)
            losses.append(share * super()._compute_loss(model, part))
        return torch.stack(losses).sum()

    def in_vain(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Returns what each token has to do with refused commands, beyond the usual.

        A refusal is known at once: it is held against the command that earned it, and not, as
        success is, against the whole episode.

        Args:
            batch: TRL's, of episodes of the last `play`.

        Returns:
            1 at the policy's tokens of refused commands, 0 elsewhere, less the mean over all that
            the policy wrote in that `play`.
        """
        return _of_tokens(self._refused, batch) - self._refused_share

    def _weighted(self, advantages: torch.Tensor) -> torch.Tensor:
        return advantages * torch.where(advantages < 0, self.config.negative, 1.0)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the episodes of an update and the counters to what trackers are told."""
        if "loss" in logs:
            logs.update({k: v for k, v in self.latest.items() if isinstance(v, float)})
            logs.update(self.progress.counts())
        super().log(logs, start_time)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Leaves the card to the program, which knows what the agent was trained in."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            self.progress.seconds = self._seconds_before + time.monotonic() - self._started
            # Last, and in one piece: without this file the checkpoint counts as incomplete.
            write_atomically(folder / PROGRESS_FILE, dataclasses.asdict(self.progress))


_ByTokens = dict[tuple[int, ...], list[float]]


def _by_tokens(rollouts: Sequence[Rollout], values: Sequence[Sequence[float]]) -> _ByTokens:
    """Returns the value of each token of some episodes, from those of their commands."""
    return {
        _key(rollout.prompt, rollout.completion): rollout.by_token(own)
        for rollout, own in zip(rollouts, values, strict=True)
    }


def _key(prompt: Sequence[int], completion: Sequence[int]) -> tuple[int, ...]:
    # Equal tokens tell the same episode: the world's answers are among them.
    return (*prompt, -1, *completion)


def _of_tokens(known: _ByTokens, batch: Mapping[str, Any]) -> torch.Tensor:
    """Returns `_by_tokens` of TRL's batch, prompts padded left, completions right."""
    tokens = batch["completion_ids"]
    found = torch.zeros(tokens.shape, dtype=torch.float32, device=tokens.device)
    names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
    for row, (before, own, ids, mask) in enumerate(zip(*(batch[n] for n in names), strict=True)):
        values = known[_key(before[own == 1].tolist(), ids[mask == 1].tolist())]
        found[row, : len(values)] = torch.tensor(values)
    return found


def _rows(inputs: dict[str, Any], rows: torch.Tensor) -> dict[str, Any]:
    batch = len(inputs["advantages"])
    return {
        name: value[rows]
        if isinstance(value, torch.Tensor) and value.ndim and len(value) == batch
        else value
        for name, value in inputs.items()
    }


def compact(inputs: dict[str, Any], *, drop: bool) -> dict[str, Any]:
    """Returns a batch without padding that all its episodes share.

    Args:
        inputs: Of `GRPOTrainer`'s loss: prompts padded left, completions right.
        drop: Leave out episodes that earned what their group did: their advantage is 0, and so is
            their gradient.
    """
    wanted = inputs["advantages"] != 0
    if not drop or not wanted.any():
        wanted = torch.ones_like(wanted)
    prompt = int(inputs["prompt_mask"][wanted].sum(1).max())
    completion = int(inputs["completion_mask"][wanted].sum(1).max())
    width = inputs["completion_mask"].shape[1]
    kept = dict(inputs)
    for name, value in inputs.items():
        if not isinstance(value, torch.Tensor) or value.ndim == 0:
            continue
        kept[name] = value[wanted]
        if name.startswith("prompt_"):
            kept[name] = kept[name][:, value.shape[1] - prompt :]
        elif value.ndim == 2 and value.shape[1] == width:
            kept[name] = kept[name][:, :completion]
    return kept


def _rollouts(prompts: Sequence[Any], trainer: PolicyTrainer) -> dict[str, Any]:
    """TRL's ``rollout_func``. The prompts only say how many episodes; starts follow the update."""
    rollouts = trainer.play()
    assert len(prompts) == len(rollouts)
    return {
        "prompt_ids": [rollout.prompt for rollout in rollouts],
        "completion_ids": [rollout.completion for rollout in rollouts],
        "logprobs": [rollout.logprobs for rollout in rollouts],
        "env_mask": [rollout.mask for rollout in rollouts],
        "episode_reward": [rollout.reward for rollout in rollouts],
    }


def summary(rollouts: Sequence[Rollout], rejection: str) -> dict[str, Any]:
    """Returns what a log says of the episodes of an update.

    Args:
        rollouts: At least one.
        rejection: What the world answers to what it cannot carry out.
    """
    rewards = np.array([rollout.reward for rollout in rollouts])
    answers = [status for rollout in rollouts for status in rollout.statuses]
    steps = sum(len(rollout.steps) for rollout in rollouts)
    unusable = sum(status is not AnswerStatus.OK for status in answers)
    refused = sum(sum(rollout.refused(rejection)) for rollout in rollouts)
    return {
        "success": float(np.mean([rollout.success for rollout in rollouts])),
        "reward": float(rewards.mean()),
        "reward_std": float(rewards.std()),
        "unusable": unusable / max(1, len(answers)),
        "refused": refused / max(1, steps),
        "length": steps / len(rollouts),
        "halted": float(np.mean([rollout.halted for rollout in rollouts])),
    }


class PolicyRhythm(TrainerCallback):  # type: ignore[misc]
    """Logs every update, lets the guard look, checkpoints.

    Args:
        config: The run.
        log: JSON Lines file that is appended to.
        guard: None where nothing is imagined, or nobody checks.
        report: Told each row of the log.
    """

    def __init__(
        self,
        config: PolicyConfig,
        log: Path,
        guard: Guard | None,
        report: Callable[[dict[str, Any]], None],
    ) -> None:
        self._config, self._log, self._guard, self._report = config, log, guard, report
        self.trainer: PolicyTrainer | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """At the end of an update: guard, then checkpoint."""
        trainer = self._trainer()
        if state.global_step % self._config.minibatches:
            return
        done = state.global_step // self._config.minibatches
        last = done >= self._config.updates
        if self._guard is not None and (done % self._config.guard_every == 0 or last):
            self._check(self._guard, done)
        if trainer.progress.refused:
            control.should_training_stop = True
        control.should_log = True
        if done % self._config.checkpoint_every == 0 or last or trainer.progress.refused:
            control.should_save = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Appends an update to the log."""
        trainer = self._trainer()
        if not logs or "loss" not in logs:
            return
        row = {
            "update": trainer.progress.updates,
            **trainer.latest,
            **{key: float(logs[key]) for key in _METRICS if logs.get(key) is not None},
            **trainer.progress.counts(),
        }
        with self._log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self._report(row)

    def _check(self, guard: Guard, update: int) -> None:
        trainer = self._trainer()
        progress = trainer.progress
        verdict = guard.check([Episode.from_json(e) for e in progress.unchecked], update)
        progress.unchecked = []
        progress.guard_steps += verdict.steps
        trainer.latest["guard"] = verdict.as_row()
        if not verdict.trusted:
            progress.refused = True
        elif verdict.n:
            progress.good_update = update
            if self._config.guard_action == ROLLBACK:
                self._keep(trainer)

    def _keep(self, trainer: PolicyTrainer) -> None:
        """Keeps these weights to come back to."""
        good = self._config.output / GOOD_FOLDER
        draft = good.with_name(GOOD_FOLDER + ".part")
        shutil.rmtree(draft, ignore_errors=True)
        trainer.accelerator.unwrap_model(trainer.model).save_pretrained(draft)
        shutil.rmtree(good, ignore_errors=True)
        draft.rename(good)

    def _trainer(self) -> PolicyTrainer:
        assert self.trainer is not None, "attach the trainer before training"
        return self.trainer
