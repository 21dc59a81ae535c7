"""How the next token of each row is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch


@dataclass
class Draw:
    """How a request chooses its tokens.

    Attributes:
        temperature: 0 is greedy.
        top_p: Nucleus.
        random: Of this request alone, so that its result does not depend on its batch.
    """

    temperature: float
    top_p: float
    random: Random


def pick(logits: torch.Tensor, draws: Sequence[Draw | None]) -> tuple[torch.Tensor, list[float]]:
    """Chooses the next token of each row.

    Args:
        logits: ``[rows, vocabulary]``.
        draws: One per row; None for a row whose choice does not matter.

    Returns:
        Tokens ``[rows]``, and their log-probabilities under the untempered distribution.
    """
    logits = logits.float()
    tokens = logits.argmax(-1)
    for nucleus in (False, True):
        rows = [
            i
            for i, draw in enumerate(draws)
            if draw is not None and draw.temperature > 0 and (draw.top_p < 1) is nucleus
        ]
        if rows:
            chosen = [draw for i in rows if (draw := draws[i]) is not None]
            tokens[rows] = _sample(logits[rows], chosen, nucleus)
    chosen_logits = logits.gather(-1, tokens[:, None])[:, 0]
    logprobs: list[float] = (chosen_logits - logits.logsumexp(-1)).tolist()
    return tokens, logprobs


def _sample(logits: torch.Tensor, draws: Sequence[Draw], nucleus: bool) -> torch.Tensor:
    def column(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64, device=logits.device)[:, None]

    weights = (logits.double() / column([d.temperature for d in draws])).softmax(-1)
    order = None
    if nucleus:
        weights, order = weights.sort(dim=-1, descending=True, stable=True)
        before = weights.cumsum(-1) - weights
        weights = weights * (before < column([d.top_p for d in draws]))
    cumulative = weights.cumsum(-1)
    uniform = column([d.random.random() for d in draws]) * cumulative[:, -1:]
    index = (cumulative <= uniform).sum(-1)
    return index if order is None else order.gather(-1, index[:, None])[:, 0]
