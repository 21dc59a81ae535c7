"""ALFWorld itself as a Gymnasium environment: the twin of the imagined one."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
from gymnasium.error import InvalidAction, ResetNeeded

from gym_llmworld.contract import MAX_ACTION_LENGTH, frame, world_info
from gym_llmworld.core import Scenario
from gym_llmworld.errors import ScenarioError
from gym_llmworld.real.alfworld_engine import Play
from gym_llmworld.real.alfworld_scenarios import load_game
from gym_llmworld.real.alfworld_source import ScenarioSource
from gym_llmworld.real.alfworld_views import first_view
from gym_llmworld.spaces import FreeText
from gym_llmworld.worlds import get_world

_OPTIONS = ("scenario", "split")


class AlfworldEnv(gym.Env[str, str]):
    """Household tasks in text (Shridhar et al., ICLR 2021), played by ALFWorld's own engine.

    All environments of a process share one engine and do not disturb each other.
    ``copy.deepcopy(env)`` continues from the same point.

    Args:
        split: ``"train"``, ``"valid_seen"`` or ``"valid_unseen"``.
        games: A folder made by ``llmworld games``, a ``scenarios.jsonl``, or the tree that
            ``alfworld-download`` makes. None for the scenarios that ship with the package; where a
            split does not ship, a game is generated at every reset.
        max_episode_steps: Truncate after as many steps; None leaves that to a wrapper.
        render_mode: None, ``"ansi"`` or ``"human"``.

    ``reset(options=...)`` understands ``{"scenario": id or Scenario.to_json() dict}`` and
    ``{"split": name}``. ``info`` has ``admissible_commands``, ``won``, ``score``, ``max_score`` and
    ``llmworld`` with ``source`` and ``scenario``. The reward is 1.0 for solving the task, which
    terminates. Anything that is no admissible command is answered "Nothing happens.".

    Raises:
        ScenarioError: There is no such split or folder.
        MissingDependency: alfworld is not installed.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - Gymnasium declares it so
        "render_modes": ["ansi", "human"],
        "render_fps": 4,
    }

    def __init__(
        self,
        split: str = "train",
        games: str | None = None,
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
                f"max_episode_steps must be at least 1, or None, got {max_episode_steps}"
            )
        self.render_mode = render_mode
        self.observation_space = FreeText(get_world("alfworld").max_observation_chars)
        self.action_space = FreeText(MAX_ACTION_LENGTH)
        self._split = split
        self._limit = max_episode_steps
        self._source = ScenarioSource(games)
        self._source.of_split(split)
        self._scenario: Scenario | None = None
        self._play: Play | None = None
        self._steps = 0
        self._last_action: str | None = None
        self._over = True

    @property
    def scenario(self) -> Scenario:
        """Where the present episode started.

        Raises:
            ResetNeeded: ``reset`` was not called yet.
        """
        if self._scenario is None:
            raise ResetNeeded("call env.reset() before anything else")
        return self._scenario

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
            EngineError: The game cannot be played.
        """
        super().reset(seed=seed)
        scenario = self._choose(options or {})
        play = Play(load_game(scenario))
        if first_view(play.turn.observation) != scenario.observation:
            raise ScenarioError(
                f"scenario {scenario.id!r} does not describe its game: expected the observation "
                f"{scenario.observation!r:.120}, the game shows "
                f"{first_view(play.turn.observation)!r:.120}. Generate the scenarios again"
            )
        self._scenario, self._play = scenario, play
        self._steps, self._last_action, self._over = 0, None, False
        if self.render_mode == "human":
            self._show()
        return scenario.observation, self._info()

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Carries out a command.

        Raises:
            InvalidAction: The action is not a string.
            ResetNeeded: The episode has ended, or none was started.
        """
        play = self.play
        if self._over:
            raise ResetNeeded("the episode has ended; call env.reset()")
        if not isinstance(action, str):
            raise InvalidAction(
                f"an action must be a str, got {type(action).__name__}: {action!r:.80}"
            )
        turn = play.step(action)
        self._steps += 1
        self._last_action = action
        truncated = not turn.won and self._limit is not None and self._steps >= self._limit
        self._over = turn.won or truncated
        if self.render_mode == "human":
            self._show()
        return turn.observation, float(turn.won), turn.won, truncated, self._info()

    def facts(self) -> list[tuple[str, ...]]:
        """Returns what is true now, hidden things too, as predicate and names.

        For example ``("inreceptacle", "mug 1", "desk 1")``.

        Raises:
            ResetNeeded: ``reset`` was not called yet.
        """
        return self.play.facts()

    def render(self) -> str | None:
        """Returns the last action and observation in mode ``"ansi"``, else None."""
        return self._frame() if self.render_mode == "ansi" else None

    def _choose(self, options: Mapping[str, Any]) -> Scenario:
        unknown = sorted(set(options) - set(_OPTIONS))
        if unknown:
            raise ScenarioError(
                f"unknown reset option {unknown[0]!r}; expected {', '.join(_OPTIONS)}"
            )
        if options.get("scenario") is not None:
            return self._source.get(options["scenario"])
        return self._source.draw(options.get("split") or self._split, self.np_random)

    def _info(self) -> dict[str, Any]:
        turn = self.play.turn
        return world_info(
            admissible=turn.admissible,
            won=turn.won,
            llmworld={"source": "real", "scenario": self.scenario.id},
        )

    def _frame(self) -> str:
        if self._last_action is None:
            return frame(None, self.scenario.observation)
        return frame(self._last_action, self.play.turn.observation)

    def _show(self) -> None:
        sys.stdout.write(self._frame() + "\n\n")
