"""Whether acting in an imagined world transfers to the real one.

Word2World's protocol (arXiv 2512.18832, section 4 and appendix A.4): an agent plays the real world
(Real) and the imagined one (WM), then the imagined episode's actions are replayed in the real world
(W2R). Unlike there, all three are played on the same games with the same seeds, a broken trial
stays in the denominator, and no game is cut off before its known solution ends (`step_limits`;
there, at most 50 steps of any game).
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
from gymnasium.vector import AutoresetMode

from gym_llmworld import metrics
from gym_llmworld.agents import Agent, derive_seeds, has_stopped
from gym_llmworld.contract import engine_failure
from gym_llmworld.core import Episode, Scenario, Step
from gym_llmworld.divergence import Divergence, first_divergence
from gym_llmworld.errors import EngineError, ScenarioError
from gym_llmworld.metrics import Consistency, Progress
from gym_llmworld.playing import BLIND, Game, ImaginedWorlds, Played, play_games

_ROOM_TO_STRAY = 1.5
"""Steps that an agent may take, over those of the known solution."""


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
        limit: Most steps, in both worlds.
        error: What the engine said when it failed.
        real_steps: Steps of the imagined episode that the real twin answered (anchoring).
        stopped: The agent could not go on in the imagined world: its own context was full.
    """

    scenario: Scenario
    seed: int
    imagined: Episode
    real: Episode | None
    replay: Episode | None
    divergence: Divergence | None
    limit: int
    error: str | None = None
    real_steps: int = 0
    stopped: bool = False

    @property
    def unanswered(self) -> bool:
        """Whether the imagined episode ended because the model gave no usable answer."""
        steps = self.imagined.steps
        early = bool(steps) and steps[-1].truncated and len(steps) < self.limit
        return early and not self.stopped

    def outcomes(self) -> dict[str, bool | None]:
        """Returns success imagined (``wm``), ``real`` and replayed (``w2r``); None: broken."""
        played = {"wm": self.imagined, "real": self.real, "w2r": self.replay}
        return {way: None if e is None else e.success for way, e in played.items()}

    def to_json(self, agent: str) -> dict[str, Any]:
        """Returns one row of the report's ``games``."""
        played = {"wm": self.imagined, "real": self.real, "w2r": self.replay}
        divergence = self.divergence
        return {
            "scenario": self.scenario.id,
            "agent": agent,
            "seed": self.seed,
            **self.outcomes(),
            "steps": {way: None if e is None else len(e.steps) for way, e in played.items()},
            "divergence": None
            if divergence is None
            else {"step": divergence.step, "kind": divergence.kind, "verb": divergence.verb},
            "limit": self.limit,
            "unanswered": self.unanswered,
            "stopped": self.stopped,
            "error": self.error,
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """The same games in the imagined and in the real world.

    Attributes:
        env_id: Id of the imagined world.
        trials: Name of the agent -> its trials: every game ``attempts`` times in a row.
        imagined_seconds: Wall-clock time in the imagined world, agents included.
        real_seconds: The same in the real world.
        attempts: How often each agent played each game.
    """

    env_id: str
    trials: Mapping[str, tuple[Trial, ...]]
    imagined_seconds: float
    real_seconds: float
    attempts: int = 1

    def pass_at(self, agent: str, k: int) -> dict[str, float | None]:
        """Returns pass@k of an agent: the chance to solve a game at least once in ``k`` attempts.

        Returns:
            ``"real"``, ``"wm"`` and ``"w2r"`` -> mean over the games of
            `gym_llmworld.metrics.pass_at_k`; None without games, or with fewer attempts than ``k``.
        """
        outcomes = [trial.outcomes() for trial in self.trials[agent]]
        games = [outcomes[i : i + self.attempts] for i in range(0, len(outcomes), self.attempts)]
        return {
            way: metrics.mean(
                metrics.pass_at_k(len(tries), sum(row[way] is True for row in tries), k)
                for tries in games
            )
            for way in ("real", "wm", "w2r")
        }

    def consistency(self, agent: str) -> Consistency:
        """Returns Real, WM, W2R and CR of an agent."""
        outcomes = [trial.outcomes() for trial in self.trials[agent]]
        return metrics.consistency(
            real=[row["real"] for row in outcomes],
            wm=[row["wm"] for row in outcomes],
            w2r=[row["w2r"] for row in outcomes],
        )

    def to_json(self, *, model: str, prompt_style: str | None = None) -> dict[str, Any]:
        """Returns the report of ``llmworld compare``; rates are fractions, undefined ones None."""
        everything = [(name, trial) for name, trials in self.trials.items() for trial in trials]
        rows = {name: self.consistency(name) for name in self.trials}
        return {
            "env_id": self.env_id,
            "model": model,
            "prompt_style": prompt_style,
            "step_limits": self._step_limits(),
            "n": max((row.n for row in rows.values()), default=0),
            "attempts": self.attempts,
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

    def _step_limits(self) -> dict[str, int]:
        """Returns step limit -> number of games; every agent plays the same games."""
        trials = next(iter(self.trials.values()), ())
        return {str(limit): n for limit, n in sorted(Counter(t.limit for t in trials).items())}

    def _details(self, agent: str) -> dict[str, Any]:
        trials = self.trials[agent]
        found = [t.divergence for t in trials if t.divergence is not None]
        return {
            "errors": sum(t.error is not None for t in trials),
            "unanswered": sum(t.unanswered for t in trials),
            "stopped": sum(t.stopped for t in trials),
            "pass_at": {str(k): self.pass_at(agent, k) for k in sorted({1, self.attempts})},
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
        "false_success": row.false_success,
        "n": row.n,
    }


def _observations(episode: Episode | None) -> list[str]:
    return [step.observation for step in episode.steps] if episode else []


def step_limits(scenarios: Sequence[Scenario], default: int) -> list[int]:
    """Returns how many steps each game may take: the default, or half more than its solution takes.

    ScienceWorld's solutions of some games are longer than its usual limit; cut off there, such a
    game is lost in both worlds and says nothing about either. The half is for agents that stray.
    """
    return [
        max(default, math.ceil(_ROOM_TO_STRAY * len(scenario.real.get("plan") or ())))
        for scenario in scenarios
    ]


def compare(
    env_id: str,
    agents: Mapping[str, Callable[[], Agent]],
    scenarios: Sequence[Scenario],
    *,
    real_id: str,
    seed: int = 0,
    num_envs: int = 16,
    max_steps: int | Sequence[int] = 50,
    attempts: int = 1,
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
        scenarios: The games.
        real_id: Id of the real world.
        seed: Each game derives the seed of its agents from it, the same in both worlds.
        num_envs: Imagined worlds per batch.
        max_steps: Step limit in both worlds, of all games or of each (see `step_limits`).
        attempts: How often each agent plays each game, with another seed every time.
        rejection: What the real world answers to actions that it cannot carry out; tells refused
            actions apart among divergences.
        imagined_options: Further arguments of ``gym.make_vec``.
        real_options: Further arguments of ``gym.make``.
        progress: Told about played episodes; three per trial.

    Raises:
        BackendError: The model could not be asked.
        MissingDependency: The real engine is not installed.
        ValueError: Not one step limit per game, or no attempt.
    """
    games = _games(scenarios, seed, max_steps, attempts)
    tick = _Ticker(progress, 3 * len(games) * len(agents))
    longest = max((game.limit for game in games), default=1)
    started = time.perf_counter()
    imagined: dict[str, dict[int, Played]] = {}
    if games:
        envs = gym.make_vec(
            env_id,
            num_envs=min(num_envs, len(games)),
            autoreset_mode=AutoresetMode.DISABLED,
            max_episode_steps=longest,
            **(imagined_options or {}),
        )
        with closing(envs):
            for name, make in agents.items():
                imagined[name] = {}
                for index, played in play_games(ImaginedWorlds(envs), make, games, name=name):
                    imagined[name][index] = played
                    tick()
    between = time.perf_counter()
    trials: dict[str, list[Trial]] = {name: [] for name in agents}
    with closing(_RealWorld(real_id, longest, rejection, real_options or {})) as real:
        # Game by game, not agent by agent: an engine may keep the game that it loaded last.
        for index, game in enumerate(games):
            for name, make in agents.items():
                trials[name].append(real.trial(game, make(), imagined[name][index], name))
                tick(2)
    return Comparison(
        env_id=env_id,
        trials={name: tuple(rows) for name, rows in trials.items()},
        imagined_seconds=between - started,
        real_seconds=time.perf_counter() - between,
        attempts=attempts,
    )


def _games(
    scenarios: Sequence[Scenario], seed: int, max_steps: int | Sequence[int], attempts: int
) -> list[Game]:
    """Returns what is to be played, the attempts at one game in a row."""
    limits = [max_steps] * len(scenarios) if isinstance(max_steps, int) else max_steps
    if len(limits) != len(scenarios):
        raise ValueError(
            f"expected one step limit per game, got {len(limits)} for {len(scenarios)} games"
        )
    if attempts < 1:
        raise ValueError(f"attempts must be >= 1, got {attempts}")
    n = len(scenarios)
    # Attempt by attempt: the first one is what it is without others.
    seeds = derive_seeds(seed, n * attempts)
    return [
        Game(scenarios[i], seeds[attempt * n + i], limits[i])
        for i in range(n)
        for attempt in range(attempts)
    ]


class _Ticker:
    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def __call__(self, count: int = 1) -> None:
        self._done += count
        if self._progress:
            self._progress(self._done, self._total)


@dataclass
class _RealWorld:
    """The mirrored environment; opened again after the engine failed."""

    env_id: str
    max_steps: int
    rejection: str | None
    options: Mapping[str, Any]
    _env: gym.Env[str, str] | None = None

    def trial(self, game: Game, agent: Agent, played: Played, name: str) -> Trial:
        """Plays a game for real, then replays what was imagined."""
        imagined = played.episode
        real = replay = divergence = error = None
        try:
            agent.reset(game.scenario, game.seed)
            real = self._play(game, name, lambda text: agent.act(text, BLIND), agent)
            script = iter(imagined.actions)
            replay = self._play(game, name, lambda _: next(script, None))
            divergence = first_divergence(imagined.steps, replay.steps, rejection=self.rejection)
        except (EngineError, ScenarioError) as failure:
            error = f"{type(failure).__name__}: {failure}"
            self.close()
        return Trial(
            game.scenario,
            game.seed,
            imagined,
            real,
            replay,
            divergence,
            game.limit,
            error,
            played.real_steps,
            played.stopped,
        )

    def close(self) -> None:
        """Ends the engine."""
        if self._env is not None:
            self._env.close()
            self._env = None

    def _play(
        self, game: Game, name: str, act: Callable[[str], str | None], agent: Agent | None = None
    ) -> Episode:
        if self._env is None:
            self._env = gym.make(self.env_id, max_episode_steps=self.max_steps, **self.options)
        observation, _ = self._env.reset(
            seed=game.seed, options={"scenario": game.scenario.to_json()}
        )
        steps: list[Step] = []
        while (action := act(observation)) is not None:
            observation, reward, terminated, truncated, info = self._env.step(action)
            if error := engine_failure(info):
                raise EngineError(error)
            stopped = agent is not None and has_stopped(agent)
            at_limit = len(steps) + 1 >= game.limit
            cut_off = not terminated and (truncated or at_limit or stopped)
            steps.append(Step(action, observation, float(reward), terminated, cut_off))
            if terminated or cut_off:
                break
        return Episode(game.scenario, tuple(steps), "real", name, game.seed)
