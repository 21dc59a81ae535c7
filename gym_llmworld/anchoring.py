"""Real observations that pull an imagined episode back.

Some answers cannot be guessed: search results, what lies in an unseen drawer. Word2World (arXiv
2512.18832, section 5.2) reports that real search results make imagined WebShop consistent, without
saying how. Here *rules* decide, step by step, when the mirrored environment (the *twin*) answers in
the model's place:

* ``"every:5"``: every fifth step of an episode;
* ``"random:0.2"``: each step with this probability, drawn from the step's own seed;
* ``"confidence<0.8"``: the model answers first; the twin replaces answers that the model is less
  sure of than this (``info["llmworld"]["confidence"]``), or that cannot be used at all;
* anything else, such as ``"search["`` or ``"open "``: actions that begin so, in any case.

The twin is brought to the same point by replaying the episode's actions, and only when it is asked:
if it already stands at an earlier point of this episode, only the missing actions are replayed.
What it then shows is compared with what was imagined, so that a divergence is noticed as well.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import gymnasium as gym
import numpy as np

from gym_llmworld.contract import engine_failure
from gym_llmworld.core import Scenario, Step
from gym_llmworld.errors import BackendError, EngineError
from gym_llmworld.metrics import exact_match
from gym_llmworld.protocol import ParseStatus
from gym_llmworld.session import Outcome, RealAnswer, Session

# Keeps the draw of ``random:p`` apart from everything else that follows from a step's seed.
_STREAM = 0xA7C
_RULES = "'every:K', 'random:P', 'confidence<X', or the beginning of an action such as 'search['"


@dataclass(frozen=True, slots=True)
class Prediction:
    """As much of a model's answer as a rule needs.

    Attributes:
        usable: A complete observation.
        confidence: Probability that it is right; None when unknown.
    """

    usable: bool
    confidence: float | None


@dataclass(frozen=True, slots=True)
class Question:
    """A step that may be answered by the twin.

    Attributes:
        action: As the agent sent it.
        number: Of the step, 1 for the episode's first action.
        seed: Of the step.
        prediction: The model's answer; None when the model was not asked yet.
    """

    action: str
    number: int
    seed: int
    prediction: Prediction | None = None


class Rule(Protocol):
    """Decides whether the twin answers."""

    @property
    def text(self) -> str:
        """The rule as users write it."""
        ...

    def fires(self, question: Question) -> bool:
        """Returns whether the twin has to answer."""
        ...


@dataclass(frozen=True, slots=True)
class OnAction:
    """Fires on actions that begin with ``text``."""

    text: str

    def fires(self, question: Question) -> bool:
        """Returns whether the action begins so."""
        return question.action.lstrip().lower().startswith(self.text.lower())


@dataclass(frozen=True, slots=True)
class Every:
    """Fires on steps ``k``, ``2 k``, ..."""

    text: str
    k: int

    def fires(self, question: Question) -> bool:
        """Returns whether it is such a step's turn."""
        return question.number % self.k == 0


@dataclass(frozen=True, slots=True)
class AtRandom:
    """Fires with probability ``p``."""

    text: str
    p: float

    def fires(self, question: Question) -> bool:
        """Draws from the step's seed, so that a fork or a replay draws the same."""
        return bool(np.random.default_rng((question.seed, _STREAM)).random() < self.p)


@dataclass(frozen=True, slots=True)
class Unsure:
    """Fires on answers of the model with less confidence than ``threshold``, or unusable ones."""

    text: str
    threshold: float

    def fires(self, question: Question) -> bool:
        """Returns whether the model has answered, and is not sure enough.

        Raises:
            BackendError: The backend does not say how sure the model was.
        """
        prediction = question.prediction
        if prediction is None:
            return False
        if not prediction.usable:
            return True
        if prediction.confidence is None:
            raise BackendError(
                f"anchor={self.text!r} needs the model's confidence, and its backend reports no "
                "log-probabilities; use another backend (hf, vLLM), or 'every:K', 'random:P' or an "
                "action"
            )
        return prediction.confidence < self.threshold


def parse_rule(text: str) -> Rule:
    """Reads a rule.

    Raises:
        ValueError: It is none; the message says what is expected.
    """
    match = re.fullmatch(r"(\w+)\s*([:<=>]+)\s*(\S*)", text.strip())
    if match is None:
        if not text.strip():
            raise ValueError(f"an anchor rule must be {_RULES}; got {text!r}")
        # A blank in front cannot matter, one behind does: "open " is not "opener".
        return OnAction(text.lstrip())
    kind = match[1] + match[2]
    if kind not in _PARSERS:
        raise ValueError(f"unknown anchor rule {text!r}; expected {_RULES}")
    read, build, allowed, wanted = _PARSERS[kind]
    try:
        value = read(match[3])
    except ValueError:
        value = float("nan")
    if not allowed(value):
        raise ValueError(f"anchor rule {text!r}: expected {wanted}, got {match[3]!r}")
    return build(text.strip(), value)


_Parser = tuple[Callable[[str], float], Callable[[str, Any], Rule], Callable[[float], bool], str]
_PARSERS: Mapping[str, _Parser] = {
    "every:": (int, Every, lambda k: k >= 1, "a whole number of steps, at least 1"),
    "random:": (float, AtRandom, lambda p: 0 <= p <= 1, "a probability in [0, 1]"),
    "confidence<": (float, Unsure, lambda x: 0 < x <= 1, "a probability in (0, 1]"),
}


