"""Collects episodes: agents play scenarios in environments, in worker processes, into one file.

What is to be played follows from the arguments alone (`Plan`), and every line says which job it
is. So a run that was killed at any moment goes on where it stopped, and can be extended later.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, cast

import gymnasium
import numpy as np

from gym_llmworld.agents import Agent, has_stopped
from gym_llmworld.contract import engine_failure
from gym_llmworld.core import Episode, Scenario, Step
from gym_llmworld.episodes import EpisodeWriter, episode_key, read_rows
from gym_llmworld.errors import DataError, EngineError, WorldModelError

TextEnv = gymnasium.Env[str, str]


@dataclass(frozen=True, slots=True)
class Job:
    """One episode to play.

    Attributes:
        index: Position in the plan.
        scenario: Index into the scenarios.
        policy: Name of the policy.
        seed: Of the policy and of the environment.
    """

    index: int
    scenario: int
    policy: str
    seed: int


@dataclass(frozen=True)
class Recipe:
    """What a worker needs to play jobs; everything in it can be pickled.

    Attributes:
        env: Gymnasium id, ``"module:attribute"`` of a factory, or a factory.
        env_kwargs: For the factory.
        policies: Name -> ``"module:attribute"`` of an agent factory, or the factory.
        max_steps: Steps after which an episode is cut off.
    """

    env: str | Callable[..., TextEnv]
    env_kwargs: Mapping[str, Any]
    policies: Mapping[str, str | Callable[[], Agent]]
    max_steps: int


@dataclass
class Tally:
    """Counts of one policy's episodes."""

    episodes: int = 0
    steps: int = 0
    successes: int = 0
    duplicates: int = 0

    @property
    def success_rate(self) -> float | None:
        """Share of episodes that were solved; None without episodes."""
        return self.successes / self.episodes if self.episodes else None


@dataclass
class CollectionReport:
    """What a collection did.

    Attributes:
        by_policy: Policy -> counts, episodes of earlier runs in the same file included.
        resumed: Episodes that were in the file already.
        seconds: Wall-clock time of this run.
        restarts: Workers that died and were replaced.
    """

    by_policy: dict[str, Tally] = field(default_factory=dict)
    resumed: int = 0
    seconds: float = 0.0
    restarts: int = 0

    @property
    def total(self) -> Tally:
        """The counts of all policies together."""
        total = Tally()
        for tally in self.by_policy.values():
            total.episodes += tally.episodes
            total.steps += tally.steps
            total.successes += tally.successes
            total.duplicates += tally.duplicates
        return total

    def count(self, policy: str, episode: Episode, *, duplicate: bool) -> None:
        """Adds an episode; a duplicate counts as that only."""
        tally = self.by_policy.setdefault(policy, Tally())
        if duplicate:
            tally.duplicates += 1
            return
        tally.episodes += 1
        tally.steps += len(episode.steps)
        tally.successes += episode.success


def parse_mixture(text: str) -> dict[str, float]:
    """Reads a policy mixture such as ``"expert:1,noisy:3,tour"``; a missing weight is 1.

    Raises:
        ValueError: A weight is no positive number, a name is empty or occurs twice.
    """
    mixture: dict[str, float] = {}
    for part in text.split(","):
        name, value = _name_and_weight(part.strip())
        if not name or name in mixture or not 0 < value < float("inf"):
            raise ValueError(
                f"cannot read the policy mixture {text!r} at {part!r}; expected different names "
                "with positive weights, as in 'expert:1,noisy:3'"
            )
        mixture[name] = value
    return mixture


def _name_and_weight(part: str) -> tuple[str, float]:
    """Reads ``NAME`` or ``NAME:WEIGHT``; of a model, ``llm:MODEL``, the colons are its own."""
    name, _, weight = part.rpartition(":") if part.startswith("llm:") else part.partition(":")
    try:
        return name, float(weight or 1)
    except ValueError:
        return (part, 1.0) if part.startswith("llm:") else (name, float("nan"))


def resolve(entry_point: str) -> Any:
    """Imports ``"module:attribute"``.

    Raises:
        ValueError: The text does not have that form, or nothing of that name exists.
    """
    module_name, _, attribute = entry_point.partition(":")
    if not attribute:
        raise ValueError(f"expected 'module:attribute', got {entry_point!r}")
    module = importlib.import_module(module_name)
    if not hasattr(module, attribute):
        raise ValueError(f"module {module_name!r} has no {attribute!r} (from {entry_point!r})")
    return getattr(module, attribute)


