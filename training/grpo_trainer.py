"""TRL's GRPO trainer, fitted to world models: long prompts that a group shares, kills, clocks."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Sampler
from trl import GRPOTrainer

from gym_llmworld.backends.hf_chat import ChatEncoder
from gym_llmworld.backends.hf_sampling import Draw
from gym_llmworld.core import Message
from gym_llmworld.errors import DataError
from training.card import Card
from training.config import Config
from training.groups import Sample, prompt_tokens, sample_groups, shared_logprobs
from training.trainer import Rhythm, Timed

LOGGED = (
    "loss", "reward", "reward_std", "frac_reward_zero_std", "entropy", "kl", "grad_norm",
    "learning_rate", "completions/mean_length", "completions/clipped_ratio", "step_time",
)  # fmt: skip

# Rewards that differ at all give advantages of the order of 1 within a group.
_NOISE = 1e-2


class PromptSampler(Sampler[int]):
    """Goes through all prompts in a new order per pass, each one as often as its group is large.

    The order follows from the seed and the number of the pass, so that a run that continues after a
    kill sees exactly what it would have seen without it.

    Args:
        prompts: How many there are.
        batch: How many different ones a step has; the rest of a pass is left out.
        group: Answers to each.
        repeats: How often a step's batch is read: once per batch that gradients are summed over.
        seed: Of the order.

    Raises:
        DataError: There are fewer prompts than a step has.
    """

    def __init__(self, prompts: int, batch: int, group: int, repeats: int, seed: int) -> None:
        if prompts < batch:
            raise DataError(
                f"a step has {batch} different transitions, the data only {prompts}; collect more "
                "or lower --prompts"
            )
        self.prompts, self.batch, self.group = prompts, batch, group
        self.repeats, self.seed, self.epoch = repeats, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the pass that the next iteration is of."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Indices per pass."""
        return self.prompts // self.batch * self.batch * self.group * self.repeats

    def __iter__(self) -> Iterator[int]:
        """Yields numbers of prompts."""
        order = list(range(self.prompts))
        random.Random(f"{self.seed}/{self.epoch}").shuffle(order)
        for start in range(0, self.prompts - self.batch + 1, self.batch):
            for _ in range(self.repeats):
                for prompt in order[start : start + self.batch]:
                    yield from [prompt] * self.group


