"""Writes the scenarios of generated shops, and reads them back, or those of a user's own shop."""

from __future__ import annotations

import os
import random
from pathlib import Path

from gym_llmworld.core import Scenario
from gym_llmworld.episodes import read_scenarios
from gym_llmworld.errors import ScenarioError
from gym_llmworld.real.scenario_drafts import Progress, write_made_scenarios
from gym_llmworld.real.webshop_generator import generated_catalogue
from gym_llmworld.real.webshop_goals import GoalSpec, all_specs, check_split, goal_scenario
from gym_llmworld.real.webshop_search import check_extra
from gym_llmworld.real.webshop_sources import CheckoutSource

SCENARIOS_FILE = "scenarios.jsonl"


def write_games(
    out_dir: str | os.PathLike[str],
    split: str,
    n: int,
    seed: int = 0,
    *,
    workers: int = 1,
    progress: Progress | None = None,
) -> Path:
    """Draws goals of the generated shops and writes the scenarios that start them.

    A goal whose own search does not find its product on the first page is left out (about one in
    twenty). After an interruption the same call goes on where it was.

    Args:
        out_dir: Created if missing.
        split: ``train`` and ``valid`` are different goals in the same shops; ``test`` is another
            shop, with other products.
        n: How many.
        seed: Of the draw.
        workers: Processes.
        progress: Called with how many are done and ``n``.

    Returns:
        The path of ``<out_dir>/<split>/scenarios.jsonl``.

    Raises:
        ScenarioError: There is no such split, or it has fewer goals.
        MissingDependency: The webshop extra is not installed.
    """
    check_extra()
    specs = all_specs(split)
    # Told at once, and not after all others were made.
    if n > 0.9 * len(specs):
        raise ScenarioError(
            f"split {split!r} has {len(specs)} goals, of which about 5 % are left out; expected "
            f"n <= {int(0.9 * len(specs))}, got {n}"
        )
    random.Random(f"{split}/{seed}").shuffle(specs)
    return write_made_scenarios(
        Path(out_dir) / split / SCENARIOS_FILE,
        iter(specs),
        n,
        make=_possible_scenario,
        name=_id,
        workers=workers,
        progress=progress,
    )


def _id(spec: GoalSpec) -> str:
    return spec.id


def _possible_scenario(spec: GoalSpec) -> Scenario | None:
    scenario = goal_scenario(spec, generated_catalogue(int(spec.shop)))
    return scenario if "plan" in scenario.real else None


def load_games(games: str | os.PathLike[str], split: str) -> list[Scenario]:
    """Reads the scenarios of a split from a folder made by `write_games`, or from a checkout.

    Raises:
        ScenarioError: There is no such folder or split.
        DataError: A file is damaged.
    """
    check_split(split)
    listed = Path(games) / split / SCENARIOS_FILE
    if listed.is_file():
        return read_scenarios(listed)
    source = CheckoutSource(str(games))
    return [source.scenario(split, index) for index in source.check(split)]
