"""ScienceWorld itself as a Gymnasium environment: the twin of the imagined one."""

from __future__ import annotations

from collections.abc import Sequence

from gym_llmworld.core import Scenario
from gym_llmworld.real.base import RealTextEnv, Reply
from gym_llmworld.real.scienceworld_engine import MAX_SCORE, Play, Turn
from gym_llmworld.real.scienceworld_jvm import engine_classpath
from gym_llmworld.real.scienceworld_scenarios import (
    ScenarioSource,
    Start,
    first_view,
    game_scenario,
)
from gym_llmworld.worlds.scienceworld import WORLD, canonical


class ScienceWorldEnv(RealTextEnv[Start, Play]):
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
    input.". ``env.unwrapped.scenario``, unless it was given, is made when first asked for, which
    takes several times as long as a reset.

    Raises:
        ScenarioError: There is no such split, task, simplification or folder.
        MissingDependency: scienceworld is not installed.
    """

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
        engine_classpath()
        source = ScenarioSource(games, tasks, simplifications)
        source.check(split)
        super().__init__(WORLD, source, split, max_episode_steps, render_mode)
        self._protocol = WORLD.protocol("engine")
        self._lists_commands = admissible

    def _begin(self, start: Start) -> tuple[Play, Reply]:
        # The simulator of the last episode is used again; two would need twice the memory.
        self.close()
        play = Play(start.game)
        return play, _reply(play.turn, first_view(play.task, play.turn.observation))

    def _answer(self, play: Play, action: str) -> Reply:
        command = self._protocol.admit(action)
        if command is None:
            # The imagined twin answers these by the same rule, without asking its model.
            return _reply(play.turn, WORLD.rejection)
        turn = play.step(command)
        return _reply(turn, _fit(turn.observation))

    def _admissible(self, play: Play) -> Sequence[str] | None:
        return play.admissible() if self._lists_commands and not self._over else None

    def _end(self, play: Play) -> None:
        play.close()

    def _comparable(self, observation: str) -> str:
        return canonical(observation)

    def _given(self, start: Start) -> Scenario | None:
        return start.scenario

    def _make(self, start: Start) -> Scenario:
        return game_scenario(start.game)


def _reply(turn: Turn, observation: str) -> Reply:
    lost = turn.over and not turn.won
    return Reply(observation, turn.won, lost, float(max(0, turn.score)), float(MAX_SCORE))


def _fit(observation: str) -> str:
    """Cuts an observation, at a line, to what the observation space allows."""
    limit = WORLD.max_observation_chars
    if len(observation) <= limit:
        return observation
    return observation[: observation.rfind("\n", 0, limit) + 1]
