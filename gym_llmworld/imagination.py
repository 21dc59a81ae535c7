"""What the imagined worlds of an environment share: model, protocol, scenarios, sampling.

`env.py` drives one session with it and `vector.py` many; both are thin, so that N worlds in one
batch behave as N worlds alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gym_llmworld import backends
from gym_llmworld.anchoring import Anchoring, Twin
from gym_llmworld.backends.base import Backend
from gym_llmworld.calibration import calibrated
from gym_llmworld.checkpoints import checkpoint_style, embedded_model
from gym_llmworld.contract import world_info
from gym_llmworld.core import Completion, Message, Sampling, Scenario, Step
from gym_llmworld.errors import (
    ContextOverflow,
    DataError,
    EngineError,
    ScenarioError,
    WorldModelError,
)
from gym_llmworld.protocol import ParseStatus, Protocol
from gym_llmworld.scenarios import ScenarioStore
from gym_llmworld.session import Anchor, AnchorStatus, Outcome, Session
from gym_llmworld.worlds import World, get_world

_OPTIONS = ("scenario", "split", "start")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A state to come back to: where the episode stands, and the random generator.

    Attributes:
        scenario: Where the episode started.
        steps: What had happened.
        rng: State of ``np_random``'s bit generator.
        anchors: Which of the steps the real twin answered.
    """

    scenario: Scenario
    steps: tuple[Step, ...]
    rng: Mapping[str, Any]
    anchors: tuple[Anchor, ...] = ()


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
        anchor_real_steps: Steps that the real twin answered.
        anchor_replayed_steps: Steps that the twin took before, to come to the same point.
    """

    steps: int = 0
    model_calls: int = 0
    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    seconds: float = 0.0
    anchor_real_steps: int = 0
    anchor_replayed_steps: int = 0


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
        anchoring: When the real twin answers; None for never.
        anchor_options: Further arguments of ``gym.make`` for the twin.
        stats: What was spent.
        temperature: Of a scenario, in place of the one in ``sampling``; None for that one.
    """

    world: World
    protocol: Protocol
    backend: Backend
    store: ScenarioStore
    split: str
    sampling: Sampling
    anchoring: Anchoring | None = None
    anchor_options: Mapping[str, Any] = field(default_factory=dict)
    stats: Stats = field(default_factory=Stats)
    temperature: Callable[[Scenario], float] | None = None

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
        temperature: float | None = None,
        top_p: float = 1.0,
        max_tokens: int | None = None,
        anchor: str | Sequence[str] | None = None,
        anchor_budget: int | None = None,
        anchor_options: Mapping[str, Any] | None = None,
        stats: Stats | None = None,
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
            temperature: Of the model, 0 is greedy; None for the world's default: 0, but 1 where
                the real environment leaves what happens to chance.
            top_p: Nucleus of the model.
            max_tokens: Upper bound of an observation in tokens; None for the world's default.
            anchor: When the real twin answers, a rule or several: ``"search["`` (actions that begin
                so), ``"every:5"``, ``"confidence<0.8"``, ``"random:0.2"``, see
                `gym_llmworld.anchoring`. None for never.
            anchor_budget: How many steps of an episode the twin may answer; None for any number.
            anchor_options: Further arguments of ``gym.make`` for the twin.
            stats: For programs: counts here what is spent. None for counters of its own.

        Raises:
            ScenarioError: Unknown world, scenarios or split.
            CheckpointError: The model cannot serve as a world model.
            MissingDependency: The backend needs an extra that is not installed.
            ValueError: An anchor rule or the budget makes no sense.
        """
        anchoring = _anchoring(anchor, anchor_budget, anchor_options)
        spec = get_world(world)
        store = ScenarioStore(world, scenarios)
        store.of_split(split)
        sampling = Sampling(temperature or 0.0, top_p, max_tokens or spec.max_tokens)
        name = embedded_model(world) if model is None else model
        protocol = calibrated(spec.protocol(prompt_style or checkpoint_style(name, world)), name)
        engine = backends.load_backend(name, backend, **(backend_options or {}))
        return cls(
            spec,
            protocol,
            engine,
            store,
            split,
            sampling,
            anchoring,
            dict(anchor_options or {}),
            stats or Stats(),
            spec.temperature if temperature is None else None,
        )

    def temperature_of(self, scenario: Scenario) -> float:
        """Returns the temperature at which the model plays a scenario; 0 is greedy."""
        if self.temperature is None:
            return self.sampling.temperature
        return self.temperature(scenario)

    def twins(self, count: int) -> list[Twin | None]:
        """Returns a real twin for each of ``count`` episodes, or Nones without anchoring.

        The first one is started at once, so that what is missing shows now.

        Raises:
            MissingDependency: The twin's engine is not installed.
            ScenarioError: The twin cannot play the scenarios.
            EngineError: The twin's engine cannot start.
        """
        if self.anchoring is None:
            return [None] * count
        twins = [Twin(self.world.real_id, self.anchor_options) for _ in range(count)]
        try:
            twins[0].start(self.store.of_split(self.split)[0])
        except Exception:
            # Nobody gets an environment that could give the engine back.
            self.backend.close()
            raise
        return [*twins]

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
            return self.session(self.store.get(start.scenario), start.steps, start.anchors)
        if options.get("scenario") is not None:
            return self.session(self.store.get(options["scenario"]))
        return self.session(self.store.draw(options.get("split") or self.split, rng))

    def session(
        self, scenario: Scenario, steps: tuple[Step, ...] = (), anchors: tuple[Anchor, ...] = ()
    ) -> Session:
        """Returns a session at this point of an episode."""
        return Session(self.protocol, scenario, self.world.rejection, steps, anchors)

    def ask(
        self,
        requests: Sequence[tuple[Session, str, int]],
        twins: Sequence[Twin | None] | None = None,
    ) -> list[Outcome]:
        """Answers many actions with at most one call of the backend.

        Args:
            requests: ``(session, action, sampling seed)``.
            twins: The real twin of each request, which answers where a rule says so; None where
                (or for all) the model always answers.

        Returns:
            One outcome per request, in order.

        Raises:
            BackendError: The backend failed on something else than a full context, or does not
                report the confidence that a rule needs.
        """
        twins = twins or [None] * len(requests)
        rules = [self._rule(*request, twin) for request, twin in zip(requests, twins, strict=True)]
        waiting = [request for request, rule in zip(requests, rules, strict=True) if rule is None]
        imagined = iter(self._imagine(waiting))
        outcomes = []
        for (session, action, seed), twin, known in zip(requests, twins, rules, strict=True):
            outcome = next(imagined) if known is None else None
            rule = known or self._rule(session, action, seed, twin, outcome)
            if rule is not None and twin is not None:
                outcome = self._anchor(session, action, twin, rule)
            assert outcome is not None
            outcomes.append(outcome)
        self.stats.steps += len(requests)
        return outcomes

    def _rule(
        self,
        session: Session,
        action: str,
        seed: int,
        twin: Twin | None,
        outcome: Outcome | None = None,
    ) -> str | None:
        if self.anchoring is None or twin is None:
            return None
        return self.anchoring.decide(session, action, seed, outcome)

    def _anchor(self, session: Session, action: str, twin: Twin, rule: str) -> Outcome:
        try:
            answer = twin.answer(session, action)
        except (EngineError, ScenarioError, DataError) as error:
            # An imagined answer in its place would pass for an anchored episode.
            twin.close()
            return session.abandon(action, rule, f"{type(error).__name__}: {error}")
        self.stats.anchor_real_steps += 1
        self.stats.anchor_replayed_steps += answer.replayed
        return session.anchor(answer, rule)

    def _imagine(self, requests: Sequence[tuple[Session, str, int]]) -> list[Outcome]:
        prompts = [session.prompt(action) for session, action, _ in requests]
        asked = [i for i, prompt in enumerate(prompts) if prompt is not None]
        answers: dict[int, Completion | ContextOverflow] = {}
        if asked:
            answers = dict(zip(asked, self._generate(prompts, requests, asked), strict=True))
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
            replace(base, temperature=self.temperature_of(session.scenario), seed=seed)
            for session, _, seed in (requests[i] for i in asked)
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
            llmworld={
                **_llmworld(session, "model", None, ParseStatus.OK),
                **self._anchor_info(session, None, None),
            },
        )

    def step_info(self, outcome: Outcome) -> dict[str, Any]:
        """Returns the info of a step; of a step that the real twin answered, the twin's own."""
        session, real = outcome.session, outcome.real or {}
        return world_info(
            admissible=real.get("admissible_commands"),
            won=real.get("won", outcome.step.terminated and outcome.step.reward > 0),
            score=real.get("score"),
            max_score=real.get("max_score", 1.0),
            llmworld={
                **_llmworld(session, outcome.source, outcome.confidence, outcome.status),
                **self._anchor_info(session, outcome.rule, outcome.error),
            },
        )

    def _anchor_info(self, session: Session, rule: str | None, error: str | None) -> dict[str, Any]:
        if self.anchoring is None:
            return {}
        info: dict[str, Any] = {"rule": rule, "real_steps": len(session.anchors)}
        # Keys that are missing, not None: a vector environment makes an array of integers of one.
        if session.diverged is not None:
            info["diverged"] = session.diverged
        if error is not None:
            info["error"] = error
        return {"anchor": info}


def _anchoring(
    anchor: str | Sequence[str] | None, budget: int | None, options: Mapping[str, Any] | None
) -> Anchoring | None:
    if anchor is not None:
        return Anchoring.parse(anchor, budget)
    if budget is not None or options:
        raise ValueError(
            "anchor_budget and anchor_options need a rule that says when the real twin answers; "
            "expected for example anchor='every:5'"
        )
    return None


def _llmworld(
    session: Session, source: str, confidence: float | None, status: ParseStatus | AnchorStatus
) -> dict[str, Any]:
    return {
        "source": source,
        "confidence": confidence,
        "status": status.value,
        "scenario": session.scenario.id,
    }
