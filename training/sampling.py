"""Which episodes a pass of training takes, and in which order."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices


class EpisodeSampler(Sampler[int]):
    """Draws the episodes of each pass; similar lengths share a batch.

    A pass has as many episodes as there are, and every kind of them (file, world) its share. A kind
    goes through all its episodes, each time in a new random order, before one repeats, also
    across passes. Everything follows from the seed and the number of the pass, so that a run that
    continues after a kill sees exactly what it would have seen without it.

    Args:
        lengths: Of the episodes, in tokens.
        kinds: Which kind each episode is of.
        shares: Share of each kind, in sum 1; None: every episode once per pass.
        batch: Episodes per optimiser step.
        seed: Of the order.

    Raises:
        ValueError: A kind has no episodes, or its share of a pass is less than one episode.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        kinds: Sequence[int],
        shares: Sequence[float] | None,
        batch: int,
        seed: int,
    ) -> None:
        if shares is None:
            kinds, shares = [0] * len(lengths), [1.0]
        self.lengths = lengths
        self.batch = batch
        self.seed = seed
        self.epoch = 0
        self.members: list[list[int]] = [[] for _ in shares]
        for episode, kind in enumerate(kinds):
            self.members[kind].append(episode)
        self.quotas = _quotas(shares, len(lengths))
        for kind, (members, quota) in enumerate(zip(self.members, self.quotas, strict=True)):
            if not members or not quota:
                raise ValueError(
                    f"file {kind + 1} of the training data has {len(members)} usable episodes and "
                    f"a share of {quota} of the {len(lengths)} in a pass; expected at least one of "
                    "both. Give it a larger weight, leave it out, or raise --context if its "
                    "episodes begin with more tokens than that"
                )

    def set_epoch(self, epoch: int) -> None:
        """Chooses the pass that the next iteration is of."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Episodes per pass."""
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        """Yields numbers of episodes."""
        drawn = self.drawn(self.epoch)
        order = random.Random(f"{self.seed}/{self.epoch}").getrandbits(63)
        positions = get_length_grouped_indices(
            [self.lengths[i] for i in drawn],
            self.batch,
            generator=torch.Generator().manual_seed(order),
        )
        return iter([drawn[position] for position in positions])

    def drawn(self, epoch: int) -> list[int]:
        """Returns the episodes of a pass, kind by kind."""
        drawn: list[int] = []
        for kind, (members, quota) in enumerate(zip(self.members, self.quotas, strict=True)):
            begin, end = epoch * quota, (epoch + 1) * quota
            for turn in range(begin // len(members), (end - 1) // len(members) + 1):
                shuffled = members.copy()
                random.Random(f"{self.seed}/{kind}/{turn}").shuffle(shuffled)
                offset = turn * len(members)
                drawn += shuffled[max(0, begin - offset) : end - offset]
        return drawn


def _quotas(shares: Sequence[float], total: int) -> list[int]:
    """Divides a total by shares; the largest remainders are rounded up."""
    exact = [share * total for share in shares]
    quotas = [int(value) for value in exact]
    by_remainder = sorted(range(len(shares)), key=lambda i: quotas[i] - exact[i])
    for i in by_remainder[: total - sum(quotas)]:
        quotas[i] += 1
    return quotas
