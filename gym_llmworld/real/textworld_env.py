"""TextWorld itself as a Gymnasium environment: the twin of the imagined one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gym_llmworld.core import Scenario
from gym_llmworld.real.base import RealTextEnv, Reply
from gym_llmworld.real.textworld_engine import Play, Turn, strip_observation
from gym_llmworld.real.textworld_games import textworld_release
from gym_llmworld.real.textworld_scenarios import ScenarioSource, scenario_story
from gym_llmworld.worlds import get_world


class TextWorldEnv(RealTextEnv[Scenario, Play]):
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

    def __init__(
        self,
        split: str = "train",
        games: str | None = None,
        raw: bool = False,
        policy_commands: bool = False,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        textworld_release()
        source = ScenarioSource(games)
        source.check(split)
        super().__init__(get_world("textworld"), source, split, max_episode_steps, render_mode)
        self._raw, self._policy_commands = raw, policy_commands

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

    def _begin(self, start: Scenario) -> tuple[Play, Reply]:
        play = Play(scenario_story(start), raw=self._raw, track_policy=self._policy_commands)
        return play, _reply(play.turn)

    def _answer(self, play: Play, action: str) -> Reply:
        return _reply(play.step(action))

    def _admissible(self, play: Play) -> Sequence[str]:
        return play.turn.admissible

    def _end(self, play: Play) -> None:
        play.close()

    def _comparable(self, observation: str) -> str:
        return strip_observation(observation)

    def _made_with(self, scenario: Scenario) -> str:
        made_with = scenario.real.get("textworld", "?")
        return f" (made with TextWorld {made_with}, this is {textworld_release()})"

    def _info(self) -> dict[str, Any]:
        info = super()._info()
        if self._policy_commands:
            info["policy_commands"] = self.play.policy()
        return info


def _reply(turn: Turn) -> Reply:
    return Reply(turn.observation, turn.won, turn.lost, turn.score, turn.max_score)
