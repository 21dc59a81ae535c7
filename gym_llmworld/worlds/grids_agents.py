"""Players of the grid puzzles that read text only, in the real and in an imagined world alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from gym_llmworld.agents import Agent, CorruptedAgent, NoisyAgent, ScriptedAgent
from gym_llmworld.core import Scenario
from gym_llmworld.worlds.base import World
from gym_llmworld.worlds.grids import (
    CONTEXTS,
    MAX_ACTIONS_PER_TURN,
    MAX_TURNS,
    REJECTION,
    SEPARATOR,
    Board,
    Puzzle,
    actions_left,
    is_exhausted,
)
from gym_llmworld.worlds.grids_wording import BoardWording


@dataclass(frozen=True, slots=True)
class Situation:
    """What a player has to decide on.

    Attributes:
        scenario: Of the episode.
        board: As last seen.
        left: Actions that are left.
        turns: Turns that are left.
    """

    scenario: Scenario
    board: Board
    left: int
    turns: int


Planner = Callable[[Situation], Sequence[str] | None]
"""Returns what to do, or at least how to begin; None when it does not know."""

Drawer = Callable[[Board, np.random.Generator], str]
"""Draws one action at random."""


class GridPlayer:
    """Looks at the board, then takes several actions at once.

    Args:
        puzzle: Which.
        planner: Chooses; None for a player who acts at random.
        draw: Draws an action where there is no plan.
        name: What episodes call it.
        most: Actions that it takes at once without a plan.
    """

    def __init__(
        self,
        puzzle: Puzzle,
        planner: Planner | None,
        draw: Drawer,
        *,
        name: str,
        most: int = MAX_ACTIONS_PER_TURN,
    ) -> None:
        self.name, self._most = name, most
        self._puzzle, self._planner, self._draw = puzzle, planner, draw
        self._rng = np.random.default_rng(0)
        self._situation: Situation | None = None

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Starts an episode."""
        self._rng = np.random.default_rng(seed)
        board = self._puzzle.read_board(scenario.observation) or ("",)
        # `act` is about to take the first of its turns.
        self._situation = Situation(scenario, board, self._puzzle.max_actions, MAX_TURNS + 1)

    def act(self, observation: str, info: Mapping[str, Any]) -> str:
        """Chooses a turn. Where an observation shows no board, the last one still counts."""
        before = self._situation
        assert before is not None, "reset comes first"
        left = actions_left(observation)
        self._situation = situation = Situation(
            before.scenario,
            self._puzzle.read_board(observation) or before.board,
            max(1, before.left if left is None else left),
            max(1, before.turns - 1),
        )
        plan = self._planner(situation) if self._planner else None
        if not plan:
            count = int(self._rng.integers(1, self._most + 1))
            return SEPARATOR.join(self._draw(situation.board, self._rng) for _ in range(count))
        # As few as get there in time, or more: episodes are to show turns of all lengths.
        needed = min(math.ceil(len(plan) / situation.turns), MAX_ACTIONS_PER_TURN)
        count = int(self._rng.integers(needed, MAX_ACTIONS_PER_TURN + 1))
        return SEPARATOR.join(plan[:count])


def turns_of(plan: Sequence[str]) -> list[str]:
    """Returns a plan in as few turns as possible."""
    starts = range(0, len(plan), MAX_ACTIONS_PER_TURN)
    return [SEPARATOR.join(plan[i : i + MAX_ACTIONS_PER_TURN]) for i in starts]


def grid_agents(
    puzzle: Puzzle, planner: Planner, draw: Drawer, wait: str
) -> dict[str, Callable[[], Agent]]:
    """Returns the agents of a puzzle.

    Args:
        puzzle: Which.
        planner: What its expert does.
        draw: What its random player does.
        wait: What a player without a plan left repeats.
    """
    # Partials of module-level functions, so that collection can send them to worker processes.
    return {
        "expert": partial(GridPlayer, puzzle, planner, draw, name="expert"),
        "noisy": partial(_noisy, puzzle, planner, draw),
        "random": partial(GridPlayer, puzzle, None, draw, name="random"),
        # What a world model has to know before it can put several actions together.
        "single": partial(GridPlayer, puzzle, None, draw, name="single", most=1),
        "corrupted": partial(_corrupted, puzzle, planner, draw),
        "plan": partial(ScriptedAgent, then=wait),
    }


def random_move(names: Sequence[str], board: Board, rng: np.random.Generator) -> str:
    """Draws one of named moves, whatever the board."""
    return names[int(rng.integers(len(names)))]


def grid_world(
    puzzle: Puzzle,
    title: str,
    planner: Planner,
    draw: Drawer,
    *,
    wait: str,
    max_tokens: int,
    temperature: Callable[[Scenario], float] | None = None,
    ends: Callable[[str], bool] = is_exhausted,
) -> World:
    """Returns the world of a puzzle, whose twin is ``gym_llmworld.real.<key>:<title>Env``.

    Args:
        puzzle: Which.
        title: As in the environment ids.
        planner: See `grid_agents`.
        draw: See `grid_agents`.
        wait: See `grid_agents`.
        max_tokens: Upper bound of a generated observation, in tokens.
        temperature: See `World`.
        ends: Tells whether an observation that did not solve the puzzle ends the episode.
    """
    twin = f"gym_llmworld.real.{puzzle.key}"
    return World(
        key=puzzle.key,
        title=title,
        rejection=REJECTION,
        contexts=CONTEXTS,
        wordings={"engine": partial(BoardWording, puzzle)},
        embedded=True,
        ends=ends,
        read_action=puzzle.canonical,
        agents=grid_agents(puzzle, planner, draw, wait),
        real_entry_point=f"{twin}:{title}Env",
        games_module=twin,
        extra="",
        splits=("train", "valid", "test"),
        max_episode_steps=MAX_TURNS,
        max_tokens=max_tokens,
        temperature=temperature,
    )


def _noisy(puzzle: Puzzle, planner: Planner, draw: Drawer) -> Agent:
    expert = GridPlayer(puzzle, planner, draw, name="expert")
    return NoisyAgent(expert, 0.3, GridPlayer(puzzle, None, draw, name="random"))


def _corrupted(puzzle: Puzzle, planner: Planner, draw: Drawer) -> Agent:
    return CorruptedAgent(_noisy(puzzle, planner, draw), 0.35)
