"""TextWorld games, made in process by TextWorld's own generators and kept on disk.

A game follows from a `GameSpec` alone: its kind, a seed and a few options. The same spec gives the
same rooms, the same text and the same walkthrough in every process, so a scenario names its game by
the spec, and the compiled story (0.45 MB, 2 to 4 seconds of CPU time) is no more than a cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import random
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from gym_llmworld.errors import EngineError, MissingDependency, ScenarioError

GENERATOR_VERSION = 1
"""Moves when a spec would give another game than before."""

SPLITS = ("train", "valid", "test")
SEEDS_PER_SPLIT = 10**9
"""Seeds 0 ... 10**9 - 1 are ``train``, the next as many ``valid``, the next ``test``."""

CACHE_VARIABLE = "GYM_LLMWORLD_CACHE"
"""Environment variable that moves the cache away from ``~/.cache/gym-llmworld``."""

Option = bool | int | str
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Choice:
    """What an option may be, and what it is unless said otherwise."""

    default: Option
    allowed: Sequence[Option]

    def admits(self, value: object) -> bool:
        # True == 1, but a flag is not a number.
        return type(value) is type(self.default) and value in self.allowed

    def __str__(self) -> str:
        if isinstance(self.allowed, range):
            return f"{self.allowed[0]} to {self.allowed[-1]}"
        return " or ".join(repr(value) for value in self.allowed)


_FLAG = _Choice(False, (False, True))

_OPTIONS: dict[str, dict[str, _Choice]] = {
    "treasure_hunter": {"level": _Choice(1, range(1, 31))},
    "coin_collector": {"level": _Choice(1, range(1, 301))},
    "simple": {
        "rewards": _Choice("dense", ("dense", "balanced", "sparse")),
        "goal": _Choice("detailed", ("detailed", "brief", "none")),
        "test": _FLAG,
    },
    "cooking": {
        "recipe": _Choice(1, range(1, 6)),
        "take": _Choice(0, range(6)),
        "go": _Choice(1, (1, 6, 9, 12)),
        "open": _FLAG,
        "cook": _FLAG,
        "cut": _FLAG,
        "drop": _FLAG,
        "recipe_seed": _Choice(0, range(2**31)),
        "split": _Choice("any", ("any", *SPLITS)),
    },
    "custom": {
        "nb_rooms": _Choice(5, range(1, 51)),
        "nb_objects": _Choice(10, range(1, 101)),
        "quest_length": _Choice(5, range(1, 31)),
        "quest_breadth": _Choice(1, range(1, 6)),
        "theme": _Choice("house", ("house", "basic")),
    },
}
KINDS = tuple(_OPTIONS)
"""The kinds of games: TextWorld's four challenges, and ``custom`` (``tw-make custom``)."""


