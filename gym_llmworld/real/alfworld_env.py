"""ALFWorld itself as a Gymnasium environment: the twin of the imagined one."""

from __future__ import annotations

from collections.abc import Sequence

from gym_llmworld.core import Scenario
from gym_llmworld.real.alfworld_engine import Play
from gym_llmworld.real.alfworld_scenarios import load_game
from gym_llmworld.real.alfworld_source import ScenarioSource
from gym_llmworld.real.alfworld_views import first_view
from gym_llmworld.real.base import RealTextEnv, Reply
from gym_llmworld.worlds import get_world


class AlfworldEnv(RealTextEnv[Scenario, Play]):
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

    def __init__(
        self,
        split: str = "train",
        games: str | None = None,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        source = ScenarioSource(games)
        source.of_split(split)
        super().__init__(get_world("alfworld"), source, split, max_episode_steps, render_mode)

    def facts(self) -> list[tuple[str, ...]]:
        """Returns what is true now, hidden things too, as predicate and names.

        For example ``("inreceptacle", "mug 1", "desk 1")``.

        Raises:
            ResetNeeded: ``reset`` was not called yet.
        """
        return self.play.facts()

    def _begin(self, start: Scenario) -> tuple[Play, Reply]:
        play = Play(load_game(start))
        return play, Reply(first_view(play.turn.observation))

    def _answer(self, play: Play, action: str) -> Reply:
        turn = play.step(action)
        return Reply(turn.observation, won=turn.won)

    def _admissible(self, play: Play) -> Sequence[str]:
        return play.turn.admissible
