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

from gym_llmworld.core import Scenario
from gym_llmworld.episodes import TruncatedLine, read_scenarios, write_scenarios
from gym_llmworld.errors import EngineError, ScenarioError
from gym_llmworld.real.alfworld_download import load_games, read_json
from gym_llmworld.real.alfworld_engine import LoadedGame, Play, replay
from gym_llmworld.real.alfworld_games import Game, build_game, dump_game
from gym_llmworld.real.alfworld_pddl import read_problem
from gym_llmworld.real.alfworld_tasks import GENERATOR_VERSION, GameSpec, spec_stream, split_of
from gym_llmworld.real.alfworld_views import first_view, hidden_state, task_facts

__all__ = ["game_scenario", "load_game", "load_games", "write_games"]

_MAX_FAILURES = 20

Progress = Callable[[int, int], None]

_log = logging.getLogger(__name__)


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
            **task_facts(task),
            "plan": list(game.plan),
            "seed": game.spec.seed,
            "generator": GENERATOR_VERSION,
        },
    )


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
    call goes on where it was; files appear complete or not at all. The list holds what the last
    call asked for; games that are there already are not made again.

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
        ScenarioError: There is no such split, or another generator version made what is there.
        ValueError: ``n`` or ``workers`` is less than 1.
        MissingDependency: alfworld is not installed.
    """
    if n < 1 or workers < 1:
        raise ValueError(f"n and workers must be at least 1, got n={n}, workers={workers}")
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
        scenarios = read_scenarios(path)
    versions = {s.real.get("generator") for s in scenarios} - {GENERATOR_VERSION}
    if versions:
        raise ScenarioError(
            f"{path} holds games of generator version {versions.pop()}; this is version "
            f"{GENERATOR_VERSION}. Choose another folder, or remove that one"
        )
    return scenarios


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
    with _Mapper(workers) as run:
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


class _Mapper:
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
                f"scenario {scenario.id!r} was made by generator version {made_by}; this is "
                f"version {GENERATOR_VERSION} and would build another game. Generate games again"
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
    return LoadedGame(read_json(path))
