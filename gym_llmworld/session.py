"""One imagined episode as a value, without I/O.

A `Session` says which chat asks for the next observation (`Session.prompt`) and what an answer
means (`Session.advance`). Who fetches the answer is the caller's business, so the scalar
environment, the vector environment, evaluation and search all drive the same machine, and a fork is
a copy of a value.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from gym_llmworld.core import Completion, Message, Scenario, Source, Step
from gym_llmworld.errors import ContextOverflow
from gym_llmworld.protocol import ParseStatus, Protocol


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step led to.

    Attributes:
        session: The episode after the step.
        step: The step itself.
        status: How the action was answered.
        source: Who answered: the model, or a rule of the world.
        confidence: Probability that the model gave its answer, in [0, 1]; None when unknown.
    """

    session: Session
    step: Step
    status: ParseStatus
    source: Source
    confidence: float | None = None


@dataclass(frozen=True, slots=True)
class Session:
    """An imagined episode so far.

    Attributes:
        protocol: The text contract with the model.
        scenario: Where it started.
        rejection: What the world answers to actions outside its grammar.
        steps: What has happened, in order.
    """

    protocol: Protocol
    scenario: Scenario
    rejection: str
    steps: tuple[Step, ...] = ()

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
        prediction = self.protocol.decode(answer)
        step = Step(
            action=action,
            observation=prediction.observation,
            reward=1.0 if prediction.success else 0.0,
            terminated=prediction.success,
            truncated=prediction.status is not ParseStatus.OK,
        )
        return self._outcome(step, prediction.status, "model", prediction.confidence)

    def _outcome(
        self, step: Step, status: ParseStatus, source: Source, confidence: float | None = None
    ) -> Outcome:
        session = dataclasses.replace(self, steps=(*self.steps, step))
        return Outcome(session, step, status, source, confidence)