@dataclass(frozen=True, slots=True)
class GameSpec:
    """All that a generated game follows from.

    Attributes:
        kind: One of `KINDS`.
        seed: Says which split the game belongs to, too: see `SEEDS_PER_SPLIT`.
        options: What differs from the kind's defaults, sorted. `GameSpec.of` makes it.
    """

    kind: str
    seed: int
    options: tuple[tuple[str, Option], ...] = ()

    @classmethod
    def of(cls, kind: str, seed: int, options: Mapping[str, Option] | None = None) -> GameSpec:
        """Checks and normalises a spec.

        Args:
            kind: One of `KINDS`.
            seed: 0 to 3 * `SEEDS_PER_SPLIT` - 1.
            options: As TextWorld's ``tw-make`` calls them, without ``tw-``, for example
                ``{"level": 12}`` or ``{"recipe": 2, "take": 1, "go": 6, "open": True}``.

        Raises:
            ScenarioError: There is no such kind or option, or a value is out of range.
        """
        if kind not in _OPTIONS:
            raise ScenarioError(f"no kind of game {kind!r}; expected one of {', '.join(KINDS)}")
        if type(seed) is not int or not 0 <= seed < len(SPLITS) * SEEDS_PER_SPLIT:
            raise ScenarioError(
                f"a seed must be an int from 0 to {len(SPLITS) * SEEDS_PER_SPLIT - 1}, got {seed!r}"
            )
        choices = _OPTIONS[kind]
        for name, value in (options or {}).items():
            if name not in choices:
                raise ScenarioError(
                    f"{kind} games have no option {name!r}; expected some of {', '.join(choices)}"
                )
            if not choices[name].admits(value):
                raise ScenarioError(
                    f"option {name} of {kind} games must be {choices[name]}, got {value!r}"
                )
        changed = sorted((n, v) for n, v in (options or {}).items() if v != choices[n].default)
        spec = cls(kind, seed, tuple(changed))
        _check_together(spec)
        return spec

    @property
    def settings(self) -> dict[str, Option]:
        """Every option, defaults included."""
        return {n: c.default for n, c in _OPTIONS[self.kind].items()} | dict(self.options)

    @property
    def split(self) -> str:
        """The split that the seed belongs to."""
        return SPLITS[self.seed // SEEDS_PER_SPLIT]

    @property
    def id(self) -> str:
        """Name of the game: ``train/cooking/go=6,open=true,take=1/123``."""
        words = ",".join(f"{name}={json.dumps(value)}" for name, value in self.options)
        return f"{self.split}/{self.kind}/{words.replace(chr(34), '') or 'default'}/{self.seed}"

    @classmethod
    def parse(cls, text: str) -> GameSpec | None:
        """Reads what `id` returns; None when the text is no such id."""
        match = re.fullmatch(r"(\w+)/(\w+)/(default|[\w=,]+)/(\d+)", text)
        if match is None or match[2] not in _OPTIONS:
            return None
        words = (
            {}
            if match[3] == "default"
            else dict(w.partition("=")[::2] for w in match[3].split(","))
        )
        try:
            spec = cls.of(match[2], int(match[4]), {n: _read_option(v) for n, v in words.items()})
        except ScenarioError:
            return None
        return spec if spec.id == text else None

    def to_json(self) -> dict[str, Any]:
        """Returns the facts that go into ``Scenario.real``."""
        return {"kind": self.kind, "seed": self.seed, "options": dict(self.options)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> GameSpec:
        """Reads what `to_json` wrote.

        Raises:
            ScenarioError: A field is missing or out of range.
        """
        missing = [name for name in ("kind", "seed") if name not in data]
        if missing:
            raise ScenarioError(
                f"a generated game needs 'kind' and 'seed' (and 'options'), missing {missing}"
            )
        return cls.of(data["kind"], data["seed"], data.get("options") or {})


def _read_option(word: str) -> Option:
    if word in ("true", "false"):
        return word == "true"
    return int(word) if word.isdecimal() else word


def _check_together(spec: GameSpec) -> None:
    settings = spec.settings
    if spec.kind == "cooking" and int(settings["take"]) > int(settings["recipe"]):
        raise ScenarioError(
            f"a cooking game cannot ask to fetch {settings['take']} of {settings['recipe']} "
            "ingredients; expected take <= recipe"
        )
    if spec.kind == "cooking" and settings["recipe_seed"] and not settings["take"]:
        raise ScenarioError("recipe_seed shuffles what is to be fetched; expected take >= 1, got 0")
    if spec.kind == "coin_collector":
        detours, length = divmod(int(settings["level"]) - 1, 100)
        rooms = (detours + 1) * (length + 1)
        if rooms > 100:
            raise ScenarioError(
                f"coin_collector level {settings['level']} has {rooms} rooms; "
                "expected at most 100 (levels 1-100, 101-150, 201-233)"
            )


def sample_spec(kind: str, split: str, rng: random.Random) -> GameSpec:
    """Draws options and a seed.

    Cooking games come from TextWorld's own split (foods and preparations held out), simple games
    of the test split ask for foods that training has not seen.

    Args:
        kind: One of `KINDS`.
        split: One of `SPLITS`.
        rng: Decides.

    Raises:
        ScenarioError: There is no such kind or split.
    """
    check_split(split)
    if kind not in _OPTIONS:
        raise ScenarioError(f"no kind of game {kind!r}; expected one of {', '.join(KINDS)}")
    options = _SAMPLERS[kind](split, rng)
    seed = SPLITS.index(split) * SEEDS_PER_SPLIT + _below(SEEDS_PER_SPLIT, rng)
    return GameSpec.of(kind, seed, options)


def _sample_treasure_hunter(split: str, rng: random.Random) -> dict[str, Option]:
    return {"level": 1 + _below(30, rng)}


def _sample_coin_collector(split: str, rng: random.Random) -> dict[str, Option]:
    return {"level": 100 * _below(3, rng) + 2 + _below(14, rng)}


def _sample_simple(split: str, rng: random.Random) -> dict[str, Option]:
    rewards = _pick(("dense", "balanced", "sparse"), rng)
    return {
        "rewards": rewards,
        "goal": _pick(("detailed", "brief"), rng),
        "test": split == "test",
    }


def _sample_cooking(split: str, rng: random.Random) -> dict[str, Option]:
    recipe = 1 + _below(3, rng)
    return {
        "recipe": recipe,
        "take": 1 + _below(recipe, rng),
        "go": _pick((1, 6, 9), rng),
        "open": _below(2, rng) == 1,
        "cook": _below(2, rng) == 1,
        "cut": _below(2, rng) == 1,
        "split": split,
    }


def _sample_custom(split: str, rng: random.Random) -> dict[str, Option]:
    return {
        "nb_rooms": 2 + _below(7, rng),
        "nb_objects": 5 + _below(11, rng),
        "quest_length": 2 + _below(6, rng),
    }


_SAMPLERS: dict[str, Callable[[str, random.Random], dict[str, Option]]] = {
    "treasure_hunter": _sample_treasure_hunter,
    "coin_collector": _sample_coin_collector,
    "simple": _sample_simple,
    "cooking": _sample_cooking,
    "custom": _sample_custom,
}


def _below(bound: int, rng: random.Random) -> int:
    # Only ``random.random`` promises an unchanging sequence over Python versions.
    return int(rng.random() * bound)


def _pick(choices: Sequence[T], rng: random.Random) -> T:
    return choices[_below(len(choices), rng)]


def spec_stream(split: str, seed: int = 0, kinds: Sequence[str] = KINDS) -> Iterator[GameSpec]:
    """Draws without end and without repetition: kinds in turn, options and seeds at random.

    Args:
        split: One of `SPLITS`.
        seed: Of the draw.
        kinds: Which, in which order.

    Raises:
        ScenarioError: There is no such split or kind.
    """
    check_split(split)
    unknown = [kind for kind in kinds if kind not in _OPTIONS]
    if unknown or not kinds:
        raise ScenarioError(f"expected kinds out of {', '.join(KINDS)}, got {unknown or 'none'}")
    return _draw(split, seed, tuple(kinds))


def _draw(split: str, seed: int, kinds: Sequence[str]) -> Iterator[GameSpec]:
    rng = random.Random(f"textworld {GENERATOR_VERSION} {split} {seed}")
    seen: set[GameSpec] = set()
    while True:
        for kind in kinds:
            spec = sample_spec(kind, split, rng)
            if spec not in seen:
                seen.add(spec)
                yield spec


def check_split(split: str) -> str:
    """Returns the split.

    Raises:
        ScenarioError: There is no such split.
    """
    if split not in SPLITS:
        raise ScenarioError(f"unknown split {split!r}; expected one of {', '.join(SPLITS)}")
    return split


def cache_folder() -> Path:
    """Returns where generated games are kept (it need not exist); deleting it loses only time."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen).expanduser() / "textworld"
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "gym-llmworld" / "textworld"


def story_file(spec: GameSpec) -> Path:
    """Returns the compiled game of a spec, with its ``.json`` beside it; makes it when needed.

    Processes may ask for the same game at the same time: files appear complete or not at all.

    Raises:
        ScenarioError: TextWorld cannot make this game.
        EngineError: The cache cannot be written.
        MissingDependency: textworld is not installed.
    """
    release = textworld_release()
    named = json.dumps([GENERATOR_VERSION, release, spec.to_json()], sort_keys=True)
    stem = f"{spec.kind}-{hashlib.sha256(named.encode()).hexdigest()[:20]}"
    folder = cache_folder()
    story = folder / f"{stem}.z8"
    if story.is_file() and story.with_suffix(".json").is_file():
        return story
    try:
        folder.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{stem}-", dir=folder))
    except OSError as error:
        raise EngineError(
            f"cannot write the cache of generated games at {folder} ({error.strerror}); expected a "
            f"writable folder. Set ${CACHE_VARIABLE} to one"
        ) from error
    try:
        made = _compile(spec, draft / story.name)
        # The story last: who finds it finds the rest.
        made.with_suffix(".json").replace(story.with_suffix(".json"))
        made.replace(story)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return story


@lru_cache(maxsize=1)
def textworld_release() -> str:
    """Returns the version of TextWorld, which decides what a spec gives.

    Raises:
        MissingDependency: textworld is not installed.
    """
    try:
        return importlib.metadata.version("textworld")
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingDependency("textworld", "textworld") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps TextWorld's and Jericho's warnings to themselves: none concerns who plays."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _compile(spec: GameSpec, target: Path) -> Path:
    from textworld import GameOptions, g_rng
    from textworld.generator import CouldNotCompileGameError, compile_game
    from textworld.generator.chaining import QuestGenerationError

    options = GameOptions()
    options.seeds = spec.seed
    options.path = str(target)
    # What no seed of the options reaches is drawn from TextWorld's one global generator.
    g_rng.set_seed(spec.seed % 2**31)
    try:
        with quiet():
            compile_game(_make(spec, options), options)
    except (
        QuestGenerationError,
        CouldNotCompileGameError,
        ValueError,
        IndexError,
        AssertionError,
    ) as error:
        raise ScenarioError(
            f"TextWorld cannot make the game {spec.id} ({type(error).__name__}: {error!s:.200}); "
            "not every map allows every quest: try another seed, or fewer rooms, objects or steps"
        ) from error
    return target


def _make(spec: GameSpec, options: Any) -> Any:
    from textworld.challenges import CHALLENGES
    from textworld.generator import make_game

    settings = spec.settings
    if spec.kind == "custom":
        options.nb_rooms = settings["nb_rooms"]
        options.nb_objects = settings["nb_objects"]
        options.quest_length = settings["quest_length"]
        options.quest_breadth = settings["quest_breadth"]
        options.grammar.theme = settings["theme"]
        # Large worlds run out of names; a number tells two lamps apart.
        options.grammar.allowed_variables_numbering = True
        return make_game(options)
    if spec.kind == "cooking" and settings["split"] == "any":
        settings["split"] = ""
    _, make, _ = CHALLENGES[f"tw-{spec.kind}"]
    return make(settings, options)
