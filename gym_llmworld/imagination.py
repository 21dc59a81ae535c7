"""What the imagined worlds of an environment share: model, protocol, scenarios, sampling.

`env.py` drives one session with it and `vector.py` many; both are thin, so that N worlds in one
batch behave as N worlds alone.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gym_llmworld import backends
from gym_llmworld.backends.base import Backend
from gym_llmworld.checkpoints import checkpoint_style, embedded_model
from gym_llmworld.contract import world_info
from gym_llmworld.core import Completion, Message, Sampling, Scenario, Step
from gym_llmworld.errors import ContextOverflow, ScenarioError, WorldModelError
from gym_llmworld.protocol import ParseStatus, Protocol
from gym_llmworld.scenarios import ScenarioStore
from gym_llmworld.session import Outcome, Session
from gym_llmworld.worlds import World, get_world

_OPTIONS = ("scenario", "split", "start")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A state to come back to: where the episode stands, and the random generator.

    Attributes:
        scenario: Where the episode started.
        steps: What had happened.
        rng: State of ``np_random``'s bit generator.
    """

    scenario: Scenario
    steps: tuple[Step, ...]
    rng: Mapping[str, Any]


@dataclass
class Stats:
    """What was spent, since the environment was made. Kept out of ``info``, which must replay.

    Attributes:
        steps: Steps taken, ``what_if`` included.
        model_calls: Batched calls of the backend.
        requests: Conversations in those calls.
        prompt_tokens: Tokens of all prompts.
        cached_tokens: Those of them that were not computed again.
        generated_tokens: Where the backend reports log-probabilities.
        seconds: Spent in the backend.
    """

    steps: int = 0
    model_calls: int = 0
    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    seconds: float = 0.0


