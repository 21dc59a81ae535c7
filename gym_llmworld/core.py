"""The nouns of the package: frozen values that every other module passes around.

They hold text and numbers only, so that an episode can be copied, compared, pickled and written as
JSON without knowing who produced it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length"]
Source = Literal["model", "real", "cache", "rule"]


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Scenario:
    """Where an episode starts.

    Attributes:
        id: Unique within its world, for example ``"alfworld-valid_seen-7"``.
        world: Key of the mirrored world, for example ``"alfworld"``.
        split: ``"train"``, ``"valid_seen"``, ``"valid_unseen"``, ...
        instruction: What the agent is asked to do.
        observation: The first observation, exactly as the agent sees it.
        admissible: Commands that the world accepts in the first state, or None when unknown.
        hidden: JSON-able facts that only the world model sees (what lies in the closed drawers);
            the world's prompt style words them. Empty when nothing is hidden.
        real: JSON-able facts that the real twin needs to start the same episode.
    """

    id: str
    world: str
    split: str
    instruction: str
    observation: str
    admissible: tuple[str, ...] | None = None
    hidden: Mapping[str, Any] = field(default_factory=dict)
    real: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Returns a dict that ``json.dumps`` accepts and `from_json` reads back."""
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        data["admissible"] = None if self.admissible is None else list(self.admissible)
        data["hidden"] = dict(self.hidden)
        data["real"] = dict(self.real)
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Scenario:
        """Reads what `to_json` wrote; unknown keys are ignored.

        Raises:
            KeyError: A required field is missing.
        """
        admissible = data.get("admissible")
        return cls(
            id=data["id"],
            world=data["world"],
            split=data["split"],
            instruction=data["instruction"],
            observation=data["observation"],
            admissible=None if admissible is None else tuple(admissible),
            hidden=dict(data.get("hidden") or {}),
            real=dict(data.get("real") or {}),
        )


@dataclass(frozen=True, slots=True)
class Step:
    """What an action led to.

    Attributes:
        action: The action as the agent sent it.
        observation: The observation that followed.
        reward: Reward of this step (success is 1.0 in the worlds shipped here).
        terminated: The world itself ended (solved or lost).
        truncated: Anything else ended the episode (step limit, cut-off prediction, ...).
    """

    action: str
    observation: str
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Episode:
    """A scenario and the steps taken from it.

    Attributes:
        scenario: Where it started.
        steps: In order.
        source: ``"real"`` for a mirrored environment, ``"model"`` for an imagined one.
        agent: Name of the policy that acted.
        seed: Seed of the policy.
    """

    scenario: Scenario
    steps: tuple[Step, ...]
    source: str
    agent: str
    seed: int = 0

    @property
    def success(self) -> bool:
        """True when the world ended the episode with a positive reward."""
        return bool(self.steps) and self.steps[-1].terminated and self.steps[-1].reward > 0

    @property
    def actions(self) -> tuple[str, ...]:
        """The actions, in order."""
        return tuple(step.action for step in self.steps)

    def to_json(self) -> dict[str, Any]:
        """Returns a dict that ``json.dumps`` accepts and `from_json` reads back."""
        return {
            "scenario": self.scenario.to_json(),
            "steps": [dataclasses.asdict(step) for step in self.steps],
            "source": self.source,
            "agent": self.agent,
            "seed": self.seed,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Episode:
        """Reads what `to_json` wrote; unknown keys are ignored.

        Raises:
            KeyError: A required field is missing.
        """
        return cls(
            scenario=Scenario.from_json(data["scenario"]),
            steps=tuple(
                Step(
                    action=step["action"],
                    observation=step["observation"],
                    reward=float(step["reward"]),
                    terminated=bool(step["terminated"]),
                    truncated=bool(step["truncated"]),
                )
                for step in data["steps"]
            ),
            source=data["source"],
            agent=data["agent"],
            seed=int(data.get("seed", 0)),
        )


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a backend samples one completion.

    Attributes:
        temperature: 0 means greedy.
        top_p: Nucleus, in (0, 1].
        max_tokens: Upper bound on generated tokens.
        seed: Of this request; ignored when greedy.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuses values that no backend can honour."""
        if self.temperature < 0:
            raise ValueError(f"temperature must be >= 0 (0 is greedy), got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be >= 1, got {self.max_tokens}")


@dataclass(frozen=True, slots=True)
class Completion:
    """What a backend wrote.

    Attributes:
        text: Without the end-of-turn token.
        finish_reason: ``"stop"`` when the model ended its turn, ``"length"`` when it was cut off.
        logprobs: Log-probability (natural log, untempered model distribution) of each generated
            token, the end-of-turn token included; empty when the backend cannot tell.
        prompt_tokens: Length of the prompt in tokens, 0 when unknown.
        cached_tokens: How many of them were not computed again.
    """

    text: str
    finish_reason: FinishReason
    logprobs: tuple[float, ...] = ()
    prompt_tokens: int = 0
    cached_tokens: int = 0


Chat = Sequence[Message]
