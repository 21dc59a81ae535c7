"""Rewards for predicted observations: plain functions in the shape that TRL's trainers call.

Each takes one value per sample and returns one reward per sample, None where a sample cannot be
scored: TRL leaves those out of their group. A bad prediction (nothing at all, an unclosed tag, JSON
that is none, a turn that was cut off) is a wrong one, and scores 0. A bug raises.

The verifiable rewards are RLVR-World's (arXiv 2505.13934), ``embedding`` and ``rouge`` are RWML's
(arXiv 2602.05842). A vague prediction ("it will describe the contents of countertop 1"), which
made an LLM judge collapse there (table A8), is worth nothing in any of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from gym_llmworld.errors import DataError
from gym_llmworld.metrics import exact_match, lines_f1, rouge_l, statement_credit
from gym_llmworld.objectstate import (
    ObjectState,
    StateTurn,
    predicted_state,
    read_state,
    state_credit,
)
from gym_llmworld.protocol import SUCCESS_MARKER, reasoned
from training.embedders import Distances, Embedder, SentenceEmbedder

Reward = Callable[..., list[float | None]]
"""``reward(prompts=, completions=, completion_ids=, <columns of the data>, **) -> rewards``."""

# RWML rounds ROUGE to a fifth. There the published vague prediction still gets one of them, for
# the words that any observation shares with any other.
_LEAST_ROUGE = 0.4


@dataclass(frozen=True)
class Reading:
    """How a completion holds its prediction.

    Attributes:
        reasoning: It comes as ``<think>...</think> <next_state>...</next_state>`` (RWML), and the
            prediction is what ``<next_state>`` holds; else it is the whole text.
        stops: Tokens that end a turn; a completion that does not end with one was cut off. None
            where that is not checked.
    """

    reasoning: bool = False
    stops: frozenset[int] | None = None

    def predictions(
        self, completions: Sequence[Any], completion_ids: Sequence[Sequence[int]] | None
    ) -> list[str | None]:
        """Returns what each completion predicts; None for one that predicts nothing."""
        ids = completion_ids or [()] * len(completions)
        return [
            self.prediction(_text(completion)) if self._ended(tokens) else None
            for completion, tokens in zip(completions, ids, strict=True)
        ]

    def prediction(self, text: str) -> str | None:
        """Returns the predicted observation in a finished completion; None without one."""
        predicted = reasoned(text) if self.reasoning else text.strip()
        return predicted or None

    def well_formed(self, text: str) -> bool:
        """Returns whether a completion says anything, in the form that was asked for."""
        return reasoned(text) is not None if self.reasoning else bool(text.strip())

    def _ended(self, tokens: Sequence[int]) -> bool:
        return self.stops is None or (len(tokens) > 0 and int(tokens[-1]) in self.stops)


_PLAIN = Reading()


def _text(completion: Any) -> str:
    """Returns the text of a completion, which TRL hands over as a list with one message."""
    return completion if isinstance(completion, str) else str(completion[0]["content"])


def _column(name: str, reward: str, columns: Mapping[str, Any]) -> Sequence[str]:
    if name not in columns:
        raise DataError(
            f"the reward {reward!r} needs a column {name!r}; the data has "
            f"{', '.join(sorted(columns)) or 'none'}. `training.transitions` writes it"
        )
    values: Sequence[str] = columns[name]
    return values


def exact(
    completions: Sequence[Any],
    completion_ids: Sequence[Sequence[int]] | None = None,
    *,
    reading: Reading = _PLAIN,
    **columns: Any,
) -> list[float | None]:
    """1 for the true observation, to the letter, or for the true object state (RLVR, equation 3).

    Columns: ``truth``; ``state`` (the object state before the action, as JSON) where there is one.
    """
    told = reading.predictions(completions, completion_ids)
    truths, states = _column("truth", "exact", columns), _states(columns, len(told))
    rewards: list[float | None] = []
    for prediction, truth, state in zip(told, truths, states, strict=True):
        turn = _state_turn(prediction, truth, state)
        if turn is not None:
            rewards.append(float(turn.correct))
        else:
            rewards.append(float(prediction is not None and exact_match(prediction, truth)))
    return rewards


def changed(
    completions: Sequence[Any],
    completion_ids: Sequence[Sequence[int]] | None = None,
    *,
    reading: Reading = _PLAIN,
    **columns: Any,
) -> list[float | None]:
    """Credit for what changed, exactness on top: RLVR-World's task-specific reward, 0 to 1.3.

    Of object states `gym_llmworld.objectstate.state_credit`, of other observations
    `gym_llmworld.metrics.statement_credit`.

    Columns: ``truth``, ``previous`` (the observation before); ``state`` where there is one.
    """
    told = reading.predictions(completions, completion_ids)
    truths, before = (_column(name, "changed", columns) for name in ("truth", "previous"))
    rewards: list[float | None] = []
    for prediction, truth, old, state in zip(
        told, truths, before, _states(columns, len(told)), strict=True
    ):
        turn = _state_turn(prediction, truth, state)
        if turn is not None:
            rewards.append(state_credit(turn))
        else:
            credit = 0.0 if prediction is None else statement_credit(prediction, truth, old)
            rewards.append(None if not truth.strip() else credit)
    return rewards


def lines(
    completions: Sequence[Any],
    completion_ids: Sequence[Sequence[int]] | None = None,
    *,
    reading: Reading = _PLAIN,
    **columns: Any,
) -> list[float | None]:
    """F1 of exact lines, as for web pages; see `gym_llmworld.metrics.lines_f1`.

    Columns: ``truth``.
    """
    return [
        lines_f1(prediction, truth) if prediction and truth else (0.0 if truth else None)
        for prediction, truth in _pairs("lines-f1", reading, completions, completion_ids, columns)
    ]


def rouge(
    completions: Sequence[Any],
    completion_ids: Sequence[Sequence[int]] | None = None,
    *,
    reading: Reading = _PLAIN,
    step: float = 0.2,
    least: float = _LEAST_ROUGE,
    **columns: Any,
) -> list[float | None]:
    """ROUGE-L, rounded to multiples of ``step`` (RWML, appendix C.1); below ``least`` it is 0.

    Columns: ``truth``.
    """
    rewards: list[float | None] = []
    for told, truth in _pairs("rouge", reading, completions, completion_ids, columns):
        score = rouge_l(told, truth) if told else 0.0
        score = 0.0 if score < least else round(score / step) * step
        rewards.append(min(1.0, score) if truth else None)
    return rewards


def well_formed(
    completions: Sequence[Any],
    completion_ids: Sequence[Sequence[int]] | None = None,
    *,
    reading: Reading = _PLAIN,
    **columns: Any,
) -> list[float | None]:
    """1 for a completion in the form that was asked for, and about what happened.

    Form alone would pay for saying nothing: the prediction has to share as much with the truth as
    `rouge` asks for; of an object state, it has to be one.

    Columns: ``truth``; ``state`` where there is one.
    """
    pairs = _pairs("format", reading, completions, completion_ids, columns)
    rewards: list[float | None] = []
    for (told, truth), state in zip(pairs, _states(columns, len(pairs)), strict=True):
        turn = _state_turn(told, truth, state)
        if turn is not None:
            rewards.append(float(turn.predicted is not None))
        else:
            rewards.append(float(told is not None and rouge_l(told, truth) >= _LEAST_ROUGE))
    return rewards


def embedding(
    completions: Sequence[Any],
    completion_ids: Sequence[Sequence[int]] | None = None,
    *,
    distances: Distances,
    tau: float = 0.2,
    continuous: bool = False,
    reading: Reading = _PLAIN,
    **columns: Any,
) -> list[float | None]:
    """1 if ``1 - cos < tau`` (RWML, section 2.2); with ``continuous``, ``1 - distance / tau``.

    The continuous form is 0 where the binary one is: similarity of any two observations of a world
    is far above 0, and paying for it pays for saying nothing.

    Columns: ``truth``. None where the embedder returned NaN.
    """
    pairs = _pairs("embedding", reading, completions, completion_ids, columns)
    asked = [(told, truth) for told, truth in pairs if told and truth]
    found = dict(zip(asked, distances(asked), strict=True)) if asked else {}
    rewards: list[float | None] = []
    for told, truth in pairs:
        if not truth or not told:
            rewards.append(0.0 if truth else None)
            continue
        distance = found[told, truth]
        reward = max(0.0, min(1.0, 1 - distance / tau)) if continuous else float(distance < tau)
        rewards.append(None if math.isnan(distance) else reward)
    return rewards


def _pairs(
    name: str,
    reading: Reading,
    completions: Sequence[Any],
    completion_ids: Sequence[Sequence[int]] | None,
    columns: Mapping[str, Any],
) -> list[tuple[str | None, str]]:
    truths = (truth.strip() for truth in _column("truth", name, columns))
    return list(zip(reading.predictions(completions, completion_ids), truths, strict=True))


def _states(columns: Mapping[str, Any], n: int) -> Sequence[str | None]:
    return columns.get("state") or [None] * n


def _state_turn(prediction: str | None, truth: str, state: str | None) -> StateTurn | None:
    """Returns a predicted transition of an object state; None in worlds that have none.

    Raises:
        DataError: The data's own state or truth cannot be read.
    """
    if not state:
        return None
    before = read_state(state)
    after = None if before is None else predicted_state(before, truth.removesuffix(SUCCESS_MARKER))
    if before is None or after is None:
        raise DataError(
            "expected an object state in column 'state' and a difference of it in 'truth', got "
            f"{state!r:.80} and {truth!r:.80}"
        )
    if prediction is None:
        return StateTurn(before, after, None)
    told = predicted_state(before, prediction.removesuffix(SUCCESS_MARKER))
    if told is not None and prediction.endswith(SUCCESS_MARKER) != truth.endswith(SUCCESS_MARKER):
        # The mark belongs to what is predicted; the score says the same, and is wrong with it.
        told = ObjectState(told.objects)
    return StateTurn(before, after, told)


@dataclass(frozen=True)
class Weighted:
    """One term of a reward.

    Attributes:
        name: Of `reward_names`.
        weight: Factor.
    """

    name: str
    weight: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Weighted:
        """Reads ``NAME`` or ``NAME:WEIGHT``.

        Raises:
            ValueError: An unknown name, or a weight that is no finite number but 0.
        """
        name, _, number = text.partition(":")
        if name not in reward_names():
            raise ValueError(
                f"unknown reward {name!r}; expected one of {', '.join(reward_names())}, as NAME or "
                "NAME:WEIGHT"
            )
        try:
            weight = float(number) if number else 1.0
        except ValueError:
            weight = math.nan
        if not math.isfinite(weight) or weight == 0:
            raise ValueError(f"{text}: expected a weight other than 0 behind the colon")
        return cls(name, weight)


def reward_names() -> tuple[str, ...]:
    """Returns the names that `make_rewards` knows."""
    return (*_VERIFIABLE, "embedding", "embedding-continuous")


_VERIFIABLE: Mapping[str, Reward] = {
    "exact": exact,
    "changed": changed,
    "lines-f1": lines,
    "rouge": rouge,
    "format": well_formed,
}


def make_rewards(
    terms: Sequence[Weighted],
    reading: Reading = _PLAIN,
    embedder: Embedder | None = None,
    tau: float = 0.2,
) -> list[Reward]:
    """Returns the reward functions of a weighted sum, in its order.

    Args:
        terms: Which.
        reading: How completions hold their predictions.
        embedder: For the embedding rewards; None for `SentenceEmbedder`.
        tau: Their threshold.

    Raises:
        ValueError: No term, or ``tau`` is not above 0.
    """
    if not terms:
        raise ValueError(f"a reward has at least one term of {', '.join(reward_names())}")
    if not tau > 0:
        raise ValueError(f"tau must be > 0, got {tau}")
    distances = Distances(embedder or SentenceEmbedder())
    made: list[Reward] = []
    for term in terms:
        if term.name in _VERIFIABLE:
            made.append(partial(_VERIFIABLE[term.name], reading=reading))
        else:
            continuous = term.name == "embedding-continuous"
            made.append(
                partial(
                    embedding, distances=distances, tau=tau, continuous=continuous, reading=reading
                )
            )
    return made


def weighted_sum(
    terms: Sequence[Weighted],
    rewards: Sequence[Reward],
    completions: Sequence[Any],
    columns: Mapping[str, Any],
) -> list[float | None]:
    """Returns the summed reward of each sample, as TRL sums them: None counts as nothing.

    Args:
        terms: Weights.
        rewards: Of `make_rewards`, in the same order.
        completions: One per sample.
        columns: Data columns, one value per sample each.

    Returns:
        None for a sample that no function could score.
    """
    scored = [reward(completions=completions, **columns) for reward in rewards]
    sums: list[float | None] = []
    for sample in zip(*scored, strict=True):
        parts = [t.weight * r for t, r in zip(terms, sample, strict=True) if r is not None]
        sums.append(sum(parts) if parts else None)
    return sums