class SharedRollouts:
    """Samples groups of answers that share their prompt; a TRL ``rollout_func``.

    Args:
        tokenizer: With a chat template.
        name: Of the model, for messages.
        group: Answers to each prompt, which TRL repeats as often.
        max_tokens: Most tokens of an answer.
        temperature: Of the samples.
        top_p: Nucleus.
        seed: Samples follow from it, the optimiser step and their place in the batch.

    Attributes:
        surprise: Mean of ``-log p`` over the tokens sampled last: an estimate of the entropy.
    """

    def __init__(
        self,
        tokenizer: Any,
        name: str,
        *,
        group: int,
        max_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> None:
        self._encoder = ChatEncoder(tokenizer, name)
        end = self._encoder.turn_end
        self._stops = frozenset([tokenizer.eos_token_id if end is None else end])
        self._group, self._max_tokens, self._seed = group, max_tokens, seed
        self._temperature, self._top_p = temperature, top_p
        self.surprise = 0.0

    def __call__(self, prompts: Sequence[Sequence[Mapping[str, str]]], trainer: Any) -> Any:
        """Samples for TRL, which hands over every prompt as often as its group is large."""
        model = trainer.accelerator.unwrap_model(trainer.model)
        different = prompts[:: self._group]
        chats = [[Message(m["role"], m["content"]) for m in prompt] for prompt in different]  # type: ignore[arg-type]
        ids, groups = self.sample(model, chats, f"{self._seed}/{trainer.state.global_step}")
        samples = [sample for group in groups for sample in group]
        logprobs = [sample.logprobs for sample in samples]
        self.surprise = -float(np.mean(np.concatenate(logprobs)))
        return {
            "prompt_ids": [one for one in ids for _ in range(self._group)],
            "completion_ids": [sample.tokens for sample in samples],
            "logprobs": logprobs,
        }

    def sample(
        self, model: Any, chats: Sequence[Sequence[Message]], seed: str
    ) -> tuple[list[list[int]], list[list[Sample]]]:
        """Returns the tokens of each prompt, and a group of answers to it.

        Raises:
            BackendError: The chat template refuses a chat.
        """
        ids = prompt_tokens(self._encoder, chats)
        groups = [
            [
                Sample(Draw(self._temperature, self._top_p, Random(f"{seed}/{i}/{j}")))
                for j in range(self._group)
            ]
            for i in range(len(ids))
        ]
        was_training = model.training
        model.eval()
        sample_groups(model, ids, groups, self._stops, self._max_tokens)
        model.train(was_training)
        return ids, groups

    def text(self, sample: Sample) -> str:
        """Returns what a sample says; nothing if it was cut off."""
        return self._encoder.decode(sample.tokens) if sample.finished else ""


class RefinementTrainer(Timed, GRPOTrainer):  # type: ignore[misc]
    """`GRPOTrainer` that computes a prompt once per group, keeps time, and survives kills.

    Same loss and gradients as the stock trainer's, tested against it. Groups in which all rewards
    are equal have no gradient, and are left out of the computation. Across several devices, or
    where an architecture does not allow for it, the stock computation runs.

    Args:
        config: The run.
        card: Written beside the weights of each checkpoint.
        prompts: Different prompts per step.
        rollouts: Shares prompts; None for TRL's own generation and loss.
        **kwargs: For `GRPOTrainer`.
    """

    def __init__(
        self,
        config: Config,
        card: Card,
        prompts: int,
        rollouts: SharedRollouts | None,
        **kwargs: Any,
    ) -> None:
        self.begin(config, card)
        self.prompts, self.rollouts = prompts, rollouts
        self._idle: torch.Tensor | None = None
        with warnings.catch_warnings():
            # It says that a rollout_func is an experimental feature of TRL's.
            warnings.filterwarnings("ignore", message=".*rollout_func")
            super().__init__(rollout_func=rollouts, **kwargs)

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        arguments = self.args
        return PromptSampler(
            len(self.train_dataset),
            self.prompts,
            arguments.num_generations,
            arguments.steps_per_generation,
            arguments.seed,
        )

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if self.args.world_size == 1:
            # Equal rewards have no advantage; a mean that is rounded gives them one all the same.
            groups = output["advantages"].view(-1, self.num_generations)
            noise = groups.abs().amax(dim=1, keepdim=True) < _NOISE
            output["advantages"] = groups.masked_fill(noise, 0.0).flatten()
        return output

    def _compute_loss(self, model: Any, inputs: Mapping[str, Any]) -> Any:
        if self.rollouts is None:
            return super()._compute_loss(model, inputs)
        # Without a penalty on divergence, an advantage of 0 is a gradient of 0.
        self._idle = inputs["advantages"] == 0 if self.beta == 0 else None
        loss = super()._compute_loss(model, inputs)
        self._idle = None
        mode = "train" if self.model.training else "eval"
        self._metrics[mode]["entropy"][-1] = self.rollouts.surprise
        return loss

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        if self.rollouts is None:
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
            )
        inner = self.accelerator.unwrap_model(model)
        with self.accelerator.autocast():
            logprobs = self._shared(inner, input_ids, attention_mask.bool(), logits_to_keep)
        # The entropy is a metric here; `_compute_loss` puts the estimate of the rollouts there.
        return logprobs, torch.zeros_like(logprobs), None

    def _shared(
        self, model: Any, ids: torch.Tensor, present: torch.Tensor, answer: int
    ) -> torch.Tensor:
        """Returns ``[rows, answer]``; zeros for padding, and for rows without an advantage."""
        idle = torch.zeros(len(ids), dtype=torch.bool) if self._idle is None else self._idle
        groups: dict[tuple[int, ...], list[int]] = {}
        for row in range(len(ids)):
            if not idle[row] and present[row, -answer:].any():
                prompt = tuple(ids[row, :-answer][present[row, :-answer]].tolist())
                groups.setdefault(prompt, []).append(row)
        answers = [
            [ids[row, -answer:][present[row, -answer:]].tolist() for row in rows]
            for rows in groups.values()
        ]
        found = shared_logprobs(model, list(groups), answers, self.temperature)
        # The last one gives the padded tensor its width.
        values = [torch.zeros(0, device=ids.device)] * len(ids)
        values.append(torch.zeros(answer, device=ids.device))
        for rows, logprobs in zip(groups.values(), found, strict=True):
            for row, value in zip(rows, logprobs, strict=True):
                values[row] = value
        result: torch.Tensor = pad_sequence(values, batch_first=True)[:-1]
        if not groups and torch.is_grad_enabled():
            # The optimiser goes on as it does for gradients of 0.
            result = result + 0.0 * sum(w.sum() for w in model.parameters() if w.requires_grad)
        return result


class RefinementRhythm(Rhythm):
    """`Rhythm` that logs rewards, too."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Appends loss and rewards to the log."""
        if logs and "loss" in logs:
            named = [key for key in logs if key.startswith("rewards/") and key.endswith("/mean")]
            keys = [key for key in (*LOGGED, *named) if logs.get(key) is not None]
            self._append(state.global_step, {key: float(logs[key]) for key in keys})
