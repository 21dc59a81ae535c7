"""`World`: what the rest of the package needs to know about a mirrored environment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from gym_llmworld.agents import Agent
from gym_llmworld.core import Scenario, Step
from gym_llmworld.errors import CheckpointError
from gym_llmworld.protocol import REASONED, Protocol, Wording

GIVEN_CONTEXT = "context"
"""Key of ``Scenario.hidden`` under which a finished context stands; every style passes it on."""


@dataclass(frozen=True)
class World:
    """A mirrored environment.

    Attributes:
        key: As in ``Scenario.world``.
        title: As in the environment ids, ``LLMWorld-<title>-v0``.
        rejection: What the engine answers to anything outside its grammar.
        contexts: Prompt style -> the system message of a scenario.
        wordings: Prompt style -> what makes the `Wording` of an episode, for styles that have one.
        namings: Prompt style -> what exchanges names in an episode, see `Protocol.naming`.
        ends: Tells whether an observation that did not solve the task ends the episode.
        read_action: Returns an action in the one form that models of the world know; None for what
            it cannot read, which gets ``rejection``. None where models know all forms.
        agents: Name -> factory of an agent that knows this world.
        real_entry_point: ``module:Class`` of the twin.
        real_policies: Name -> ``module:Class`` of agents that need the engine itself.
        games_module: Module whose ``write_games`` makes the engine's games; ``load_games``
            reads them.
        embedded: A world model ships with the package.
        extra: Extra of this package that installs the twin's engine.
        splits: Names of the scenario splits, the training split first.
        max_episode_steps: Default step limit of both twins.
        max_observation_chars: Upper bound of an observation's length.
        max_tokens: Upper bound of a generated observation, in tokens.
        temperature: Of the model in a scenario, unless a user says otherwise: 1 where the real
            environment leaves what happens to chance. None for 0 everywhere.
        canonical: Puts an observation's lists into one order, where the engine leaves their order
            open; None where it does not. Without a success marker.
        credit: ``credit(prediction, truth)`` in [0, 1]: partial credit by which a predicted
            observation is published beside exact match; None where there is none.
        milestones: ``milestones(scenario, steps)``: how much of the task is done, in [0, 1], before
            the first step and after each, by the observations alone; None where nobody counts them.
    """

    key: str
    title: str
    rejection: str
    contexts: Mapping[str, Callable[[Scenario], str]]
    agents: Mapping[str, Callable[[], Agent]]
    real_entry_point: str
    games_module: str
    extra: str
    splits: tuple[str, ...] = ("train", "valid_seen", "valid_unseen")
    embedded: bool = False
    real_policies: Mapping[str, str] = field(default_factory=dict)
    ends: Callable[[str], bool] | None = None
    read_action: Callable[[str], str | None] | None = None
    wordings: Mapping[str, Callable[[Scenario], Wording]] = field(default_factory=dict)
    namings: Mapping[str, Callable[[Scenario], Callable[[str], str]]] = field(default_factory=dict)
    max_episode_steps: int = 50
    max_observation_chars: int = 8192
    max_tokens: int = 512
    temperature: Callable[[Scenario], float] | None = None
    canonical: Callable[[str], str] | None = None
    credit: Callable[[str, str], float] | None = None
    milestones: Callable[[Scenario, Sequence[Step]], Sequence[float]] | None = None

    @property
    def imagined_id(self) -> str:
        """Gymnasium id of the learned environment."""
        return f"LLMWorld-{self.title}-v0"

    @property
    def real_id(self) -> str:
        """Gymnasium id of the mirrored environment."""
        return f"RealWorld-{self.title}-v0"

    def protocol(self, style: str) -> Protocol:
        """Returns the text contract of a prompt style, which may end in `REASONED`.

        Raises:
            CheckpointError: This world has no such style.
        """
        plain = style.removesuffix(REASONED)
        if plain not in self.contexts:
            raise CheckpointError(
                f"{self.title} has no prompt style {style!r}; expected one of "
                f"{', '.join(self.contexts)} (set by llmworld.json or prompt_style=)"
            )
        context = self.contexts[plain]

        def worded(scenario: Scenario) -> str:
            # Published data sets carry the finished context, without the facts behind it.
            given = scenario.hidden.get(GIVEN_CONTEXT)
            return context(scenario) if given is None else str(given)

        return Protocol(
            style,
            worded,
            max_observation_chars=self.max_observation_chars,
            wording=self.wordings.get(plain),
            naming=self.namings.get(plain),
            ends=self.ends,
            read_action=self.read_action,
            reasoning=plain != style,
        )
