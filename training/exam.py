"""What refinement does to a model: what it knows before and after, how far its weights moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from gym_llmworld.errors import DataError
from gym_llmworld.objectstate import apply_difference, read_json, read_state
from gym_llmworld.protocol import SUCCESS_MARKER
from training.data import Conversations
from training.exact_match import TokenizedChat, TurnMatch, turn_match
from training.heldout import Heldout

# Weights count as moved beyond this share of the larger of both values.
_MOVED = 1e-3


def moved_share(before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]) -> float:
    """Returns the share of the weights that moved: ``|b - a| > 0.001 * max(|a|, |b|)``.

    Over weights that are finite in both and not 0 in both (RWML, section 4.2).

    Raises:
        DataError: Not the same weights.
    """
    if {n: w.shape for n, w in before.items()} != {n: w.shape for n, w in after.items()}:
        raise DataError("the two models have not the same weights; expected one to be refined")
    moved = counted = 0
    for name, old in before.items():
        a, b = old.double(), after[name].double()
        larger = torch.maximum(a.abs(), b.abs())
        valid = a.isfinite() & b.isfinite() & (larger > 0)
        moved += int((((b - a).abs() > _MOVED * larger) & valid).sum())
        counted += int(valid.sum())
    return moved / counted if counted else 0.0


class Exam:
    """Held-out episodes of all worlds, on which models are compared.

    Args:
        tokenizer: Of the models.
        heldout: Episodes.
    """

    def __init__(self, tokenizer: Any, heldout: Conversations) -> None:
        found = Heldout.of(tokenizer, heldout).by_world
        self.by_world = {
            world: [_with_states(chat, told.chat[0].content) for chat, told in zip(
                chats, heldout.of_group(world).items, strict=True)]
            for world, chats in found.items()
        }  # fmt: skip

    def take(self, model: Any) -> dict[str, dict[str, Any]]:
        """Returns, per world, `TurnMatch` and the copy baseline as a row of results."""
        return {
            world: _as_row(turn_match(model, chats), chats)
            for world, chats in self.by_world.items()
        }


def _as_row(match: TurnMatch, chats: Sequence[TokenizedChat]) -> dict[str, Any]:
    rates = {"all": match.all, "changed": match.changed, "unchanged": match.unchanged}
    row = {name: rate.to_json() for name, rate in rates.items()}
    turns = [turn for chat in chats for turn in chat.turns]
    same = sum(not turn.changed for turn in turns)
    return {**row, "copy_baseline": same / len(turns) if turns else None}


def _with_states(chat: TokenizedChat, context: str) -> TokenizedChat:
    """Lets the turns of an object game know whether its state changed."""
    # The first state ends the context, whatever the prompt style.
    state = read_state(context[context.find('{"game_state"') :])
    if state is None:
        return chat
    turns = []
    for turn in chat.turns:
        text = turn.truth.removesuffix(SUCCESS_MARKER)
        after = apply_difference(state, read_json(text))
        same = after is None or after.same_as(state)
        turns.append(replace(turn, previous=turn.truth if same else ""))
        state = after or state
    return replace(chat, turns=tuple(turns))