@dataclass(frozen=True)
class Plan:
    """What is to be played: an endless list of jobs, of which any can be looked up alone.

    Scenarios are taken in passes: each once, in an order of its own, before any comes again.

    Attributes:
        scenario_ids: Where episodes start.
        mixture: Policy -> weight.
        seed: Of everything random in it.
        max_steps: Longest episode.
        repeats: Episodes in a row from the same start, so that an engine loads a game once.
    """

    scenario_ids: tuple[str, ...]
    mixture: Mapping[str, float]
    seed: int
    max_steps: int
    repeats: int = 1

    @property
    def fingerprint(self) -> str:
        """Names the plan; two plans with the same name have the same jobs."""
        facts = [self.scenario_ids, list(self.mixture.items()), self.seed, self.max_steps]
        return hashlib.sha256(json.dumps([*facts, self.repeats]).encode()).hexdigest()[:12]

    def job(self, index: int) -> Job:
        """Returns the job at a position."""
        pass_, position = divmod(index // self.repeats, len(self.scenario_ids))
        order = _permutation(self.seed, pass_, len(self.scenario_ids))
        rng = np.random.default_rng([self.seed, 2, index])
        weights = np.array(list(self.mixture.values()))
        policy = list(self.mixture)[int(rng.choice(len(weights), p=weights / weights.sum()))]
        return Job(index, int(order[position]), policy, int(rng.integers(2**31)))


@lru_cache(maxsize=2)
def _permutation(seed: int, pass_: int, length: int) -> Sequence[int]:
    order: list[int] = np.random.default_rng([seed, 1, pass_]).permutation(length).tolist()
    return order


def play(env: TextEnv, agent: Agent, scenario: Scenario, *, seed: int, max_steps: int) -> Episode:
    """Plays one episode.

    Args:
        env: Accepts ``options={"scenario": ...}``, as the environments of this package do.
        agent: Acts.
        scenario: Where to start.
        seed: Of the agent and of the environment.
        max_steps: Cuts the episode off (truncates it) after so many steps.

    Returns:
        The episode; its source is what the environment says of itself, ``"real"`` by default. Where
        an engine fails on the way it ends, truncated, with the last step that was answered.
    """
    observation, info = env.reset(seed=seed, options={"scenario": scenario.to_json()})
    source = "model" if info.get("llmworld", {}).get("source", "real") == "model" else "real"
    agent.reset(scenario, seed)
    steps: list[Step] = []
    while True:
        action = agent.act(observation, info)
        observation, reward, terminated, truncated, info = env.step(action)
        if engine_failure(info) is not None:
            # What stands there now is not what the action led to: nobody knows that.
            known = (*steps[:-1], replace(steps[-1], truncated=True)) if steps else ()
            return Episode(scenario, known, source, agent.name, seed)
        at_limit = len(steps) + 1 >= max_steps or has_stopped(agent)
        cut_off = not terminated and (truncated or at_limit)
        steps.append(Step(action, observation, float(reward), terminated, cut_off))
        if terminated or cut_off:
            return Episode(scenario, tuple(steps), source, agent.name, seed)


def collect(
    env: str | Callable[..., TextEnv],
    mixture: Mapping[str, float],
    scenarios: Sequence[Scenario],
    *,
    policies: Mapping[str, str | Callable[[], Agent]],
    episodes: int,
    out: str | Path,
    env_kwargs: Mapping[str, Any] | None = None,
    seed: int = 0,
    workers: int = 1,
    max_steps: int = 50,
    repeats: int = 1,
    progress: Callable[[int, int, Episode | None], None] | None = None,
) -> CollectionReport:
    """Plays episodes and appends them to a file, resuming what an earlier run left there.

    Args:
        env: Gymnasium id, ``"module:attribute"`` of a factory, or a factory (picklable when
            ``workers`` > 0).
        mixture: Policy -> weight, see `parse_mixture`.
        scenarios: Where episodes start.
        policies: Name -> agent factory, or ``"module:attribute"`` of one; may name more than the
            mixture does. Picklable when ``workers`` > 0.
        episodes: How many to play. Of two that start and act alike, the file keeps one.
        out: JSON Lines. Each line is an episode with two more keys, ``job`` and ``plan``.
        env_kwargs: For the environment's factory.
        seed: Same arguments, same episodes.
        workers: Processes, each with an environment of its own, started with ``spawn``; 0 plays in
            this process.
        max_steps: Longest episode.
        repeats: Episodes in a row from the same start; more are faster where a game loads slowly.
        progress: Called after every job with jobs done, jobs in all, and the episode (None for a
            duplicate).

    Returns:
        Counts per policy.

    Raises:
        DataError: ``out`` holds episodes of another plan, or is no episode file.
        EngineError: A job ended its worker twice; whatever else was played is in the file.
        WorldModelError: An environment or an agent failed with one; the same holds.
        OSError: ``out`` cannot be written, for example on a full disk.
        ValueError: An argument does not fit.
    """
    _check_arguments(mixture, scenarios, policies)
    if min(episodes, max_steps, repeats) < 1 or workers < 0:
        raise ValueError(
            "expected episodes, max_steps and repeats >= 1 and workers >= 0, got "
            f"episodes={episodes}, max_steps={max_steps}, repeats={repeats}, workers={workers}"
        )
    recipe = Recipe(env, dict(env_kwargs or {}), {n: policies[n] for n in mixture}, max_steps)
    ids = tuple(scenario.id for scenario in scenarios)
    plan = Plan(ids, dict(mixture), seed, max_steps, repeats)
    report = CollectionReport(by_policy={name: Tally() for name in mixture})
    started = time.monotonic()
    with EpisodeWriter(out) as writer:
        done, keys = _resume(Path(out), plan.fingerprint, report)
        todo = [index for index in range(episodes) if index not in done]
        jobs = map(plan.job, todo)
        marks = {"plan": plan.fingerprint}
        crew = _Crew(workers, recipe, scenarios)
        played = crew.play(jobs) if workers else _play_here(recipe, scenarios, jobs)
        for finished, (job, episode) in enumerate(played, start=episodes - len(todo) + 1):
            key = episode_key(episode)
            duplicate = key in keys
            report.count(job.policy, episode, duplicate=duplicate)
            if not duplicate:
                keys.add(key)
                writer.write(episode, {**marks, "job": job.index, "policy": job.policy})
            if progress is not None:
                progress(finished, episodes, None if duplicate else episode)
        report.restarts = crew.restarts
    report.seconds = time.monotonic() - started
    return report


def _check_arguments(
    mixture: Mapping[str, float],
    scenarios: Sequence[Scenario],
    policies: Mapping[str, str | Callable[[], Agent]],
) -> None:
    if not mixture:
        raise ValueError(
            "the policy mixture is empty; expected at least one policy, as in 'expert:1'"
        )
    unknown = sorted(set(mixture) - set(policies))
    if unknown:
        raise ValueError(
            f"unknown policies {', '.join(unknown)}; expected some of {', '.join(policies)}"
        )
    if not scenarios:
        raise ValueError("there are no scenarios to play; expected at least one")


def _resume(out: Path, plan: str, report: CollectionReport) -> tuple[set[int], set[str]]:
    """Returns the jobs that are done already, and what their episodes look like."""
    done: set[int] = set()
    keys: set[str] = set()
    for row, episode in read_rows(out):
        if row.get("plan") != plan:
            raise DataError(
                f"{out}: holds episodes of plan {row.get('plan')!r}, and these arguments make "
                f"plan {plan!r}; expected the same policies, scenarios, seed and step limit. "
                "Repeat them, or choose another file"
            )
        done.add(row["job"])
        keys.add(episode_key(episode))
        report.count(row["policy"], episode, duplicate=False)
        report.resumed += 1
    return done, keys


def _make_env(recipe: Recipe) -> TextEnv:
    if not isinstance(recipe.env, str):
        return recipe.env(**recipe.env_kwargs)
    # "module:Factory" is ours, "module:Name-v0" is Gymnasium's.
    if recipe.env.partition(":")[2].isidentifier():
        made: TextEnv = resolve(recipe.env)(**recipe.env_kwargs)
        return made
    return gymnasium.make(recipe.env, disable_env_checker=True, **recipe.env_kwargs)


class _Player:
    """Plays jobs in one environment, with one agent per policy."""

    def __init__(self, recipe: Recipe) -> None:
        self._env = _make_env(recipe)
        self._agents: dict[str, Agent] = {}
        self._recipe = recipe

    def play(self, job: Job, scenario: Scenario) -> Episode:
        agent = self._agents.get(job.policy)
        if agent is None:
            maker = self._recipe.policies[job.policy]
            agent = self._agents[job.policy] = (
                resolve(maker) if isinstance(maker, str) else maker
            )()
        return play(self._env, agent, scenario, seed=job.seed, max_steps=self._recipe.max_steps)

    def close(self) -> None:
        self._env.close()


def _play_here(
    recipe: Recipe, scenarios: Sequence[Scenario], jobs: Iterable[Job]
) -> Iterator[tuple[Job, Episode]]:
    player = _Player(recipe)
    try:
        for job in jobs:
            yield job, player.play(job, scenarios[job.scenario])
    finally:
        player.close()


def _work(connection: Connection, recipe: Recipe) -> None:
    """Runs in a worker: answers each (job, scenario) with an episode or an error, until None."""
    # Ctrl-C reaches the whole process group; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        player = _Player(recipe)
        while (task := connection.recv()) is not None:
            connection.send(player.play(*task))
        player.close()
    except WorldModelError as error:
        connection.send(error)
    except (EOFError, BrokenPipeError):
        return  # the parent is gone; nobody wants the episode


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    job: Job | None = None


class _Crew:
    """Worker processes that play jobs; one that dies is replaced, and its job given out again."""

    def __init__(self, size: int, recipe: Recipe, scenarios: Sequence[Scenario]) -> None:
        self._size, self._recipe, self._scenarios = size, recipe, scenarios
        self._idle: list[_Worker] = []
        self._busy: dict[Connection, _Worker] = {}
        self._tried: set[int] = set()
        self._failure: WorldModelError | None = None
        self.restarts = 0

    def play(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Episode]]:
        """Yields episodes as they are done.

        Raises:
            WorldModelError: A job failed; raised when the jobs under way have been yielded.
        """
        queue = deque[Job]()
        source = iter(jobs)
        try:
            while True:
                self._hand_out(queue, source)
                if not self._busy:
                    break
                for ready in wait(list(self._busy)):
                    worker = self._busy.pop(cast(Connection, ready))
                    episode = self._collect_from(worker, queue)
                    if episode is not None and worker.job is not None:
                        yield worker.job, episode
            if self._failure is not None:
                raise self._failure
        finally:
            self._dismiss()

    def _hand_out(self, queue: deque[Job], source: Iterator[Job]) -> None:
        while self._failure is None and len(self._busy) < self._size:
            job = queue.popleft() if queue else next(source, None)
            if job is None:
                return
            worker = self._idle.pop() if self._idle else self._hire()
            worker.job = job
            self._busy[worker.connection] = worker
            # A worker that died in the meantime shows as end-of-file when it is waited for.
            with contextlib.suppress(BrokenPipeError):
                worker.connection.send((job, self._scenarios[job.scenario]))

    def _collect_from(self, worker: _Worker, queue: deque[Job]) -> Episode | None:
        try:
            outcome = worker.connection.recv()
        except (EOFError, OSError):
            self._bury(worker, queue)
            return None
        if isinstance(outcome, WorldModelError):
            self._failure = self._failure or outcome
            return None
        self._idle.append(worker)
        episode: Episode = outcome
        return episode

    def _bury(self, worker: _Worker, queue: deque[Job]) -> None:
        worker.connection.close()
        worker.process.join()
        job = worker.job
        assert job is not None
        if job.index not in self._tried:
            self._tried.add(job.index)
            self.restarts += 1
            queue.append(job)
            return
        self._failure = self._failure or EngineError(
            f"job {job.index} (policy {job.policy!r}, scenario "
            f"{self._scenarios[job.scenario].id!r}, seed {job.seed}) ended its worker process "
            f"twice (exit code {worker.process.exitcode}; negative: killed by that signal). All "
            "other episodes are in the file. Read the worker's messages above, then run again, "
            "or with workers=0 to see the error itself"
        )

    def _hire(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, self._recipe), daemon=True)
        process.start()
        # Only the worker may hold its end: when it dies, ours then reads end-of-file.
        theirs.close()
        return _Worker(process, ours)

    def _dismiss(self) -> None:
        for worker in self._idle:
            with contextlib.suppress(BrokenPipeError):
                worker.connection.send(None)
        for worker in self._idle:
            worker.process.join(timeout=10)
        for worker in (*self._idle, *self._busy.values()):
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.connection.close()
        self._idle, self._busy = [], {}
