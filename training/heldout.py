"""Exact match on held-out episodes, world by world."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from gym_llmworld.metrics import Rate, exact_match_rates
from training.data import Conversations
from training.exact_match import TokenizedChat, TurnMatch, tokenize, turn_match


@dataclass(frozen=True)
class Scores:
    """What a model reaches.

    Attributes:
        by_world: World (or name of a file that does not say its world) -> exact match.
    """

    by_world: Mapping[str, TurnMatch]

    @property
    def all(self) -> TurnMatch:
        """Over the turns of all worlds."""
        return TurnMatch(
            **{
                field.name: _sum([getattr(match, field.name) for match in self.by_world.values()])
                for field in fields(TurnMatch)
            }
        )

    def as_row(self) -> dict[str, Any]:
        """Returns `TurnMatch.as_row` of all; under ``worlds`` of each, where there are several."""
        row: dict[str, Any] = dict(self.all.as_row())
        if len(self.by_world) > 1:
            row["worlds"] = {world: match.as_row() for world, match in self.by_world.items()}
        return row


def _sum(rates: Sequence[Rate]) -> Rate:
    return Rate(sum(rate.hits for rate in rates), sum(rate.n for rate in rates))


@dataclass(frozen=True)
class Heldout:
    """Held-out episodes, tokenized.

    Attributes:
        by_world: As in `Scores`.
    """

    by_world: Mapping[str, Sequence[TokenizedChat]]

    @classmethod
    def of(cls, tokenizer: Any, data: Conversations) -> Heldout:
        """Tokenizes episodes.

        Raises:
            ValueError: The tokenizer's chat template cannot mark assistant turns.
        """
        return cls(
            {
                group: [
                    tokenize(tokenizer, item.chat, item.given, item.context)
                    for item in data.of_group(group).items
                ]
                for group in data.groups
            }
        )

    def __len__(self) -> int:
        """Number of episodes."""
        return sum(len(chats) for chats in self.by_world.values())

    def some(self, wanted: int) -> Heldout:
        """Returns about ``wanted`` episodes, as many of each world, always the same; all for 0."""
        if not wanted or not self.by_world:
            return self
        each = max(1, wanted // len(self.by_world))
        # At random: files follow one another, and styles alternate.
        return Heldout(
            {
                world: random.Random(0).sample(chats, min(each, len(chats)))
                for world, chats in self.by_world.items()
            }
        )

    def match(self, model: Any) -> Scores:
        """Measures a model; see `turn_match`."""
        return Scores({world: turn_match(model, chats) for world, chats in self.by_world.items()})

    def baselines(self) -> dict[str, dict[str, float | None]]:
        """Returns, per world, what predictors reach that know no world; see `ExactMatch`."""
        result = {}
        for world, chats in self.by_world.items():
            rates = exact_match_rates([turn for chat in chats for turn in chat.turns])
            result[world] = {
                "copy": rates.copy_baseline.value,
                "majority": rates.majority_baseline.value,
            }
        return result
