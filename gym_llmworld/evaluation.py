"""How well a world model predicts a mirrored world, one turn at a time.

Word2World's single-step protocol (arXiv 2512.18832, section 4 and appendix A.4): teacher forcing on
real episodes. Each turn is predicted greedily from the *real* turns before it, and compared as
text. Whether acting in the imagined world transfers is another question, see
`gym_llmworld.comparison`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gym_llmworld import metrics
from gym_llmworld.backends.base import Backend, Confirmer
from gym_llmworld.core import Completion, Episode, Sampling
from gym_llmworld.errors import BackendError, ContextOverflow
from gym_llmworld.metrics import Progress, Turn
from gym_llmworld.protocol import SUCCESS_MARKER, ParseStatus, Protocol

MISTAKES_KEPT = 50
# What a gigabyte of keys and values holds of long episodes: more would push each other out.
BATCH_SIZE = 16


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """One-step predictions of a model on real episodes.

    Attributes:
        turns: All predicted turns, episode after episode.
        episode_of: ``turns[i]`` belongs to the episode with this index.
        episodes: How many episodes there were.
        errors: Turns without a complete answer, by reason (`ParseStatus` values, or ``"backend"``).
            They are wrong turns, not missing ones.
        rejected: Turns that no model is asked about: their actions may not enter a chat, and the
            world's rejection text answers them. They are no part of ``turns``.
        seconds: Wall-clock time of all model calls.
        prompt_tokens: Tokens of all prompts.
        cached_tokens: How many of them the backend did not compute again.
        canonical: Puts the lists of an observation into one order, see `evaluate_episodes`.
        credit: Partial credit of a prediction, see `evaluate_episodes`.
    """

    turns: tuple[Turn, ...]
    episode_of: tuple[int, ...]
    episodes: int
    errors: Mapping[str, int]
    rejected: int
    seconds: float
    prompt_tokens: int = 0
    cached_tokens: int = 0
    canonical: Callable[[str], str] | None = None
    credit: Callable[[str, str], float] | None = None

    @property
    def em(self) -> metrics.ExactMatch:
        """Exact match, whole and in parts."""
        canonical = None if self.canonical is None else _beside_marker(self.canonical)
        return metrics.exact_match_rates(self.turns, canonical)

    def to_json(
        self, *, env_id: str, model: str, prompt_style: str | None = None
    ) -> dict[str, Any]:
        """Returns the report of ``llmworld evaluate``; rates are fractions, undefined ones None.

        ``success`` says whether successes are claimed where they are real, see `SuccessMatch`;
        ``em["as_sets"]`` stands only where the engine leaves the order of lists open, ``credit``
        (of the predictions, and of repeating the last observation) only where the world has one.
        """
        em = self.em
        parts = {
            "all": em.all,
            "changed": em.changed,
            "unchanged": em.unchanged,
            "copy_baseline": em.copy_baseline,
            "majority_baseline": em.majority_baseline,
        }
        if em.as_sets is not None:
            parts["as_sets"] = em.as_sets
        return {
            "env_id": env_id,
            "model": model,
            "prompt_style": prompt_style,
            "n": em.all.n,
            "em": {name: rate.value for name, rate in parts.items()},
            "counts": {name: {"hits": rate.hits, "n": rate.n} for name, rate in parts.items()},
            "by_step": metrics.rates_to_json(em.by_step),
            "by_verb": metrics.rates_to_json(em.by_verb),
            "episodes": self.episodes,
            "errors": dict(self.errors),
            "rejected": self.rejected,
            "seconds": self.seconds,
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "success": self._successes(),
            **self._credits(),
            "mistakes": self._mistakes(),
        }

    def _successes(self) -> dict[str, Any]:
        # A turn without an answer claims nothing.
        match = metrics.success_match(
            [
                ((turn.prediction or "").endswith(SUCCESS_MARKER),
                 turn.truth.endswith(SUCCESS_MARKER))
                for turn in self.turns
            ]
        )  # fmt: skip
        return {"confirmed": match.confirmed.to_json(), "found": match.found.to_json()}

    def _credits(self) -> dict[str, Any]:
        if self.credit is None or not self.turns:
            return {}
        texts = [
            [
                text.removesuffix(SUCCESS_MARKER)
                for text in (t.prediction or "", t.previous, t.truth)
            ]
            for t in self.turns
        ]
        told = [self.credit(prediction, truth) for prediction, _, truth in texts]
        copied = [self.credit(previous, truth) for _, previous, truth in texts]
        mean = {"model": sum(told) / len(told), "copy_baseline": sum(copied) / len(copied)}
        return {"credit": {**mean, "name": self.credit.__name__, "n": len(told)}}

    def _mistakes(self) -> list[dict[str, Any]]:
        wrong = (
            {
                "episode": episode,
                "step": turn.step,
                "action": turn.action,
                "previous": turn.previous,
                "truth": turn.truth,
                "prediction": turn.prediction,
            }
            for episode, turn in zip(self.episode_of, self.turns, strict=True)
            if not turn.correct
        )
        return [mistake for mistake, _ in zip(wrong, range(MISTAKES_KEPT), strict=False)]


def _beside_marker(canonical: Callable[[str], str]) -> Callable[[str], str]:
    """Keeps the success marker at the end, where sorting would move it with the last thing."""

    def whole(text: str) -> str:
        observation = text.removesuffix(SUCCESS_MARKER)
        return canonical(observation) + text[len(observation) :]

    return whole


def evaluate_episodes(
    backend: Backend,
    protocol: Protocol,
    episodes: Sequence[Episode],
    *,
    batch_size: int = BATCH_SIZE,
    max_tokens: int = 512,
    canonical: Callable[[str], str] | None = None,
    credit: Callable[[str, str], float] | None = None,
    progress: Progress | None = None,
) -> EvaluationResult:
    """Predicts every turn of real episodes from the real turns before it, greedily.

    Episodes advance side by side, turn by turn, ``batch_size`` of them at a time, so that a backend
    which keeps prefixes computes each turn once.

    Args:
        backend: The world model.
        protocol: Its prompt style.
        episodes: Real ones. An action that may not enter a chat is not asked about.
        batch_size: Conversations per model call.
        max_tokens: Upper bound of a prediction; a longer one is wrong.
        canonical: Puts an observation's lists into one order (``World.canonical``); asks for exact
            match with lists compared as sets, beside the strict one.
        credit: Partial credit of a prediction, given the truth (``World.credit``).
        progress: Told about predicted turns.

    Returns:
        Every turn with its prediction.

    Raises:
        BackendError: The backend failed as a whole; a failure of one conversation is a wrong turn.
        DataError: An observation ends with the success marker.
        ValueError: ``batch_size`` is not positive.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be >= 1, got {batch_size}")
    runner = _TeacherForcing(backend, protocol, max_tokens)
    # Episodes of similar length share a group, so that its later batches stay full.
    order = sorted(range(len(episodes)), key=lambda i: len(episodes[i].steps), reverse=True)
    total = sum(len(episode.steps) for episode in episodes)
    started = time.perf_counter()
    for begin in range(0, len(order), batch_size):
        group = order[begin : begin + batch_size]
        for _ in runner.run([(i, episodes[i]) for i in group]):
            if progress:
                progress(runner.done, total)
    seconds = time.perf_counter() - started
    turns = sorted(runner.turns, key=lambda row: (row[0], row[1].step))
    return EvaluationResult(
        turns=tuple(turn for _, turn in turns),
        episode_of=tuple(episode for episode, _ in turns),
        episodes=len(episodes),
        errors=dict(runner.errors),
        rejected=runner.done - len(turns),
        seconds=seconds,
        prompt_tokens=runner.prompt_tokens,
        cached_tokens=runner.cached_tokens,
        canonical=canonical,
        credit=credit,
    )


