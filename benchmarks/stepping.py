"""Worlds that step through prepared actions, for the benchmark programs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym

import gym_llmworld  # noqa: F401 - registers the environments
from benchmarks.measure import Clock
from gym_llmworld.core import Scenario
from gym_llmworld.scenarios import ScenarioStore
from gym_llmworld.vector import WorldModelVectorEnv
from gym_llmworld.worlds import get_world


@dataclass(frozen=True)
class Script:
    """An episode to be played.

    Attributes:
        start: Where it begins.
        actions: What is done.
    """

    start: Scenario
    actions: tuple[str, ...]


def prepare(world: str, count: int, steps: int, *, skip: int = 0) -> list[Script]:
    """Returns so many episodes, each from a scenario of its own as long as there are such.

    The actions are those of the known solution, over and over without its last one: a solved world
    would no longer be asked.

    Args:
        world: Its key.
        count: How many.
        steps: Of every episode.
        skip: Leave out so many scenarios, so that a warm-up sees others.
    """
    store = ScenarioStore(world)
    pool = [s for split in store.splits() for s in store.of_split(split) if s.real.get("plan")]
    chosen = [pool[(skip + i) % len(pool)] for i in range(count)]
    return [Script(start, endless(start.real["plan"], steps)) for start in chosen]


def endless(plan: Sequence[str], steps: int) -> tuple[str, ...]:
    """Returns so many actions: a plan without its last one, over and over."""
    moves = plan[:-1] or plan
    return tuple(moves[i % len(moves)] for i in range(steps))


@dataclass
class Played:
    """What came of playing.

    Attributes:
        clock: What the steps took; resets and loading are not timed.
        steps: Steps that were taken: a world that has ended takes none.
        texts: What each world answered, in order, up to its end.
        tokens: That the model wrote.
        stats: Of the engine, at the end.
    """

    clock: Clock = field(default_factory=Clock)
    steps: int = 0
    texts: list[list[str]] = field(default_factory=list)
    tokens: int = 0
    stats: Any = None

    @property
    def rate(self) -> float:
        """Steps per second of all worlds together."""
        return self.steps / self.clock.wall

    @property
    def cpu_rate(self) -> float:
        """Steps per CPU second."""
        return self.steps / self.clock.cpu


@contextlib.contextmanager
def opened(
    world: str, count: int, backend: Mapping[str, Any], *, warm: bool = True
) -> Iterator[WorldModelVectorEnv]:
    """Opens so many imagined worlds, with an engine of their own that knows nothing.

    Args:
        world: Its key.
        count: How many.
        backend: Options of the backend.
        warm: Have them take two steps first, of episodes that are forgotten then.
    """
    made = gym.make_vec(
        get_world(world).imagined_id,
        num_envs=count,
        autoreset_mode="Disabled",
        backend_options=dict(backend),
    )
    envs = made.unwrapped
    assert isinstance(envs, WorldModelVectorEnv)
    try:
        if warm:
            scripts = prepare(world, count, 2, skip=count)
            start(envs, scripts)
            advance(envs, scripts, Played())
            engine_of(envs).forget()
        yield envs
    finally:
        made.close()


def engine_of(envs: WorldModelVectorEnv) -> Any:
    """Returns the engine behind some worlds, a `gym_llmworld.backends.hf.HFBackend`."""
    backend: Any = envs.imagination.backend
    return backend.engine


def start(envs: WorldModelVectorEnv, scripts: Sequence[Script]) -> None:
    """Puts every world where its script begins."""
    envs.reset(seed=0, options={"scenario": [script.start.id for script in scripts]})


def advance(
    envs: WorldModelVectorEnv,
    scripts: Sequence[Script],
    played: Played,
    *,
    after: Callable[[int], None] = lambda step: None,
) -> None:
    """Steps all worlds to the end of their scripts, and adds to ``played``.

    Args:
        envs: Just reset to where the scripts begin, in mode ``DISABLED``.
        scripts: One per world.
        played: Is added to.
        after: Told the number of each step that was taken, from 0 on; not timed.
    """
    texts: list[list[str]] = [[] for _ in scripts]
    playing = [True] * len(scripts)
    before = envs.stats.generated_tokens
    for i, actions in enumerate(zip(*(script.actions for script in scripts), strict=True)):
        asked = sum(playing)
        if not asked:
            break
        result = played.clock.time(envs.step, actions, calls=asked)
        after(i)
        for world, text in enumerate(result[0]):
            if playing[world]:
                texts[world].append(text)
        playing = [not (a or b) for a, b in zip(result[2], result[3], strict=True)]
        played.steps += asked
    played.tokens += envs.stats.generated_tokens - before
    played.texts += texts
    played.stats = envs.imagination.backend.stats  # type: ignore[attr-defined]


def play(world: str, count: int, steps: int, backend: Mapping[str, Any], rounds: int = 1) -> Played:
    """Plays so many worlds at once, ``rounds`` times with other scenarios, from an empty cache."""
    played = Played()
    with opened(world, count, backend, warm=False) as envs:
        for number in range(rounds):
            scripts = prepare(world, count, steps, skip=number * count)
            engine_of(envs).forget()
            start(envs, scripts)
            advance(envs, scripts, played)
    return played
