"""Generation and scoring through a transformers model's own forward pass.

`SlotRunner` keeps keys and values between requests (`gym_llmworld.backends.hf_slots`) and serves
models whose layers all attend to the whole conversation. `RowRunner` serves every other
architecture one request at a time, with the cache that transformers makes for it and nothing kept.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.masking_utils import sdpa_mask

from gym_llmworld.backends import hf_forward
from gym_llmworld.backends.hf_attention import packed_attention
from gym_llmworld.backends.hf_guess import continuation
from gym_llmworld.backends.hf_sampling import Draw, pick
from gym_llmworld.backends.hf_slots import Job, Slots

# Tokens of one forward pass. Appended turns go together; long prompts gain nothing from company on
# a CPU, and lose the mask-free attention of a lone prompt.
_SHORT = 32
_CHUNK = 2048
_TOGETHER = {"cpu": 512, "cuda": 8192}
_LOGITS = 2**26
# Masks as long as a multiple of this keep CUDA's attention kernels from copying them.
_ALIGN = 8
_MOST_PACKED_QUERIES = 64
_ATTENTION = "llmworld_sdpa"
# Most tokens guessed per conversation, and most of a forward pass that checks guesses.
_MOST_GUESSES = 16
_MOST_CHECKED = {"cpu": 128, "cuda": 0}


def _accept(job: Job, token: int, logprob: float, stops: frozenset[int]) -> None:
    job.logprobs.append(logprob)
    if token in stops:
        job.finish = "stop"
        return
    job.tokens.append(token)
    if len(job.ids) + len(job.tokens) >= job.end:
        job.finish = "length"


def _judge(job: Job, logits: torch.Tensor) -> None:
    """Scores the targets of a job with the logits of its last positions."""
    job.logprobs = _target_logprobs(logits, job.targets)
    job.greedy = logits.argmax(-1).tolist() == list(job.targets)
    job.finish = "stop"


def _target_logprobs(logits: torch.Tensor, targets: Sequence[int]) -> list[float]:
    index = torch.tensor(targets, device=logits.device)[:, None]
    values: list[float] = logits.float().log_softmax(-1).gather(-1, index)[:, 0].tolist()
    return values


@dataclass(eq=False)
class _Batch:
    """Tensors of a decoding batch: one token per row of a window, some rows of it idle."""

    jobs: list[Job]
    draws: list[Draw | None]
    first: int
    ids: torch.Tensor
    positions: torch.Tensor
    writes: torch.Tensor
    active: torch.Tensor
    mask: torch.Tensor


class SlotRunner:
    """Serves many conversations at once and computes only what is new in each.

    Args:
        model: Attends to the whole conversation in every layer; see `serves`.
        stops: Tokens that end a turn.
        slots: Where keys and values are kept.
        frozen: The weights never change, so that they may be laid out anew for speed.
        guesses: Most tokens of a greedy answer that are guessed from the conversation itself and
            checked together, in one forward pass; 0 for none, None to decide by the size of the
            batch.

    Attributes:
        forwards: Forward passes so far.
        guessed: Tokens guessed so far.
        confirmed: Those of them that were right.
    """

    def __init__(
        self,
        model: Any,
        stops: frozenset[int],
        slots: Slots,
        *,
        frozen: bool = False,
        guesses: int | None = 0,
    ) -> None:
        self.model, self.stops, self.slots = model, stops, slots
        self.forwards = self.guessed = self.confirmed = 0
        self._guesses = guesses
        self._device, self._dtype = model.device, model.dtype
        self._together = _TOGETHER[self._device.type]
        config = model.config.get_text_config()
        self._vocabulary = config.vocab_size
        self._repeat = 1
        if model.config._attn_implementation == "sdpa":
            AttentionInterface.register(_ATTENTION, packed_attention)
            AttentionMaskInterface.register(_ATTENTION, sdpa_mask)
            model.set_attn_implementation(_ATTENTION)
            heads = config.num_attention_heads
            self._repeat = heads // (getattr(config, "num_key_value_heads", None) or heads)
        self._packed: hf_forward.PackedForward | None = None
        if frozen and hf_forward.serves(model):
            self._packed = hf_forward.PackedForward(model)

    def check(self) -> str | None:
        """Compares a few turns with the model's plain forward pass.

        Architectures are free in how they treat masks, positions and caches; this finds out.

        Returns:
            What is wrong, or None.
        """
        noise = np.random.default_rng(0)
        # Half precision rounds by tenths; a wrong mask or position is off by whole units.
        tolerance = 1e-2 if self._dtype == torch.float32 else 1.0
        texts = [np.zeros(0, np.int32), np.zeros(0, np.int32)]
        for turn in (5, 3):
            for i, text in enumerate(texts):
                more = noise.integers(self._vocabulary, size=turn + 2 * i, dtype=np.int32)
                texts[i] = np.concatenate([text, more])
            jobs = [Job(text, len(text) + 3, Draw(0.0, 1.0, Random())) for text in texts]
            self.run(jobs)
            for i, job in enumerate(jobs):
                texts[i] = np.concatenate([job.ids, np.asarray(job.tokens, np.int32)])
                inputs = torch.from_numpy(texts[i].astype(np.int64))[None].to(self._device)
                logits = self.model(input_ids=inputs, use_cache=False).logits[0]
                expected = _target_logprobs(logits[len(job.ids) - 1 : -1], job.tokens)
                if not np.allclose(expected, job.logprobs[: len(expected)], atol=tolerance):
                    return "its forward pass treats masks, positions or caches in its own way"
        self.slots.forget()
        self.forwards = self.guessed = self.confirmed = 0
        return None

    def run(self, jobs: Sequence[Job]) -> None:
        """Takes jobs to their end, in as few chunks as the memory allows."""
        done = False
        try:
            for chunk in self._chunks(jobs):
                self._run(chunk)
            done = True
        finally:
            if not done:
                self.slots.forget()

    def _chunks(self, jobs: Sequence[Job]) -> Iterator[list[Job]]:
        if len(jobs) > self.slots.limit(max((job.end for job in jobs), default=0)):
            # What is held already goes first, before it has to make room.
            jobs = sorted(jobs, key=self.slots.known, reverse=True)
        chunk: list[Job] = []
        longest = 0
        for job in jobs:
            longest = max(longest, job.end)
            if chunk and len(chunk) >= self.slots.limit(longest):
                yield chunk
                chunk, longest = [], job.end
            chunk.append(job)
        if chunk:
            yield chunk

    def _run(self, jobs: list[Job]) -> None:
        self.slots.reserve(len(jobs), max(job.end for job in jobs))
        waits = self.slots.claim(jobs)
        self.slots.gather(jobs)
        waiting = {id(job) for job, _, _ in waits}
        self._prefill([job for job in jobs if id(job) not in waiting])
        self.slots.settle(waits)
        self._prefill([job for job, _, _ in waits])
        self._decode(jobs)
        self.slots.commit(jobs)

    def _prefill(self, jobs: Sequence[Job]) -> None:
        """Feeds what is new in each job, and chooses its first token or scores its targets."""
        for job in jobs:
            while job.todo > max(_CHUNK, job.keep):
                self._feed([job], min(_CHUNK, job.todo - job.keep))
        short = [job for job in jobs if job.todo <= _SHORT]
        long = [job for job in jobs if job.todo > _SHORT]
        for part, most in ((short, _CHUNK), (long, self._together)):
            for group in self._groups(part, most):
                self._conclude(group, self._feed(group))

    def _groups(self, jobs: Sequence[Job], most: int) -> Iterator[list[Job]]:
        """Splits jobs into runs of rows that share a forward pass without much padding."""
        group: list[Job] = []
        for job in sorted(jobs, key=lambda job: job.row):
            trial = [*group, job]
            span = job.row - trial[0].row + 1
            area = span * max(j.todo for j in trial)
            logits = span * self._vocabulary * max(j.keep for j in trial)
            wasteful = area > 2 * sum(j.todo for j in trial)
            if group and (area > most or logits > _LOGITS or wasteful):
                yield group
                trial = [job]
            group = trial
        if group:
            yield group

    def _feed(self, jobs: Sequence[Job], most: int = sys.maxsize) -> torch.Tensor:
        """Feeds up to ``most`` tokens of each job; returns logits ``[rows, keep, vocabulary]``.

        Args:
            jobs: In the order of their rows.
            most: Fewer than a lone job needs, to feed it piece by piece.
        """
        first = jobs[0].row
        rows = jobs[-1].row - first + 1
        width = max(min(job.todo, most) for job in jobs)
        # Padding stands left, so that the last token of every row is in the last column.
        ids, positions = np.zeros((2, rows, width), np.int64)
        writes = np.full((rows, width), self.slots.capacity - 1)
        for job in jobs:
            size = min(job.todo, most)
            row, start = job.row - first, job.position
            ids[row, width - size :] = job.ids[start : start + size]
            positions[row, width - size :] = np.arange(start, start + size)
            writes[row, width - size :] = positions[row, width - size :]
            job.position += size
        seen = torch.from_numpy(positions).to(self._device)
        length = self._visible(max(job.position for job in jobs))
        alone = rows == 1 and positions[0, 0] == 0
        return self._forward(
            first,
            torch.from_numpy(ids).to(self._device),
            seen,
            torch.from_numpy(writes).to(self._device),
            None if alone else self._mask(seen, length),
            width if alone else length,
            max(job.keep for job in jobs),
        )

    def _conclude(self, jobs: Sequence[Job], logits: torch.Tensor) -> None:
        first = jobs[0].row
        for job in jobs:
            if job.targets:
                _judge(job, logits[job.row - first, -job.keep :])
        writers = [job for job in jobs if job.draw is not None]
        if writers:
            rows = [job.row - first for job in writers]
            tokens, logprobs = pick(logits[rows, -1], [job.draw for job in writers])
            for job, token, logprob in zip(writers, tokens.tolist(), logprobs, strict=True):
                _accept(job, token, logprob, self.stops)

    def _decode(self, jobs: Sequence[Job]) -> None:
        active = [job for job in jobs if job.finish is None]
        while active:
            self.slots.gather(active)
            if most := self._affordable_guesses(active):
                self._check_guesses(active, most)
                active = [job for job in active if job.finish is None]
                continue
            batch = self._batch(active)
            while all(job.finish is None for job in active):
                self._step(batch)
            active = [job for job in active if job.finish is None]

    def _affordable_guesses(self, jobs: Sequence[Job]) -> int:
        """Returns how many tokens of each answer are worth guessing, 0 for none."""
        if not any(job.draw is not None and job.draw.temperature == 0 for job in jobs):
            return 0
        if self._guesses is not None:
            return self._guesses
        most = _MOST_CHECKED[self._device.type] // len(jobs) - 1
        return min(_MOST_GUESSES, most) if most > 1 else 0

    def _check_guesses(self, jobs: Sequence[Job], most: int) -> None:
        """Feeds the last token of every job and guesses what follows; keeps what was right.

        Up to its first wrong token a guess is what greedy decoding would have fed, so that the
        answer is the same, and so is the token after it.
        """
        fed = []
        for job in jobs:
            guess: list[int] = []
            if job.draw is not None and job.draw.temperature == 0:
                room = job.end - len(job.ids) - len(job.tokens) - 1
                guess = continuation(job.ids, job.tokens, min(most, room))
            fed.append([job.tokens[-1], *guess])
        first, width = min(job.row for job in jobs), max(map(len, fed))
        rows = max(job.row for job in jobs) - first + 1
        ids, positions = np.zeros((2, rows, width), np.int64)
        writes = np.full((rows, width), self.slots.capacity - 1)
        for job, tokens in zip(jobs, fed, strict=True):
            row, start = job.row - first, width - len(tokens)
            ids[row, start:] = tokens
            positions[row, start:] = np.arange(job.position, job.position + len(tokens))
            writes[row, start:] = positions[row, start:]
        seen = torch.from_numpy(positions).to(self._device)
        length = self._visible(int(positions.max()) + 1)
        logits = self._forward(
            first, torch.from_numpy(ids).to(self._device), seen,
            torch.from_numpy(writes).to(self._device), self._mask(seen, length), length, width,
        )  # fmt: skip
        values, choices = logits.float().log_softmax(-1).max(-1)
        logprobs, best = values.tolist(), choices.tolist()
        for job, tokens in zip(jobs, fed, strict=True):
            row = job.row - first
            if job.draw is None or job.draw.temperature > 0:
                picked, logprob = pick(logits[row, -1:], [job.draw])
                job.position += 1
                _accept(job, int(picked[0]), logprob[0], self.stops)
                continue
            self.guessed += len(tokens) - 1
            for i, column in enumerate(range(width - len(tokens), width)):
                job.position += 1
                _accept(job, best[row][column], logprobs[row][column], self.stops)
                if job.finish is not None or tokens[i + 1 : i + 2] != [best[row][column]]:
                    break
                self.confirmed += 1

    def _batch(self, jobs: list[Job]) -> _Batch:
        first = min(job.row for job in jobs)
        rows = max(job.row for job in jobs) - first + 1
        capacity = self.slots.capacity
        ids, positions, active = np.zeros((3, rows), np.int64)
        writes = np.full(rows, capacity - 1)
        draws: list[Draw | None] = [None] * rows
        for job in jobs:
            row = job.row - first
            ids[row], positions[row], active[row] = job.tokens[-1], job.position, 1
            writes[row] = job.position
            draws[row] = job.draw
        columns = torch.from_numpy(np.stack([ids, positions, writes, active])).to(self._device)
        seen = columns[1, :, None]
        return _Batch(
            jobs, draws, first, columns[0], seen, columns[2, :, None], columns[3, :, None],
            self._mask(seen, capacity),
        )  # fmt: skip

    def _step(self, batch: _Batch) -> None:
        """Feeds the last token of every active row and chooses the next one."""
        length = self._visible(1 + max(job.position for job in batch.jobs))
        # Each row sees one position more than in the step before.
        batch.mask.view(len(batch.mask), -1).scatter_(1, batch.positions, 0.0)
        logits = self._forward(
            batch.first, batch.ids[:, None], batch.positions, batch.writes,
            batch.mask[..., :length], length, 1,
        )  # fmt: skip
        batch.ids, logprobs = pick(logits[:, -1], batch.draws)
        batch.positions += batch.active
        batch.writes += batch.active
        tokens = batch.ids.tolist()
        for job in batch.jobs:
            row = job.row - batch.first
            job.position += 1
            _accept(job, tokens[row], logprobs[row], self.stops)

    def _visible(self, length: int) -> int:
        return min(-(-length // _ALIGN) * _ALIGN, self.slots.capacity)

    def _mask(self, positions: torch.Tensor, length: int) -> torch.Tensor:
        """Returns the additive mask ``[rows, 1, tokens, length]`` of tokens at these positions."""
        hidden = torch.arange(length, device=self._device) > positions[..., None]
        mask = torch.zeros(hidden.shape, dtype=self._dtype, device=self._device)
        mask.masked_fill_(hidden, -torch.inf)
        if 1 < positions.shape[1] <= _MOST_PACKED_QUERIES:
            mask = mask.repeat(1, self._repeat, 1)
        return mask[:, None]

    def _forward(
        self,
        first: int,
        ids: torch.Tensor,
        positions: torch.Tensor,
        writes: torch.Tensor,
        mask: torch.Tensor | None,
        length: int,
        keep: int,
    ) -> torch.Tensor:
        slots = self.slots
        slots.window.move(first, first + len(ids), length, slots.capacity, writes)
        self.forwards += 1
        if self._packed is not None:
            layers = slots.cache.layers
            return self._packed(ids, positions, mask, layers, slots.capacity, keep)
        logits: torch.Tensor = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=slots.cache,
            use_cache=True,
            logits_to_keep=keep,
        ).logits
        return logits


class RowRunner:
    """Serves one request after the other and keeps nothing, for any architecture.

    Args:
        model: A causal language model.
        stops: Tokens that end a turn.

    Attributes:
        forwards: Forward passes so far.
    """

    slots = None
    guessed = confirmed = 0

    def __init__(self, model: Any, stops: frozenset[int]) -> None:
        self.model, self.stops = model, stops
        self.forwards = 0

    def run(self, jobs: Sequence[Job]) -> None:
        """Takes jobs to their end."""
        for job in jobs:
            cache = DynamicCache(config=self.model.config)
            logits = self._forward(job.ids.tolist(), cache)
            if job.draw is None:
                _judge(job, logits[-job.keep :])
                continue
            while True:
                tokens, logprobs = pick(logits[-1:], [job.draw])
                _accept(job, int(tokens[0]), logprobs[0], self.stops)
                if job.finish is not None:
                    break
                logits = self._forward(job.tokens[-1:], cache)

    def _forward(self, ids: Sequence[int], cache: DynamicCache) -> torch.Tensor:
        self.forwards += 1
        inputs = torch.tensor([ids], device=self.model.device)
        logits: torch.Tensor = self.model(
            input_ids=inputs, past_key_values=cache, use_cache=True
        ).logits
        return logits[0]


def slots_serve(model: Any, context: int) -> str | None:
    """Tells why `SlotRunner` cannot serve a model, or None if it can.

    Args:
        model: A transformers causal language model.
        context: Longest conversation in tokens.
    """
    parameters = inspect.signature(model.forward).parameters
    needed = ("attention_mask", "position_ids", "past_key_values", "logits_to_keep")
    missing = [name for name in needed if name not in parameters]
    if missing:
        return f"its forward takes no {missing[0]}"
    config = model.config.get_text_config()
    for layer in DynamicCache(config=config).layers:
        short = getattr(layer, "sliding_window", context) < context
        if not isinstance(layer, DynamicLayer) or short or hasattr(layer, "conv_states"):
            return "some of its layers do not attend to the whole conversation"
    rope = getattr(config, "rope_parameters", None) or {}
    types = {str(r.get("rope_type")) for r in (rope, *rope.values()) if isinstance(r, dict)}
    if types & {"dynamic", "longrope"}:
        return "its rotary embedding depends on the length of the batch"
    return None
