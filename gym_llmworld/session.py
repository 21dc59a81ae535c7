"""One imagined episode as a value, without I/O.

A `Session` says which chat asks for the next observation (`Session.prompt`) and what an answer
means (`Session.advance`). Who fetches the answer is the caller's business, so the scalar
environment, the vector environment, evaluation and search all drive the same machine, and a fork is
a copy of a value.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from gym_llmworld.core import Completion, Message, Scenario, Source, Step
from gym_llmworld.errors import ContextOverflow
from gym_llmworld.protocol import ParseStatus, Protocol


class AnchorStatus(StrEnum):
    """How an action was answered that the real twin was asked about; continues `ParseStatus`.

    Attributes:
        TWIN_FAILED: The twin's engine failed, which truncates the episode.
    """

    TWIN_FAILED = "twin_failed"


@dataclass(frozen=True, slots=True)
class Anchor:
    """A step that the real twin answered.

    Attributes:
        step: Its number, 1 for the episode's first action.
        diverged: The first step before it that the model had answered otherwise than the twin did
            when it was brought here; 0 when they began differently, None when all agree.
    """

    step: int
    diverged: int | None = None


@dataclass(frozen=True, slots=True)
class RealAnswer:
    """What the real twin answered.

    Attributes:
        step: The step.
        diverged: See `Anchor`.
        info: The twin's own info.
        replayed: Steps that the twin had to take first.
    """

    step: Step
    diverged: int | None
    info: Mapping[str, Any]
    replayed: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step led to.

    Attributes:
        session: The episode after the step.
        step: The step itself.
        status: How the action was answered.
        source: Who answered: the model, a rule of the world, or the real twin.
        confidence: Probability that the model's answer is right, in [0, 1]; None when unknown.
        rule: The rule that had the real twin answer.
        real: The twin's own info, where it answered.
        error: Why the twin could not answer.
    """

    session: Session
    step: Step
    status: ParseStatus | AnchorStatus
    source: Source
    confidence: float | None = None
    rule: str | None = None
    real: Mapping[str, Any] | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Session:
    """An imagined episode so far.

    Attributes:
        protocol: The text contract with the model.
        scenario: Where it started.
        rejection: What the world answers to actions outside its grammar.
        steps: What has happened, in order.
        anchors: Which of the steps the real twin answered, in order.
    """

    protocol: Protocol
    scenario: Scenario
    rejection: str
    steps: tuple[Step, ...] = ()
    anchors: tuple[Anchor, ...] = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Session:
        """Returns itself: a session is a value, so forks may share it."""
        return self

    @property
    def done(self) -> bool:
        """True after a step that terminated or truncated the episode."""
        return bool(self.steps) and (self.steps[-1].terminated or self.steps[-1].truncated)

    @property
    def observation(self) -> str:
        """The latest observation."""
        return self.steps[-1].observation if self.steps else self.scenario.observation

    @property
    def diverged(self) -> int | None:
        """The first step that is known to differ from the real world, see `Anchor.diverged`."""
        return next((a.diverged for a in self.anchors if a.diverged is not None), None)

    @property
    def source(self) -> str:
        """Who wrote the episode: ``"model"``, or ``"anchored"`` if the real twin helped."""
        return "anchored" if self.anchors else "model"

    def rewind(self, count: int) -> Session:
        """Returns the episode as it was after its first ``count`` steps."""
        kept = tuple(anchor for anchor in self.anchors if anchor.step <= count)
        return dataclasses.replace(self, steps=self.steps[:count], anchors=kept)

    def prompt(self, action: str) -> tuple[Message, ...] | None:
        """Returns the chat that asks what ``action`` leads to; None when a rule answers it."""
        if self.protocol.admit(action) is None:
            return None
        return self.protocol.encode(self.scenario, self.steps, action)

    def advance(self, action: str, answer: Completion | ContextOverflow | None) -> Outcome:
        """Returns the episode after ``action``.

        Args:
            action: As the agent sent it.
            answer: What the backend returned for `prompt`; None where `prompt` returned None.
        """
        if answer is None:
            return self._outcome(Step(action, self.rejection), ParseStatus.REJECTED, "rule")
        if isinstance(answer, ContextOverflow):
            return self._outcome(Step(action, "", truncated=True), ParseStatus.CONTEXT, "rule")
        prediction = self.protocol.decode(self.scenario, answer, self.steps)
        step = Step(
            action=action,
            observation=prediction.observation,
            reward=1.0 if prediction.success else 0.0,
            terminated=prediction.over,
            truncated=prediction.status is not ParseStatus.OK,
        )
        return self._outcome(step, prediction.status, "model", prediction.confidence)

    def anchor(self, answer: RealAnswer, rule: str) -> Outcome:
        """Returns the episode after a step that the real twin answered, because of ``rule``."""
        anchor = Anchor(len(self.steps) + 1, answer.diverged)
        outcome = self._outcome(answer.step, ParseStatus.OK, "real")
        session = dataclasses.replace(outcome.session, anchors=(*self.anchors, anchor))
        return dataclasses.replace(outcome, session=session, rule=rule, real=answer.info)

    def abandon(self, action: str, rule: str, error: str) -> Outcome:
        """Returns the episode, truncated, when ``rule`` asked for a twin that failed."""
        outcome = self._outcome(Step(action, "", truncated=True), AnchorStatus.TWIN_FAILED, "real")
        return dataclasses.replace(outcome, rule=rule, error=error)

    def _outcome(
        self,
        step: Step,
        status: ParseStatus | AnchorStatus,
        source: Source,
        confidence: float | None = None,
    ) -> Outcome:
        session = dataclasses.replace(self, steps=(*self.steps, step))
        return Outcome(session, step, status, source, confidence)
