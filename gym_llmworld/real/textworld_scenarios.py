"""From TextWorld games to scenarios and back: generated ones, and a user's own ``.z8`` files."""

from __future__ import annotations

import logging
import os
import random
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from gym_llmworld.core import Scenario
from gym_llmworld.episodes import read_scenarios
from gym_llmworld.errors import DataError, EngineError, ScenarioError
from gym_llmworld.real.scenario_drafts import Progress, write_made_scenarios
from gym_llmworld.real.textworld_engine import (
    Play,
    Turn,
    check_story,
    import_textworld,
    replay,
    strip_observation,
)
from gym_llmworld.real.textworld_facts import describe_game
from gym_llmworld.real.textworld_games import (
    GENERATOR_VERSION,
    KINDS,
    GameSpec,
    check_split,
    quiet,
    sample_spec,
    spec_stream,
    story_file,
    textworld_release,
)
from gym_llmworld.scenarios import (
    SHIPPED_FILE,
    ScenarioStore,
    check_generator,
    data_folder,
    read_scenario,
)

WORLD_KEY = "textworld"
SCENARIOS_FILE = "scenarios.jsonl"

# Next to no map refuses its quest: so many in a row have another reason.
_TRIES = 10

_log = logging.getLogger(__name__)


def game_scenario(spec: GameSpec) -> Scenario:
    """Makes a game, plays its walkthrough and describes where it starts.

    Raises:
        ScenarioError: TextWorld cannot make this game, or its walkthrough does not win.
        MissingDependency: textworld is not installed.
    """
    story = story_file(spec)
    game, plan = _read_game(story)
    play = Play(story, raw=True)
    try:
        first = play.turn
        if not replay(play, plan).turn.won:
            raise ScenarioError(f"the walkthrough of {spec.id} does not win it: {plan}")
    finally:
        play.close()
    real = {
        **spec.to_json(),
        "plan": plan,
        "generator": GENERATOR_VERSION,
        "textworld": textworld_release(),
    }
    return _scenario(spec.id, spec.split, game, first, real)


def read_story(story: Path, split: str) -> Scenario:
    """Describes where a game of the user's starts.

    Args:
        story: A ``.z8`` file with its ``.json`` beside it.
        split: What the scenario shall say.

    Raises:
        ScenarioError: A file is missing.
        DataError: A file is damaged.
        MissingDependency: textworld is not installed.
    """
    play = Play(story, raw=True)
    play.close()
    game, plan = _read_game(story)
    real = {"game_file": str(story), "plan": plan}
    return _scenario(f"{split}/{story.stem}", split, game, play.turn, real)


def _read_game(story: Path) -> tuple[Any, list[str]]:
    """Returns TextWorld's description of a game, and its walkthrough (empty if there is none)."""
    import_textworld()
    from textworld import Game

    file = story.with_suffix(".json")
    with quiet():
        try:
            game = Game.load(str(file))
            return game, list(game.walkthrough or ())
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                f"{file} does not describe a TextWorld game ({type(error).__name__}: "
                f"{error!s:.120}); make the game again with tw-make"
            ) from error


def _scenario(
    identity: str, split: str, game: Any, first: Turn, real: Mapping[str, Any]
) -> Scenario:
    return Scenario(
        id=identity,
        world=WORLD_KEY,
        split=split,
        instruction=str(game.objective),
        observation=strip_observation(first.observation),
        admissible=first.admissible,
        # Word2World's context is the first observation as the interpreter printed it.
        hidden={**describe_game(game), "raw": first.observation},
        real=real,
    )


def scenario_story(scenario: Scenario) -> Path:
    """Returns the compiled game that a scenario starts; makes it when needed.

    Raises:
        ScenarioError: The scenario does not say which game, its file is gone, or another generator
            version made it.
        EngineError: The cache of games cannot be written.
        MissingDependency: textworld is not installed.
    """
    real = scenario.real
    if "game_file" in real:
        return Path(str(real["game_file"]))
    if "kind" not in real or "seed" not in real:
        raise ScenarioError(
            f"scenario {scenario.id!r} does not say which game it starts; expected in real either "
            f"'kind' and 'seed' (and 'options'), or 'game_file', got {sorted(real)}"
        )
    check_generator(scenario, GENERATOR_VERSION)
    return story_file(GameSpec.from_json(real))