@dataclass(frozen=True)
class Anchoring:
    """When the twin answers.

    Attributes:
        rules: Any of them suffices.
        budget: How many of an episode's steps the twin may answer; None for any number. Steps that
            are taken back (undo, restore) no longer count.
    """

    rules: tuple[Rule, ...]
    budget: int | None = None

    @classmethod
    def parse(cls, anchor: str | Sequence[str], budget: int | None = None) -> Anchoring:
        """Reads what users pass to ``gym.make``.

        Args:
            anchor: One rule, or several.
            budget: See the class.

        Raises:
            ValueError: A rule or the budget makes no sense.
        """
        if budget is not None and budget < 0:
            raise ValueError(f"anchor_budget must be at least 0, or None, got {budget}")
        texts = [anchor] if isinstance(anchor, str) else list(anchor)
        if not texts:
            raise ValueError(f"anchor needs at least one rule: {_RULES}; got {anchor!r}")
        return cls(tuple(parse_rule(text) for text in texts), budget)

    def decide(
        self, session: Session, action: str, seed: int, outcome: Outcome | None = None
    ) -> str | None:
        """Returns the rule that has the twin answer, None where the model does.

        Args:
            session: The episode before the step.
            action: The action.
            seed: Of the step.
            outcome: What the model answered; None before it was asked.
        """
        if self.budget is not None and len(session.anchors) >= self.budget:
            return None
        prediction = None if outcome is None else _prediction(outcome)
        return self.first(Question(action, len(session.steps) + 1, seed, prediction))

    def first(self, question: Question) -> str | None:
        """Returns the first rule that fires, whatever the budget."""
        return next((rule.text for rule in self.rules if rule.fires(question)), None)


def _prediction(outcome: Outcome) -> Prediction:
    # The world's own rejection is no guess.
    if outcome.status is ParseStatus.REJECTED:
        return Prediction(True, 1.0)
    return Prediction(outcome.status is ParseStatus.OK, outcome.confidence)


@dataclass
class Twin:
    """The mirrored environment of one imagined episode, opened when it is first needed.

    A copy starts without an engine of its own and opens one when asked, so forks do not disturb
    each other.

    Attributes:
        env_id: Gymnasium id of the mirrored environment.
        options: Further arguments of ``gym.make``.
    """

    env_id: str
    options: Mapping[str, Any]
    _env: gym.Env[str, str] | None = None
    _scenario: Scenario | None = None
    _opening: str = ""
    _steps: list[Step] = field(default_factory=list)
    _info: Mapping[str, Any] = field(default_factory=dict)

    def __deepcopy__(self, memo: dict[int, Any]) -> Twin:
        """Returns a twin for another episode."""
        return Twin(self.env_id, self.options)

    def start(self, scenario: Scenario) -> None:
        """Brings the twin to the beginning of an episode.

        Raises:
            MissingDependency: The engine is not installed.
            ScenarioError: The engine cannot play this scenario.
            EngineError: The engine cannot start.
        """
        if self._env is None:
            # Without wrappers: the imagined environment's own step limit counts.
            self._env = gym.make(self.env_id, disable_env_checker=True, **self.options).unwrapped
        self._scenario, self._steps = None, []
        # Where chance decides, a scenario has its own luck, the same whenever it is replayed.
        self._opening, self._info = self._env.reset(
            seed=zlib.crc32(scenario.id.encode()), options={"scenario": scenario.to_json()}
        )
        self._scenario = scenario

    def answer(self, session: Session, action: str) -> RealAnswer:
        """Returns what ``action`` leads to in the real world.

        Where reality had ended before this action, unnoticed by the model, its ending is the
        answer: the same observation, reward and flags again.

        Args:
            session: The episode before the action.
            action: As the agent sent it.

        Raises:
            EngineError: The engine failed.
            ScenarioError: The engine cannot play this scenario.
            DataError: The engine's game is damaged.
        """
        replayed = self._bring_to(session)
        diverged = self._divergence(session)
        if not self._over:
            self._take(action)
        end = self._steps[-1]
        step = Step(action, end.observation, end.reward, end.terminated, end.truncated)
        return RealAnswer(step, diverged, self._info, replayed)

    def close(self) -> None:
        """Ends the engine; it is opened again when needed."""
        if self._env is not None:
            self._env.close()
        self._env = self._scenario = None

    @property
    def _over(self) -> bool:
        return bool(self._steps) and (self._steps[-1].terminated or self._steps[-1].truncated)

    def _bring_to(self, session: Session) -> int:
        """Replays what is missing; returns how many steps that took."""
        actions = [step.action for step in session.steps]
        played = [step.action for step in self._steps]
        if self._scenario != session.scenario or actions[: len(played)] != played:
            self.start(session.scenario)
        before = len(self._steps)
        for action in actions[before:]:
            if self._over:
                break
            self._take(action)
        return len(self._steps) - before

    def _take(self, action: str) -> None:
        assert self._env is not None
        observation, reward, terminated, truncated, info = self._env.step(action)
        if error := engine_failure(info):
            raise EngineError(error)
        self._steps.append(Step(action, observation, float(reward), terminated, truncated))
        self._info = info

    def _divergence(self, session: Session) -> int | None:
        if not exact_match(session.scenario.observation, self._opening):
            return 0
        for number, (imagined, real) in enumerate(
            zip(session.steps, self._steps, strict=False), start=1
        ):
            # The imagined episode goes on after each of its steps.
            ended = real.terminated or real.truncated
            if ended or not exact_match(imagined.observation, real.observation):
                return number
        return None
