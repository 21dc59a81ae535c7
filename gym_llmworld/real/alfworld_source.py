"""Where the real environment takes its scenarios from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from gym_llmworld.core import Scenario
from gym_llmworld.errors import ScenarioError
from gym_llmworld.real.alfworld_download import load_games
from gym_llmworld.real.alfworld_scenarios import game_scenario
from gym_llmworld.real.alfworld_tasks import SPLITS, TASK_TYPES, GameSpec, sample_specs, split_of
from gym_llmworld.scenarios import SHIPPED_FILE, ScenarioStore, data_folder

_WORLD = "alfworld"


class ScenarioSource:
    """Listed scenarios, downloaded games, or games generated on demand.

    Args:
        games: A folder made by `write_games`, a ``scenarios.jsonl``, or the tree that
            ``alfworld-download`` makes. None for the scenarios that ship with the package; a split
            that does not ship is generated.

    Raises:
        ScenarioError: There is nothing at ``games``.
    """

    def __init__(self, games: str | None) -> None:
        self._tree = None
        self._store: ScenarioStore | None = None
        self._generates = games is None
        if games is None:
            if (data_folder(_WORLD) / SHIPPED_FILE).is_file():
                self._store = ScenarioStore(_WORLD)
        elif Path(games).is_file() or any(Path(games).glob("*/scenarios.jsonl")):
            self._store = ScenarioStore(_WORLD, games)
        else:
            self._tree = Path(games)

    def __deepcopy__(self, memo: dict[int, Any]) -> ScenarioSource:
        return self

    def of_split(self, split: str) -> tuple[Scenario, ...]:
        """Returns the scenarios of a split; none when they are generated on demand.

        Raises:
            ScenarioError: There is no such split.
        """
        if split not in SPLITS:
            raise ScenarioError(f"unknown split {split!r}; expected one of {', '.join(SPLITS)}")
        if self._tree is not None:
            return tuple(load_games(self._tree, split))
        if self._generates and (self._store is None or split not in self._store.splits()):
            return ()
        assert self._store is not None
        return self._store.of_split(split)

    def draw(self, split: str, rng: np.random.Generator) -> Scenario:
        """Returns a scenario of a split, each as likely as the other.

        Raises:
            ScenarioError: There is no such split.
        """
        pool = self.of_split(split)
        if pool:
            return pool[int(rng.integers(len(pool)))]
        specs = sample_specs(split, len(TASK_TYPES), seed=int(rng.integers(2**31)))
        return _generate(specs[int(rng.integers(len(specs)))])

    def get(self, scenario: str | Mapping[str, Any] | Scenario) -> Scenario:
        """Returns a scenario by id, or reads the dict that `Scenario.to_json` writes.

        Raises:
            ScenarioError: There is no such scenario, or it is one of another world.
        """
        if not isinstance(scenario, str):
            return _read(scenario)
        if self._tree is not None:
            return self._from_tree(scenario)
        spec = _spec_of(scenario) if self._generates else None
        listed = self._lists(scenario)
        if spec is not None and not listed:
            return _generate(spec)
        if self._store is not None:
            return self._store.get(scenario)
        raise ScenarioError(
            f"unknown scenario {scenario!r}; expected <split>/<task>/<seed> of a generated game"
        )

    def _lists(self, scenario: str) -> bool:
        if self._store is None:
            return False
        split = scenario.partition("/")[0]
        return split in self._store.splits() and any(
            listed.id == scenario for listed in self._store.of_split(split)
        )

    def _from_tree(self, scenario: str) -> Scenario:
        pool = self.of_split(scenario.partition("/")[0])
        for candidate in pool:
            if candidate.id == scenario:
                return candidate
        raise ScenarioError(
            f"unknown scenario {scenario!r} among {len(pool)} of {self._tree}; expected for "
            f"example {pool[0].id!r}"
        )


def _read(data: Mapping[str, Any] | Scenario) -> Scenario:
    try:
        scenario = data if isinstance(data, Scenario) else Scenario.from_json(data)
    except (KeyError, TypeError, AttributeError) as error:
        raise ScenarioError(
            "a scenario must be an id, a Scenario or a dict as Scenario.to_json makes; missing or "
            f"wrong field: {error}"
        ) from error
    if scenario.world != _WORLD:
        raise ScenarioError(f"expected a scenario of {_WORLD}, got one of {scenario.world}")
    return scenario


def _spec_of(scenario_id: str) -> GameSpec | None:
    """Reads the id of a generated game: ``<split>/<task>/<seed>``."""
    match = re.fullmatch(r"(\w+)/([\w-]+)/(\d+)", scenario_id)
    if match is None:
        return None
    spec = GameSpec(match[2], int(match[3]))
    return spec if split_of(spec) == match[1] else None


@lru_cache(maxsize=256)
def _generate(spec: GameSpec) -> Scenario:
    return game_scenario(spec)