def write_games(
    out_dir: str | os.PathLike[str],
    split: str,
    n: int,
    seed: int = 0,
    *,
    kinds: Sequence[str] = KINDS,
    workers: int = 1,
    progress: Progress | None = None,
) -> Path:
    """Generates games, each won by its walkthrough, and writes the scenarios that start them.

    After an interruption the same call goes on where it was. The games themselves are kept in the
    cache only: a scenario is enough to make its game again.

    Args:
        out_dir: Created if missing.
        split: ``train``, ``valid`` or ``test``.
        n: How many.
        seed: Of the draw.
        kinds: Which kinds of games, in turn.
        workers: Processes.
        progress: Called with how many are done and ``n``.

    Returns:
        The path of ``<out_dir>/<split>/scenarios.jsonl``.

    Raises:
        ScenarioError: There is no such split or kind, or another generator version made what is
            there.
        EngineError: More than half of the games cannot be made.
        MissingDependency: textworld is not installed.
    """
    textworld_release()
    return write_made_scenarios(
        Path(out_dir) / split / SCENARIOS_FILE,
        spec_stream(split, seed, kinds),
        n,
        make=_possible_scenario,
        name=_id,
        generator=GENERATOR_VERSION,
        workers=workers,
        progress=progress,
    )


def _id(spec: GameSpec) -> str:
    return spec.id


def _possible_scenario(spec: GameSpec) -> Scenario | None:
    try:
        return game_scenario(spec)
    except ScenarioError as error:
        # Not every map allows every quest, and what cannot be won must not become training data.
        _log.warning("left out: %s", error)
        return None


def load_games(games: str | os.PathLike[str], split: str) -> list[Scenario]:
    """Reads the scenarios of a split.

    Args:
        games: A folder made by `write_games`, or one with ``.z8`` files and their ``.json``:
            those in its subfolder ``split`` if there is one, else those in it.
        split: ``train``, ``valid`` or ``test``.

    Raises:
        ScenarioError: There is no such folder or split, no game in it, or a ``.json`` is missing.
        DataError: A file is damaged.
    """
    check_split(split)
    listed = Path(games) / split / SCENARIOS_FILE
    if listed.is_file():
        return read_scenarios(listed)
    return [_read_story(story, split) for story in stories_of(Path(games), split)]


def stories_of(folder: Path, split: str) -> list[Path]:
    """Returns the games of a folder, by number where their names end with one.

    Raises:
        ScenarioError: There is no such folder, no game in it, or a ``.json`` is missing.
    """
    place = folder / split if (folder / split).is_dir() else folder
    if not place.is_dir():
        raise ScenarioError(f"no folder with games at {folder}")
    found = sorted(place.glob("*.z8"), key=_by_number)
    if not found:
        raise ScenarioError(
            f"no game in {place}; expected .z8 files with their .json, as tw-make writes them, or "
            f"a folder made with: llmworld games textworld --out {folder} --split {split}"
        )
    for story in found:
        if not story.with_suffix(".json").is_file():
            check_story(story, 0)
    return found


def _by_number(path: Path) -> tuple[str, int]:
    match = re.fullmatch(r"(.*?)(\d*)", path.stem)
    assert match is not None
    return match[1], int(match[2] or 0)


def _read_story(story: Path, split: str) -> Scenario:
    return _read_unchanged_story(story, story.stat().st_mtime_ns, split)


@lru_cache(maxsize=4096)
def _read_unchanged_story(story: Path, modified_ns: int, split: str) -> Scenario:
    return read_story(story, split)


