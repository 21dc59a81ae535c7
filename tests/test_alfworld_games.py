"""Generated games: the same from the same spec, solvable, and in ALFWorld's own format."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from gym_llmworld.core import Scenario
from gym_llmworld.episodes import read_scenarios
from gym_llmworld.errors import DataError, EngineError, ScenarioError

pytest.importorskip("alfworld")

from gym_llmworld.real import alfworld_scenarios
from gym_llmworld.real.alfworld_engine import LoadedGame, Play, Turn, replay
from gym_llmworld.real.alfworld_games import build_game, dump_game
from gym_llmworld.real.alfworld_names import mangle, names_of
from gym_llmworld.real.alfworld_pddl import read_problem
from gym_llmworld.real.alfworld_rooms import UNSEEN_SCENES, read_room, scenes_of
from gym_llmworld.real.alfworld_scenarios import (
    game_scenario,
    load_game,
    load_games,
    write_games,
)
from gym_llmworld.real.alfworld_tasks import (
    GENERATOR_VERSION,
    SPLITS,
    TASK_TYPES,
    GameSpec,
    Task,
    sample_specs,
    split_of,
    tasks_of,
)
from gym_llmworld.real.alfworld_views import first_view

SPEC = GameSpec("look_at_obj_in_light-Book-None-DeskLamp-309", 6)

# Pinned: whoever changes what a spec leads to must move GENERATOR_VERSION.
SPEC_DIGEST = "667c0b0ec9625cb1"
SPECS_DIGEST = "bad6f371febc70b0"


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def test_a_spec_always_gives_the_same_bytes() -> None:
    assert GENERATOR_VERSION == 1
    assert dump_game(build_game(SPEC)) == dump_game(build_game(SPEC))
    game = build_game(SPEC)
    assert digest(game.problem + game.instruction + repr(game.plan)) == SPEC_DIGEST
    assert digest(repr(sample_specs("train", 30, seed=1))) == SPECS_DIGEST


def test_other_seeds_place_things_elsewhere() -> None:
    games = [build_game(GameSpec(SPEC.task, seed)) for seed in range(0, 30, 3)]
    assert len({game.problem for game in games}) == 10
    assert len({game.plan for game in games}) > 4
    assert {game.instruction for game in games} == {
        "look at book under the desklamp.",
        "examine the book with the desklamp.",
    }


def test_specs_take_the_task_types_in_turn() -> None:
    specs = sample_specs("train", 60, seed=3)
    assert Counter(Task.parse(spec.task).type for spec in specs) == dict.fromkeys(TASK_TYPES, 10)
    assert sample_specs("train", 12, seed=3) == specs[:12]
    assert sample_specs("train", 12, seed=4) != specs[:12]
    assert len(set(specs)) == 60


def test_splits_share_neither_unseen_rooms_nor_games() -> None:
    drawn = {split: sample_specs(split, 120, seed=1) for split in SPLITS}
    for split, specs in drawn.items():
        assert {split_of(spec) for spec in specs} == {split}
        scenes = {Task.parse(spec.task).scene for spec in specs}
        assert scenes <= set(scenes_of(split))
        assert scenes.isdisjoint(UNSEEN_SCENES) is (split != "valid_unseen")
    assert {Task.parse(s.task).scene for s in drawn["valid_unseen"]} == set(UNSEEN_SCENES)


def test_every_room_can_be_read_and_allows_tasks() -> None:
    scenes = [scene for split in ("train", "valid_unseen") for scene in scenes_of(split)]
    assert len(scenes) == 120
    for scene in scenes:
        room = read_room(scene)
        assert tasks_of(scene)
        assert room.starts
        assert len({r.id for r in room.receptacles}) == len(room.receptacles)


def test_receptacles_are_reached_from_where_alfred_reaches_them() -> None:
    # As in a planner problem of ALFRED for this floor plan.
    locations = {receptacle.id: receptacle.location for receptacle in read_room(1).receptacles}
    assert locations["Cabinet|+00.68|+00.50|-02.20"] == "loc|0|-5|2|45"
    assert locations["Cabinet|+00.72|+02.02|-02.46"] == "loc|4|-7|2|-30"
    assert locations["Cabinet|-01.55|+00.50|+00.38"] == "loc|-4|2|3|60"
    assert locations["CounterTop|+00.69|+00.95|-02.48"] == "loc|3|-7|2|45"
    assert locations["Drawer|-01.56|+00.33|-00.20"] == "loc|-4|3|2|60"


@pytest.mark.parametrize("split", SPLITS)
def test_plans_solve_their_games(split: str) -> None:
    for spec in sample_specs(split, 6, seed=8):
        scenario = game_scenario(spec)
        play = Play(load_game(scenario))
        *first, last = scenario.real["plan"]
        for command in first:
            assert command in play.turn.admissible
            assert not play.step(command).won
        assert play.step(last).won


@pytest.mark.slow
def test_plans_solve_many_games() -> None:
    for spec in sample_specs("train", 240, seed=9):
        assert len(game_scenario(spec).real["plan"]) <= 12


def test_a_plan_that_fails_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    game = build_game(SPEC)
    object.__setattr__(game, "plan", game.plan[:-1])
    with pytest.raises(EngineError, match="does not solve"):
        game_scenario(game)


def test_a_scenario_says_what_the_engine_says() -> None:
    scenario = game_scenario(SPEC)
    turn = Play(LoadedGame(build_game(SPEC).game_data())).turn
    assert scenario.id == "train/look_at_obj_in_light-Book-None-DeskLamp-309/6"
    assert scenario.admissible == turn.admissible
    assert scenario.observation.startswith("You are in the middle of a room. Looking quickly")
    assert scenario.observation.endswith(f"\nYour task is to: {scenario.instruction}")
    assert scenario.observation.count("\n") == 1
    assert turn.observation == "-= Welcome to TextWorld, ALFRED! =-\n\n" + (
        scenario.observation.replace("\n", "\n\n")
    )
    assert Scenario.from_json(json.loads(json.dumps(scenario.to_json()))) == scenario
    assert {key: scenario.real[key] for key in ("object", "receptacle", "scene", "seed")} == {
        "object": "Book",
        "receptacle": "DeskLamp",
        "scene": 309,
        "seed": 6,
    }


def listed(turn: Turn) -> list[str]:
    listing = turn.observation.rpartition("you see ")[2].rstrip(".")
    return re.findall(r"[a-z]+ \d+", listing)


@pytest.mark.parametrize("seed", [0, 1])
def test_hidden_facts_are_what_a_visitor_finds(seed: int) -> None:
    for spec in sample_specs("train", 6, seed=seed):
        scenario = game_scenario(spec)
        hidden, play = scenario.hidden, Play(load_game(scenario))
        names = [receptacle["name"] for receptacle in hidden["receptacles"]]
        room = scenario.observation.partition("\n")[0].partition("you see ")[2]
        assert re.findall(r"[a-z]+ \d+", room) == names
        together = {name: group for group in hidden["together"] for name in group}
        here: str | None = None
        for receptacle in hidden["receptacles"]:
            name = receptacle["name"]
            turn = play.step(f"go to {name}")
            if here in together.get(name, ()):
                assert turn.observation == "Nothing happens."
                turn = play.step(f"examine {name}")
            here = name
            assert (f"open {name}" in turn.admissible) is receptacle["openable"]
            if receptacle["openable"]:
                assert f"The {name} is closed." in turn.observation
                turn = play.step(f"open {name}")
            assert listed(turn) == receptacle["contents"]
        for lamp, is_on in hidden["toggles"].items():
            assert not is_on
            place = next(r["name"] for r in hidden["receptacles"] if lamp in r["contents"])
            turn = replay(play, [f"go to {place}", f"use {lamp}"])
            assert turn.observation == f"You turn on the {lamp}."


def test_names_are_numbered_as_in_alfworld() -> None:
    from collections import namedtuple

    from alfworld.agents.utils.misc import Demangler

    info = namedtuple("info", "id")
    problem = read_problem(build_game(SPEC).problem)
    ids = {thing for _, arguments in problem.facts for thing in arguments}
    ids |= {mangle("Sink|-00.30|+00.80|+02.42|SinkBasin").lower()}
    demangler = Demangler(game_infos={name: info(name) for name in ids})
    assert names_of(ids) == {name: demangler.demangle_alfred_name(name) for name in ids}


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("juggle-Book-None-Desk-309", "not a task"),
        ("pick_and_place_simple-Book-Desk", "not a task"),
        ("pick_heat_then_place_in_recep-Book-None-Desk-309", "does not allow"),
        ("pick_and_place_simple-Unicorn-None-Desk-309", "does not allow"),
        ("pick_and_place_simple-Book-None-Desk-31", "no floor plan 31"),
    ],
)
def test_impossible_tasks_are_refused(task: str, message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        build_game(GameSpec(task, 0))


def test_unknown_splits_are_refused() -> None:
    with pytest.raises(ScenarioError, match="expected one of train, valid_seen, valid_unseen"):
        sample_specs("test", 1)


def test_writes_scenarios_and_games(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    target = write_games(
        tmp_path, "valid_unseen", 4, 5, progress=lambda done, total: steps.append((done, total))
    )
    scenarios = read_scenarios(target)
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert target == tmp_path / "valid_unseen" / "scenarios.jsonl"
    assert load_games(tmp_path, "valid_unseen") == scenarios
    for scenario in scenarios:
        folder = target.parent / scenario.real["task"] / f"trial_{scenario.real['seed']:012d}"
        assert sorted(file.name for file in folder.iterdir()) == [
            "game.tw-pddl",
            "initial_state.pddl",
            "traj_data.json",
        ]
        data = json.loads((folder / "game.tw-pddl").read_text())
        assert data["walkthrough"] == scenario.real["plan"]
        assert (
            data == build_game(GameSpec(scenario.real["task"], scenario.real["seed"])).game_data()
        )
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".part")]


def test_goes_on_after_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = write_games(tmp_path / "whole", "train", 5, 6, scenarios_only=True).read_bytes()

    def interrupt(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_games(tmp_path, "train", 5, 6, scenarios_only=True, progress=interrupt)
    folder = tmp_path / "train"
    assert [path.name for path in folder.iterdir()] == ["scenarios.jsonl.part"]
    draft = folder / "scenarios.jsonl.part"
    draft.write_bytes(draft.read_bytes()[:-40])  # the third line is cut off

    made: list[str] = []

    def counting(game: Any) -> Scenario:
        made.append(game.spec.task)
        return game_scenario(game)

    monkeypatch.setattr(alfworld_scenarios, "game_scenario", counting)
    assert write_games(tmp_path, "train", 5, 6, scenarios_only=True).read_bytes() == whole
    assert len(made) == 3
    assert [path.name for path in folder.iterdir()] == ["scenarios.jsonl"]
    # A complete folder grows without being made again.
    assert len(read_scenarios(write_games(tmp_path, "train", 6, 6, scenarios_only=True))) == 6
    assert len(made) == 4


def test_existing_games_are_kept(tmp_path: Path) -> None:
    write_games(tmp_path, "train", 2, 6)
    files = sorted(tmp_path.rglob("game.tw-pddl"))
    before = [file.stat().st_mtime_ns for file in files]
    write_games(tmp_path, "train", 3, 6)
    assert [file.stat().st_mtime_ns for file in files] == before
    assert len(list(tmp_path.rglob("game.tw-pddl"))) == 3


def test_games_of_another_generator_are_not_mixed_in(tmp_path: Path) -> None:
    target = write_games(tmp_path, "train", 1, 6, scenarios_only=True)
    target.write_text(target.read_text().replace('"generator":1', '"generator":0'))
    with pytest.raises(ScenarioError, match="generator version 0; this is version 1"):
        write_games(tmp_path, "train", 1, 6, scenarios_only=True)


@pytest.mark.parametrize(("n", "workers"), [(0, 1), (1, 0)])
def test_senseless_counts_are_refused(tmp_path: Path, n: int, workers: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        write_games(tmp_path, "train", n, workers=workers)


def test_games_that_cannot_be_solved_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bad = sample_specs("train", 2, 6)[1]

    def picky(game: Any) -> Scenario:
        if game.spec == bad:
            raise EngineError("no")
        return game_scenario(game)

    monkeypatch.setattr(alfworld_scenarios, "game_scenario", picky)
    with caplog.at_level(logging.WARNING):
        scenarios = read_scenarios(write_games(tmp_path, "train", 3, 6, scenarios_only=True))
    assert [s.real["seed"] for s in scenarios] == [
        spec.seed for spec in sample_specs("train", 4, 6) if spec != bad
    ]
    assert "left out" in caplog.text

    def hopeless(game: Any) -> Scenario:
        raise EngineError("no")

    monkeypatch.setattr(alfworld_scenarios, "game_scenario", hopeless)
    with pytest.raises(EngineError, match="cannot be made or solved"):
        write_games(tmp_path / "other", "train", 3, 6, scenarios_only=True)


@pytest.mark.slow
def test_several_processes_make_the_same(tmp_path: Path) -> None:
    one = write_games(tmp_path / "one", "train", 10, 2, scenarios_only=True).read_bytes()
    two = write_games(tmp_path / "two", "train", 10, 2, workers=2, scenarios_only=True).read_bytes()
    assert one == two


@pytest.fixture
def download(tmp_path: Path) -> Path:
    """A tree as `alfworld-download` makes it, with one game of ours."""
    game = build_game(SPEC)
    trial = tmp_path / "json_2.1.1" / "valid_seen" / SPEC.task / "trial_T20190908_101530_123456"
    trial.mkdir(parents=True)
    for name, text in dump_game(game).items():
        (trial / name).write_text(text)
    return tmp_path


def game_file(download: Path) -> Path:
    return next(download.rglob("game.tw-pddl"))


def test_reads_a_download(download: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [scenario] = load_games(download, "valid_seen")
    ours = game_scenario(SPEC)
    assert scenario.id == f"valid_seen/{SPEC.task}/trial_T20190908_101530_123456"
    assert (scenario.observation, scenario.admissible) == (ours.observation, ours.admissible)
    assert (scenario.instruction, scenario.hidden) == (ours.instruction, ours.hidden)
    assert scenario.real["plan"] == ours.real["plan"]
    assert scenario.real["game_file"] == str(game_file(download))
    assert first_view(Play(load_game(scenario)).turn.observation) == scenario.observation
    monkeypatch.setenv("ALFWORLD_DATA", str(download))
    assert load_games(None, "valid_seen") == [scenario]


def test_games_of_other_versions_are_refused(download: Path) -> None:
    file = game_file(download)
    data = json.loads(file.read_text())
    data["grammar"] = data["grammar"].replace('"move {o} to {r}"', '"put {o} in/on {r}"')
    file.write_text(json.dumps(data))
    with pytest.raises(ScenarioError, match=r"before ALFWorld 0\.4.*alfworld-download --force"):
        load_games(download, "valid_seen")


def test_games_that_alfworld_skips_are_skipped(
    download: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = game_file(download).parent.with_name("trial_T2")
    draft = other.with_name(".trial_T3.1234.part")
    for folder in (other, draft):
        folder.mkdir()
        for name, text in dump_game(build_game(SPEC)).items():
            (folder / name).write_text(text.replace('"solvable": true', '"solvable": false'))
    with caplog.at_level(logging.WARNING):
        assert len(load_games(download, "valid_seen")) == 1
    assert "1 games of" in caplog.text
    assert "unsolvable" in caplog.text


def test_sliced_tasks_are_skipped(download: Path) -> None:
    file = game_file(download).with_name("traj_data.json")
    file.write_text(file.read_text().replace('"object_sliced": false', '"object_sliced": true'))
    with pytest.raises(ScenarioError, match="slices"):
        load_games(download, "valid_seen")


def test_damaged_files_are_named(download: Path) -> None:
    file = game_file(download)
    traj = file.with_name("traj_data.json")
    traj.write_text("{}")
    with pytest.raises(DataError, match=r"traj_data\.json.*pddl_params"):
        load_games(download, "valid_seen")
    traj.write_text(dump_game(build_game(SPEC))["traj_data.json"])
    whole = file.read_text()
    file.write_text(whole.replace("(:init", "(:unit"))
    with pytest.raises(DataError, match=r"game\.tw-pddl: not a PDDL problem"):
        load_games(download, "valid_seen")
    file.write_text(whole.replace('"grammar"', '"grammars"'))
    with pytest.raises(DataError, match=r"missing \['grammar'\]"):
        load_games(download, "valid_seen")
    file.write_text(whole[:1000])
    with pytest.raises(DataError, match=r"game\.tw-pddl is not JSON"):
        load_games(download, "valid_seen")


def test_missing_folders_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ScenarioError, match="which does not exist"):
        load_games(tmp_path / "nowhere", "train")
    (tmp_path / "valid_seen").mkdir()
    with pytest.raises(ScenarioError, match="found valid_seen"):
        load_games(tmp_path, "train")
    with pytest.raises(ScenarioError, match=r"no playable game\.tw-pddl"):
        load_games(tmp_path, "valid_seen")
    monkeypatch.delenv("ALFWORLD_DATA", raising=False)
    with pytest.raises(ScenarioError, match="ALFWORLD_DATA is not set"):
        load_games(None, "train")


def test_a_scenario_must_say_which_game(tmp_path: Path) -> None:
    scenario = game_scenario(SPEC).to_json()
    with pytest.raises(ScenarioError, match="generator version 99"):
        load_game(Scenario.from_json({**scenario, "real": {**scenario["real"], "generator": 99}}))
    with pytest.raises(ScenarioError, match="does not say which game"):
        load_game(Scenario.from_json({**scenario, "real": {}}))
    with pytest.raises(ScenarioError, match="is gone"):
        load_game(Scenario.from_json({**scenario, "real": {"game_file": str(tmp_path / "x")}}))
