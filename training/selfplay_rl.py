"""Multi-turn RL of a policy in the real puzzles: PPO with a learned value, or GRPO's advantage.

As SPA trains (arXiv 2510.15047, section 3, appendix B and the released configuration): groups of
episodes from one level, the groups whose returns vary most, the episode's return at its last
token, discount and lambda 1, a clip that is wider above than below, no penalty for leaving the
reference. The loss is on what the policy wrote, and on nothing that the environment said (the
released code trains on both). Loss and advantage estimation are torchrl's.
"""

from __future__ import annotations

import json
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tensordict import TensorDict
from tensordict.nn import (
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
)
from torch import Tensor, nn
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value.functional import generalized_advantage_estimate

from training.selfplay_data import Arena, Game, training_levels
from training.selfplay_metrics import padded, written_logits
from training.selfplay_policy import (
    Codec,
    PolicyPlayer,
    Transcript,
    mark_complete,
    newest_checkpoint,
)

_STATE_FILE = "state.pt"
_LOG_FILE = "rl.jsonl"


@dataclass(frozen=True)
class RL:
    """How to train.

    Attributes:
        updates: Rounds of playing and learning.
        advantage: ``"ppo"``: return minus learned value; ``"grpo"``: return within its group.
        groups: Levels per update.
        group_size: Episodes per level.
        keep: Share of the groups that is learned from, those with the most varied returns.
        learning_rate: Of the policy; SPA's is 1e-6, for models that were pretrained.
        value_learning_rate: Of the value head.
        batch_size: Episodes per optimiser step.
        micro_batch_size: How many of them are in memory at the same time.
        passes: Over the episodes of an update.
        negative: Weight of what went worse than expected; SPA's is 1. A small model that is pushed
            away from what it said loses the format; with 0 it only repeats what went well, and
            takes larger steps.
        clip: Of the probability ratio, below and above 1.
        entropy: Weight of the entropy bonus.
        value_weight: Of the value loss.
        gamma: Discount per token.
        lam: Of generalised advantage estimation.
        seed: Of levels, ice, sampling and order.
        checkpoint_every: Updates between checkpoints.
    """

    updates: int = 1000
    advantage: Literal["ppo", "grpo"] = "ppo"
    groups: int = 32
    group_size: int = 8
    keep: float = 0.25
    learning_rate: float = 1e-6
    value_learning_rate: float = 1e-5
    batch_size: int = 64
    micro_batch_size: int = 64
    passes: int = 1
    negative: float = 1.0
    clip: tuple[float, float] = (0.2, 0.28)
    entropy: float = 0.001
    value_weight: float = 0.5
    gamma: float = 1.0
    lam: float = 1.0
    seed: int = 0
    checkpoint_every: int = 10

    def __post_init__(self) -> None:
        """Refuses what could not end well."""
        if self.advantage not in ("ppo", "grpo"):
            raise ValueError(f"advantage must be ppo or grpo, got {self.advantage!r}")
        for name in ("updates", "groups", "batch_size", "micro_batch_size", "passes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.group_size < 2:
            raise ValueError(f"group_size must be >= 2, got {self.group_size}")
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep must be in (0, 1], got {self.keep}")
        if not 0 <= self.negative <= 1:
            raise ValueError(f"negative must be in [0, 1], got {self.negative}")


@dataclass(eq=False)
class Rollout:
    """A played episode.

    Attributes:
        transcript: What was written.
        reward: Its return.
        standing: Return within its group, minus the mean, divided by the standard deviation.
    """

    transcript: Transcript
    reward: float
    standing: float


def selected(games: Sequence[Game], player: PolicyPlayer, how: RL) -> list[Rollout]:
    """Returns the episodes of the groups with the most varied returns (RAGEN's filter).

    Groups without any variance teach nothing and are never kept.
    """
    size = how.group_size
    groups = [list(games[i : i + size]) for i in range(0, len(games), size)]
    groups.sort(key=_deviation, reverse=True)
    kept = [g for g in groups[: max(1, round(how.keep * len(groups)))] if _deviation(g) > 0]
    return [
        Rollout(
            player.transcripts[game],
            game.reward,
            (game.reward - statistics.fmean(g.reward for g in group)) / _deviation(group),
        )
        for group in kept
        for game in group
        if any(player.transcripts[game].written)
    ]


def _deviation(group: Sequence[Game]) -> float:
    return statistics.pstdev(game.reward for game in group)


class Learner:
    """A policy, its value head, and how both learn.

    Args:
        model: A causal language model; changed in place.
        how: Hyper-parameters.
    """

    def __init__(self, model: Any, how: RL) -> None:
        self.model, self.how = model, how
        torch.manual_seed(how.seed)
        width = int(model.config.get_text_config().hidden_size)
        self.value = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))
        # Nothing is known of returns yet.
        nn.init.zeros_(self.value[2].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.value[2].bias)  # type: ignore[arg-type]
        self.value.to(model.device)
        self.optimizer = torch.optim.AdamW(
            [
                {"params": list(model.parameters()), "lr": how.learning_rate},
                {"params": list(self.value.parameters()), "lr": how.value_learning_rate},
            ],
            betas=(0.9, 0.95),
            weight_decay=0.0,
        )
        self.loss = ppo_loss(how)

    def learn(self, rollouts: Sequence[Rollout], seed: int) -> dict[str, float]:
        """Takes one optimiser step per batch of episodes.

        Returns:
            Means over the batches of what the loss reports.
        """
        how = self.how
        if how.advantage == "grpo" and how.negative == 0:
            # Nothing but the entropy bonus would come from the others: there is no value to learn.
            rollouts = [rollout for rollout in rollouts if rollout.standing > 0]
        data = self._judged(rollouts)
        generator = torch.Generator().manual_seed(seed)
        reports: list[dict[str, float]] = []
        for _ in range(how.passes):
            order = torch.randperm(len(rollouts), generator=generator).tolist()
            for begin in range(0, len(order), how.batch_size):
                reports.append(self._step([data[i] for i in order[begin : begin + how.batch_size]]))
        return {key: statistics.fmean(r[key] for r in reports) for key in reports[0]}

    @torch.no_grad()
    def _judged(self, rollouts: Sequence[Rollout]) -> list[tuple[Transcript, TensorDict]]:
        """Adds what was thought when playing: log-probabilities, values, advantages."""
        how = self.how
        old: list[Tensor] = []
        values: list[Tensor] = []
        for begin in range(0, len(rollouts), how.micro_batch_size):
            part = [r.transcript for r in rollouts[begin : begin + how.micro_batch_size]]
            ids, written = padded(part, self.model.device)
            logits, hidden = written_logits(self.model, ids, written)
            tokens = ids[:, 1:][written[:, 1:]]
            counts = written.sum(1).tolist()
            logprobs = logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
            old += torch.split(logprobs, counts)
            values += torch.split(self.value(hidden.float())[:, 0], counts)
        if how.advantage == "ppo":
            judged = [
                advantages(value, r.reward, how) for value, r in zip(values, rollouts, strict=True)
            ]
        else:
            judged = [
                (torch.full_like(value, r.standing), value)
                for value, r in zip(values, rollouts, strict=True)
            ]
        return [
            (
                rollout.transcript,
                TensorDict(
                    {
                        "action_log_prob": before,
                        "advantage": advantage[:, None],
                        "value_target": target[:, None],
                    },
                    batch_size=[len(before)],
                ),
            )
            for rollout, before, (advantage, target) in zip(rollouts, old, judged, strict=True)
        ]

    def _step(self, batch: Sequence[tuple[Transcript, TensorDict]]) -> dict[str, float]:
        if self.how.advantage == "ppo":
            gains = torch.cat([judged["advantage"] for _, judged in batch])
            mean, deviation = gains.mean(), gains.std() + 1e-8
            batch = [
                (t, judged.clone().update({"advantage": (judged["advantage"] - mean) / deviation}))
                for t, judged in batch
            ]
        tokens, size = sum(len(judged) for _, judged in batch), self.how.micro_batch_size
        parts = [batch[begin : begin + size] for begin in range(0, len(batch), size)]
        reports = [self._backward(part, tokens) for part in parts]
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        summed = {key: sum(report[key] for report in reports) for key in reports[0]}
        return {"grad_norm": float(norm)} | summed

    def _backward(
        self, part: Sequence[tuple[Transcript, TensorDict]], tokens: int
    ) -> dict[str, float]:
        """Adds the gradient of some episodes, by their share of all tokens of the step."""
        ids, written = padded([transcript for transcript, _ in part], self.model.device)
        logits, hidden = written_logits(self.model, ids, written)
        data: Any = torch.cat([judged for _, judged in part])
        gain = data["advantage"]
        data["advantage"] = torch.where(gain < 0, self.how.negative * gain, gain)
        data["token_logits"] = logits
        data["action"] = ids[:, 1:][written[:, 1:]]
        data["value"] = self.value(hidden.float())
        report = self.loss(data)
        share = len(data) / tokens
        losses = [report[key] for key in report.keys() if key.startswith("loss_")]  # noqa: SIM118
        total: Any = torch.stack(losses).sum() * share
        total.backward()
        named = {"entropy": "entropy", "clip_fraction": "clipped", "kl_approx": "kl"}
        return {name: float(report[key]) * share for key, name in named.items()}


