"""How well a world model predicts a mirrored world, and whether acting in it transfers.

Two protocols, both Word2World's (arXiv 2512.18832, section 4 and appendix A.4):

* `evaluate_episodes`: teacher forcing on real episodes. Each turn is predicted greedily from the
  *real* turns before it, and compared as text.
* `compare`: an agent plays the real world (Real) and the imagined one (WM), then the imagined
  episode's actions are replayed in the real world (W2R). Unlike there, all three are played on the
  same games with the same seeds, and a broken trial stays in the denominator.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from gym_llmworld import metrics
from gym_llmworld.agents import Agent, derive_seeds
from gym_llmworld.backends.base import Backend
from gym_llmworld.core import Completion, Episode, Message, Sampling, Scenario, Step
from gym_llmworld.errors import BackendError, ContextOverflow, EngineError, ScenarioError
from gym_llmworld.metrics import Consistency, Divergence, Turn
from gym_llmworld.protocol import ParseStatus, Protocol

Progress = Callable[[int, int], None]
"""Called with how much is done and how much there is, now and then."""

MISTAKES_KEPT = 50

# What agents are told in every world: an imagined one does not list its commands, and an agent that
# saw the real one's list would play another policy there.
_BLIND: Mapping[str, Any] = {"admissible_commands": None}


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
    """

    turns: tuple[Turn, ...]
    episode_of: tuple[int, ...]
    episodes: int
    errors: Mapping[str, int]
    rejected: int
    seconds: float
    prompt_tokens: int = 0
    cached_tokens: int = 0

    @property
    def em(self) -> metrics.ExactMatch:
        """Exact match, whole and in parts."""
        return metrics.exact_match_rates(self.turns)

    def to_json(self, *, env_id: str, model: str) -> dict[str, Any]:
        """Returns the report of ``llmworld evaluate``; rates are fractions, undefined ones None."""
        em = self.em
        parts = {
            "all": em.all,
            "changed": em.changed,
            "unchanged": em.unchanged,
            "copy_baseline": em.copy_baseline,
            "majority_baseline": em.majority_baseline,
        }
        return {
            "env_id": env_id,
            "model": model,
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
            "mistakes": self._mistakes(),
        }

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


