"""From ScienceWorld's tasks and variations to scenarios and back."""

from __future__ import annotations

import itertools
import logging
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gym_llmworld.core import Scenario
from gym_llmworld.errors import ScenarioError
from gym_llmworld.real.scenario_drafts import Progress, write_made_scenarios
from gym_llmworld.real.scienceworld_engine import (
    SPLITS,
    VARIATIONS,
    Game,
    Play,
    RoomView,
    published_views,
    split_variations,
    survey,
)
from gym_llmworld.real.scienceworld_jvm import engine_classpath
from gym_llmworld.scenarios import ScenarioStore, read_scenario

WORLD_KEY = "scienceworld"
SCENARIOS_FILE = "scenarios.jsonl"

_log = logging.getLogger(__name__)

_UNPUBLISHED_TASKS = {"5-1", "5-2", "9-1", "9-2", "9-3", "10-1", "10-2"}

_ID = re.compile(r"sciworld-([a-z]+)-([a-z0-9-]+)-(\d+)(?:\+([A-Za-z,]+))?")


def scenario_id(game: Game) -> str:
    """Returns ``sciworld-<split>-<task>-<variation>``, then ``+<simplifications>`` if any."""
    suffix = f"+{game.simplifications}" if game.simplifications else ""
    return f"sciworld-{game.split}-{game.task}-{game.variation}{suffix}"


def game_of_id(identity: str) -> Game:
    """Reads what `scenario_id` returns.

    Raises:
        ScenarioError: There is no such game.
    """
    match = _ID.fullmatch(identity)
    if match is None:
        raise ScenarioError(
            f"unknown scenario {identity!r}; expected sciworld-<split>-<task>-<variation>, for "
            "example 'sciworld-test-boil-29'"
        )
    game = Game(match[2], int(match[3]), match[4] or "")
    if game.split != match[1]:
        raise ScenarioError(
            f"unknown scenario {identity!r}: variation {game.variation} of {game.task!r} belongs "
            f"to split {game.split!r}; expected {scenario_id(game)!r}"
        )
    return game


def game_of(scenario: Scenario) -> Game:
    """Returns the game that a scenario starts.

    Raises:
        ScenarioError: It does not say, or there is no such game.
    """
    real = scenario.real
    if "task" not in real or "variation" not in real:
        raise ScenarioError(
            f"scenario {scenario.id!r} does not say which game it starts; expected 'task' and "
            f"'variation' in real, got {sorted(real)}"
        )
    return Game(str(real["task"]), real["variation"], str(real.get("simplifications", "")))


def published_game(number: int) -> Game:
    """Returns the game of Word2World's and AgentGym's item ``sciworld_<number>``.

    They count through the package's tasks, variation by variation, without some tasks.

    Raises:
        ScenarioError: There is no such item.
        MissingDependency: scienceworld is not installed.
    """
    engine_classpath()
    from scienceworld.constants import ID2TASK

    tasks = [task for key, task in ID2TASK.items() if key not in _UNPUBLISHED_TASKS]
    left = number
    for task in tasks:
        if 0 <= left < VARIATIONS[task]:
            return Game(task, left)
        left -= VARIATIONS[task]
    count = sum(VARIATIONS[task] for task in tasks)
    raise ScenarioError(f"no published item sciworld_{number}; expected 0 to {count - 1}")


def game_scenario(game: Game, *, compat: bool = False) -> Scenario:
    """Describes where a game starts, with all that it hides.

    The plan in ``real["plan"]`` is the simulator's own solution, proven by playing it; it is empty
    in the rare game where that does not win.

    Args:
        game: One of ScienceWorld's 7207, with or without simplifications.
        compat: Describe the rooms as Word2World's context builder does, for the published
            checkpoints: through teleports in a random order, of which some fail and describe the
            room before once more.

    Raises:
        EngineError: The simulator cannot be started, or fails.
        MissingDependency: scienceworld is not installed.
    """
    seen = survey(game)
    actions, rooms = seen.actions, seen.rooms
    if compat:
        rng = np.random.default_rng([zlib.crc32(game.task.encode()), game.variation])
        actions, rooms = published_views(game, rng)
    return Scenario(
        id=scenario_id(game),
        world=WORLD_KEY,
        split=game.split,
        instruction=seen.task,
        observation=first_view(seen.task, seen.observation),
        hidden={
            "goal": seen.goal,
            "actions": list(actions),
            "inventory": seen.inventory,
            "rooms": [_room(view) for view in rooms],
        },
        real={
            "task": game.task,
            "variation": game.variation,
            "simplifications": game.simplifications,
            "plan": _proven(game, seen.plan),
        },
    )


def _proven(game: Game, plan: Sequence[str]) -> list[str]:
    """Plays a plan; returns it up to the command that wins."""
    play = Play(game)
    length = next((i for i, command in enumerate(plan, 1) if play.step(command).over), 0)
    play.close()
    return list(plan[:length]) if play.turn.won else []


def _room(view: RoomView) -> dict[str, Any]:
    return {
        "name": view.name,
        "look": view.look,
        "objects": list(view.objects),
        "opened": list(view.opened),
    }


def first_view(task: str, observation: str) -> str:
    """Returns the first observation as agents see it: the task, then the room."""
    return f"{task}\n{observation}"


def game_stream(
    split: str, seed: int, tasks: Sequence[str] = tuple(VARIATIONS), simplifications: str = ""
) -> Iterator[Game]:
    """Yields each game of a split once, a variation of each task in turn, in random order.

    Raises:
        ScenarioError: There is no such split, task or simplification.
    """
    parts = {task: _split_of(task, split) for task in tasks}
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    left = {task: rng.permutation(list(part)).tolist() for task, part in parts.items()}
    return _turns(left, rng, simplifications)


