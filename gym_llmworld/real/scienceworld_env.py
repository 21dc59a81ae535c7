"""ScienceWorld itself as a Gymnasium environment: the twin of the imagined one."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
from gymnasium.error import InvalidAction, ResetNeeded

from gym_llmworld.contract import MAX_ACTION_LENGTH, frame, world_info
from gym_llmworld.core import Scenario
from gym_llmworld.errors import EngineError, ScenarioError
from gym_llmworld.real.scienceworld_engine import MAX_SCORE, Play, Turn
from gym_llmworld.real.scienceworld_jvm import engine_classpath
from gym_llmworld.real.scienceworld_scenarios import (
    ScenarioSource,
    Start,
    first_view,
    game_scenario,
)
from gym_llmworld.spaces import FreeText
from gym_llmworld.worlds.scienceworld import WORLD, canonical

_OPTIONS = ("scenario", "split")


class ScienceWorldEnv(gym.Env[str, str]):
    """Primary-school science in text (Wang et al., EMNLP 2022), in ScienceWorld's own engine.

    All environments of a process share one JVM, started at the first reset, and do not disturb each
    other. ``copy.deepcopy(env)`` continues from the same point. An episode follows from its task,
    its variation and the actions alone; in the stock package, bees and heat differ from JVM to JVM.

    Args:
        split: ``"train"``, ``"dev"`` or ``"test"``, as the engine splits each task's variations.
        games: A folder made by ``llmworld games``, or a ``scenarios.jsonl``; None for all 7207.
        tasks: Draw games of these tasks only; None for all 30.
        simplifications: Of the games that are not listed in ``games``: ``"easy"``, or names of the
            engine's simplifications joined with commas.
        admissible: List the admissible commands in ``info``: hundreds to thousands, at several
            times the cost of a step.
        max_episode_steps: Truncate after as many steps; None leaves that to a wrapper.
        render_mode: None, ``"ansi"`` or ``"human"``.

    ``reset(options=...)`` understands ``{"scenario": id or Scenario.to_json() dict}`` and
    ``{"split": name}``; ids are ``sciworld-<split>-<task>-<variation>``. ``info`` has
    ``admissible_commands``, ``won``, ``score`` (0 to 100), ``max_score`` and ``llmworld`` with
    ``source`` and ``scenario``. An episode is terminated when the task is solved or has failed, for
    example by focusing on the wrong thing; the reward is 1.0 for solving it and 0.0 otherwise.
    When the engine asks which of several things was meant, the next action is the answer, a number;
    of the longest such questions (a quarter of a megabyte) the first options are shown.
    Unknown actions, and the engine's "reset task", are answered "No known action matches that
    input.".

    Raises:
        ScenarioError: There is no such split, task, simplification or folder.
        MissingDependency: scienceworld is not installed.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - Gymnasium declares it so
        "render_modes": ["ansi", "human"],
        "render_fps": 4,
    }

    def __init__(
        self,
        split: str = "train",
        games: str | None = None,
        tasks: Sequence[str] | None = None,
        simplifications: str = "",
        admissible: bool = False,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
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
        engine_classpath()
        self.render_mode = render_mode
        self.observation_space = FreeText(WORLD.max_observation_chars)
        self.action_space = FreeText(MAX_ACTION_LENGTH)
        self._protocol = WORLD.protocol("engine")
        self._split = split
        self._admissible = admissible
        self._limit = max_episode_steps
        self._source = ScenarioSource(games, tasks, simplifications)
        self._source.check(split)
        self._start: Start | None = None
        self._play: Play | None = None
        self._steps = 0
        self._last_action: str | None = None
        self._observation = ""
        self._over = True

    @property
    def scenario(self) -> Scenario:
        """Where the present episode started; made when first asked for, unless it was given.

        Raises:
            ResetNeeded: ``reset`` was not called yet.
        """
        if self._start is None:
            raise ResetNeeded("call env.reset() before anything else")
        if self._start.scenario is None:
            self._start = Start(self._start.game, game_scenario(self._start.game))
        assert self._start.scenario is not None
        return self._start.scenario

    @property
    def play(self) -> Play:
        """The game's state.

        Raises:
            ResetNeeded: ``reset`` was not called yet.
        """
        if self._play is None:
            raise ResetNeeded("call env.reset() before anything else")
        return self._play

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Starts an episode; see the class for ``options``.

        Raises:
            ScenarioError: There is no such scenario or split, or its game is not the one described.
            EngineError: Java cannot be found or started, or the engine fails.
        """
        super().reset(seed=seed)
        start = self._choose(options or {})
        self.close()
        self._over = True
        self._play = Play(start.game)
        self._observation = _first_observation(self._play, start)
        self._start, self._steps, self._last_action, self._over = start, 0, None, False
        if self.render_mode == "human":
            self._show()
        return self._observation, self._info()

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Carries out a command, or answers the engine's question with a number.

        Raises:
            InvalidAction: The action is not a string.
            ResetNeeded: The episode has ended, or none was started.
            EngineError: The engine failed, or its JVM died: the episode is lost, ``reset`` begins
                another one.
        """
        play = self.play
        if self._over:
            raise ResetNeeded("the episode has ended; call env.reset()")
        if not isinstance(action, str):
            raise InvalidAction(
                f"an action must be a str, got {type(action).__name__}: {action!r:.80}"
            )
        turn = self._answer(play, action)
        self._steps += 1
        self._last_action, self._observation = action, _fit(turn.observation)
        truncated = not turn.over and self._limit is not None and self._steps >= self._limit
        self._over = turn.over or truncated
        if self.render_mode == "human":
            self._show()
        return self._observation, float(turn.won), turn.over, truncated, self._info()

    def render(self) -> str | None:
        """Returns the last action and observation in mode ``"ansi"``, else None."""
        return self._frame() if self.render_mode == "ansi" else None

    def close(self) -> None:
        """Frees the engine's side of the episode."""
        if self._play is not None:
            self._play.close()
            self._play, self._over = None, True

    def _choose(self, options: Mapping[str, Any]) -> Start:
        unknown = sorted(set(options) - set(_OPTIONS))
        if unknown:
            raise ScenarioError(
                f"unknown reset option {unknown[0]!r}; expected {', '.join(_OPTIONS)}"
            )
        if options.get("scenario") is not None:
            return self._source.get(options["scenario"])
        return self._source.draw(options.get("split") or self._split, self.np_random)

    def _answer(self, play: Play, action: str) -> Turn:
        command = self._protocol.admit(action)
        if command is None:
            # The imagined twin answers these by the same rule, without asking its model.
            return Turn(WORLD.rejection, play.turn.score, play.turn.completed)
        try:
            return play.step(command)
        except EngineError:
            self._over = True
            raise

    def _info(self) -> dict[str, Any]:
        assert self._start is not None
        turn = self.play.turn
        return world_info(
            admissible=self.play.admissible() if self._admissible and not self._over else None,
            won=turn.won,
            score=float(max(0, turn.score)),
            max_score=float(MAX_SCORE),
            llmworld={"source": "real", "scenario": self._start.id},
        )

    def _frame(self) -> str:
        return frame(self._last_action, self._observation)

    def _show(self) -> None:
        sys.stdout.write(self._frame() + "\n\n")


def _fit(observation: str) -> str:
    """Cuts an observation, at a line, to what the observation space allows."""
    limit = WORLD.max_observation_chars
    if len(observation) <= limit:
        return observation
    return observation[: observation.rfind("\n", 0, limit) + 1]


def _first_observation(play: Play, start: Start) -> str:
    """Returns what the agent sees first.

    Raises:
        ScenarioError: The scenario describes something else.
    """
    shown = first_view(play.task, play.turn.observation)
    if start.scenario is not None and canonical(start.scenario.observation) != canonical(shown):
        raise ScenarioError(
            f"scenario {start.id!r} does not describe its game: expected the first observation "
            f"{start.scenario.observation!r:.160}, the game shows {shown!r:.160}. Generate the "
            "scenarios again"
        )
    return shown
