"""The object games as a Gymnasium environment of text: an engine and a generator of our own.

A game is ``<split>/<game>/<seed>``, such as ``test/kettle/1000``; the splits share no first state.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from gym_llmworld.core import Scenario
from gym_llmworld.errors import ScenarioError
from gym_llmworld.objectstate import difference_text, read_state
from gym_llmworld.real.base import RealTextEnv, Reply
from gym_llmworld.real.grids_levels import (
    SEEDS,
    LevelSpec,
    check_split,
    load_levels,
    split_of,
)
from gym_llmworld.real.scenario_drafts import (
    SCENARIOS_FILE,
    Progress,
    in_random_order,
    write_made_scenarios,
)
from gym_llmworld.scenarios import SHIPPED_FILE, ScenarioStore, data_folder, read_scenario
from gym_llmworld.worlds import get_world
from gym_llmworld.worlds.objects import KEY
from gym_llmworld.worlds.objects_more_games import GAMES
from gym_llmworld.worlds.objects_rules import Board, Game

GENERATOR = 1
_MAX_DRAWS = 1000
_MAX_PLAN = 30

load_games = load_levels


def check_game(game: str) -> None:
    """Checks the name of a game.

    Raises:
        ScenarioError: There is no such game.
    """
    if game not in GAMES:
        raise ScenarioError(f"unknown game {game!r}; expected one of {', '.join(GAMES)}")


@lru_cache(maxsize=4096)
def make_game(spec: LevelSpec) -> Scenario:
    """Draws games until one is of the split.

    Raises:
        ScenarioError: There is no such game.
    """
    check_game(spec.board)
    game = GAMES[spec.board]
    rng = np.random.default_rng([GENERATOR, list(GAMES).index(spec.board), spec.seed])
    for _ in range(_MAX_DRAWS):
        board = game.start(rng)
        first = board.state
        if split_of((first.text,)) == spec.split:
            return Scenario(
                id=spec.id,
                world=KEY,
                split=spec.split,
                instruction=game.task,
                observation=first.text,
                admissible=tuple(game.actions(board)),
                real={
                    "game": game.key,
                    "seed": spec.seed,
                    "generator": GENERATOR,
                    "plan": _plan(game, board),
                },
            )
    raise ScenarioError(f"no game of {_MAX_DRAWS} drawn ones belongs to {spec.id!r}")


def _plan(game: Game, board: Board) -> list[str]:
    """Returns the actions of the expert, which solve every game."""
    plan: list[str] = []
    while not board.won:
        if board.lost or len(plan) == _MAX_PLAN:
            raise AssertionError(f"the expert loses at {game.key}: {board.state.text}")
        plan.append(game.advise(board))
        game.act(board, plan[-1])
    return plan


def write_games(
    out_dir: str | os.PathLike[str],
    split: str,
    n: int,
    seed: int = 0,
    *,
    game: str | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> Path:
    """Makes games and writes the scenarios that start them.

    Args:
        out_dir: Created if missing; an interrupted call goes on where it was.
        split: ``train``, ``valid`` or ``test``: they share no first state.
        n: How many.
        seed: Of the draw.
        game: Which; None for all of them in turn.
        workers: Processes.
        progress: Called with how many are done and ``n``.

    Returns:
        The path of ``<out_dir>/<split>/scenarios.jsonl``.

    Raises:
        ScenarioError: There is no such split or game, or the split has fewer games.
    """
    check_split(split)
    if game is not None:
        check_game(game)
    games = list(GAMES) if game is None else [game]
    if n > len(games) * len(SEEDS[split]):
        raise ScenarioError(
            f"split {split!r} has {len(games) * len(SEEDS[split])} games; expected n <= that, "
            f"got {n}"
        )
    return write_made_scenarios(
        Path(out_dir) / split / SCENARIOS_FILE,
        _specs(split, games, random.Random(f"{split}/{seed}")),
        n,
        make=make_game,
        name=attrgetter("id"),
        generator=GENERATOR,
        workers=workers,
        progress=progress,
    )


def _specs(split: str, games: Sequence[str], rng: random.Random) -> Iterator[LevelSpec]:
    """Yields all games of a split, each kind in turn, in a random order of seeds."""
    for seed in in_random_order(SEEDS[split], rng):
        yield from (LevelSpec(split, game, seed) for game in games)


class GameSource:
    """Where an environment takes its games from: listed, or made on demand.

    Args:
        games: A folder made by `write_games` or a ``scenarios.jsonl``. None for the games that ship
            with the package; any other can be named by its id.
        game: Kind of game to draw; None for what is listed.

    Raises:
        ScenarioError: There is nothing at ``games``, no such game, or both are given.
    """

    def __init__(self, games: str | None, game: str | None) -> None:
        if games is not None and game is not None:
            raise ScenarioError(
                f"games={games!r} says which games are played; leave out game={game!r}"
            )
        if game is not None:
            check_game(game)
        self._game, self._listed_only = game, games is not None
        listed = games is not None or (data_folder(KEY) / SHIPPED_FILE).is_file()
        self._store = ScenarioStore(KEY, games) if listed else None

    def __deepcopy__(self, memo: dict[int, Any]) -> GameSource:
        """Returns itself: nothing in it changes."""
        return self

    def draw(self, split: str, rng: np.random.Generator) -> Scenario:
        """Returns a game of a split, each as likely as the other.

        Raises:
            ScenarioError: There is no such split.
        """
        check_split(split)
        if self._store is not None and self._game is None:
            return self._store.draw(split, rng)
        seeds = SEEDS[split]
        seed = seeds[int(rng.integers(len(seeds)))]
        kinds = list(GAMES) if self._game is None else [self._game]
        return make_game(LevelSpec(split, kinds[int(rng.integers(len(kinds)))], seed))

    def get(self, scenario: str | Mapping[str, Any] | Scenario) -> Scenario:
        """Returns a game by its id, or reads the dict that `Scenario.to_json` writes.

        Raises:
            ScenarioError: There is no such game, or it is one of another world.
        """
        if not isinstance(scenario, str):
            return read_scenario(scenario, KEY)
        if self._listed_only:
            assert self._store is not None
            return self._store.get(scenario)
        spec = LevelSpec.parse(scenario)
        if spec is None:
            raise ScenarioError(
                f"unknown scenario {scenario!r}; expected <split>/<game>/<seed>, for example "
                f"test/{next(iter(GAMES))}/{SEEDS['test'][0]}, with seeds "
                + ", ".join(f"{s[0]} to {s[-1]} for {name}" for name, s in SEEDS.items())
            )
        return make_game(spec)


@dataclass
class GamePlay:
    """One episode.

    Attributes:
        game: Its rules.
        board: Where it stands.
    """

    game: Game
    board: Board

    def reply(self, observation: str) -> Reply:
        """Returns what the agent is shown."""
        most = float(self.game.max_points)
        score = most if self.board.won else float(min(self.board.points, self.game.max_points))
        return Reply(observation, self.board.won, self.board.lost, score, most)


class ObjectGamesEnv(RealTextEnv[Scenario, GamePlay]):
    """Object games; see `gym_llmworld.worlds.objects`.

    Beside the keys that all worlds have, ``info["llmworld"]`` has ``state``, the whole state as
    JSON.

    Args:
        split: ``"train"``, ``"valid"`` or ``"test"``.
        games: A folder made by ``llmworld games`` or a ``scenarios.jsonl``; None for the games that
            ship with the package. ``reset`` takes the id of any other.
        game: Kind of game, made on demand; None for the listed ones.
        max_episode_steps: Truncate after as many steps; None leaves that to a wrapper.
        render_mode: None, ``"ansi"`` or ``"human"``.

    Raises:
        ScenarioError: There is no such split, folder or game.
    """

    def __init__(
        self,
        split: str = "train",
        games: str | None = None,
        game: str | None = None,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        check_split(split)
        world = get_world(KEY)
        super().__init__(world, GameSource(games, game), split, max_episode_steps, render_mode)
        self._rejection = world.rejection
        self._admit = world.protocol("engine").admit

    def _begin(self, start: Scenario) -> tuple[GamePlay, Reply]:
        spec = LevelSpec.parse(f"{start.split}/{start.real.get('game')}/{start.real.get('seed')}")
        if spec is None:
            raise ScenarioError(
                f"scenario {start.id!r} does not say its game: expected split, real['game'] and "
                f"real['seed'] as `llmworld games` writes them, got {start.split!r} and "
                f"{dict(start.real)!r:.120}"
            )
        first = read_state(make_game(spec).observation)
        assert first is not None
        play = GamePlay(GAMES[spec.board], Board.of(first))
        return play, play.reply(first.text)

    def _answer(self, play: GamePlay, action: str) -> Reply:
        # What may not enter a model's chat means nothing here either, so that the twins agree.
        admitted, before = self._admit(action), play.board.state
        if admitted is None or not play.game.act(play.board, admitted):
            return play.reply(self._rejection)
        return play.reply(difference_text(before, play.board.state))

    def _admissible(self, play: GamePlay) -> Sequence[str]:
        return play.game.actions(play.board)

    def _info(self) -> dict[str, Any]:
        info = super()._info()
        info["llmworld"] |= {"state": self.play.board.state.text}
        return info
