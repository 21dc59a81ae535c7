"""From ALFWorld games to scenarios and back: generated ones, and those of ``alfworld-download``."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path

from gym_llmworld.core import Scenario
from gym_llmworld.errors import EngineError, ScenarioError
from gym_llmworld.real.alfworld_download import load_games, read_json
from gym_llmworld.real.alfworld_engine import LoadedGame, Play, replay
from gym_llmworld.real.alfworld_games import Game, build_game, dump_game
from gym_llmworld.real.alfworld_pddl import read_problem
from gym_llmworld.real.alfworld_tasks import GENERATOR_VERSION, GameSpec, spec_stream, split_of
from gym_llmworld.real.alfworld_views import first_view, hidden_state, task_facts
from gym_llmworld.real.scenario_drafts import Progress, write_made_scenarios
from gym_llmworld.scenarios import check_generator

__all__ = ["game_scenario", "load_game", "load_games", "write_games"]

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
        EngineError: More than 20 games cannot be solved.
        ValueError: ``n`` or ``workers`` is less than 1.
        MissingDependency: alfworld is not installed.
    """
    folder = Path(out_dir) / split
    files = None if scenarios_only else folder
    return write_made_scenarios(
        folder / "scenarios.jsonl",
        spec_stream(split, seed),
        n,
        make=partial(_make, folder=files),
        name=_id,
        kept=partial(_has_files, folder=files),
        generator=GENERATOR_VERSION,
        max_failure_share=0.0,
        workers=workers,
        progress=progress,
    )


def _id(spec: GameSpec) -> str:
    return f"{split_of(spec)}/{spec.task}/{spec.seed}"


def _has_files(spec: GameSpec, *, folder: Path | None) -> bool:
    return folder is None or (folder / spec.task / spec.trial).is_dir()


def _make(spec: GameSpec, *, folder: Path | None) -> Scenario | None:
    game = build_game(spec)
    try:
        scenario = game_scenario(game)
    except EngineError as error:
        _log.warning("left out: %s", error)
        return None
    if folder is not None and not _has_files(spec, folder=folder):
        _write_files(folder / spec.task / spec.trial, dump_game(game))
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
        check_generator(scenario, GENERATOR_VERSION)
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
