"""Where goals come from: generated shops, a user's own shop, or one behind a server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gym_llmworld.core import Scenario
from gym_llmworld.errors import ScenarioError
from gym_llmworld.real.webshop_files import read_checkout
from gym_llmworld.real.webshop_generator import generated_catalogue
from gym_llmworld.real.webshop_goals import (
    HELD_OUT,
    TEST_GOALS,
    WORLD_KEY,
    GoalSpec,
    all_specs,
    check_split,
    generated_goals,
    goal_scenario,
    shared_goals,
    shops_of,
    spec_of,
)
from gym_llmworld.scenarios import SHIPPED_FILE, ScenarioStore, data_folder, read_scenario


class ScenarioSource:
    """Where the bundled engine takes its scenarios from: listed, or drawn from generated shops.

    Args:
        games: A folder made by `write_games` or a ``scenarios.jsonl``. None for the scenarios that
            ship with the package; any other goal of the generated shops can be named by its id.

    Raises:
        ScenarioError: There is nothing at ``games``.
    """

    def __init__(self, games: str | None) -> None:
        self._store: ScenarioStore | None = None
        if games is not None or (data_folder(WORLD_KEY) / SHIPPED_FILE).is_file():
            self._store = ScenarioStore(WORLD_KEY, games)
        self._generates = games is None

    def __deepcopy__(self, memo: dict[int, Any]) -> ScenarioSource:
        return self

    def check(self, split: str) -> None:
        """Checks that a split has goals.

        Raises:
            ScenarioError: It has not, or does not exist.
        """
        check_split(split)
        if not self._generates:
            assert self._store is not None
            self._store.of_split(split)

    def draw(self, split: str, rng: np.random.Generator) -> Scenario:
        """Returns a scenario of a split, each as likely as the other.

        Raises:
            ScenarioError: There is no such split.
        """
        self.check(split)
        if self._store is not None and split in self._store.splits():
            return self._store.draw(split, rng)
        specs = all_specs(split)
        return _generated(specs[int(rng.integers(len(specs)))])

    def get(self, scenario: str | Mapping[str, Any] | Scenario) -> Scenario:
        """Returns a scenario by id, or reads the dict that `Scenario.to_json` writes.

        Raises:
            ScenarioError: There is no such scenario, or it is one of another world.
        """
        if not isinstance(scenario, str):
            return read_scenario(scenario, WORLD_KEY)
        spec = GoalSpec.parse(scenario) if self._generates else None
        if spec is not None and spec.shop.isdecimal():
            return _generated(spec)
        if self._store is not None:
            return self._store.get(scenario)
        raise ScenarioError(
            f"unknown scenario {scenario!r}; expected <split>/<shop>/<goal>, for example valid/0/17"
        )


def _generated(spec: GoalSpec) -> Scenario:
    shop = int(spec.shop)
    if spec.index not in generated_goals(spec.split, shop):
        known = shops_of(spec.split)
        goals = generated_goals(spec.split, known[0])
        raise ScenarioError(
            f"there is no goal {spec.id!r}; expected {spec.split}/<shop>/<goal> with one of the "
            f"shops {', '.join(map(str, known))} and goals such as {goals[0]} to {goals[-1]}"
        )
    return goal_scenario(spec, generated_catalogue(shop))


class CheckoutSource:
    """The goals of a user's own shop.

    Args:
        folder: A clone of WebShop, see `read_checkout`.

    Raises:
        ScenarioError: Folder or files are missing.
        DataError: A file is damaged.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.catalogue = read_checkout(folder)

    def __deepcopy__(self, memo: dict[int, Any]) -> CheckoutSource:
        return self

    def check(self, split: str) -> range:
        """Returns the goals of a split.

        Raises:
            ScenarioError: There are none, or no such split.
        """
        indices = shared_goals(split, len(self.catalogue.goals))
        if not indices:
            raise ScenarioError(
                f"shop {self.catalogue.name} has {len(self.catalogue.goals)} goals, none of them "
                f"in split {split!r}: WebShop's split takes the first {TEST_GOALS} for test, the "
                f"next {HELD_OUT - TEST_GOALS} for valid, the rest for train"
            )
        return indices

    def draw(self, split: str, rng: np.random.Generator) -> Scenario:
        """Returns a scenario of a split, each as likely as the other."""
        indices = self.check(split)
        return self.scenario(split, indices[int(rng.integers(len(indices)))])

    def scenario(self, split: str, index: int) -> Scenario:
        """Returns the scenario of a goal."""
        return goal_scenario(GoalSpec(split, "checkout", index, self.folder), self.catalogue)

    def get(self, scenario: str | Mapping[str, Any] | Scenario) -> Scenario:
        """Returns a scenario by id (``test/checkout/17``), or reads a dict."""
        if not isinstance(scenario, str):
            return read_scenario(scenario, WORLD_KEY)
        spec = GoalSpec.parse(scenario)
        if spec is None or spec.shop != "checkout" or spec.index not in self.check(spec.split):
            raise ScenarioError(
                f"unknown scenario {scenario!r}; expected <split>/checkout/<goal>, where WebShop's "
                "split puts the goal, for example test/checkout/17"
            )
        return self.scenario(spec.split, spec.index)


class ServerSource:
    """The goals of a shop behind a server, known by number only.

    Args:
        url: Of the server.
    """

    # WebShop's build with 1,000 products.
    _GOALS = 6910

    def __init__(self, url: str) -> None:
        self.url = url

    def draw(self, split: str, rng: np.random.Generator) -> GoalSpec:
        """Returns a goal of a split, each as likely as the other."""
        indices = shared_goals(split, self._GOALS)
        return GoalSpec(split, "http", indices[int(rng.integers(len(indices)))], self.url)

    def get(self, scenario: str | Mapping[str, Any] | Scenario) -> GoalSpec:
        """Returns a goal by id (``test/http/17``), or reads a dict."""
        if not isinstance(scenario, str):
            return spec_of(read_scenario(scenario, WORLD_KEY))
        spec = GoalSpec.parse(scenario)
        if spec is None or spec.shop != "http":
            raise ScenarioError(
                f"unknown scenario {scenario!r}; expected <split>/http/<goal>, for example "
                "test/http/17"
            )
        return GoalSpec(spec.split, spec.shop, spec.index, self.url)
