"""From ALFWorld games to scenarios and back: generated ones, and those of ``alfworld-download``."""

from __future__ import annotations

import itertools
import json
import logging
import multiprocessing
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

from gym_llmworld.core import Scenario
from gym_llmworld.episodes import TruncatedLine, read_scenarios, write_scenarios
from gym_llmworld.errors import DataError, EngineError, ScenarioError
from gym_llmworld.real.alfworld_engine import Facts, LoadedGame, Play, replay
from gym_llmworld.real.alfworld_games import (
    GENERATOR_VERSION,
    LAMPS,
    SPLITS,
    TASK_TYPES,
    Game,
    GameSpec,
    Task,
    build_game,
    dump_game,
    spec_stream,
    split_of,
)
from gym_llmworld.real.alfworld_grammar import parse_grammar
from gym_llmworld.real.alfworld_names import names_of
from gym_llmworld.real.alfworld_pddl import Problem, read_problem

TASK_PREFIX = "Your task is to: "
DATA_VARIABLE = "ALFWORLD_DATA"

_DOWNLOAD_FOLDER = "json_2.1.1"
_PUT_GRAMMAR = "put "
_MAX_FAILURES = 20

Progress = Callable[[int, int], None]

_log = logging.getLogger(__name__)


def first_view(intro: str) -> str:
    """Returns the first observation as agents see it: no welcome line, no blank line."""
    return "\n".join(intro.split("\n\n")[1:])


def hidden_state(problem: Problem) -> dict[str, Any]:
    """Returns what is where at first, in the engine's names and order.

    Returns:
        ``{"receptacles": [{"name", "openable", "open", "contents"}], "toggles": {lamp: is it on},
        "together": [[names of receptacles reached from one and the same point], ...]}``.
    """
    names = names_of({thing for _, arguments in problem.facts for thing in arguments})
    openable = {r for (r,) in problem.of("openable")}
    opened = {r for (r,) in problem.of("opened")}
    toggled = {o for (o,) in problem.of("istoggled")}
    contents: dict[str, list[str]] = {}
    for thing, receptacle in problem.of("inreceptacle"):
        contents.setdefault(receptacle, []).append(names[thing])
    reached: dict[str, list[str]] = {}
    for receptacle, location in problem.of("receptacleatlocation"):
        reached.setdefault(location, []).append(names[receptacle])
    return {
        "receptacles": [
            {
                "name": names[receptacle],
                "openable": receptacle in openable,
                "open": receptacle in opened,
                "contents": contents.get(receptacle, []),
            }
            for receptacle, _ in problem.of("receptacleatlocation")
        ],
        "toggles": {names[lamp]: lamp in toggled for (lamp,) in problem.of("toggleable")},
        "together": [group for group in reached.values() if len(group) > 1],
    }


def game_scenario(game: Game | GameSpec) -> Scenario:
    """Plays a generated game's plan in the engine and describes where the game starts.

    Raises:
        EngineError: The plan does not solve the game.
        ScenarioError: The spec is not possible.
        MissingDependency: alfworld is not installed.
    """
    game = build_game(game) if isinstance(game, GameSpec) else game
    play = Play(LoadedGame(game.game_data()))
    first = play.turn
    if not replay(play, game.plan).won:
        raise EngineError(f"the plan of {game.spec} does not solve it: {list(game.plan)}")
    split, task = split_of(game.spec), game.task
    return Scenario(
        id=f"{split}/{task}/{game.spec.seed}",
        world="alfworld",
        split=split,
        instruction=game.instruction,
        observation=first_view(first.observation),
        admissible=first.admissible,
        hidden=hidden_state(read_problem(game.problem)),
        real={
            **_task_facts(task),
            "plan": list(game.plan),
            "seed": game.spec.seed,
            "generator": GENERATOR_VERSION,
        },
    )


def _task_facts(task: Task) -> dict[str, Any]:
    return {
        "task_type": task.type,
        "object": task.object,
        "receptacle": task.receptacle,
        "scene": task.scene,
        "task": str(task),
    }