def evaluate_episodes(
    backend: Backend,
    protocol: Protocol,
    episodes: Sequence[Episode],
    *,
    batch_size: int = 64,
    max_tokens: int = 512,
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
        sampling = Sampling(temperature=0.0, max_tokens=self.max_tokens)
        for t in range(max((len(episode.steps) for _, episode in group), default=0)):
            going = [(i, episode) for i, episode in group if t < len(episode.steps)]
            self.done += len(going)
            asked = [
                (i, episode)
                for i, episode in going
                if self.protocol.admit(episode.steps[t].action) is not None
            ]
            if asked:
                chats = [self._chat(episode, t) for _, episode in asked]
                answers = self.backend.generate(chats, [sampling] * len(chats))
                for (i, episode), answer in zip(asked, answers, strict=True):
                    self.turns.append((i, self._turn(episode, t, answer)))
            yield

    def _chat(self, episode: Episode, t: int) -> tuple[Message, ...]:
        return self.protocol.encode(episode.scenario, episode.steps[:t], episode.steps[t].action)

    def _turn(self, episode: Episode, t: int, answer: Completion | BackendError) -> Turn:
        step = episode.steps[t]
        return Turn(
            step=t + 1,
            action=step.action,
            previous=episode.steps[t - 1].observation if t else episode.scenario.observation,
            truth=self.protocol.target(step),
            prediction=self._read(answer),
        )

    def _read(self, answer: Completion | BackendError) -> str | None:
        if isinstance(answer, BackendError):
            overflow = isinstance(answer, ContextOverflow)
            self.errors[ParseStatus.CONTEXT.value if overflow else "backend"] += 1
            return None
        self.prompt_tokens += answer.prompt_tokens
        self.cached_tokens += answer.cached_tokens
        status = self.protocol.decode(answer).status
        if status is not ParseStatus.OK:
            self.errors[status.value] += 1
            return None
        return answer.text


@dataclass(frozen=True, slots=True)
class Trial:
    """One game, played by one agent in both worlds.

    Attributes:
        scenario: The game.
        seed: Of the agent, in both worlds.
        imagined: The agent in the imagined world.
        real: The agent in the real world; None when the engine failed.
        replay: The imagined episode's actions in the real world; None when the engine failed.
        divergence: Where the replay first differs; None when it nowhere does, or is None itself.
        error: What the engine said when it failed.
    """

    scenario: Scenario
    seed: int
    imagined: Episode
    real: Episode | None
    replay: Episode | None
    divergence: Divergence | None
    error: str | None = None

    def to_json(self, agent: str) -> dict[str, Any]:
        """Returns one row of the report's ``games``."""
        played = {"wm": self.imagined, "real": self.real, "w2r": self.replay}
        divergence = self.divergence
        return {
            "scenario": self.scenario.id,
            "agent": agent,
            "seed": self.seed,
            **{way: None if e is None else e.success for way, e in played.items()},
            "steps": {way: None if e is None else len(e.steps) for way, e in played.items()},
            "divergence": None
            if divergence is None
            else {"step": divergence.step, "kind": divergence.kind, "verb": divergence.verb},
            "error": self.error,
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """The same games in the imagined and in the real world.

    Attributes:
        env_id: Id of the imagined world.
        trials: Name of the agent -> one trial per game.
        imagined_seconds: Wall-clock time in the imagined world, agents included.
        real_seconds: The same in the real world.
    """

    env_id: str
    trials: Mapping[str, tuple[Trial, ...]]
    imagined_seconds: float
    real_seconds: float

    def consistency(self, agent: str) -> Consistency:
        """Returns Real, WM, W2R and CR of an agent."""
        trials = self.trials[agent]
        return metrics.consistency(
            real=[t.real and t.real.success for t in trials],
            wm=[t.imagined.success for t in trials],
            w2r=[t.replay and t.replay.success for t in trials],
        )

    def to_json(self, *, model: str) -> dict[str, Any]:
        """Returns the report of ``llmworld compare``; rates are fractions, undefined ones None."""
        everything = [(name, trial) for name, trials in self.trials.items() for trial in trials]
        rows = {name: self.consistency(name) for name in self.trials}
        return {
            "env_id": self.env_id,
            "model": model,
            "n": max((row.n for row in rows.values()), default=0),
            "agents": {
                name: {**_consistency_json(row), **self._details(name)}
                for name, row in rows.items()
            },
            "average": _consistency_json(metrics.average_consistency(list(rows.values()))),
            "agreement_by_step": metrics.rates_to_json(
                metrics.agreement_by_step(
                    (_observations(trial.imagined), _observations(trial.replay))
                    for _, trial in everything
                    if trial.replay is not None
                )
            ),
            "seconds": {"imagined": self.imagined_seconds, "real": self.real_seconds},
            "games": [trial.to_json(name) for name, trial in everything],
        }

    def _details(self, agent: str) -> dict[str, Any]:
        trials = self.trials[agent]
        found = [t.divergence for t in trials if t.divergence is not None]
        return {
            "errors": sum(t.error is not None for t in trials),
            "steps": {
                "wm": sum(len(t.imagined.steps) for t in trials),
                "real": sum(len(t.real.steps) for t in trials if t.real),
                "w2r": sum(len(t.replay.steps) for t in trials if t.replay),
            },
            "divergences": {
                "n": len(found),
                "by_kind": dict(Counter(d.kind for d in found).most_common()),
                "by_verb": dict(Counter(d.verb for d in found).most_common()),
                "by_step": {str(k): n for k, n in sorted(Counter(d.step for d in found).items())},
            },
        }


def _consistency_json(row: Consistency) -> dict[str, Any]:
    return {
        "real": row.real,
        "wm": row.wm,
        "w2r": row.w2r,
        "cr": row.cr,
        "cr_paired": row.cr_paired,
        "n": row.n,
    }


def _observations(episode: Episode | None) -> list[str]:
    return [step.observation for step in episode.steps] if episode else []


def compare(
    env_id: str,
    agents: Mapping[str, Callable[[], Agent]],
    scenarios: Sequence[Scenario],
    *,
    real_id: str,
    seed: int = 0,
    num_envs: int = 16,
    max_steps: int = 50,
    rejection: str | None = None,
    imagined_options: Mapping[str, Any] | None = None,
    real_options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Plays the same games in the imagined and in the real world.

    Agents see observations only, in both worlds: no list of admissible commands.

    Args:
        env_id: Id of the imagined world.
        agents: Name -> maker of a fresh agent.
        scenarios: The games; each is one trial per agent.
        real_id: Id of the real world.
        seed: Each game derives the seed of its agents from it, the same in both worlds.
        num_envs: Imagined worlds per batch.
        max_steps: Step limit in both worlds.
        rejection: What the real world answers to actions that it cannot carry out; tells refused
            actions apart among divergences.
        imagined_options: Further arguments of ``gym.make_vec``.
        real_options: Further arguments of ``gym.make``.
        progress: Told about played episodes; three per trial.

    Raises:
        BackendError: The model could not be asked.
        MissingDependency: The real engine is not installed.
    """
    seeds = derive_seeds(seed, len(scenarios))
    games = list(zip(scenarios, seeds, strict=True))
    tick = _Ticker(progress, 3 * len(games) * len(agents))
    started = time.perf_counter()
    imagined = {}
    if games:
        envs = gym.make_vec(
            env_id,
            num_envs=min(num_envs, len(games)),
            autoreset_mode=AutoresetMode.DISABLED,
            max_episode_steps=max_steps,
            **(imagined_options or {}),
        )
        imagined = {name: _imagine(envs, make, games, name, tick) for name, make in agents.items()}
        envs.close()
    between = time.perf_counter()
    real = _RealWorld(real_id, max_steps, rejection, real_options or {})
    trials: dict[str, list[Trial]] = {name: [] for name in agents}
    # Game by game, not agent by agent: an engine may keep the game that it loaded last.
    for index, (scenario, game_seed) in enumerate(games):
        for name, make in agents.items():
            trials[name].append(real.trial(scenario, make(), game_seed, imagined[name][index]))
            tick(2)
    real.close()
    return Comparison(
        env_id=env_id,
        trials={name: tuple(rows) for name, rows in trials.items()},
        imagined_seconds=between - started,
        real_seconds=time.perf_counter() - between,
    )


class _Ticker:
    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def __call__(self, count: int = 1) -> None:
        self._done += count
        if self._progress:
            self._progress(self._done, self._total)


@dataclass
class _Player:
    """One lane of the vector environment while a game is played in it."""

    game: int
    agent: Agent
    steps: list[Step] = field(default_factory=list)


def _imagine(
    envs: VectorEnv[Any, Any, Any],
    make: Callable[[], Agent],
    games: Sequence[tuple[Scenario, int]],
    name: str,
    tick: _Ticker,
) -> list[Episode]:
    """Plays every game once; a lane whose game has ended takes the next one."""
    waiting = iter(range(len(games)))
    lanes: list[_Player | None] = [None] * envs.num_envs
    episodes: dict[int, Episode] = {}
    while len(episodes) < len(games):
        observations = _refill(envs, lanes, waiting, make, games)
        actions = [
            player.agent.act(text, _BLIND) if player else ""
            for player, text in zip(lanes, observations, strict=True)
        ]
        observations, rewards, terminated, truncated, _ = envs.step(tuple(actions))
        for i, player in enumerate(lanes):
            if player is None:
                continue
            ended = bool(terminated[i]), bool(truncated[i])
            player.steps.append(Step(actions[i], observations[i], float(rewards[i]), *ended))
            if any(ended):
                scenario, seed = games[player.game]
                episodes[player.game] = Episode(
                    scenario, tuple(player.steps), "model", name, seed
                )
                lanes[i] = None
                tick()
    return [episodes[game] for game in range(len(games))]
