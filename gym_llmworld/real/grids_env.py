"""`GridEnv`: what the real grid puzzles share as environments."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, get_args

import numpy as np

from gym_llmworld.core import Scenario
from gym_llmworld.errors import ScenarioError
from gym_llmworld.real.base import RealTextEnv, Reply
from gym_llmworld.real.grids_levels import Levels, LevelSource, check_split
from gym_llmworld.worlds import get_world
from gym_llmworld.worlds.grids import Board, Puzzle, actions_left

Coordinates = Literal["on", "off", "random"]


class Engine(Protocol):
    """The rules of a puzzle, and where it stands."""

    @property
    def board(self) -> Board:
        """As it is drawn."""
        ...

    @property
    def won(self) -> bool:
        """The puzzle is solved."""
        ...

    @property
    def lost(self) -> bool:
        """It cannot go on."""
        ...

    def act(self, action: str) -> float:
        """Carries out an action in canonical form; returns SPA's reward for it."""
        ...

    def actions(self) -> Sequence[str]:
        """Lists what can be done now."""
        ...


@dataclass
class GridPlay:
    """One episode.

    Attributes:
        puzzle: Which.
        engine: Its rules.
        coordinates: Of the state estimate.
        rng: Draws coordinates that mean nothing.
        left: Actions that are left.
        turn_reward: SPA's reward of the last turn.
        well_formed: Whether the last turn was.
        state: As SPA's agents are to describe it.
    """

    puzzle: Puzzle
    engine: Engine
    coordinates: Coordinates
    rng: np.random.Generator
    left: int = 0
    turn_reward: float = 0.0
    well_formed: bool = True
    state: str = field(init=False)

    def __post_init__(self) -> None:
        """Shows the first state."""
        self.left = self.puzzle.max_actions
        self.state = self._worded()

    def take(self, text: str | None) -> Reply | None:
        """Takes a turn; returns None when there is no action in it, and nothing changes."""
        turn = self.puzzle.read_turn(text or "")
        self.turn_reward, self.well_formed = 0.0, turn.well_formed
        if not turn.actions:
            return None
        for action in turn.actions:
            if self.engine.won or self.engine.lost or not self.left:
                break
            self.turn_reward += self.engine.act(action)
            self.left -= 1
        self.state = self._worded()
        return self.reply()

    def reply(self) -> Reply:
        """Shows where the episode stands; without actions left it is lost."""
        won = self.engine.won
        lost = not won and (self.engine.lost or not self.left)
        return Reply(self.puzzle.observation(self.state, self.left), won=won, lost=lost)

    def _worded(self) -> str:
        board, puzzle = self.engine.board, self.puzzle
        if self.coordinates == "off":
            return puzzle.state(board, None)
        scattered = self.coordinates == "random"
        return puzzle.state(
            board, puzzle.scattered(board, self.rng) if scattered else puzzle.groups(board)
        )


class GridEnv(RealTextEnv[Scenario, GridPlay]):
    """A grid puzzle as SPA's agents play it (arXiv 2510.15047).

    An action is a turn: up to five actions joined by ``" || "``; what is no action is left out, and
    so is what exceeds five. An observation is the board, the coordinates of what stands on it, and
    how many actions are left; without any left the episode is lost.

    Beside the keys that all worlds have, ``info["llmworld"]`` has ``state`` (the true state in
    words, without the count), ``turn_reward`` (SPA's reward, summed over the turn; the reward of a
    step is 1.0 for solving the puzzle, as in all worlds) and ``well_formed`` (every action of the
    turn could be read, and there were not too many; SPA fines the others).

    Args:
        split: ``"train"``, ``"valid"`` or ``"test"``, see `gym_llmworld.real.grids_levels`.
        games: A folder made by ``llmworld games`` or a ``scenarios.jsonl``; None for the levels
            that ship with the package. ``reset`` takes the id of any other.
        board: Kind of board, made on demand; None for the listed ones.
        coordinates: State estimate: ``"on"``, ``"off"``, or ``"random"`` for coordinates that mean
            nothing (SPA's ablation).
        max_episode_steps: Truncate after as many turns; None leaves that to a wrapper.
        render_mode: None, ``"ansi"`` or ``"human"``.

    Raises:
        ScenarioError: There is no such split, folder or kind of board.
        ValueError: ``coordinates`` is something else.
    """

    levels: ClassVar[Levels]

    def __init__(
        self,
        split: str = "train",
        games: str | None = None,
        board: str | None = None,
        coordinates: Coordinates = "on",
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        check_split(split)
        if coordinates not in get_args(Coordinates):
            raise ValueError(
                f"coordinates must be one of {', '.join(get_args(Coordinates))}, "
                f"got {coordinates!r}"
            )
        world, source = get_world(self.levels.puzzle.key), LevelSource(self.levels, games, board)
        super().__init__(world, source, split, max_episode_steps, render_mode)
        self._coordinates = coordinates
        self._rejection = world.rejection
        self._admit = world.protocol("engine").admit

    @abstractmethod
    def _engine(self, board: Board, scenario: Scenario, seed: int) -> Engine:
        """Sets up a board that is known to be solvable."""

    def _begin(self, start: Scenario) -> tuple[GridPlay, Reply]:
        board = _level(start)
        self.levels.solved(board)
        chance, scatter = (int(seed) for seed in self.np_random.integers(2**31, size=2))
        play = GridPlay(
            self.levels.puzzle,
            self._engine(board, start, chance),
            self._coordinates,
            np.random.default_rng(scatter),
        )
        return play, play.reply()

    def _answer(self, play: GridPlay, action: str) -> Reply:
        # What may not enter a model's chat means nothing here either, so that the twins agree.
        admitted = self._admit(action) is not None
        return play.take(action if admitted else None) or Reply(self._rejection)

    def _admissible(self, play: GridPlay) -> Sequence[str]:
        return play.engine.actions()

    def _comparable(self, observation: str) -> str:
        """Returns a first observation without the coordinates, which may be off or random."""
        board = self.levels.puzzle.read_board(observation)
        return observation if board is None else f"{board} {actions_left(observation)}"

    def _info(self) -> dict[str, Any]:
        info, play = super()._info(), self.play
        info["llmworld"] |= {
            "state": play.state,
            "turn_reward": round(play.turn_reward, 6),
            "well_formed": play.well_formed,
        }
        return info


def _level(scenario: Scenario) -> Board:
    rows = scenario.real.get("level")
    if not isinstance(rows, list | tuple) or not all(isinstance(row, str) for row in rows):
        raise ScenarioError(
            f"scenario {scenario.id!r} has no board in real['level'], got {rows!r:.80}; expected a "
            "list of rows, as `llmworld games` writes"
        )
    return tuple(rows)
