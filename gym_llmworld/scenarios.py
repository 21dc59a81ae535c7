"""Scenarios by split and id: those that ship with the package, or a user's own."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from gym_llmworld.core import Scenario
from gym_llmworld.episodes import read_scenarios
from gym_llmworld.errors import ScenarioError

SHIPPED_FILE = "scenarios.jsonl.gz"


def data_folder(world: str) -> Path:
    """Returns the folder in which a world's shipped data lie (it need not exist)."""
    return Path(str(resources.files("gym_llmworld"))) / "data" / world


class ScenarioStore:
    """The scenarios of one source, by split and by id.

    Args:
        world: Key of the world that the scenarios must belong to.
        source: A ``.jsonl`` or ``.jsonl.gz`` file, or a folder made by ``llmworld games`` (with
            ``<split>/scenarios.jsonl``); None for the scenarios that ship with the package.

    Raises:
        ScenarioError: There are no scenarios at this source, or they belong to another world.
    """

    def __init__(self, world: str, source: str | None = None) -> None:
        self.world = world
        self.source = source
        files = _files(world, source)
        self._by_id: dict[str, Scenario] = {}
        for file in files:
            self._by_id.update({scenario.id: scenario for scenario in _read(file)})
        strangers = {s.world for s in self._by_id.values()} - {world}
        if strangers:
            raise ScenarioError(
                f"{source} holds scenarios of {', '.join(sorted(strangers))}; expected only {world}"
            )
        if not self._by_id:
            raise ScenarioError(f"no scenario in {', '.join(str(file) for file in files)}")

    def __deepcopy__(self, memo: dict[int, Any]) -> ScenarioStore:
        """Returns itself: nothing in it changes, and a fork must not copy hundreds of scenarios."""
        return self

    def splits(self) -> tuple[str, ...]:
        """Returns the names of the splits, in order of appearance."""
        return tuple(dict.fromkeys(scenario.split for scenario in self._by_id.values()))

    def of_split(self, split: str) -> tuple[Scenario, ...]:
        """Returns the scenarios of a split, in file order.

        Raises:
            ScenarioError: There is no such split.
        """
        found = tuple(s for s in self._by_id.values() if s.split == split)
        if not found:
            raise ScenarioError(
                f"no scenario of split {split!r} in {self.source or 'the shipped scenarios'}; "
                f"expected one of {', '.join(self.splits())}"
            )
        return found

    def draw(self, split: str, rng: np.random.Generator) -> Scenario:
        """Returns a scenario of a split, each as likely as the other.

        Raises:
            ScenarioError: There is no such split.
        """
        pool = self.of_split(split)
        return pool[int(rng.integers(len(pool)))]

    def get(self, scenario: str | Mapping[str, Any] | Scenario) -> Scenario:
        """Returns a scenario by id, or reads one from `Scenario.to_json`'s dict.

        Raises:
            ScenarioError: Unknown id, missing fields, or another world's scenario.
        """
        if isinstance(scenario, str):
            if scenario not in self._by_id:
                near = difflib.get_close_matches(scenario, self._by_id, n=1, cutoff=0.4)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ScenarioError(
                    f"unknown scenario {scenario!r} among {len(self._by_id)} of {self.world}{hint}"
                )
            return self._by_id[scenario]
        return read_scenario(scenario, self.world)


def check_generator(scenario: Scenario, version: int, made: str = "game") -> None:
    """Checks that a scenario, if a generator made it, was made by this version of it.

    Args:
        scenario: With the version in ``real["generator"]``, or without one.
        version: Of the generator that would make it again.
        made: What it makes.

    Raises:
        ScenarioError: It is another version.
    """
    made_by = scenario.real.get("generator", version)
    if made_by != version:
        raise ScenarioError(
            f"scenario {scenario.id!r} was made by generator version {made_by}, this is version "
            f"{version}, which would build another {made}; generate the games again"
        )


def read_scenario(data: Mapping[str, Any] | Scenario, world: str) -> Scenario:
    """Returns a scenario, from itself or from the dict that `Scenario.to_json` writes.

    Raises:
        ScenarioError: Missing or wrong fields, or another world's scenario.
    """
    try:
        scenario = data if isinstance(data, Scenario) else Scenario.from_json(data)
    except (KeyError, TypeError, AttributeError) as error:
        raise ScenarioError(
            "a scenario must be an id, a Scenario or a dict as Scenario.to_json makes; missing or "
            f"wrong field: {error}"
        ) from error
    if scenario.world != world:
        raise ScenarioError(f"expected a scenario of {world}, got one of {scenario.world}")
    return scenario


def _files(world: str, source: str | None) -> list[Path]:
    if source is None:
        return [data_folder(world) / SHIPPED_FILE]
    path = Path(source)
    if path.is_dir():
        files = sorted(path.glob("*/scenarios.jsonl")) or sorted(path.glob("scenarios.jsonl"))
        if not files:
            raise ScenarioError(
                f"{path} has no <split>/scenarios.jsonl; make one with: "
                f"llmworld games {world} --out {path} --split valid_seen --n 40"
            )
        return files
    if not path.is_file():
        raise ScenarioError(f"no scenario file or folder at {path}")
    return [path]


@lru_cache(maxsize=8)
def _read_cached(file: Path, modified_ns: int) -> tuple[Scenario, ...]:
    return tuple(read_scenarios(file))


def _read(file: Path) -> tuple[Scenario, ...]:
    if not file.is_file():
        raise ScenarioError(f"no scenario file at {file}")
    # A vector env and check_env open the same file many times.
    return _read_cached(file, file.stat().st_mtime_ns)