class ScenarioSource:
    """Where the environment takes its scenarios from: listed, from a user's games, or generated.

    Args:
        games: A folder made by `write_games`, a ``scenarios.jsonl``, or a folder with ``.z8`` files
            and their ``.json``. None for the scenarios that ship with the package; a split that
            does not ship is generated.

    Raises:
        ScenarioError: There is nothing at ``games``.
    """

    def __init__(self, games: str | None) -> None:
        self._folder: Path | None = None
        self._store: ScenarioStore | None = None
        self._generates = games is None
        if games is None:
            if (data_folder(WORLD_KEY) / SHIPPED_FILE).is_file():
                self._store = ScenarioStore(WORLD_KEY)
        elif Path(games).is_file() or any(Path(games).glob(f"*/{SCENARIOS_FILE}")):
            self._store = ScenarioStore(WORLD_KEY, games)
        else:
            self._folder = Path(games)

    def __deepcopy__(self, memo: dict[int, Any]) -> ScenarioSource:
        return self

    def check(self, split: str) -> None:
        """Checks that a split has games.

        Raises:
            ScenarioError: It has not, or does not exist.
        """
        check_split(split)
        if self._folder is not None:
            stories_of(self._folder, split)
        elif not self._generates:
            assert self._store is not None
            self._store.of_split(split)

    def draw(self, split: str, rng: np.random.Generator) -> Scenario:
        """Returns a scenario of a split, each as likely as the other.

        Raises:
            ScenarioError: There is no such split.
        """
        self.check(split)
        if self._folder is not None:
            stories = stories_of(self._folder, split)
            return _read_story(stories[int(rng.integers(len(stories)))], split)
        if self._store is not None and split in self._store.splits():
            return self._store.draw(split, rng)
        return self._generate_any(split, rng)

    def _generate_any(self, split: str, rng: np.random.Generator) -> Scenario:
        draw = random.Random(int(rng.integers(2**31)))
        for _ in range(_TRIES):
            kind = KINDS[int(draw.random() * len(KINDS))]
            try:
                return _generate(sample_spec(kind, split, draw))
            except ScenarioError as error:
                _log.warning("left out: %s", error)
        raise EngineError(
            f"none of {_TRIES} drawn games can be made or won; expected nearly all. The warnings "
            f"before this say why; is TextWorld {textworld_release()} supported?"
        )

    def get(self, scenario: str | Mapping[str, Any] | Scenario) -> Scenario:
        """Returns a scenario by id, or reads the dict that `Scenario.to_json` writes.

        Raises:
            ScenarioError: There is no such scenario, or it is one of another world.
        """
        if not isinstance(scenario, str):
            return read_scenario(scenario, WORLD_KEY)
        if self._folder is not None:
            return self._from_folder(self._folder, scenario)
        spec = GameSpec.parse(scenario) if self._generates else None
        if spec is not None and not self._lists(scenario):
            return _generate(spec)
        if self._store is not None:
            return self._store.get(scenario)
        raise ScenarioError(
            f"unknown scenario {scenario!r}; expected <split>/<kind>/<options>/<seed> of a "
            "generated game, for example train/treasure_hunter/level=5/1"
        )

    def _lists(self, scenario: str) -> bool:
        split = scenario.partition("/")[0]
        store = self._store
        return (
            store is not None
            and split in store.splits()
            and any(listed.id == scenario for listed in store.of_split(split))
        )

    def _from_folder(self, folder: Path, scenario: str) -> Scenario:
        split, _, stem = scenario.partition("/")
        stories = {story.stem: story for story in stories_of(folder, check_split(split))}
        if stem not in stories:
            raise ScenarioError(
                f"unknown scenario {scenario!r} among {len(stories)} games of {folder}; expected "
                f"for example {split + '/' + next(iter(stories))!r}"
            )
        return _read_story(stories[stem], split)


@lru_cache(maxsize=256)
def _generate(spec: GameSpec) -> Scenario:
    return game_scenario(spec)
