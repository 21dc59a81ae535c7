"""Looking before an action that cannot be undone.

Word2World's pre-execution verification (arXiv 2512.18832, section 7.1): before an action that
cannot be taken back (a purchase), the world model simulates it from the real episode so far. Only
when it predicts success is the action carried out; otherwise the agent is told so and goes on, up
to a number of checks per episode. What a refused agent is told, and what a broken simulation
means, the paper leaves open: here it is told in words and shown the present state again, and an
action that the model cannot judge is carried out.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any, Literal, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium.error import InvalidAction, ResetNeeded

from gym_llmworld.core import Scenario, Step
from gym_llmworld.errors import BackendError
from gym_llmworld.imagination import Imagination
from gym_llmworld.protocol import ParseStatus
from gym_llmworld.session import Outcome

REFUSAL = (
    "Nothing was done: a simulation predicts that this would not solve the task, and it cannot be "
    "undone. You may go on, check what is missing, or try something else. You still see:"
)
"""What a refused agent reads, before the present observation."""

Verdict = Literal["success", "failure", "unknown"]


@dataclass(frozen=True, slots=True)
class Verification:
    """What the checks of an episode have led to so far.

    Attributes:
        checks: Actions that were simulated first.
        passed: Those of them that were carried out because success was predicted.
        refused: Those that were not carried out because it was not.
        unknown: Those that were carried out because the model gave no usable answer.
        unchecked: Irreversible actions that were carried out after the checks were used up.
    """

    checks: int = 0
    passed: int = 0
    refused: int = 0
    unknown: int = 0
    unchecked: int = 0


class VerifiedEnv(gym.Wrapper[str, str, str, str]):
    """Simulates irreversible actions in a world model, and withholds those that would fail.

    A withheld action takes no real step: the episode stands where it stood, with reward 0, and the
    observation is ``refusal`` followed by the present observation. ``info["verification"]`` has the
    counts of `Verification` and ``verdict``, on the last action: ``"success"``, ``"failure"`` (it
    was withheld), ``"unknown"`` (no usable answer: carried out), or None (it was not simulated).

    Success is what the world model's protocol calls so, a step that solves the task. Where an
    irreversible action is right without solving the task (ScienceWorld's "focus on", in many of its
    tasks) a refusal says little.

    Args:
        env: A real environment whose ``unwrapped.scenario`` says where the episode started, as the
            twins of this package have it. Its observations are what the model is shown.
        imagination: The world model; `close` closes its backend.
        irreversible: A prefix of actions, such as ``"click[buy now]"``, without regard to case and
            blanks at the ends; or a compiled regular expression, which is searched for.
        max_checks: Simulations per episode; later irreversible actions are carried out unseen.
        refusal: Text for a refused agent; empty for the present observation alone, which suits
            agents that read nothing but the world's own wording.

    Raises:
        ValueError: ``irreversible`` is empty, or ``max_checks`` negative.
    """

    def __init__(
        self,
        env: gym.Env[str, str],
        imagination: Imagination,
        irreversible: str | re.Pattern[str],
        *,
        max_checks: int = 2,
        refusal: str = REFUSAL,
    ) -> None:
        super().__init__(env)
        if max_checks < 0:
            raise ValueError(f"max_checks must be >= 0, got {max_checks}")
        self.imagination = imagination
        self.max_checks = max_checks
        self.refusal = refusal
        self._pattern = action_pattern(irreversible)
        self._rng = np.random.default_rng(0)
        self._scenario: Scenario | None = None
        self._steps: tuple[Step, ...] = ()
        self._info: dict[str, Any] = {}
        self._counts = Verification()

    @property
    def counts(self) -> Verification:
        """What the checks of this episode have led to so far."""
        return self._counts

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Starts an episode.

        Raises:
            TypeError: The environment does not say which scenario it plays.
        """
        observation, info = self.env.reset(seed=seed, options=options)
        scenario = getattr(self.env.unwrapped, "scenario", None)
        if not isinstance(scenario, Scenario):
            raise TypeError(
                "verification needs a real environment whose unwrapped.scenario is a Scenario (as "
                f"RealWorld-* environments have it); {type(self.env.unwrapped).__name__}.scenario "
                f"is {type(scenario).__name__}"
            )
        # A generator of its own: drawing from the environment's would change the real episode.
        self._rng = np.random.default_rng(seed)
        self._scenario, self._steps, self._counts = scenario, (), Verification()
        self._info = info
        return observation, self._with_counts(info, None)

    def step(self, action: str) -> tuple[str, SupportsFloat, bool, bool, dict[str, Any]]:
        """Carries out an action, or withholds it.

        Raises:
            InvalidAction: The action is not a string.
            ResetNeeded: No episode was started.
        """
        if self._scenario is None:
            raise ResetNeeded("call env.reset() before anything else")
        if not isinstance(action, str):
            raise InvalidAction(
                f"an action must be a str, got {type(action).__name__}: {action!r:.80}"
            )
        verdict = None if self._over else self._judge(action, self._scenario)
        if verdict == "failure":
            text = "\n".join(filter(None, (self.refusal, self._present(self._scenario))))
            return text, 0.0, False, False, self._with_counts(self._info, verdict)
        observation, reward, terminated, truncated, self._info = self.env.step(action)
        step = Step(action, observation, float(reward), terminated, truncated)
        self._steps = (*self._steps, step)
        return observation, reward, terminated, truncated, self._with_counts(self._info, verdict)

    def matches(self, action: str) -> bool:
        """Returns whether this is one of the irreversible actions."""
        return self._pattern.search(action.strip()) is not None

    def close(self) -> None:
        """Closes the environment, and gives the model's engine back."""
        super().close()
        self.imagination.backend.close()

    @property
    def _over(self) -> bool:
        return bool(self._steps) and (self._steps[-1].terminated or self._steps[-1].truncated)

    def _judge(self, action: str, scenario: Scenario) -> Verdict | None:
        if not self.matches(action):
            return None
        counts = self._counts
        if counts.checks >= self.max_checks:
            self._counts = dataclasses.replace(counts, unchecked=counts.unchecked + 1)
            return None
        verdict = self._simulate(action, scenario)
        field = {"success": "passed", "failure": "refused", "unknown": "unknown"}[verdict]
        changes = {"checks": counts.checks + 1, field: getattr(counts, field) + 1}
        self._counts = dataclasses.replace(counts, **changes)
        return verdict

    def _simulate(self, action: str, scenario: Scenario) -> Verdict:
        session = self.imagination.session(scenario, self._steps)
        try:
            [outcome] = self.imagination.ask([(session, action, int(self._rng.integers(2**31)))])
        except BackendError:
            # A guard that is out of order must not stop the agent; the count says so.
            return "unknown"
        return _verdict(outcome)

    def _present(self, scenario: Scenario) -> str:
        return self._steps[-1].observation if self._steps else scenario.observation

    def _with_counts(self, info: dict[str, Any], verdict: Verdict | None) -> dict[str, Any]:
        return {**info, "verification": {**dataclasses.asdict(self._counts), "verdict": verdict}}


def action_pattern(irreversible: str | re.Pattern[str]) -> re.Pattern[str]:
    """Returns what is searched for in an action, see `VerifiedEnv`.

    Raises:
        ValueError: An empty prefix, which every action would match.
    """
    if isinstance(irreversible, re.Pattern):
        return irreversible
    prefix = irreversible.strip()
    if not prefix:
        raise ValueError("irreversible is empty; expected a prefix such as 'click[buy now]'")
    return re.compile(r"\A" + re.escape(prefix), re.IGNORECASE)


def _verdict(outcome: Outcome) -> Verdict:
    if outcome.source != "model" or outcome.status is not ParseStatus.OK:
        return "unknown"
    solved = outcome.step.terminated and outcome.step.reward > 0
    return "success" if solved else "failure"
