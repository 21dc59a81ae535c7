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
from gym_llmworld.scenarios import SHIPPED_FILE, ScenarioStore, data_folder, read_scenario

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
        self._pools: dict[str, tuple[Scenario, ...]] = {}
        self._tree: Path | None = None
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
        if split not in self._pools:
            self._pools[split] = self._listed(split)
        return self._pools[split]

    def _listed(self, split: str) -> tuple[Scenario, ...]:
        if self._tree is not None:
            return tuple(load_games(self._tree, split))
        if self._store is None or (self._generates and split not in self._store.splits()):
            return ()
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

        The id of a generated game is enough to generate it again.

        Raises:
            ScenarioError: There is no such scenario, or it is one of another world.
        """
        if not isinstance(scenario, str):
            return read_scenario(scenario, _WORLD)
        spec = _spec_of(scenario) if self._generates else None
        if self._tree is not None:
            return self._from_tree(self._tree, scenario)
        if self._store is not None and (spec is None or self._lists(scenario)):
            return self._store.get(scenario)
        if spec is None:
            raise ScenarioError(
                f"unknown scenario {scenario!r}; expected the id of a generated game, "
                "<split>/<task>/<seed>"
            )
        return _generate(spec)

    def _lists(self, scenario_id: str) -> bool:
        return any(s.id == scenario_id for s in self.of_split(scenario_id.partition("/")[0]))

    def _from_tree(self, tree: Path, scenario_id: str) -> Scenario:
        split = scenario_id.partition("/")[0]
        pool = self.of_split(split) if split in SPLITS else ()
        for scenario in pool:
            if scenario.id == scenario_id:
                return scenario
        raise ScenarioError(
            f"unknown scenario {scenario_id!r} in {tree}; expected <split>/<task>/<trial>"
        )


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
