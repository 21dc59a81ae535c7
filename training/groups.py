"""Many continuations of one prompt, for the price of one prompt.

GRPO samples a group of answers to each prompt, and then computes the probabilities of all of them.
World models have long prompts (a whole episode) and short answers (one observation), so nearly all
of that work would be done once per sample although it is the same. Here a prompt and all of its
answers share one row: answers see the prompt and themselves, and nothing of each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import torch
from transformers.cache_utils import Cache

from gym_llmworld.backends.hf_chat import ChatEncoder
from gym_llmworld.backends.hf_decode import slots_serve
from gym_llmworld.backends.hf_sampling import Draw, pick
from gym_llmworld.backends.hf_slots import SlotLayer, Window
from gym_llmworld.core import Message
from gym_llmworld.errors import BackendError

Tokens = Sequence[int]

# Rows of one forward pass have similar lengths, and hold at most so many tokens together.
_BATCH_TOKENS = 16_384
_LEAST_FULL = 0.75


@dataclass(eq=False)
class Sample:
    """One answer to a prompt.

    Attributes:
        draw: How its tokens are chosen.
        tokens: Generated, the token that ended the turn included.
        logprobs: Of each of them, untempered.
        finished: The turn was ended, not cut off.
    """

    draw: Draw
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finished: bool = False


def sharing_works(model: Any, context: int) -> str | None:
    """Tells why answers cannot share their prompt in this model, or None if they can.

    Architectures are free in how they treat masks, positions and logits; a small trial finds out.

    Args:
        model: A causal language model.
        context: Longest conversation in tokens.
    """
    reason = slots_serve(model, context)
    if reason is not None:
        return reason
    size = model.config.get_text_config().vocab_size
    noise = torch.Generator().manual_seed(0)
    prompts = [torch.randint(size, (n,), generator=noise).tolist() for n in (7, 5)]
    groups = [[Sample(Draw(1.0, 1.0, Random(i + 2 * n))) for i in range(2)] for n in range(2)]
    was_training = model.training
    model.eval()
    sample_groups(model, prompts, groups, frozenset(), 3)
    with torch.no_grad():
        shared = shared_logprobs(model, prompts, [[s.tokens for s in g] for g in groups], 1.0)
        for prompt, group, found in zip(prompts, groups, shared, strict=True):
            for answer, logprobs in zip(group, found, strict=True):
                ids = torch.tensor([[*prompt, *answer.tokens]], device=model.device)
                logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
                index = torch.tensor(answer.tokens, device=model.device)[:, None]
                expected = logits.float().log_softmax(-1).gather(-1, index)[:, 0].cpu()
                told = torch.tensor(answer.logprobs)
                near = 1e-2 if model.dtype == torch.float32 else 1.0
                if not all(torch.allclose(expected, t, atol=near) for t in (told, logprobs.cpu())):
                    reason = "its forward pass treats masks, positions or logits in its own way"
    model.train(was_training)
    return reason


def prompt_tokens(encoder: ChatEncoder, chats: Sequence[Sequence[Message]]) -> list[list[int]]:
    """Returns the tokens of each prompt.

    Raises:
        BackendError: The chat template refuses a chat.
    """
    ids = []
    for encoded in encoder.encode(chats):
        if isinstance(encoded, BackendError):
            raise encoded
        ids.append(encoded.tolist())
    return ids


@torch.no_grad()
def sample_groups(
    model: Any,
    prompts: Sequence[Tokens],
    groups: Sequence[Sequence[Sample]],
    stops: frozenset[int],
    max_tokens: int,
) -> None:
    """Writes a group of answers to each prompt.

    Args:
        model: In evaluation mode; see `sharing_works`.
        prompts: Tokens of each.
        groups: As many samples for each prompt; filled in.
        stops: Tokens that end a turn.
        max_tokens: Most tokens of an answer.
    """
    for rows in _batches([len(prompt) for prompt in prompts]):
        _Decoder(model, [prompts[i] for i in rows], [groups[i] for i in rows], max_tokens).run(
            stops, max_tokens
        )


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yields indices of rows that go together, the shortest first."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        full = (len(batch) + 1) * lengths[i] > _BATCH_TOKENS
        if batch and (full or lengths[batch[0]] < _LEAST_FULL * lengths[i]):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


class _Decoder:
    """Generates for some prompts; the keys and values of each stand in one row of slabs.

    Behind the prompt (padded to a common width) the tokens of its answers stand in turn: the first
    ones of all answers, the second ones of all, ...
    """

    def __init__(
        self,
        model: Any,
        prompts: Sequence[Tokens],
        groups: Sequence[Sequence[Sample]],
        max_tokens: int,
    ) -> None:
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._decoder, self._head = inner.get_decoder(), inner.get_output_embeddings()
        self._device, self._dtype = model.device, model.dtype
        self._groups = list(groups)
        self._prompts = prompts
        self._group = len(groups[0])
        self._lengths = torch.tensor([len(prompt) for prompt in prompts], device=self._device)
        self._width = int(self._lengths.max())
        self._window = Window()
        layers = model.config.get_text_config().num_hidden_layers
        self._cache = Cache(layers=[SlotLayer(self._window) for _ in range(layers)])
        for layer in self._cache.layers:
            layer.rows = layer.room = len(prompts)
            layer.capacity = self._width + self._group * max_tokens

    def run(self, stops: frozenset[int], max_tokens: int) -> None:
        """Generates until every answer has ended."""
        hidden = self._prefill()
        logits = self._head(hidden)[:, None].expand(-1, self._group, -1)
        for step in range(max_tokens):
            ids = self._choose(logits, stops)
            if step == max_tokens - 1 or all(s.finished for g in self._groups for s in g):
                return
            ids = self._drop_finished(ids)
            logits = self._head(self._feed(ids, step))

    def _prefill(self) -> torch.Tensor:
        """Feeds the prompts; returns the state of the last token of each ``[rows, size]``."""
        rows = len(self._prompts)
        ids = torch.zeros(rows, self._width, dtype=torch.long)
        for row, prompt in enumerate(self._prompts):
            ids[row, : len(prompt)] = torch.tensor(prompt)
        places = torch.arange(self._width, device=self._device).expand(rows, -1)
        self._window.move(0, rows, self._width, self._capacity, places)
        # Padding stands behind: causal attention alone keeps it out.
        hidden = self._decoder(
            input_ids=ids.to(self._device), past_key_values=self._cache, use_cache=True
        ).last_hidden_state
        last: torch.Tensor = hidden[torch.arange(rows, device=self._device), self._lengths - 1]
        return last

    @property
    def _capacity(self) -> int:
        return int(self._cache.layers[0].capacity)

    def _choose(self, logits: torch.Tensor, stops: frozenset[int]) -> torch.Tensor:
        """Chooses a token for every unfinished answer; returns ``[rows, group]``."""
        samples = [sample for group in self._groups for sample in group]
        draws = [None if sample.finished else sample.draw for sample in samples]
        tokens, logprobs = pick(logits.flatten(0, 1), draws)
        for sample, token, logprob in zip(samples, tokens.tolist(), logprobs, strict=True):
            if not sample.finished:
                sample.tokens.append(token)
                sample.logprobs.append(logprob)
                sample.finished = token in stops
        return tokens.view(-1, self._group)

    def _drop_finished(self, ids: torch.Tensor) -> torch.Tensor:
        """Leaves out prompts whose answers have all ended, once they are many."""
        kept = [i for i, g in enumerate(self._groups) if not all(s.finished for s in g)]
        if 4 * len(kept) > 3 * len(self._groups):
            return ids
        rows = torch.tensor(kept, device=self._device)
        for layer in self._cache.layers:
            layer.keys, layer.values, layer.rows = layer.keys[rows], layer.values[rows], len(kept)
        self._groups = [self._groups[i] for i in kept]
        self._lengths = self._lengths[rows]
        return ids[rows]

    def _feed(self, ids: torch.Tensor, step: int) -> torch.Tensor:
        """Feeds the ``step``-th tokens of all answers; returns states ``[rows, group, size]``."""
        rows, group = ids.shape
        start = self._width + group * step
        length = start + group
        places = torch.arange(start, length, device=self._device).expand(rows, -1)
        self._window.move(0, rows, length, self._capacity, places)
        hidden: torch.Tensor = self._decoder(
            input_ids=ids,
            attention_mask=self._mask(length),
            position_ids=(self._lengths + step)[:, None].expand(-1, group),
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state
        return hidden

    def _mask(self, length: int) -> torch.Tensor:
        """Returns the additive mask ``[rows, 1, group, length]``."""
        places = torch.arange(length, device=self._device)
        prompt = places < self._lengths[:, None, None]
        answers = torch.arange(self._group, device=self._device)[:, None]
        own = (places >= self._width) & ((places - self._width) % self._group == answers)
        mask = torch.zeros(prompt.shape[0], self._group, length, dtype=self._dtype)
        return mask.to(self._device).masked_fill_(~(prompt | own), -torch.inf)[:, None]


def shared_logprobs(
    model: Any,
    prompts: Sequence[Tokens],
    answers: Sequence[Sequence[Tokens]],
    temperature: float,
) -> list[list[torch.Tensor]]:
    """Returns the log-probabilities of the tokens of each answer to each prompt.

    Equal answers are computed once. Gradients flow through the prompt from all answers at once.

    Args:
        model: A causal language model; see `sharing_works`.
        prompts: Tokens of each.
        answers: One or more per prompt, each with one token or more.
        temperature: That logits are divided by.

    Returns:
        One tensor ``[tokens]`` per answer.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    result: list[list[torch.Tensor]] = [[] for _ in prompts]
    unique = [list(dict.fromkeys(tuple(answer) for answer in some)) for some in answers]
    lengths = [
        len(prompt) + sum(map(len, some)) for prompt, some in zip(prompts, unique, strict=True)
    ]
    for rows in _batches(lengths):
        packed = [_pack(prompts[i], unique[i]) for i in rows]
        values = _packed_logprobs(inner, packed, temperature)
        for i, found in zip(rows, values, strict=True):
            known = dict(zip(unique[i], found, strict=True))
            result[i] = [known[tuple(answer)] for answer in answers[i]]
    return result