def ppo_loss(how: RL) -> ClipPPOLoss:
    """Returns torchrl's clipped loss over single tokens.

    It takes ``token_logits``, ``action``, ``action_log_prob``, ``advantage``, ``value`` and
    ``value_target``, all ``[tokens, ...]``.
    """
    actor = ProbabilisticTensorDictSequential(
        TensorDictModule(nn.Identity(), in_keys=["token_logits"], out_keys=["logits"]),
        ProbabilisticTensorDictModule(
            in_keys=["logits"],
            out_keys=["action"],
            distribution_class=torch.distributions.Categorical,
            distribution_kwargs={"validate_args": False},
        ),
    )
    critic = TensorDictModule(nn.Identity(), in_keys=["value"], out_keys=["state_value"])
    loss = ClipPPOLoss(
        actor,
        critic if how.advantage == "ppo" else None,
        clip_epsilon=how.clip,
        entropy_coeff=how.entropy,
        critic_coeff=how.value_weight if how.advantage == "ppo" else None,
        loss_critic_type="smooth_l1",
        functional=False,
    )
    loss.set_keys(sample_log_prob="action_log_prob")
    return loss


def advantages(values: Tensor, reward: float, how: RL) -> tuple[Tensor, Tensor]:
    """Returns generalised advantages and value targets of an episode's written tokens.

    Args:
        values: ``[tokens]``, before each of them.
        reward: Of the episode; it comes with the last token.
        how: Discount and lambda.
    """
    now = values[:, None]
    following = torch.cat([now[1:], torch.zeros_like(now[:1])])
    rewards, done = torch.zeros_like(now), torch.zeros_like(now, dtype=torch.bool)
    rewards[-1], done[-1] = reward, True
    advantage, target = generalized_advantage_estimate(
        how.gamma, how.lam, now, following, rewards, done
    )
    return advantage[:, 0], target[:, 0]


