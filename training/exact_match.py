"""Exact match on held-out episodes, in one forward pass per episode.

Of a world model, the share of observations that it predicts; of an agent, the share of actions that
it would take, too, where the episode's agent was (to be read with care: another good action counts
as wrong).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gym_llmworld.core import Chat
from gym_llmworld.metrics import Rate, Turn
from gym_llmworld.protocol import SUCCESS_MARKER

_ENTITY = re.compile(r"\b[a-z]+ \d+\b")


@dataclass(frozen=True, slots=True)
class TurnMatch:
    """How often whole assistant turns are predicted exactly: observations, or an agent's actions.

    Attributes:
        all: Over all turns (the published EM: micro mean, success marker included).
        changed: Over turns that differ from the assistant turn before.
        unchanged: Over the others.
        lookup: Over turns that name a thing that the message before does not name: they have to be
            looked up in the context.
        ending: Over the turns that end an episode with success; agents have none.
    """

    all: Rate
    changed: Rate
    unchanged: Rate
    lookup: Rate
    ending: Rate

    def as_row(self) -> dict[str, float | int | None]:
        """Returns shares (None without turns) and the number of turns, for logs and cards."""
        row: dict[str, float | int | None] = {"turns": self.all.n}
        for name in self.__slots__:
            value = getattr(self, name).value
            row[f"em_{name}"] = None if value is None else round(value, 4)
        return row


@dataclass(frozen=True, slots=True)
class TokenizedChat:
    """A chat as token ids, with the span of every answer.

    Attributes:
        ids: Token ids of the whole chat.
        spans: ``[begin, end)`` of each assistant turn, its end-of-turn token included.
        turns: The turns, with no prediction yet; of an agent, ``action`` is what it observed and
            ``truth`` what it did.
    """

    ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    turns: tuple[Turn, ...]


def tokenize(
    tokenizer: Any, chat: Chat, given: int = 0, context: Collection[int] = ()
) -> TokenizedChat:
    """Tokenizes a chat with its template, which has to mark generations.

    Args:
        tokenizer: Whose template.
        chat: A training chat.
        given: How many of the first assistant turns are no answers.
        context: Numbers of further assistant turns that do not count.

    Raises:
        ValueError: The template does not mark each assistant turn.
    """
    encoded = tokenizer.apply_chat_template(
        [{"role": m.role, "content": m.content} for m in chat],
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    mask = [0, *encoded["assistant_masks"], 0]
    begins = [i for i in range(len(mask) - 1) if mask[i + 1] > mask[i]]
    ends = [i for i in range(len(mask) - 1) if mask[i + 1] < mask[i]]
    actions = [m.content for m in chat if m.role == "user"]
    truths = [m.content for m in chat if m.role == "assistant"]
    if not len(begins) == len(ends) == len(truths):
        raise ValueError(
            f"the chat template marks {len(begins)} generations in a chat with {len(truths)} "
            "assistant turns; it needs {% generation %} around each of them"
        )
    # Of a style with a `Wording` these are its words: what is told in two ways has changed here,
    # not so for `llmworld evaluate`.
    shown = ["", *(truth.removesuffix(SUCCESS_MARKER) for truth in truths)]
    turns = [
        Turn(i + 1, action, shown[i], truth, None)
        for i, (action, truth) in enumerate(zip(actions, truths, strict=True))
    ]
    spans = list(zip(begins, ends, strict=True))
    counted = [i for i in range(given, len(turns)) if i not in context]
    return TokenizedChat(
        tuple(encoded["input_ids"]),
        tuple(spans[i] for i in counted),
        tuple(turns[i] for i in counted),
    )


@torch.no_grad()
def turn_match(model: Any, chats: Sequence[TokenizedChat], batch_tokens: int = 8192) -> TurnMatch:
    """Measures exact match with the real episode as prefix.

    A turn counts when the most probable token is the right one at every position of it, the
    end-of-turn token included. Up to its first error greedy decoding sees exactly these prefixes,
    so this equals generating the turn greedily and comparing texts, at the price of one forward
    pass per episode. (A different tokenization of the same text would count as wrong; a trained
    model writes the tokenizer's own.)

    Args:
        model: A causal language model; evaluated as it is, and left in its mode.
        chats: Held-out episodes. Turns beyond the model's context count as wrong.
        batch_tokens: Upper bound of a padded batch.
    """
    was_training = model.training
    model.eval()
    limit = model.config.max_position_embeddings
    results: list[tuple[Turn, bool]] = []
    for batch in _batches(sorted(chats, key=lambda chat: len(chat.ids)), batch_tokens):
        width = min(limit, max(len(chat.ids) for chat in batch))
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        for row, chat in enumerate(batch):
            kept = torch.tensor(chat.ids[:width])
            ids[row, : len(kept)] = kept
        ids = ids.to(model.device)
        best = _most_probable(model, ids)
        right = (best[:, :-1] == ids[:, 1:]).cpu()
        for row, chat in enumerate(batch):
            for turn, (begin, end) in zip(chat.turns, chat.spans, strict=True):
                fits = end <= width
                results.append((turn, fits and bool(right[row, begin - 1 : end - 1].all())))
    model.train(was_training)
    return TurnMatch(
        all=Rate.of(ok for _, ok in results),
        changed=Rate.of(ok for turn, ok in results if turn.changed),
        unchanged=Rate.of(ok for turn, ok in results if not turn.changed),
        lookup=Rate.of(ok for turn, ok in results if _looks_up(turn)),
        ending=Rate.of(ok for turn, ok in results if turn.truth.endswith(SUCCESS_MARKER)),
    )


def _most_probable(model: Any, ids: torch.Tensor) -> torch.Tensor:
    # Right padding is behind everything that is compared: a causal model needs no mask for it.
    hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    head = model.get_output_embeddings()
    # Row by row: logits of a whole batch over a large vocabulary would not fit.
    return torch.stack([head(row).argmax(-1) for row in hidden])


def _looks_up(turn: Turn) -> bool:
    return bool(set(_ENTITY.findall(turn.truth)) - set(_ENTITY.findall(turn.action)))


def _batches(chats: Sequence[TokenizedChat], tokens: int) -> Iterable[list[TokenizedChat]]:
    batch: list[TokenizedChat] = []
    for chat in chats:
        if batch and (len(batch) + 1) * len(chat.ids) > tokens:
            yield batch
            batch = []
        batch.append(chat)
    if batch:
        yield batch
