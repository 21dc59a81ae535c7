"""`RealTextEnv`: what all mirrored environments share as Gymnasium environments.

A twin of a new world is a subclass with three methods, and a source of scenarios::

    class MarsEnv(RealTextEnv[Scenario, Play]):
        def __init__(
            self,
            split: str = "train",
            games: str | None = None,
            max_episode_steps: int | None = None,
            render_mode: str | None = None,
        ) -> None:
            super().__init__(
                get_world("mars"), ScenarioSource(games), split, max_episode_steps, render_mode
            )

        def _begin(self, start: Scenario) -> tuple[Play, Reply]:
            play = Play(load_game(start))
            return play, Reply(play.observation)

        def _answer(self, play: Play, action: str) -> Reply:
            play.step(action)
            return Reply(play.observation, won=play.won, lost=play.lost)

        def _admissible(self, play: Play) -> Sequence[str] | None:
            return play.commands

``Play`` is the engine's side of one episode, of any type. Where it needs to be freed, override
``_end``; where ``copy.deepcopy`` cannot copy it, give it a ``__deepcopy__``. Where scenarios take
long to make, let the source draw something cheaper with the same id, and override ``_make``.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded

from gym_llmworld.contract import MAX_ACTION_LENGTH, frame, require_text, world_info
from gym_llmworld.core import Scenario
from gym_llmworld.errors import EngineError, ScenarioError
from gym_llmworld.spaces import FreeText
from gym_llmworld.worlds.base import World

_OPTIONS = ("scenario", "split")
_NO_EPISODE = "call env.reset() before anything else"


@dataclass(frozen=True, slots=True)
class Reply:
    """What an engine shows, at the start of an episode or after an action.

    Attributes:
        observation: As the agent sees it.
        won: The task is solved: the episode is terminated, with a reward of 1.0.
        lost: It can no longer be solved: the episode is terminated, with a reward of 0.0.
        score: 0 to ``max_score``; None stands for ``max_score`` 1.0 and a score that follows
            ``won``.
        max_score: Score of a solved episode.
    """

    observation: str
    won: bool = False
    lost: bool = False
    score: float | None = None
    max_score: float = 1.0

    @property
    def over(self) -> bool:
        """True when the world itself has ended the episode."""
        return self.won or self.lost


class Start(Protocol):
    """Where an episode starts: a `Scenario`, or what one can be made of."""

    @property
    def id(self) -> str:
        """Of the scenario."""
        ...


StartT = TypeVar("StartT", bound=Start)
StartT_co = TypeVar("StartT_co", bound=Start, covariant=True)
PlayT = TypeVar("PlayT")


class Source(Protocol[StartT_co]):
    """Where an environment takes its episodes from."""

    def get(self, scenario: str | Mapping[str, Any] | Scenario) -> StartT_co:
        """Returns a start by id, or reads the dict that `Scenario.to_json` writes.

        Raises:
            ScenarioError: There is no such scenario, or it is one of another world.
        """
        ...

    def draw(self, split: str, rng: np.random.Generator) -> StartT_co:
        """Returns a start of a split; nothing but ``rng`` may decide which.

        Raises:
            ScenarioError: There is no such split.
        """
        ...


class RealTextEnv(gym.Env[str, str], ABC, Generic[StartT, PlayT]):
    """A mirrored environment; see the module on how to write one.

    ``reset(options=...)`` understands ``{"scenario": id or Scenario.to_json() dict}`` and
    ``{"split": name}``. ``info`` has ``admissible_commands``, ``won``, ``score``, ``max_score`` and
    ``llmworld`` with ``source`` and ``scenario``. The reward is 1.0 for solving the task and 0.0
    otherwise. When the engine fails, the episode is lost; the next ``reset`` begins another one.

    Args:
        world: What is mirrored.
        source: Of the scenarios.
        split: Drawn from, unless ``options`` name another one.
        max_episode_steps: Truncate after as many steps; None leaves that to a wrapper.
        render_mode: None, ``"ansi"`` or ``"human"``.

    Raises:
        ValueError: ``max_episode_steps`` or ``render_mode`` is not possible.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - Gymnasium declares it so
        "render_modes": ["ansi", "human"],
        "render_fps": 4,
    }

    def __init__(
        self,
        world: World,
        source: Source[StartT],
        split: str,
        max_episode_steps: int | None,
        render_mode: str | None,
    ) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(
                f"render_mode must be None or one of {self.metadata['render_modes']}, "
                f"got {render_mode!r}"
            )
        if max_episode_steps is not None and max_episode_steps < 1:
            raise ValueError(
                f"max_episode_steps must be at least 1 or None, got {max_episode_steps}"
            )
        self.render_mode = render_mode
        self.observation_space = FreeText(world.max_observation_chars)
        self.action_space = FreeText(MAX_ACTION_LENGTH)
        self._source = source
        self._split = split
        self._limit = max_episode_steps
        self._start: StartT | None = None
        self._scenario: Scenario | None = None
        self._play: PlayT | None = None
        self._reply = self._first = Reply("")
        self._steps = 0
        self._last_action: str | None = None
        self._over = True

    @abstractmethod
    def _begin(self, start: StartT) -> tuple[PlayT, Reply]:
        """Loads a game and returns its play with what it shows first.

        Raises:
            ScenarioError: The start does not say which game, or it is gone.
            EngineError: The game cannot be played.
        """

    @abstractmethod
    def _answer(self, play: PlayT, action: str) -> Reply:
        """Carries out any text as an action; what the engine does not understand changes nothing.

        Raises:
            EngineError: The engine failed, and the play is lost.
        """

    @abstractmethod
    def _admissible(self, play: PlayT) -> Sequence[str] | None:
        """Lists the commands that the engine would carry out now; None where nobody knows."""

    def _end(self, play: PlayT) -> None:
        """Frees the engine's side of an episode, also of one that the engine failed in."""
        del play

    def _comparable(self, observation: str) -> str:
        """Returns a first observation without what may differ between equal games."""
        return observation

    def _given(self, start: StartT) -> Scenario | None:
        """Returns a start's scenario; None where it would have to be made, see `_make`."""
        return start if isinstance(start, Scenario) else None

    def _make(self, start: StartT) -> Scenario:
        """Makes the scenario of a start that `_given` has none of."""
        raise NotImplementedError

    def _made_with(self, scenario: Scenario) -> str:
        """Says what may explain a scenario that does not fit its game, with a blank before it."""
        return ""

    @property
    def scenario(self) -> Scenario:
        """Where the present episode started, with the first observation that the agent saw.

        Raises:
            ResetNeeded: ``reset`` was not called yet.
        """
        if self._start is None:
            raise ResetNeeded(_NO_EPISODE)
        if self._scenario is None:
            scenario = self._given(self._start) or self._make(self._start)
            self._scenario = dataclasses.replace(scenario, observation=self._first.observation)
        return self._scenario

    @property
    def play(self) -> PlayT:
        """The engine's side of the episode.

        Raises:
            ResetNeeded: ``reset`` was not called yet, or the environment is closed.
        """
        if self._play is None:
            raise ResetNeeded(_NO_EPISODE)
        return self._play

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Starts an episode; see the class for ``options``.

        Raises:
            ScenarioError: There is no such scenario or split, or its game is not the one described.
            EngineError: The engine cannot be started, or fails.
        """
        super().reset(seed=seed)
        start = self._choose(options or {})
        play, first = self._begin(start)
        try:
            self._check(start, first)
        except ScenarioError:
            self._end(play)
            raise
        self.close()
        self._start, self._scenario, self._play = start, None, play
        self._reply = self._first = first
        self._steps, self._last_action, self._over = 0, None, False
        if self.render_mode == "human":
            self._show()
        return first.observation, self._info()

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Carries out an action.

        Raises:
            InvalidAction: The action is not a string.
            ResetNeeded: The episode has ended, or none was started.
            EngineError: The engine failed: the episode is lost, ``reset`` begins another one.
        """
        play = self.play
        if self._over:
            raise ResetNeeded("the episode has ended; call env.reset()")
        try:
            reply = self._answer(play, require_text(action))
        except EngineError:
            self._over = True
            raise
        self._steps += 1
        self._last_action, self._reply = action, reply
        truncated = not reply.over and self._limit is not None and self._steps >= self._limit
        self._over = reply.over or truncated
        if self.render_mode == "human":
            self._show()
        return reply.observation, float(reply.won), reply.over, truncated, self._info()

    def fork(self) -> RealTextEnv[StartT, PlayT]:
        """Returns an independent copy at the same point, as ``copy.deepcopy(env)`` does.

        Raises:
            EngineError: This engine's state cannot be copied.
        """
        try:
            return copy.deepcopy(self)
        except TypeError as error:
            raise EngineError(
                f"{type(self).__name__} cannot be forked: the state of its engine cannot be copied "
                f"({error}). Make another environment, reset it with options={{'scenario': "
                "env.unwrapped.scenario}} and step it through the same actions"
            ) from error

    def render(self) -> str | None:
        """Returns the last action and observation in mode ``"ansi"``, else None."""
        return self._frame() if self.render_mode == "ansi" else None

    def close(self) -> None:
        """Frees the engine's side of the episode; ``reset`` begins another one."""
        play, self._play = self._play, None
        if play is not None:
            self._end(play)

    def _choose(self, options: Mapping[str, Any]) -> StartT:
        unknown = sorted(set(options) - set(_OPTIONS))
        if unknown:
            raise ScenarioError(
                f"unknown reset option {unknown[0]!r}; expected {', '.join(_OPTIONS)}"
            )
        if options.get("scenario") is not None:
            return self._source.get(options["scenario"])
        return self._source.draw(options.get("split") or self._split, self.np_random)

    def _check(self, start: StartT, first: Reply) -> None:
        scenario = self._given(start)
        if scenario is None:
            return
        expected, shown = map(self._comparable, (scenario.observation, first.observation))
        if expected != shown:
            raise ScenarioError(
                f"scenario {scenario.id!r} does not describe its game{self._made_with(scenario)}: "
                f"expected the first observation {expected!r:.160}, the game shows {shown!r:.160}. "
                "Generate the scenarios again"
            )

    def _info(self) -> dict[str, Any]:
        assert self._start is not None
        return world_info(
            admissible=self._admissible(self.play),
            won=self._reply.won,
            score=self._reply.score,
            max_score=self._reply.max_score,
            llmworld={"source": "real", "scenario": self._start.id},
        )

    def _frame(self) -> str:
        if self._play is None:
            raise ResetNeeded(_NO_EPISODE)
        return frame(self._last_action, self._reply.observation)

    def _show(self) -> None:
        sys.stdout.write(self._frame() + "\n\n")