@dataclass
class Imagination:
    """Starts sessions and answers their actions.

    Attributes:
        world: The mirrored world.
        protocol: The text contract with the model.
        backend: Who writes the observations; shared by all environments of the process.
        store: The scenarios.
        split: Split to draw from by default.
        sampling: Of every observation; the seed is replaced per step.
        stats: What was spent.
    """

    world: World
    protocol: Protocol
    backend: Backend
    store: ScenarioStore
    split: str
    sampling: Sampling
    stats: Stats = field(default_factory=Stats)

    @classmethod
    def open(
        cls,
        world: str,
        *,
        model: str | None = None,
        backend: str = "auto",
        backend_options: Mapping[str, Any] | None = None,
        prompt_style: str | None = None,
        scenarios: str | None = None,
        split: str = "train",
        temperature: float = 0.0,
        top_p: float = 1.0,
        max_tokens: int | None = None,
    ) -> Imagination:
        """Loads the scenarios, and loads or joins the engine.

        Args:
            world: Key of the mirrored world.
            model: Checkpoint folder or hub id; None for the model that ships with the package.
            backend: ``"auto"`` or the name of a backend.
            backend_options: Passed to the backend.
            prompt_style: How the context is worded; None for what the checkpoint says.
            scenarios: File or folder of scenarios; None for those that ship with the package.
            split: Split to draw scenarios from, unless a reset says otherwise.
            temperature: Of the model; 0 is greedy.
            top_p: Nucleus of the model.
            max_tokens: Upper bound of an observation in tokens; None for the world's default.

        Raises:
            ScenarioError: Unknown world, scenarios or split.
            CheckpointError: The model cannot serve as a world model.
            MissingDependency: The backend needs an extra that is not installed.
        """
        spec = get_world(world)
        store = ScenarioStore(world, scenarios)
        store.of_split(split)
        sampling = Sampling(temperature, top_p, max_tokens or spec.max_tokens)
        name = embedded_model(world) if model is None else model
        protocol = spec.protocol(prompt_style or checkpoint_style(name))
        engine = backends.load_backend(name, backend, **(backend_options or {}))
        return cls(spec, protocol, engine, store, split, sampling)

    def begin(self, rng: np.random.Generator, options: Mapping[str, Any] | None) -> Session:
        """Returns a fresh session.

        Args:
            rng: Draws the scenario, where the options do not name one.
            options: ``{"scenario": id | dict}``, ``{"split": name}`` or ``{"start": Snapshot}``.

        Raises:
            ScenarioError: Unknown option, scenario or split.
        """
        options = dict(options or {})
        unknown = sorted(set(options) - set(_OPTIONS))
        if unknown:
            raise ScenarioError(
                f"unknown reset option {unknown[0]!r}; expected {', '.join(_OPTIONS)}"
            )
        start = options.get("start")
        if start is not None:
            if not isinstance(start, Snapshot):
                raise ScenarioError(
                    f"option 'start' must be what snapshot() returned, got {type(start).__name__}"
                )
            return self.session(self.store.get(start.scenario), start.steps)
        if options.get("scenario") is not None:
            return self.session(self.store.get(options["scenario"]))
        pool = self.store.of_split(options.get("split") or self.split)
        return self.session(pool[int(rng.integers(len(pool)))])

    def session(self, scenario: Scenario, steps: tuple[Step, ...] = ()) -> Session:
        """Returns a session at this point of an episode."""
        return Session(self.protocol, scenario, self.world.rejection, steps)

    def ask(self, requests: Sequence[tuple[Session, str, int]]) -> list[Outcome]:
        """Answers many actions with at most one call of the backend.

        Args:
            requests: ``(session, action, sampling seed)``.

        Returns:
            One outcome per request, in order.

        Raises:
            BackendError: The backend failed on something else than a full context.
        """
        prompts = [session.prompt(action) for session, action, _ in requests]
        asked = [i for i, prompt in enumerate(prompts) if prompt is not None]
        answers: dict[int, Completion | ContextOverflow] = {}
        if asked:
            answers = dict(zip(asked, self._generate(prompts, requests, asked), strict=True))
        self.stats.steps += len(requests)
        return [
            session.advance(action, answers.get(i))
            for i, (session, action, _) in enumerate(requests)
        ]

    def _generate(
        self,
        prompts: Sequence[tuple[Message, ...] | None],
        requests: Sequence[tuple[Session, str, int]],
        asked: Sequence[int],
    ) -> list[Completion | ContextOverflow]:
        chats = [prompt for prompt in prompts if prompt is not None]
        base = self.sampling
        samplings = [
            Sampling(base.temperature, base.top_p, base.max_tokens, requests[i][2]) for i in asked
        ]
        started = time.perf_counter()
        results = self.backend.generate(chats, samplings)
        self.stats.seconds += time.perf_counter() - started
        self.stats.model_calls += 1
        self.stats.requests += len(chats)
        answers: list[Completion | ContextOverflow] = []
        for result in results:
            if isinstance(result, Completion):
                self.stats.prompt_tokens += result.prompt_tokens
                self.stats.cached_tokens += result.cached_tokens
                self.stats.generated_tokens += len(result.logprobs)
            elif not isinstance(result, ContextOverflow):
                raise result
            answers.append(result)
        if len(answers) != len(chats):
            raise WorldModelError(
                f"backend {self.backend.name} answered {len(answers)} of {len(chats)} chats"
            )
        return answers

    def first_info(self, session: Session) -> dict[str, Any]:
        """Returns the info of a reset."""
        last = session.steps[-1] if session.steps else None
        return world_info(
            admissible=session.scenario.admissible if last is None else None,
            won=False,
            llmworld=_llmworld(session, "model", None, ParseStatus.OK),
        )

    def step_info(self, outcome: Outcome) -> dict[str, Any]:
        """Returns the info of a step."""
        return world_info(
            admissible=None,
            won=outcome.step.terminated and outcome.step.reward > 0,
            llmworld=_llmworld(outcome.session, outcome.source, outcome.confidence, outcome.status),
        )


def _llmworld(
    session: Session, source: str, confidence: float | None, status: ParseStatus
) -> dict[str, Any]:
    return {
        "source": source,
        "confidence": confidence,
        "status": status.value,
        "scenario": session.scenario.id,
    }
