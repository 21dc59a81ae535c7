"""Writing the scenarios of made games."""

from __future__ import annotations

from pathlib import Path

import pytest

from gym_llmworld.core import Scenario
from gym_llmworld.episodes import read_scenarios
from gym_llmworld.errors import ScenarioError
from gym_llmworld.real.scenario_drafts import write_made_scenarios


def even(number: int) -> Scenario | None:
    return None if number % 2 else Scenario(str(number), "alfworld", "train", "win.", "A room.")


def test_a_stream_of_games_that_runs_dry_is_an_error(tmp_path: Path) -> None:
    target = tmp_path / "scenarios.jsonl"
    with pytest.raises(ScenarioError, match="only 5 different games, not 6; ask for fewer"):
        write_made_scenarios(target, iter(range(10)), 6, make=even, name=str)
    # What was made is not lost.
    assert write_made_scenarios(target, iter(range(10)), 5, make=even, name=str) == target
    assert [scenario.id for scenario in read_scenarios(target)] == ["0", "2", "4", "6", "8"]


def test_another_call_for_the_same_file_adds_to_it(tmp_path: Path) -> None:
    target = tmp_path / "scenarios.jsonl"
    write_made_scenarios(target, iter([0, 2, 4]), 3, make=even, name=str)
    write_made_scenarios(target, iter([6, 2]), 2, make=even, name=str)
    assert [scenario.id for scenario in read_scenarios(target)] == ["6", "2", "0", "4"]
    write_made_scenarios(target, iter([0]), 1, make=even, name=str)
    assert {scenario.id for scenario in read_scenarios(target)} == {"0", "2", "4", "6"}