def reinforce(
    model: Any,
    codec: Codec,
    arena: Arena,
    how: RL,
    folder: Path,
    measure: Callable[[int, PolicyPlayer], dict[str, Any] | None],
) -> list[dict[str, Any]]:
    """Trains a policy, or goes on training.

    Args:
        model: Changed in place.
        codec: Of its tokenizer.
        arena: Where it plays.
        how: Hyper-parameters.
        folder: For checkpoints and the log, ``rl.jsonl``.
        measure: Told the number of updates so far; what it returns goes into the log.

    Returns:
        The lines of the log, one per update and one before the first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    learner = Learner(model, how)
    player = PolicyPlayer(model, codec, arena.setting.max_tokens)
    log = _resumed(learner, folder)
    if not log:
        log = [{"update": 0, **(measure(0, player) or {})}]
    for update in range(len(log), how.updates + 1):
        started = time.monotonic()
        line = _updated(learner, player, arena, update)
        line["seconds"] = round(time.monotonic() - started, 2)
        log.append(line | (measure(update, player) or {}))
        if update % how.checkpoint_every == 0 or update == how.updates:
            _save(learner, folder, update, log)
    return log


def _updated(learner: Learner, player: PolicyPlayer, arena: Arena, update: int) -> dict[str, Any]:
    how = learner.how
    first = ((update - 1) + how.seed * 10_000) * how.groups
    levels = training_levels(arena.setting.board, how.groups, first)
    player.forget()
    games = arena.play(
        player,
        [level for level in levels for _ in range(how.group_size)],
        [how.seed * 1000 + i for _ in levels for i in range(how.group_size)],
    )
    rollouts = selected(games, player, how)
    learner.model.train()
    report = learner.learn(rollouts, update) if rollouts else {}
    turns = [turn for game in games for turn in game.turns]
    return {
        "update": update,
        "success": statistics.fmean(game.won for game in games),
        "return": statistics.fmean(game.reward for game in games),
        "well_formed": statistics.fmean(turn.well_formed for turn in turns),
        "learned_from": len(rollouts),
        **{key: round(value, 6) for key, value in report.items()},
    }


def _save(learner: Learner, folder: Path, update: int, log: Sequence[dict[str, Any]]) -> None:
    target = folder / f"checkpoint-{update}"
    learner.model.save_pretrained(target)
    state = {"value": learner.value.state_dict(), "optimizer": learner.optimizer.state_dict()}
    torch.save(state, target / _STATE_FILE)
    (target / _LOG_FILE).write_text("".join(json.dumps(line) + "\n" for line in log))
    mark_complete(target)
    for other in folder.glob("checkpoint-*"):
        if other != target:
            shutil.rmtree(other)


def _resumed(learner: Learner, folder: Path) -> list[dict[str, Any]]:
    """Brings a learner to where the last complete checkpoint was; returns its log."""
    found = newest_checkpoint(folder)
    if found is None:
        return []
    weights = type(learner.model).from_pretrained(found, dtype="float32").state_dict()
    learner.model.load_state_dict(weights)
    state = torch.load(found / _STATE_FILE, weights_only=True, map_location=learner.model.device)
    learner.value.load_state_dict(state["value"])
    learner.optimizer.load_state_dict(state["optimizer"])
    return [json.loads(line) for line in (found / _LOG_FILE).read_text().splitlines()]
