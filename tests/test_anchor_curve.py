"""The anchoring curve of a small study whose every point can be written down by hand."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from gym_llmworld.agents import ScriptedAgent
from gym_llmworld.anchor_curve import Guess, Study, exact_match, share_for, trace
from gym_llmworld.cli_anchor import anchor_curve as command
from gym_llmworld.cli_anchor import parse_shares, read_results
from gym_llmworld.comparison import Comparison, compare, step_limits
from gym_llmworld.core import Scenario
from gym_llmworld.episodes import write_scenarios
from gym_llmworld.errors import DataError
from gym_llmworld.metrics import Progress
from gym_llmworld.worlds import get_world
from tests.test_anchoring import GAMES, LIAR, hinted

LIES = ["A unicorn 1."]


class Careful:
    """Looks once, then carries out the plan; gives up when it has seen a unicorn."""

    name = "careful"

    def reset(self, scenario: Scenario, seed: int) -> None:
        self._plan = ScriptedAgent(["look", *scenario.real["plan"]], then="help")
        self._plan.reset(scenario, seed)
        self._gave_up = False

    def act(self, observation: str, info: Mapping[str, Any]) -> str:
        self._gave_up = self._gave_up or observation in LIES
        return "help" if self._gave_up else self._plan.act(observation, info)


@contextmanager
def silent(label: str) -> Iterator[Progress]:
    yield lambda done, total: None


@pytest.fixture
def games(tmp_path: Path) -> list[Scenario]:
    scenarios = [Scenario.from_json(hinted(game)) for game in list(GAMES.values())[:2]]
    write_scenarios(tmp_path / "scenarios.jsonl", scenarios)
    return scenarios


def study(games: list[Scenario], folder: Path, **changes: Any) -> Study:
    settings: dict[str, Any] = {
        "options": {"model": LIAR, "scenarios": str(folder), "split": "valid_seen"},
        "actions": ["look"],
        "shares": [0.5],
        "max_steps": 12,
    }
    return Study(get_world("alfworld"), {"careful": Careful}, games, **{**settings, **changes})


def test_the_curve_by_hand(games: list[Scenario], tmp_path: Path) -> None:
    data = trace(study(games, tmp_path), save=lambda rows: None, progress=silent)
    points = {point["anchor"]: point for point in data["points"]}
    plans = [len(game.real["plan"]) for game in games]
    assert max(plans) < 12
    real_turns = sum(plans) + 2
    # The lie about the first look is all that goes wrong; the model is unsure of it alone.
    looks = 2 / real_turns
    assert {p["family"] for p in data["points"]} == set(
        ("none", "action", "every", "random", "confidence")
    )
    assert len(data["guesses"]) == real_turns
    assert [g["confidence"] for g in data["guesses"][:2]] == [0.3, 0.3]
    never, at_look = points[None], points["look"]
    assert never["pooled"]["cr_paired"] == 0.0
    assert (never["steps"], never["real_steps"], never["real_share"]) == (24, 0, 0.0)
    assert never["em"] == {"value": 1 - looks, "n": real_turns, "real_share": 0.0}
    assert never["agreement"] == 22 / 24
    assert at_look["pooled"]["cr_paired"] == at_look["pooled"]["wm"] == 1.0
    assert (at_look["steps"], at_look["real_steps"], at_look["replayed_steps"]) == (
        real_turns,
        2,
        0,
    )
    assert at_look["em"] == {"value": 1.0, "n": real_turns, "real_share": looks}
    assert at_look["agreement"] == 1.0
    # Every second step comes too late for the first; a threshold between 0.3 and 0.9 does not.
    assert points["every:2"]["pooled"]["cr_paired"] == 0.0
    assert (points["every:2"]["steps"], points["every:2"]["real_steps"]) == (24, 12)
    assert points["every:1"]["pooled"]["cr_paired"] == 1.0
    assert points["every:1"]["em"]["value"] == 1.0
    assert points["confidence<0.9"]["pooled"]["cr_paired"] == 1.0
    assert points["confidence<0.9"]["real_steps"] == 2
    assert points[f"random:{round(looks, 4):g}"]["family"] == "random"
    assert share_for(data["points"], "confidence", 0.95) == pytest.approx(0.95 * looks)
    json.dumps(data, allow_nan=False)


def test_a_killed_run_goes_on(
    games: list[Scenario], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[str] = []
    whole = trace(
        study(games, tmp_path), save=lambda rows: saved.append(json.dumps(rows)), progress=silent
    )
    assert len(saved) == len(whole["points"])
    played = []

    def counted(*args: Any, **kwargs: Any) -> Comparison:
        played.append(kwargs)
        return compare(*args, **kwargs)

    monkeypatch.setattr("gym_llmworld.anchor_curve.compare", counted)
    again = trace(
        study(games, tmp_path), json.loads(saved[2]), save=lambda rows: None, progress=silent
    )
    assert json.loads(json.dumps(again)) == json.loads(json.dumps(whole))
    assert len(played) == len(whole["points"]) - 3
    with pytest.raises(DataError, match="measured with seed=0, now it is 1"):
        trace(study(games, tmp_path, seed=1), json.loads(saved[2]), save=print, progress=silent)


def test_worlds_that_wait_for_longer_games_do_not_count(
    games: list[Scenario], tmp_path: Path
) -> None:
    world = dataclasses.replace(get_world("alfworld"), max_episode_steps=3)
    longer = {**games[1].real, "plan": [*games[1].real["plan"], *["help"] * 4]}
    games = [games[0], dataclasses.replace(games[1], real=longer)]
    limits = step_limits(games, world.max_episode_steps)
    assert len(set(limits)) == 2
    own = dataclasses.replace(study(games, tmp_path, max_steps=None, shares=[0.5]), world=world)
    data = trace(own, save=lambda rows: None, progress=silent)
    points = {point["anchor"]: point for point in data["points"]}
    # Nothing is solved without the twin, so that every game takes all its steps.
    assert points[None]["steps"] == sum(limits)
    assert points["every:2"]["real_steps"] == sum(limit // 2 for limit in limits)


@pytest.mark.parametrize("content", ['{"a": 1}', "[1]", "{broken"])
def test_a_file_of_other_origin_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "curve.json"
    file.write_text(content)
    with pytest.raises(DataError, match=r"curve.json exists, and holds no results"):
        read_results(file)
    assert read_results(tmp_path / "new.json") is None


def test_a_model_without_confidence_has_no_such_curve(
    games: list[Scenario], tmp_path: Path
) -> None:
    options = {
        "model": "scripted:tests.test_anchoring:modest",
        "scenarios": str(tmp_path),
        "split": "valid_seen",
    }
    data = trace(
        study(games, tmp_path, options=options, actions=()),
        save=lambda rows: None,
        progress=silent,
    )
    assert {point["family"] for point in data["points"]} == {"none", "every", "random"}
    assert share_for(data["points"], "confidence", 0.95) is None


def test_exact_match_with_anchored_turns() -> None:
    guesses = [
        Guess("search[a]", 1, False, True, 0.2),
        Guess("click[b]", 2, True, True, 0.9),
        Guess("search[c]", 3, True, True, 0.8),
        Guess("click[d]", 4, False, False, None),
    ]
    assert exact_match(guesses, None) == {"value": 0.5, "n": 4, "real_share": 0.0}
    assert exact_match(guesses, "search[") == {"value": 0.75, "n": 4, "real_share": 0.5}
    assert exact_match(guesses, "every:2") == {"value": 0.75, "n": 4, "real_share": 0.5}
    assert exact_match(guesses, "confidence<0.8") == {"value": 1.0, "n": 4, "real_share": 0.5}
    assert exact_match([], "every:2") == {"value": None, "n": 0, "real_share": None}


def test_share_for_a_target() -> None:
    def point(family: str, anchor: str | None, share: float, ratio: float | None) -> Any:
        return {
            "family": family,
            "anchor": anchor,
            "real_share": share,
            "pooled": {"cr_paired": ratio},
        }

    points = [
        point("none", None, 0.0, 0.5),
        point("every", "every:1", 1.0, 1.0),
        point("random", "random:0.6", 0.6, 0.8),
        point("random", "random:0.2", 0.2, 0.5),
        point("confidence", "confidence<0.5", 0.1, 0.9),
        point("confidence", "confidence<0.1", 0.05, None),
    ]
    assert share_for(points, "random", 0.95) == pytest.approx(0.6 + 0.4 * 0.75)
    assert share_for(points, "random", 0.8) == pytest.approx(0.6)
    assert share_for(points, "confidence", 0.7) == pytest.approx(0.05)
    assert share_for(points, "every", 0.4) == 0.0
    assert share_for(points[:1], "random", 0.4) is None
    assert share_for(points[:1] + points[2:4], "random", 0.9) is None


def test_the_command_writes_figures_and_plot(games: list[Scenario], tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(command)
    out, plot = tmp_path / "curve.json", tmp_path / "plots" / "curve.png"
    arguments = ["LLMWorld-ALFWorld-v0", "--json", str(out), "--plot", str(plot)]
    arguments += ["--model", LIAR, "--games", str(tmp_path), "--split", "valid_seen"]
    arguments += ["--prompt-style", "engine", "--action", "go to"]
    arguments += ["--agents", "plan", "--episodes", "2", "--shares", "0.5"]
    first = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert first.exit_code == 0, first.output
    data = json.loads(out.read_text())
    assert data["target"]["cr_paired"] == 0.95
    assert {"real_share", "pooled", "em", "agents"} <= data["points"][0].keys()
    assert plot.read_bytes().startswith(b"\x89PNG")
    for word in ("never", "every:2", "go to"):
        assert word in first.output
    assert CliRunner().invoke(app, arguments, catch_exceptions=False).exit_code == 0
    assert json.loads(out.read_text()) == data


@pytest.mark.parametrize("text", ["", "0", "1", "a,b", "0.5,"])
def test_shares_that_make_no_sense(text: str) -> None:
    with pytest.raises(ValueError, match="numbers between 0 and 1"):
        parse_shares(text)
