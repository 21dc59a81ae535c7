"""From ScienceWorld's tasks and variations to scenarios and back."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
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
    replay,
    split_variations,
    survey,
    variation_count,
)
from gym_llmworld.scenarios import ScenarioStore

WORLD_KEY = "scienceworld"
SCENARIOS_FILE = "scenarios.jsonl"

_ID = re.compile(r"sciworld-([a-z]+)-([a-z0-9-]+)-(\d+)(?:\+([A-Za-z,]+))?")


def scenario_id(game: Game) -> str:
    """Returns ``sciworld-<split>-<task>-<variation>``, and ``+<simplifications>`` if there are any."""
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
            f"unknown scenario {identity!r}: variation {game.variation} of {game.task!r} belongs to "
            f"split {game.split!r}; expected {scenario_id(game)!r}"
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


def game_scenario(game: Game, *, compat: bool = False) -> Scenario:
    """Describes where a game starts, with all that it hides.

    The plan in ``real["plan"]`` is the simulator's own solution, played to the end; it is empty in the
    rare game where that does not win.

    Args:
        game: One of ScienceWorld's 7207, with or without simplifications.
        compat: Describe the rooms as Word2World's context builder does, for the published
            checkpoints: through teleports of which some fail and describe the room before once more,
            in a random order.

    Raises:
        EngineError: The simulator cannot be started, or fails.
        MissingDependency: scienceworld is not installed.
    """
    seen = survey(game)
    play = Play(game)
    plan = seen.plan if replay(play, seen.plan).won else ()
    play.close()
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
            "plan": list(plan),
        },
    )


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
    if split not in SPLITS:
        raise ScenarioError(f"unknown split {split!r}; expected one of {', '.join(SPLITS)}")
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    left = {task: list(rng.permutation(list(split_variations(task)[split]))) for task in tasks}
    return _turns(left, rng, simplifications)


def _turns(
    left: dict[str, list[Any]], rng: np.random.Generator, simplifications: str
) -> Iterator[Game]:
    while left:
        names = list(left)
        for i in rng.permutation(len(names)):
            yield Game(names[i], int(left[names[i]].pop()), simplifications)
        left = {task: variations for task, variations in left.items() if variations}


def split_size(split: str) -> int:
    """Returns how many games a split has.

    Raises:
        ScenarioError: There is no such split.
    """
    if split not in SPLITS:
        raise ScenarioError(f"unknown split {split!r}; expected one of {', '.join(SPLITS)}")
    return sum(len(split_variations(task)[split]) for task in VARIATIONS)


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
    size = split_size(split)
    if n > size:
        raise ScenarioError(f"split {split!r} of ScienceWorld has {size} games; expected n <= {size}")
    return write_made_scenarios(
        Path(out_dir) / split / SCENARIOS_FILE,
        game_stream(split, seed),
        n,
        make=_compat_scenario if compat else _solvable_scenario,
        name=scenario_id,
        workers=workers,
        progress=progress,
    )