def write_games(
    out_dir: str | os.PathLike[str],
    split: str,
    n: int,
    seed: int = 0,
    *,
    workers: int = 1,
    scenarios_only: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Generates games, each proven solvable in the engine.

    Writes ``<out_dir>/<split>/scenarios.jsonl``, and unless ``scenarios_only`` also
    ``<split>/<task>/<trial>/{game.tw-pddl,initial_state.pddl,traj_data.json}``, the layout of
    ``alfworld-download``. A scenario is enough to rebuild its game. After an interruption the same
    call goes on where it was; files appear complete or not at all.

    Args:
        out_dir: Created if missing.
        split: ``train``, ``valid_seen`` or ``valid_unseen``.
        n: How many games.
        seed: Of the draw of tasks.
        workers: Processes.
        scenarios_only: Leave out the game files (80 KB each).
        progress: Called with how many are done and ``n``.

    Returns:
        The path of ``scenarios.jsonl``.

    Raises:
        ScenarioError: There is no such split.
        MissingDependency: alfworld is not installed.
    """
    folder = Path(out_dir) / split
    target = folder / "scenarios.jsonl"
    draft = folder / "scenarios.jsonl.part"
    specs = spec_stream(split, seed)
    folder.mkdir(parents=True, exist_ok=True)
    done = {s.id: s for file in (target, draft) if file.is_file() for s in _read_draft(file)}
    written: list[Scenario] = []
    with draft.open("a", encoding="utf-8") as file:
        _end_line(draft)
        for scenario in _solvable(specs, n, folder, done, workers, scenarios_only):
            if scenario.id not in done:
                file.write(json.dumps(scenario.to_json(), ensure_ascii=False) + "\n")
                file.flush()
            written.append(scenario)
            if progress is not None:
                progress(len(written), n)
    write_scenarios(target, written)
    draft.unlink()
    return target


def _read_draft(path: Path) -> list[Scenario]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncatedLine)
        return read_scenarios(path)


def _end_line(path: Path) -> None:
    """Cuts away what an interrupted write left of a line."""
    content = path.read_bytes()
    os.truncate(path, content.rfind(b"\n") + 1)


def _solvable(
    specs: Iterator[GameSpec],
    n: int,
    folder: Path,
    done: Mapping[str, Scenario],
    workers: int,
    scenarios_only: bool,
) -> Iterator[Scenario]:
    found = failures = 0
    jobs = ((spec, done.get(_id(spec)), None if scenarios_only else folder) for spec in specs)
    with _mapper(workers) as run:
        while found < n:
            for scenario in run(list(itertools.islice(jobs, min(n - found, 16 * workers)))):
                if scenario is not None:
                    found += 1
                    yield scenario
                    continue
                failures += 1
                if failures > _MAX_FAILURES:
                    raise EngineError(
                        f"{failures} of {found + failures} generated games cannot be solved in the "
                        "engine; expected next to none. Is this a supported alfworld version?"
                    )


def _id(spec: GameSpec) -> str:
    return f"{split_of(spec)}/{spec.task}/{spec.seed}"


Job = tuple[GameSpec, Scenario | None, Path | None]


class _mapper:
    """``map`` in this process or in several."""

    def __init__(self, workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(workers, mp_context=context) if workers > 1 else None

    def __enter__(self) -> Callable[[list[Job]], Iterable[Scenario | None]]:
        if self._pool is None:
            return lambda jobs: map(_make, jobs)
        pool = self._pool
        return lambda jobs: pool.map(_make, jobs)

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _make(job: Job) -> Scenario | None:
    spec, known, folder = job
    place = None if folder is None else folder / spec.task / spec.trial
    if known is not None and (place is None or place.is_dir()):
        return known
    game = build_game(spec)
    try:
        scenario = known or game_scenario(game)
    except EngineError as error:
        _log.warning("left out: %s", error)
        return None
    if place is not None and not place.is_dir():
        _write_files(place, dump_game(game))
    return scenario


def _write_files(place: Path, files: Mapping[str, str]) -> None:
    draft = place.with_name(f".{place.name}.{os.getpid()}.part")
    draft.mkdir(parents=True, exist_ok=True)
    try:
        for name, text in files.items():
            (draft / name).write_text(text)
        draft.replace(place)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


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
    for file in sorted(folder.rglob("game.tw-pddl")):
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
    data, traj = _json(file), _json(file.with_name("traj_data.json"))
    task = _task_of(file, traj)
    if not data.get("solvable", False):
        raise ScenarioError(f"{file} is marked unsolvable; ALFWorld skips it, too")
    grammar = parse_grammar(data["grammar"])
    moves = grammar.templates.get("putobject", ())
    if moves and getattr(moves[0], "text", "").startswith(_PUT_GRAMMAR):
        raise ScenarioError(
            f"{file} has the grammar from before ALFWorld 0.4 (`put x in/on y`); expected "
            "`move x to y`. Download the games again: alfworld-download --force"
        )
    problem = read_problem(data["pddl_problem"])
    names = names_of({thing for _, arguments in problem.facts for thing in arguments})
    intro = grammar.derive(
        grammar.rules["intro"][0].symbols, Facts(problem.facts, problem.types, names), {}
    )
    observation = first_view(intro)
    return Scenario(
        id="/".join((split, file.parent.parent.name, file.parent.name)),
        world="alfworld",
        split=split,
        instruction=observation.rpartition(TASK_PREFIX)[2],
        observation=observation,
        admissible=_first_commands(problem, names),
        hidden=hidden_state(problem),
        real={
            **_task_facts(task),
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


def _json(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ScenarioError(f"no such game file: {file}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{file} is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise DataError(f"{file} must hold a JSON object, got {type(data).__name__}")
    return data


def load_game(scenario: Scenario) -> LoadedGame:
    """Returns the game that a scenario starts; the last 32 are kept.

    Raises:
        ScenarioError: The scenario does not say which game, its file is gone, or another generator
            version made it.
        EngineError: The game cannot be played.
        MissingDependency: alfworld is not installed.
    """
    real = scenario.real
    if "seed" in real and "task" in real:
        made_by = real.get("generator", GENERATOR_VERSION)
        if made_by != GENERATOR_VERSION:
            raise ScenarioError(
                f"scenario {scenario.id!r} was made by generator version {made_by}, this is version "
                f"{GENERATOR_VERSION}, which would build another game; generate the games again"
            )
        return _generated(str(real["task"]), int(real["seed"]))
    if "game_file" in real:
        path = Path(str(real["game_file"]))
        if not path.is_file():
            raise ScenarioError(f"the game file of scenario {scenario.id!r} is gone: {path}")
        return _from_file(path, path.stat().st_mtime_ns)
    raise ScenarioError(
        f"scenario {scenario.id!r} does not say which game it starts; expected in real either "
        f"'task' and 'seed', or 'game_file', got {sorted(real)}"
    )


@lru_cache(maxsize=32)
def _generated(task: str, seed: int) -> LoadedGame:
    return LoadedGame(build_game(GameSpec(task, seed)).game_data())


@lru_cache(maxsize=32)
def _from_file(path: Path, modified_ns: int) -> LoadedGame:
    return LoadedGame(_json(path))
