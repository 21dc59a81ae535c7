"""Reading games: those that `write_games` made, and those of ``alfworld-download``."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from gym_llmworld.core import Scenario
from gym_llmworld.episodes import read_scenarios
from gym_llmworld.errors import DataError, EngineError, ScenarioError
from gym_llmworld.real.alfworld_engine import Facts
from gym_llmworld.real.alfworld_grammar import parse_grammar
from gym_llmworld.real.alfworld_names import names_of
from gym_llmworld.real.alfworld_pddl import Problem, read_problem
from gym_llmworld.real.alfworld_tasks import TASK_TYPES, Task
from gym_llmworld.real.alfworld_views import first_view, hidden_state, task_facts
from gym_llmworld.worlds.alfworld_text import TASK_PREFIX

DATA_VARIABLE = "ALFWORLD_DATA"

_DOWNLOAD_FOLDER = "json_2.1.1"
_PUT_GRAMMAR = "put "

_log = logging.getLogger(__name__)


def load_games(games: str | os.PathLike[str] | None, split: str) -> list[Scenario]:
    """Reads the scenarios of a split.

    Args:
        games: A folder made by `write_games`, or the tree that ``alfworld-download`` makes; None
            for the folder that the environment variable ``ALFWORLD_DATA`` names.
        split: ``train``, ``valid_seen`` or ``valid_unseen``.

    Raises:
        ScenarioError: There is no such folder or split, or no game in it can be played here.
        DataError: A file is damaged.
    """
    if games is None:
        games = os.environ.get(DATA_VARIABLE)
        if games is None:
            raise ScenarioError(
                f"no folder with games given and ${DATA_VARIABLE} is not set; make games with "
                f"`llmworld games alfworld --out DIR`, or run `alfworld-download`"
            )
    folder = _split_folder(Path(games), split)
    listed = folder / "scenarios.jsonl"
    if listed.is_file():
        return read_scenarios(listed)
    return list(_downloaded(folder, split))


def _split_folder(root: Path, split: str) -> Path:
    for folder in (root / split, root / _DOWNLOAD_FOLDER / split):
        if folder.is_dir():
            return folder
    present = sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    raise ScenarioError(
        f"no games of split {split!r} in {root}; expected a folder {split} or "
        f"{_DOWNLOAD_FOLDER}/{split}, "
        + (f"found {', '.join(present) or 'nothing'}" if root.is_dir() else "which does not exist")
    )


@lru_cache(maxsize=4)
def _downloaded(folder: Path, split: str) -> tuple[Scenario, ...]:
    scenarios, refused = [], []
    # Hidden folders are drafts of `write_games`.
    files = (f for f in folder.rglob("game.tw-pddl") if not f.parent.name.startswith("."))
    for file in sorted(files):
        try:
            scenarios.append(read_game_file(file, split))
        except ScenarioError as error:
            refused.append(str(error))
    if refused:
        _log.warning("%d games of %s left out; the first: %s", len(refused), folder, refused[0])
    if not scenarios:
        reason = f"; the first of {len(refused)} refused ones: {refused[0]}" if refused else ""
        raise ScenarioError(
            f"no playable game.tw-pddl under {folder}{reason or '; expected <task>/<trial>/'}"
        )
    return tuple(scenarios)


def read_game_file(file: Path, split: str) -> Scenario:
    """Describes where a downloaded game starts, without translating it.

    Args:
        file: ``game.tw-pddl``, with ``traj_data.json`` beside it.
        split: What the scenario shall say.

    Raises:
        ScenarioError: The game is unsolvable, of a task that ALFWorld does not play, or written in
            the grammar from before ALFWorld 0.4 (``put x in/on y``).
        DataError: A file is not what it should be.
    """
    data, traj = read_json(file), read_json(file.with_name("traj_data.json"))
    task = _task_of(file, traj)
    if not data.get("solvable", False):
        raise ScenarioError(f"{file} is marked unsolvable; ALFWorld skips it, too")
    missing = [key for key in ("grammar", "pddl_problem") if not isinstance(data.get(key), str)]
    if missing:
        raise DataError(f"{file}: expected the texts grammar and pddl_problem, missing {missing}")
    try:
        grammar, problem = parse_grammar(data["grammar"]), read_problem(data["pddl_problem"])
        names = names_of({thing for _, arguments in problem.facts for thing in arguments})
        observation = first_view(grammar.intro(Facts(problem.facts, problem.types, names)))
    except EngineError as error:
        raise DataError(f"{file}: {error}") from error
    moves = grammar.templates.get("putobject", ())
    if moves and getattr(moves[0], "text", "").startswith(_PUT_GRAMMAR):
        raise ScenarioError(
            f"{file} has the grammar from before ALFWorld 0.4 (`put x in/on y`); expected "
            "`move x to y`. Download the games again: alfworld-download --force"
        )
    return Scenario(
        id="/".join((split, file.parent.parent.name, file.parent.name)),
        world="alfworld",
        split=split,
        instruction=observation.rpartition(TASK_PREFIX)[2],
        observation=observation,
        admissible=_first_commands(problem, names),
        hidden=hidden_state(problem),
        real={
            **task_facts(task),
            "plan": list(data.get("walkthrough") or ()),
            "game_file": str(file),
        },
    )


def _first_commands(problem: Problem, names: Mapping[str, str]) -> tuple[str, ...] | None:
    """Returns what is possible away from all furniture with empty hands; None when not so."""
    places = problem.of("receptacleatlocation")
    here = {location for _, location in problem.of("atlocation")}
    if here & {location for _, location in places} or problem.of("holds"):
        return None
    moves = (f"go to {names[receptacle]}" for receptacle, _ in places)
    return tuple(sorted({*moves, "help", "inventory", "look"}))


def _task_of(file: Path, traj: Mapping[str, Any]) -> Task:
    try:
        goal = traj["pddl_params"]
        kind, scene = traj["task_type"], int(traj["scene"]["scene_num"])
        place = goal["toggle_target"] if kind == "look_at_obj_in_light" else goal["parent_target"]
        task = Task(kind, goal["object_target"], place, scene)
        sliced = goal["object_sliced"]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{file.with_name('traj_data.json')}: missing or wrong field {error}; expected "
            "task_type, pddl_params and scene as in ALFRED"
        ) from error
    if kind not in TASK_TYPES or sliced:
        raise ScenarioError(f"{file} is a task with slices or a movable receptacle: not supported")
    return task


def read_json(file: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        ScenarioError: There is no such file.
        DataError: It holds something else.
    """
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ScenarioError(f"no such game file: {file}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{file} is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise DataError(f"{file} must hold a JSON object, got {type(data).__name__}")
    return data
