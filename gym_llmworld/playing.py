"""Many games at a time: agents play in a batch of worlds, imagined or real.

All worlds step together, and agents that share a policy are asked together. A lane whose game has
ended takes the next one, so that no lane waits for the slowest game.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv

from gym_llmworld.agents import Agent, act_together, has_stopped
from gym_llmworld.contract import engine_failure
from gym_llmworld.core import Episode, Scenario, Step
from gym_llmworld.errors import EngineError

BLIND: Mapping[str, Any] = {"admissible_commands": None}
"""What agents are told in every world: an imagined one does not list its commands, and an agent
that saw the real one's list would follow another policy there."""


@dataclass(frozen=True, slots=True)
class Game:
    """An episode to play.

    Attributes:
        scenario: Where it starts.
        seed: Of the agent and of the world.
        limit: Most steps.
    """

    scenario: Scenario
    seed: int
    limit: int


@dataclass(frozen=True, slots=True)
class Played:
    """A game that was played.

    Attributes:
        episode: What happened.
        real_steps: Steps that a real engine answered.
        stopped: The agent could not go on (`gym_llmworld.agents.Stoppable`).
    """

    episode: Episode
    real_steps: int
    stopped: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """What a world answered to a command; ``real`` tells whether a real engine did."""

    observation: str
    reward: float
    terminated: bool
    truncated: bool
    real: bool


class Worlds(Protocol):
    """Worlds that are started and stepped together.

    Attributes:
        source: What episodes say of where they happened, ``"model"`` or ``"real"``.
    """

    source: str

    @property
    def lanes(self) -> int:
        """How many."""
        ...

    def start(self, games: Mapping[int, Game]) -> dict[int, str]:
        """Starts games in some lanes; returns the first observation of each."""
        ...

    def step(self, actions: Mapping[int, str]) -> dict[int, Answer]:
        """Steps the lanes that have an action."""
        ...


class ImaginedWorlds:
    """The lanes of an imagined vector environment: one model call per step.

    Args:
        envs: With ``AutoresetMode.DISABLED``; closed by whoever made it.
    """

    source = "model"

    def __init__(self, envs: VectorEnv[Any, Any, Any]) -> None:
        self._envs = envs

    @property
    def lanes(self) -> int:
        """How many."""
        return self._envs.num_envs

    def start(self, games: Mapping[int, Game]) -> dict[int, str]:
        """Resets some lanes."""
        starts = [games[i].scenario if i in games else None for i in range(self.lanes)]
        seeds = [games[i].seed if i in games else None for i in range(self.lanes)]
        observations, _ = self._envs.reset(
            # Every vector environment takes one seed per world; the base class is typed for one.
            seed=seeds,  # type: ignore[arg-type]
            options={"reset_mask": np.array([s is not None for s in starts]), "scenario": starts},
        )
        return {i: observations[i] for i in games}

    def step(self, actions: Mapping[int, str]) -> dict[int, Answer]:
        """Steps all lanes; a free one may step on, until its world's own limit."""
        everything = tuple(actions.get(i, "") for i in range(self.lanes))
        observations, rewards, terminated, truncated, infos = self._envs.step(everything)
        return {
            i: Answer(
                observations[i],
                float(rewards[i]),
                bool(terminated[i]),
                bool(truncated[i]),
                infos["llmworld"]["source"][i] == "real",
            )
            for i in actions
        }


class RealWorlds:
    """Real environments side by side, one engine each, in this process.

    Args:
        make: Makes an environment.
        lanes: How many.
    """

    source = "real"

    def __init__(self, make: Callable[[], gym.Env[str, str]], lanes: int) -> None:
        self._make = make
        self._lanes = lanes
        self._envs: dict[int, gym.Env[str, str]] = {}

    @property
    def lanes(self) -> int:
        """How many."""
        return self._lanes

    def start(self, games: Mapping[int, Game]) -> dict[int, str]:
        """Resets some lanes; an engine is started with its lane's first game.

        Raises:
            EngineError: An engine cannot start.
            ScenarioError: It cannot play a game.
        """
        first = {}
        for i, game in games.items():
            env = self._envs.get(i) or self._envs.setdefault(i, self._make())
            options = {"scenario": game.scenario.to_json()}
            first[i], _ = env.reset(seed=game.seed, options=options)
        return first

    def step(self, actions: Mapping[int, str]) -> dict[int, Answer]:
        """Steps the lanes that have an action.

        Raises:
            EngineError: An engine failed.
        """
        return {i: self._step(self._envs[i], action) for i, action in actions.items()}

    def close(self) -> None:
        """Ends the engines."""
        for env in self._envs.values():
            env.close()
        self._envs = {}

    def _step(self, env: gym.Env[str, str], action: str) -> Answer:
        observation, reward, terminated, truncated, info = env.step(action)
        if error := engine_failure(info):
            raise EngineError(error)
        return Answer(observation, float(reward), terminated, truncated, real=True)


@dataclass
class _Lane:
    """A lane while a game is played in it."""

    index: int
    game: Game
    agent: Agent
    observation: str = ""
    steps: list[Step] = field(default_factory=list)
    real_steps: int = 0

    def take(self, action: str, answer: Answer) -> bool:
        """Adds a step; returns whether it was the last."""
        at_limit = len(self.steps) + 1 >= self.game.limit or has_stopped(self.agent)
        cut_off = not answer.terminated and (answer.truncated or at_limit)
        self.steps.append(
            Step(action, answer.observation, answer.reward, answer.terminated, cut_off)
        )
        self.real_steps += answer.real
        self.observation = answer.observation
        return answer.terminated or cut_off

    def played(self, source: str, name: str) -> Played:
        episode = Episode(self.game.scenario, tuple(self.steps), source, name, self.game.seed)
        return Played(episode, self.real_steps, has_stopped(self.agent))


def play_games(
    worlds: Worlds,
    make: Callable[[], Agent],
    games: Sequence[Game],
    *,
    name: str,
) -> Iterator[tuple[int, Played]]:
    """Plays every game once.

    Args:
        worlds: Where.
        make: Makes a fresh agent for each game.
        games: What.
        name: What the episodes call the agent.

    Yields:
        Index and episode of each game, in the order in which they end.
    """
    waiting = iter(enumerate(games))
    playing: dict[int, _Lane] = {}
    while True:
        _refill(worlds, playing, waiting, make)
        if not playing:
            return
        lanes = list(playing.values())
        actions = act_together(
            [lane.agent for lane in lanes],
            [lane.observation for lane in lanes],
            [BLIND] * len(lanes),
        )
        answers = worlds.step(dict(zip(playing, actions, strict=True)))
        for (i, lane), action in zip(list(playing.items()), actions, strict=True):
            if lane.take(action, answers[i]):
                del playing[i]
                yield lane.index, lane.played(worlds.source, name)


def _refill(
    worlds: Worlds,
    playing: dict[int, _Lane],
    waiting: Iterator[tuple[int, Game]],
    make: Callable[[], Agent],
) -> None:
    """Starts waiting games in free lanes."""
    started = {}
    for i in range(worlds.lanes):
        if i in playing or (task := next(waiting, None)) is None:
            continue
        index, game = task
        agent = make()
        agent.reset(game.scenario, game.seed)
        started[i] = playing[i] = _Lane(index, game, agent)
    if started:
        first = worlds.start({i: lane.game for i, lane in started.items()})
        for i, lane in started.items():
            lane.observation = first[i]
