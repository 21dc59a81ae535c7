"""TextWorld itself as a Gymnasium environment: the twin of the imagined one."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
from gymnasium.error import InvalidAction, ResetNeeded

from gym_llmworld.contract import MAX_ACTION_LENGTH, frame, world_info
from gym_llmworld.core import Scenario
from gym_llmworld.errors import ScenarioError
from gym_llmworld.real.textworld_engine import Play, strip_observation
from gym_llmworld.real.textworld_games import textworld_release
from gym_llmworld.real.textworld_scenarios import ScenarioSource, scenario_story
from gym_llmworld.spaces import FreeText

MAX_OBSERVATION_LENGTH = 8192

_OPTIONS = ("scenario", "split")


class TextWorldEnv(gym.Env[str, str]):
    """Interactive fiction of rooms, doors and things (Cote et al., 2018), in TextWorld's engine.

    Each environment has a Z-machine of its own. ``copy.deepcopy(env)`` clones it and goes on from
    the same point; ``close`` frees it.

    Args:
        split: ``"train"``, ``"valid"`` or ``"test"``.
        games: A folder made by ``llmworld games``, a ``scenarios.jsonl``, or a folder with ``.z8``
            files and their ``.json``, as ``tw-make`` writes them. None for the scenarios that ship
            with the package; where a split does not ship, a game is generated at every reset.
        raw: Give the interpreter's output byte for byte, with banner, prompt and status line, as
            Word2World's published world models were trained on it.
        policy_commands: Put TextWorld's shortest winning commands from the present state into
            ``info["policy_commands"]``; a step takes up to twice as long.
        max_episode_steps: Truncate after as many steps; None leaves that to a wrapper.
        render_mode: None, ``"ansi"`` or ``"human"``.

    ``reset(options=...)`` understands ``{"scenario": id or Scenario.to_json() dict}`` and
    ``{"split": name}``. ``info`` has ``admissible_commands``, ``won``, ``score``, ``max_score`` and
    ``llmworld`` with ``source`` and ``scenario``. An episode is terminated when the game is won or
    lost; the reward is 1.0 for winning and 0.0 otherwise, whatever the score. Commands to the
    interpreter (``save``, ``undo``, ``quit`` ...) are answered "That's not a verb I recognise.".

    Raises:
        ScenarioError: There is no such split or folder, or a ``.json`` is missing.
        MissingDependency: textworld is not installed.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - Gymnasium declares it so
        "render_modes": ["ansi", "human"],
        "render_fps": 4,
    }

    def __init__(
        self,
        split: str = "train",
        games: str | None = None,
        raw: bool = False,
        policy_commands: bool = False,
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
        textworld_release()
        self.render_mode = render_mode
        self.observation_space = FreeText(MAX_OBSERVATION_LENGTH)
        self.action_space = FreeText(MAX_ACTION_LENGTH)
        self._split = split
        self._raw, self._policy_commands = raw, policy_commands
        self._limit = max_episode_steps
        self._source = ScenarioSource(games)
        self._source.check(split)
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
            ResetNeeded: ``reset`` was not called yet, or the environment is closed.
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
            DataError: The game's files are damaged.
            EngineError: The game cannot be played.
        """
        super().reset(seed=seed)
        scenario = self._choose(options or {})
        play = Play(scenario_story(scenario), raw=self._raw, track_policy=self._policy_commands)
        shown = play.turn.observation
        if strip_observation(shown) != strip_observation(scenario.observation):
            play.close()
            raise ScenarioError(
                f"scenario {scenario.id!r} does not describe its game (made with TextWorld "
                f"{scenario.real.get('textworld', '?')}, this is {textworld_release()}): expected "
                f"the first observation {strip_observation(scenario.observation)!r:.120}, the game "
                f"shows {strip_observation(shown)!r:.120}. Generate the scenarios again"
            )
        self.close()
        self._scenario, self._play = dataclasses.replace(scenario, observation=shown), play
        self._steps, self._last_action, self._over = 0, None, False
        if self.render_mode == "human":
            self._show()
        return shown, self._info()

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Types a command in.

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
        ended = turn.won or turn.lost
        truncated = not ended and self._limit is not None and self._steps >= self._limit
        self._over = ended or truncated
        if self.render_mode == "human":
            self._show()
        return turn.observation, float(turn.won), ended, truncated, self._info()

    def policy(self) -> list[str]:
        """Returns TextWorld's shortest winning commands from the present state.

        Empty when the game is over or can no longer be won.

        Raises:
            ResetNeeded: ``reset`` was not called yet.
        """
        return self.play.policy()

    def facts(self) -> list[tuple[str, ...]]:
        """Returns what is true now, hidden things too, as predicate and names.

        For example ``("in", "old key", "chest drawer")``; the player is ``"P"``, what it carries is
        in ``"I"``.

        Raises:
            ResetNeeded: ``reset`` was not called yet.
        """
        return self.play.facts()

    def render(self) -> str | None:
        """Returns the last action and observation in mode ``"ansi"``, else None."""
        return self._frame() if self.render_mode == "ansi" else None

    def close(self) -> None:
        """Frees the Z-machine; ``reset`` starts another one."""
        if self._play is not None:
            self._play.close()
            self._play = None

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
        info = world_info(
            admissible=turn.admissible,
            won=turn.won,
            score=turn.score,
            max_score=turn.max_score,
            llmworld={"source": "real", "scenario": self.scenario.id},
        )
        if self._policy_commands:
            info["policy_commands"] = self.play.policy()
        return info

    def _frame(self) -> str:
        return frame(self._last_action, self.play.turn.observation)

    def _show(self) -> None:
        sys.stdout.write(self._frame() + "\n\n")