@dataclass
class _TeacherForcing:
    backend: Backend
    protocol: Protocol
    max_tokens: int
    turns: list[tuple[int, Turn]] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    done: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0

    def run(self, group: Sequence[tuple[int, Episode]]) -> Iterator[None]:
        """Predicts one turn of every episode that still has one, then yields."""
        for t in range(max((len(episode.steps) for _, episode in group), default=0)):
            going = [(i, episode) for i, episode in group if t < len(episode.steps)]
            self.done += len(going)
            asked = [
                (i, episode)
                for i, episode in going
                if self.protocol.admit(episode.steps[t].action) is not None
            ]
            if asked:
                answers = self._answers([episode for _, episode in asked], t)
                for (i, episode), answer in zip(asked, answers, strict=True):
                    self.turns.append((i, self._turn(episode, t, answer)))
            yield

    def _answers(self, episodes: Sequence[Episode], t: int) -> list[Completion | BackendError]:
        lessons = [self.protocol.lesson(e.scenario, e.steps[:t], e.steps[t]) for e in episodes]
        chats, labels = [chat for chat, _ in lessons], [label for _, label in lessons]
        confirmed: list[Completion | None] = [None] * len(chats)
        if isinstance(self.backend, Confirmer) and not self.protocol.reasoning:
            # Writing what is right anyway would cost a forward pass per token.
            confirmed = self.backend.confirm(chats, labels, self.max_tokens)
        left = [chat for chat, known in zip(chats, confirmed, strict=True) if known is None]
        sampling = Sampling(temperature=0.0, max_tokens=self.max_tokens)
        written = iter(self.backend.generate(left, [sampling] * len(left)) if left else [])
        return [next(written) if known is None else known for known in confirmed]

    def _turn(self, episode: Episode, t: int, answer: Completion | BackendError) -> Turn:
        step = episode.steps[t]
        return Turn(
            step=t + 1,
            action=step.action,
            previous=episode.steps[t - 1].observation if t else episode.scenario.observation,
            truth=self.protocol.target(step),
            prediction=self._read(episode, t, answer),
        )

    def _read(self, episode: Episode, t: int, answer: Completion | BackendError) -> str | None:
        if isinstance(answer, BackendError):
            overflow = isinstance(answer, ContextOverflow)
            self.errors[ParseStatus.CONTEXT.value if overflow else "backend"] += 1
            return None
        self.prompt_tokens += answer.prompt_tokens
        self.cached_tokens += answer.cached_tokens
        prediction = self.protocol.decode(episode.scenario, answer, episode.steps[:t])
        if prediction.status is not ParseStatus.OK:
            self.errors[prediction.status.value] += 1
            return None
        return prediction.observation + (SUCCESS_MARKER if prediction.success else "")