@dataclass(frozen=True)
class _Packed:
    """A prompt and its answers in one row.

    Attributes:
        ids: Tokens.
        positions: Of the tokens in their own conversation.
        segments: 0 for the prompt, from 1 for the answers.
        before: Per answer token, where the token before it stands.
        targets: Per answer token, the token.
        sizes: Lengths of the answers.
    """

    ids: list[int]
    positions: list[int]
    segments: list[int]
    before: list[int]
    targets: list[int]
    sizes: list[int]


def _pack(prompt: Tokens, answers: Sequence[Tokens]) -> _Packed:
    size = len(prompt)
    row = _Packed(list(prompt), list(range(size)), [0] * size, [], [], [])
    for segment, answer in enumerate(answers, 1):
        start = len(row.ids)
        row.before.extend([size - 1, *range(start, start + len(answer) - 1)])
        row.targets.extend(answer)
        row.sizes.append(len(answer))
        row.ids.extend(answer)
        row.positions.extend(range(size, size + len(answer)))
        row.segments.extend([segment] * len(answer))
    return row


def _packed_logprobs(
    model: Any, rows: Sequence[_Packed], temperature: float
) -> list[list[torch.Tensor]]:
    width = max(len(row.ids) for row in rows)
    ids, positions, segments = torch.zeros(3, len(rows), width, dtype=torch.long)
    segments -= 1
    for i, row in enumerate(rows):
        columns = zip((ids, positions, segments), (row.ids, row.positions, row.segments))  # noqa: B905
        for tensor, values in columns:
            tensor[i, : len(values)] = torch.tensor(values)
    ids, positions, segments = (t.to(model.device) for t in (ids, positions, segments))
    seen = (segments[:, None] == 0) | (segments[:, None] == segments[:, :, None])
    mask = torch.zeros(seen.shape, dtype=model.dtype, device=model.device)
    mask.masked_fill_(~seen.tril(), -torch.inf)
    hidden = model.get_decoder()(
        input_ids=ids, attention_mask=mask[:, None], position_ids=positions, use_cache=False
    ).last_hidden_state
    picked = torch.cat([hidden[i, row.before] for i, row in enumerate(rows)])
    targets = torch.tensor([t for row in rows for t in row.targets], device=model.device)
    logits = model.get_output_embeddings()(picked).float() / temperature
    chosen = logits.gather(-1, targets[:, None])[:, 0] - logits.logsumexp(-1)
    values = chosen.split([size for row in rows for size in row.sizes])
    taken = iter(values)
    return [[next(taken) for _ in row.sizes] for row in rows]
