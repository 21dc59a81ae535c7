"""The command line on the worlds beside ALFWorld, with fake models: bad input, styles, claims."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from gym_llmworld.core import Episode, Message, Scenario, Step
from gym_llmworld.episodes import EpisodeWriter, read_episodes, read_scenarios, write_scenarios
from gym_llmworld.scenarios import ScenarioStore
from gym_llmworld.worlds import get_world
from tests.test_cli import run, succeed

ECHO = "scripted:tests.scripted_world:answer"
BOAST = "scripted:tests.scripted_world:boast"
TEXT_ID, SCIENCE_ID = "LLMWorld-TextWorld-v0", "LLMWorld-SciWorld-v0"
SEEN = "This room is called the hall. In it, you see:\n\ta fig\n\ta cup (containing a nut, a pea)"
TURNED = "This room is called the hall. In it, you see:\n\ta cup (containing a pea, a nut)\n\ta fig"


def turned(chat: Sequence[Message]) -> str:
    """Names all things, in another order."""
    return TURNED


def fail(*arguments: str | Path, message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert message in result.output


def figures(file: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(file.read_text())
    return data


@pytest.fixture(scope="module")
def text_games(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("textworld")
    from tests.textworld_shared import scenario

    folder = tmp_path_factory.mktemp("textworld") / "games"
    (folder / "train").mkdir(parents=True)
    games = [scenario("treasure_hunter"), scenario("simple")]
    write_scenarios(folder / "train" / "scenarios.jsonl", games)
    return folder


@pytest.fixture(scope="module")
def text_episodes(text_games: Path) -> Path:
    out = text_games.parent / "real.jsonl"
    options = ("--policy", "expert", "--episodes", "2", "--workers", "0")
    succeed("collect", "textworld", "--games", text_games, *options, "--out", out)
    return out


@pytest.fixture
def stories(text_games: Path, tmp_path: Path) -> Path:
    """A folder of somebody's own games, without folders of splits."""
    from tests.textworld_shared import story

    for kind in ("treasure_hunter", "simple"):
        for file in (story(kind), story(kind).with_suffix(".json")):
            shutil.copy(file, tmp_path)
    return tmp_path


def test_every_scenario_is_listed_with_its_task(text_games: Path) -> None:
    lines = succeed("scenarios", "textworld", "--games", text_games).splitlines()
    written = read_scenarios(text_games / "train" / "scenarios.jsonl")
    assert [line.split()[0] for line in lines] == [scenario.id for scenario in written]
    assert written[0].instruction[:20] in lines[0]


def test_kinds_of_boards(tmp_path: Path) -> None:
    options = ("--out", tmp_path, "--split", "valid", "--n", "4", "--boards")
    made = succeed("games", "frozenlake", *options, "4x4, 4x4-firm")
    assert "4 FrozenLake games" in made
    listed = succeed("scenarios", "frozenlake", "--games", tmp_path).splitlines()
    assert [line.split("/")[1] for line in listed] == ["4x4", "4x4-firm"] * 2
    fail("games", "textworld", *options, "4x4", message="TextWorld has no kinds of boards")


@pytest.mark.parametrize("world", ["alfworld", "scienceworld", "textworld"])
def test_the_shipped_scenarios_are_listed(world: str) -> None:
    store, split = ScenarioStore(world), get_world(world).splits[-1]
    lines = succeed("scenarios", world).splitlines()
    assert len(lines) == sum(len(store.of_split(name)) for name in store.splits())
    assert len(succeed("scenarios", world, "--split", split).splitlines()) < len(lines)


@pytest.mark.parametrize("style", list(get_world("textworld").contexts))
def test_evaluate_in_each_prompt_style(text_episodes: Path, tmp_path: Path, style: str) -> None:
    out = tmp_path / "em.json"
    common = ("evaluate", TEXT_ID, "--episodes", text_episodes, "--model", ECHO)
    output = succeed(*common, "--prompt-style", style, "--json", out)
    assert f"(prompt style {style})" in output
    assert figures(out)["prompt_style"] == style
    assert "as_sets" not in figures(out)["em"]
    asked = [episode.steps for episode in read_episodes(text_episodes)]
    assert figures(out)["n"] == sum(map(len, asked))


def test_an_override_of_what_the_checkpoint_says_is_told(
    text_episodes: Path, tmp_path: Path
) -> None:
    from gym_llmworld.cli_worlds import ModelChoice

    (tmp_path / "llmworld.json").write_text('{"prompt_style": "nomap"}')
    world = get_world("textworld")
    assert ModelChoice(str(tmp_path)).style(world) == "nomap"
    assert ModelChoice(str(tmp_path)).doubt(world) is None
    assert ModelChoice(str(tmp_path), prompt_style="nomap").doubt(world) is None
    override = ModelChoice(str(tmp_path), prompt_style="engine")
    assert override.style(world) == "engine"
    assert "was trained on prompt style 'nomap'; using 'engine'" in str(override.doubt(world))
    fail(
        *("evaluate", TEXT_ID, "--episodes", text_episodes, "--model", ECHO),
        *("--prompt-style", "map"),
        message="no prompt style 'map'; expected one of engine, nomap, recall, recall-nomap",
    )


def test_claims_that_do_not_hold_are_shown(text_games: Path, tmp_path: Path) -> None:
    out, page = tmp_path / "cr.json", tmp_path / "cr.html"
    agents = ("--agents", "expert", "--episodes", "2", "--json", out, "--html", page)
    output = succeed("compare", TEXT_ID, "--games", text_games, "--model", BOAST, *agents)
    expert = figures(out)["agents"]["expert"]
    plans = [s.real["plan"] for s in read_scenarios(text_games / "train" / "scenarios.jsonl")]
    hasty = sum(len(plan) > 2 for plan in plans) / 2
    assert hasty > 0
    assert (expert["real"], expert["wm"], expert["false_success"]) == (1.0, 1.0, hasty)
    assert "claimed" in output
    assert "Claimed, not real" in page.read_text()