def _turns(
    left: dict[str, list[int]], rng: np.random.Generator, simplifications: str
) -> Iterator[Game]:
    while left:
        names = list(left)
        for i in rng.permutation(len(names)):
            yield Game(names[i], left[names[i]].pop(), simplifications)
        left = {task: variations for task, variations in left.items() if variations}


def write_games(
    out_dir: str | os.PathLike[str],
    split: str,
    n: int,
    seed: int = 0,
    *,
    compat: bool = False,
    workers: int = 1,
    progress: Progress | None = None,
) -> Path:
    """Writes scenarios, each proven solvable by the simulator's own solution.

    After an interruption the same call goes on where it was.

    Args:
        out_dir: Created if missing.
        split: ``train``, ``dev`` or ``test``.
        n: How many.
        seed: Of the draw.
        compat: See `game_scenario`.
        workers: Processes, each with a JVM.
        progress: Called with how many are done and ``n``.

    Returns:
        The path of ``<out_dir>/<split>/scenarios.jsonl``.

    Raises:
        ScenarioError: There is no such split, or it has not as many games.
        EngineError: The simulator cannot be started, or fails.
        MissingDependency: scienceworld is not installed.
    """
    return write_made_scenarios(
        Path(out_dir) / split / SCENARIOS_FILE,
        itertools.chain(game_stream(split, seed), _no_more(split)),
        n,
        make=partial(_solvable_scenario, compat=compat),
        name=scenario_id,
        workers=workers,
        progress=progress,
    )


def _solvable_scenario(game: Game, *, compat: bool) -> Scenario | None:
    scenario = game_scenario(game, compat=compat)
    if scenario.real["plan"]:
        return scenario
    _log.warning("left out: the simulator's solution of %s does not win", scenario.id)
    return None


def _no_more(split: str) -> Iterator[Game]:
    yield from ()
    size = sum(len(split_variations(task)[split]) for task in VARIATIONS)
    raise ScenarioError(
        f"there are no more games: split {split!r} of ScienceWorld has {size}; expected fewer"
    )


def load_games(games: str | os.PathLike[str], split: str) -> list[Scenario]:
    """Reads the scenarios of a split from a folder made by `write_games`.

    Raises:
        ScenarioError: There is no such folder or split.
    """
    return list(ScenarioStore(WORLD_KEY, str(games)).of_split(split))


class ScenarioSource:
    """Where the environment takes its games from: listed scenarios, or all of ScienceWorld.

    Args:
        games: A folder made by `write_games`, or a ``scenarios.jsonl``; None for all games.
        tasks: Draw games of these tasks only; None for all.
        simplifications: Of the games that are not listed.

    Raises:
        ScenarioError: There is nothing at ``games``, or there is no such task or simplification.
    """

    def __init__(
        self, games: str | None, tasks: Sequence[str] | None, simplifications: str
    ) -> None:
        self._store = None if games is None else ScenarioStore(WORLD_KEY, games)
        self._tasks = tuple(VARIATIONS if tasks is None else tasks)
        self._simplifications = simplifications
        if not self._tasks:
            raise ScenarioError("tasks is empty; expected names of tasks, or None for all")
        for task in self._tasks:
            Game(task, 0, simplifications)

    def __deepcopy__(self, memo: dict[int, Any]) -> ScenarioSource:
        return self

    def draw(self, split: str, rng: np.random.Generator) -> Start:
        """Returns a start of a split.

        Of the listed ones, each is as likely as the other; else a task is drawn first, then one of
        its variations.

        Raises:
            ScenarioError: There is no such split, or none of the tasks in it.
        """
        if self._store is not None:
            pool = self._listed(self._store, split)
            return Start.of(pool[int(rng.integers(len(pool)))])
        task = self._tasks[int(rng.integers(len(self._tasks)))]
        variations = _split_of(task, split)
        variation = variations[int(rng.integers(len(variations)))]
        return Start(Game(task, variation, self._simplifications))

    def check(self, split: str) -> None:
        """Checks that games can be drawn from a split.

        Raises:
            ScenarioError: See `draw`.
        """
        self.draw(split, np.random.default_rng(0))

    def get(self, scenario: str | Mapping[str, Any] | Scenario) -> Start:
        """Returns a start by id, or reads the dict that `Scenario.to_json` writes.

        Raises:
            ScenarioError: There is no such scenario, or it is one of another world.
        """
        if self._store is not None:
            return Start.of(self._store.get(scenario))
        if isinstance(scenario, str):
            return Start(game_of_id(scenario))
        return Start.of(read_scenario(scenario, WORLD_KEY))

    def _listed(self, store: ScenarioStore, split: str) -> list[Scenario]:
        pool = [s for s in store.of_split(split) if s.real.get("task") in self._tasks]
        if not pool:
            raise ScenarioError(
                f"no scenario of split {split!r} in {store.source} has one of the tasks "
                f"{', '.join(self._tasks)}"
            )
        return pool


@dataclass(frozen=True, slots=True)
class Start:
    """A game, and its scenario where that is known already.

    Attributes:
        game: What to load.
        scenario: Given by the user or a file; None where it would have to be made, which takes
            several times as long as loading.
    """

    game: Game
    scenario: Scenario | None = None

    @classmethod
    def of(cls, scenario: Scenario) -> Start:
        """Returns the start of a scenario."""
        return cls(game_of(scenario), scenario)

    @property
    def id(self) -> str:
        """Of the scenario."""
        return scenario_id(self.game) if self.scenario is None else self.scenario.id


def _split_of(task: str, split: str) -> range:
    if split not in SPLITS:
        raise ScenarioError(f"unknown split {split!r}; expected one of {', '.join(SPLITS)}")
    return split_variations(task)[split]
