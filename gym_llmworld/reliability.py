"""How far a confidence can be trusted, and the calibration that makes it trustworthy.

Labels come from teacher forcing on held-out real episodes (`gym_llmworld.evaluation`): a prediction
is right when it is exactly what the world answered. Steps of one scenario resemble each other, so
everything is split and resampled by scenario.

Measures: expected calibration error over equal-width bins (Naeini et al., AAAI 2015; 15 bins as in
Guo et al., ICML 2017), the Brier score, and AUROC of "this step is wrong".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gym_llmworld.backends.base import Backend, Confirmer
from gym_llmworld.calibration import Calibration, features, sigmoid
from gym_llmworld.core import Completion, Episode, Message, Sampling
from gym_llmworld.errors import BackendError, DataError
from gym_llmworld.evaluation import evaluate_episodes
from gym_llmworld.metrics import Progress
from gym_llmworld.protocol import Protocol, sequence_probability

BINS = 15
_RESAMPLES = 200
_RIDGE = 1.0

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class JudgedStep:
    """A greedy one-step prediction of a real step.

    Attributes:
        scenario: Id of the scenario.
        completion: What the model wrote; it has log-probabilities.
        right: It is exactly what the world answered.
        agreement: Share of further samples that are equal to it; None when none were drawn.
    """

    scenario: str
    completion: Completion
    right: bool
    agreement: float | None = None


@dataclass(frozen=True, slots=True)
class Bin:
    """Predictions of similar confidence.

    Attributes:
        low: Least confidence in it.
        high: Where the next bin begins.
        n: How many predictions; the means are None without any.
        confidence: Their mean confidence.
        accuracy: The share of right ones.
    """

    low: float
    high: float
    n: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True, slots=True)
class Reliability:
    """How well a confidence says whether a step is right.

    Attributes:
        n: Predictions.
        wrong: Wrong ones.
        ece: Expected calibration error, 0 is best; None without predictions.
        brier: Mean squared error of the confidence; None without predictions.
        auroc: Probability that a wrong step has less confidence than a right one (ties count
            half); None where all steps are right, or all wrong.
        auroc_95: Its 95 % interval from resampled scenarios.
        bins: The reliability diagram.
    """

    n: int
    wrong: int
    ece: float | None
    brier: float | None
    auroc: float | None
    auroc_95: tuple[float, float] | None
    bins: tuple[Bin, ...]


def judge(
    backend: Backend,
    protocol: Protocol,
    episodes: Sequence[Episode],
    *,
    samples: int = 0,
    batch_size: int = 64,
    max_tokens: int = 512,
    progress: Progress | None = None,
) -> list[JudgedStep]:
    """Predicts every step of real episodes, and compares.

    Args:
        backend: The world model; it has to tell log-probabilities.
        protocol: Its prompt style.
        episodes: Held-out real ones.
        samples: Further predictions per step, at temperature 1, for their agreement.
        batch_size: Conversations per model call, samples included.
        max_tokens: Upper bound of a prediction.
        progress: Told about predicted steps.

    Returns:
        All steps that the model gave any answer to; one that does not fit its context has none.

    Raises:
        BackendError: The backend failed as a whole.
        DataError: An observation ends with the success marker, or the backend tells no
            log-probabilities.
    """
    recorder = _Recorder(backend, samples, max_tokens)
    result = evaluate_episodes(
        recorder,
        protocol,
        episodes,
        batch_size=max(1, batch_size // (1 + samples)),
        max_tokens=max_tokens,
        progress=progress,
    )
    judged = []
    for index, turn in zip(result.episode_of, result.turns, strict=True):
        episode = episodes[index]
        chat = protocol.encode(episode.scenario, episode.steps[: turn.step - 1], turn.action)
        answer, agreement = recorder.answers[chat]
        if isinstance(answer, Completion):
            judged.append(JudgedStep(episode.scenario.id, answer, turn.correct, agreement))
    if judged and not all(step.completion.logprobs for step in judged):
        raise DataError(
            f"the model {backend.name} tells no log-probabilities, which confidence is made of; "
            "use the hf backend, or a server that answers requests for logprobs"
        )
    return judged


class _Recorder:
    """Passes requests on and keeps the answers: evaluation keeps their text alone."""

    def __init__(self, backend: Backend, samples: int, max_tokens: int) -> None:
        self.name, self.max_context = backend.name, backend.max_context
        self.backend, self.samples, self.max_tokens = backend, samples, max_tokens
        self.answers: dict[tuple[Message, ...], tuple[Completion | BackendError, float | None]] = {}

    def generate(
        self, chats: Sequence[Sequence[Message]], samplings: Sequence[Sampling]
    ) -> list[Completion | BackendError]:
        answers = self.backend.generate(chats, samplings)
        self._keep(chats, answers)
        return answers

    def confirm(
        self, chats: Sequence[Sequence[Message]], targets: Sequence[str], max_tokens: int
    ) -> list[Completion | None]:
        if not isinstance(self.backend, Confirmer):
            return [None] * len(chats)
        confirmed = self.backend.confirm(chats, targets, max_tokens)
        known = [(chat, c) for chat, c in zip(chats, confirmed, strict=True) if c is not None]
        self._keep([chat for chat, _ in known], [answer for _, answer in known])
        return confirmed

    def _keep(
        self,
        chats: Sequence[Sequence[Message]],
        answers: Sequence[Completion | BackendError],
    ) -> None:
        # Now, while the conversations are in the backend's cache.
        drawn = self._draw(chats)
        for i, (chat, answer) in enumerate(zip(chats, answers, strict=True)):
            again = drawn[i * self.samples : (i + 1) * self.samples]
            self.answers[tuple(chat)] = (answer, _agreement(answer, again))

    def close(self) -> None:
        """Leaves the backend to its owner."""

    def _draw(self, chats: Sequence[Sequence[Message]]) -> list[Completion | BackendError]:
        if not self.samples or not chats:
            return []
        repeated = [chat for chat in chats for _ in range(self.samples)]
        seeds = list(range(self.samples)) * len(chats)
        samplings = [Sampling(1.0, max_tokens=self.max_tokens, seed=seed) for seed in seeds]
        return self.backend.generate(repeated, samplings)


def _agreement(
    answer: Completion | BackendError, again: Sequence[Completion | BackendError]
) -> float | None:
    if not again or not isinstance(answer, Completion):
        return None
    equal = [isinstance(other, Completion) and other.text == answer.text for other in again]
    return sum(equal) / len(equal)


def split_by_scenario(
    episodes: Sequence[Episode], seed: int = 0
) -> tuple[list[Episode], list[Episode]]:
    """Splits episodes in two, so that no scenario is on both sides.

    Raises:
        DataError: They have fewer than two scenarios.
    """
    scenarios = sorted({episode.scenario.id for episode in episodes})
    if len(scenarios) < 2:
        raise DataError(
            "a calibration is fitted on some scenarios and measured on others; expected episodes "
            f"of at least 2 scenarios, got {len(scenarios)}"
        )
    order = np.random.default_rng(seed).permutation(len(scenarios))
    first = {scenarios[i] for i in order[: len(scenarios) // 2]}
    return (
        [episode for episode in episodes if episode.scenario.id in first],
        [episode for episode in episodes if episode.scenario.id not in first],
    )


def fit(steps: Sequence[JudgedStep]) -> Calibration:
    """Fits a calibration: logistic regression on the standardised features, with a small ridge.

    The maximum of the penalised likelihood is found by Newton's method; the ridge makes it unique,
    also where the features separate right from wrong.

    Raises:
        DataError: All steps are right, or all wrong, so that there is nothing to tell apart.
    """
    right = np.array([step.right for step in steps], dtype=np.float64)
    if len(set(right)) < 2:
        raise DataError(
            f"a calibration needs right and wrong predictions to tell apart; got {len(steps)}, of "
            f"which {int(right.sum())} are right. Use more, or harder, held-out episodes"
        )
    x = np.stack([features(step.completion.logprobs) for step in steps])
    center, spread = x.mean(axis=0), x.std(axis=0)
    # A feature that never varies says nothing, and must not divide by zero.
    scale = np.where(spread > 1e-9, spread, 1.0)
    weights = _logistic((x - center) / scale, right)
    *slopes, bias = (float(w) for w in weights)
    return Calibration(tuple(map(float, center)), tuple(map(float, scale)), tuple(slopes), bias)


def _logistic(x: Floats, y: Floats) -> Floats:
    """Returns the slopes and, last, the intercept, which is not penalised."""
    design = np.column_stack([x, np.ones(len(x))])
    ridge = _RIDGE * np.eye(design.shape[1])
    ridge[-1, -1] = 0.0
    weights = np.zeros(design.shape[1])
    for _ in range(100):
        p = sigmoid(design @ weights)
        gradient = design.T @ (y - p) - ridge @ weights
        hessian = (design * (p * (1 - p))[:, None]).T @ design + ridge
        move = np.linalg.solve(hessian, gradient)
        # Far from the maximum a full step may overshoot.
        move *= min(1.0, 2.0 / max(float(np.abs(move).max()), 1e-12))
        weights = weights + move
        if np.abs(move).max() < 1e-9:
            break
    return weights


def reliability(
    confidence: Sequence[float], right: Sequence[bool], scenarios: Sequence[str], *, seed: int = 0
) -> Reliability:
    """Measures a confidence.

    Args:
        confidence: One per prediction, in [0, 1].
        right: Whether it was right.
        scenarios: To which scenario it belongs.
        seed: Of the resampling.

    Raises:
        ValueError: A confidence outside of [0, 1].
    """
    p, y = np.asarray(confidence, dtype=np.float64), np.asarray(right, dtype=np.bool_)
    if ((p < 0) | (p > 1)).any():
        raise ValueError(f"a confidence must be in [0, 1], got {p.min()} to {p.max()}")
    bins = _bins(p, y)
    return Reliability(
        n=len(p),
        wrong=int((~y).sum()),
        ece=expected_calibration_error(bins),
        brier=float(((p - y) ** 2).mean()) if len(p) else None,
        auroc=auroc(p, y),
        auroc_95=_interval(p, y, np.asarray(scenarios), seed),
        bins=bins,
    )


def _bins(p: Floats, right: Bools) -> tuple[Bin, ...]:
    which = np.minimum((p * BINS).astype(int), BINS - 1)
    bins = []
    for i in range(BINS):
        inside = which == i
        n = int(inside.sum())
        means = (float(p[inside].mean()), float(right[inside].mean())) if n else (None, None)
        bins.append(Bin(i / BINS, (i + 1) / BINS, n, *means))
    return tuple(bins)


def expected_calibration_error(bins: Sequence[Bin]) -> float | None:
    """Returns the mean distance between confidence and accuracy, weighted by size; None if empty.

    Bins without predictions do not count.
    """
    total = sum(b.n for b in bins)
    if not total:
        return None
    gaps = (
        b.n * abs(b.confidence - b.accuracy)
        for b in bins
        if b.confidence is not None and b.accuracy is not None
    )
    return sum(gaps) / total


def auroc(confidence: Floats, right: Bools) -> float | None:
    """Returns the probability that a wrong step has less confidence than a right one.

    Ties count half (Mann-Whitney). None where all steps are right, or all wrong.
    """
    n_right, n_wrong = int(right.sum()), int((~right).sum())
    if not n_right or not n_wrong:
        return None
    _, place, counts = np.unique(confidence, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    wins = float(ranks[right].sum()) - n_right * (n_right + 1) / 2
    return wins / (n_right * n_wrong)


def _interval(
    p: Floats, right: Bools, scenarios: NDArray[np.str_], seed: int
) -> tuple[float, float] | None:
    if auroc(p, right) is None:
        return None
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(scenarios == name) for name in np.unique(scenarios)]
    values = []
    for _ in range(_RESAMPLES):
        drawn = np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])
        value = auroc(p[drawn], right[drawn])
        if value is not None:
            values.append(value)
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def compare_confidences(
    calibration: Calibration, steps: Sequence[JudgedStep], *, seed: int = 0
) -> Mapping[str, Reliability]:
    """Measures the ways to a confidence on the same steps.

    Args:
        calibration: Fitted on other scenarios.
        steps: Where samples were drawn, ``"agreement"`` is among the results.
        seed: Of the resampling.
    """
    ways: dict[str, list[float | None]] = {
        "calibrated": [calibration.confidence(step.completion) for step in steps],
        "sequence probability": [sequence_probability(step.completion) for step in steps],
        "agreement": [step.agreement for step in steps],
    }
    right, scenarios = [step.right for step in steps], [step.scenario for step in steps]
    return {
        way: reliability([v for v in values if v is not None], right, scenarios, seed=seed)
        for way, values in ways.items()
        if None not in values
    }