def test_piped_input_reads_as_a_transcript(text_games: Path) -> None:
    output = succeed(
        "play", TEXT_ID, "--games", text_games, "--real", stdin="inventory\n\nfly away\n"
    )
    assert "\n> inventory\nYou are carrying" in output
    assert "\n> fly away\nThat's not a verb I recognise." in output


def test_own_games_need_no_folder_of_a_split(stories: Path) -> None:
    assert len(succeed("scenarios", "textworld", "--games", stories).splitlines()) == 2
    common = ("--games", stories, "--model", ECHO, "--episodes", "1", "--agents", "expert")
    assert "expert" in succeed("compare", TEXT_ID, *common)
    output = succeed("play", TEXT_ID, "--games", stories, "--real", "--agent", "expert")
    assert "solved after" in output


def test_a_game_file_without_its_description_is_named(stories: Path) -> None:
    missing = next(stories.glob("*.json"))
    missing.unlink()
    common = ("--games", stories, "--model", ECHO, "--agents", "expert")
    fail("compare", TEXT_ID, *common, message=f"has no {missing.name} beside it")


def test_an_unknown_scenario_is_named(text_games: Path) -> None:
    common = ("play", TEXT_ID, "--real", "--scenario", "nonsense")
    fail(*common, message="unknown scenario 'nonsense'")
    fail(*common, "--games", text_games, message="llmworld scenarios textworld --games")


def test_episodes_of_another_world_are_refused(text_episodes: Path) -> None:
    fail(
        *("evaluate", SCIENCE_ID, "--episodes", text_episodes, "--model", ECHO),
        message="episode 0: expected real episodes of 'scienceworld', got a 'real' one of "
        "'textworld'",
    )


def test_a_cut_off_line_is_one_line_of_warning(text_episodes: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.jsonl"
    cut.write_bytes(text_episodes.read_bytes()[:-40])
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        output = succeed("evaluate", TEXT_ID, "--episodes", cut, "--model", ECHO)
    [line] = [line for line in output.splitlines() if "TruncatedLine" in line]
    assert line.startswith(f"TruncatedLine: {cut}, line 2: cut off after")
    assert ".py" not in output


def test_lists_as_sets_where_the_engine_leaves_their_order_open(tmp_path: Path) -> None:
    start = ScenarioStore("scienceworld").of_split("test")[0]
    file, out, page = tmp_path / "real.jsonl", tmp_path / "em.json", tmp_path / "em.html"
    with EpisodeWriter(file) as writer:
        steps = (Step("look around", SEEN), Step("look around", SEEN, 1.0, True))
        writer.write(Episode(start, steps, "real", "test"))
    model = ("--model", "scripted:tests.test_cli_worlds:turned")
    output = succeed(
        *("evaluate", SCIENCE_ID, "--episodes", file, *model, "--json", out, "--html", page)
    )
    # The second turn lacks the success marker, whatever its lists say.
    assert (figures(out)["em"]["all"], figures(out)["em"]["as_sets"]) == (0.0, 0.5)
    assert "lists as sets" in output
    assert "lists as sets" in page.read_text()


@pytest.fixture(scope="module")
def science_game() -> Scenario:
    pytest.importorskip("scienceworld")
    games = ScenarioStore("scienceworld").of_split("test")
    return min(games, key=lambda scenario: len(scenario.real["plan"]))


def test_scienceworld_from_games_to_report(science_game: Scenario, tmp_path: Path) -> None:
    games, out = tmp_path / "one.jsonl", tmp_path / "cr.json"
    games.write_text(json.dumps(science_game.to_json()) + "\n")
    common = ("--games", games, "--model", BOAST)
    output = succeed("compare", SCIENCE_ID, *common, "--agents", "expert", "--json", out)
    assert "There are only 1 such games" in output
    assert figures(out)["step_limits"] == {"100": 1}
    assert figures(out)["agents"]["expert"]["false_success"] == 1.0
    assert figures(out)["average"]["false_success"] == 1.0
    fail(
        *("play", SCIENCE_ID, "--real", "--scenario", "sciworld-test-boyl-3"),
        message="unknown ScienceWorld task 'boyl'; expected one of boil,",
    )
    fail(
        *("play", SCIENCE_ID, "--real", "--scenario", "sciworld-test-boil-9999"),
        message="unknown variation 9999 of task 'boil'; expected an integer from 0 to 29",
    )


@pytest.mark.parametrize("env_id", [TEXT_ID, SCIENCE_ID])
def test_bench_and_play_with_the_shipped_scenarios(env_id: str, tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    sizes = ("--num-envs", "1,3", "--steps", "3", "--cost-steps", "4")
    succeed("bench", env_id, "--model", ECHO, *sizes, "--json", out)
    assert [row["num_envs"] for row in figures(out)["rows"]] == [1, 3]
    output = succeed("play", env_id, "--model", ECHO, "--agent", "expert", "--max-steps", "2")
    assert "ended unsolved after 2 steps" in output


def test_a_world_without_a_model_in_the_wheel_says_so() -> None:
    fail("play", "LLMWorld-ObjectGames-v0", message="no embedded world model for")


def test_a_missing_folder_is_told_at_once(text_episodes: Path) -> None:
    fail(
        *("evaluate", TEXT_ID, "--episodes", text_episodes, "--model", "runs/no-such-model"),
        message="no checkpoint folder there",
    )
