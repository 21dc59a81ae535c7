"""One small game of each kind, generated once per test run into a cache of its own."""

from __future__ import annotations

import atexit
import functools
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from gym_llmworld.core import Scenario
from gym_llmworld.episodes import write_scenarios
from gym_llmworld.real.textworld_games import CACHE_VARIABLE, GameSpec

Facts = list[tuple[str, ...]]

SPECS = {
    "treasure_hunter": GameSpec.of("treasure_hunter", 3, {"level": 11}),
    "coin_collector": GameSpec.of("coin_collector", 3, {"level": 103}),
    "simple": GameSpec.of("simple", 3),
    "cooking": GameSpec.of(
        "cooking",
        3,
        {"recipe": 2, "take": 1, "open": True, "cook": True, "cut": True, "split": "train"},
    ),
    "custom": GameSpec.of("custom", 5, {"nb_rooms": 3, "quest_length": 4}),
}


@functools.cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="textworld-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ[CACHE_VARIABLE] = str(folder / "cache")
    return folder


@functools.cache
def scenario(kind: str) -> Scenario:
    """Returns the scenario of `SPECS`, with its game in the cache."""
    from gym_llmworld.real.textworld_scenarios import game_scenario

    _folder()
    return game_scenario(SPECS[kind])


def scenarios() -> list[Scenario]:
    return [scenario(kind) for kind in SPECS]


def story(kind: str) -> Path:
    """Returns the compiled game of `SPECS`."""
    from gym_llmworld.real.textworld_scenarios import scenario_story

    return scenario_story(scenario(kind))


@functools.cache
def games() -> str:
    """Returns a folder as `write_games` makes it, with all of `SPECS` as its training split."""
    target = _folder() / "games" / "train" / "scenarios.jsonl"
    target.parent.mkdir(parents=True)
    write_scenarios(target, scenarios())
    return str(target.parent.parent)


def walk(kind: str, seed: int, steps: int = 25) -> Iterator[tuple[str, str, Facts]]:
    """Plays at random; yields command, observation and what is true then."""
    from gym_llmworld.real.textworld_engine import Play

    rng = random.Random(seed)
    play = Play(story(kind))
    for _ in range(steps):
        moves = [c for c in play.turn.admissible if c.startswith(("go ", "take ", "open "))]
        pool = moves if moves and rng.random() < 0.5 else play.turn.admissible
        command = rng.choice(pool)
        if command.startswith("eat "):
            continue
        turn = play.step(command)
        yield command, turn.observation, play.facts()
        if turn.won or turn.lost:
            break
    play.close()
