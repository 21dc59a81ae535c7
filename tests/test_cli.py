"""The command line, end to end: games, episodes and twin are the real engine's.

The world model is an oracle, a script that asks the real engine: whatever is measured against the
real world has to come out perfect.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from typer.testing import CliRunner, Result

from gym_llmworld import scenarios as scenario_files
from gym_llmworld.checkpoints import embedded_model
from gym_llmworld.cli import app
from gym_llmworld.cli_output import say
from gym_llmworld.core import Message, Scenario
from gym_llmworld.episodes import read_episodes, read_scenarios, write_scenarios

ENV_ID = "LLMWorld-ALFWorld-v0"
ORACLE = "scripted:tests.test_cli:oracle"
ECHO = "scripted:tests.scripted_world:answer"
GAMES_VARIABLE = "TEST_CLI_GAMES"


@functools.cache
def _scenarios(folder: str) -> dict[str, Scenario]:
    return {s.id: s for s in read_scenarios(Path(folder) / "valid_unseen" / "scenarios.jsonl")}


@functools.cache
def _engine() -> gym.Env[str, str]:
    return gym.make("RealWorld-ALFWorld-v0", disable_env_checker=True, max_episode_steps=1000)


def oracle(chat: Sequence[Message]) -> str:
    """Answers as the real engine does; the context is the scenario's id."""
    scenario = _scenarios(os.environ[GAMES_VARIABLE])[chat[0].content]
    env = _engine()
    env.reset(options={"scenario": scenario.to_json()})
    observation, won = "", False
    for message in chat[1:]:
        if message.role == "user":
            observation, _, won, _, _ = env.step(message.content)
    return observation + (" [SUCCESS]" if won else "")


def planner(chat: Sequence[Message]) -> str:
    """Acts: every second game is solved by its plan."""
    known = list(_scenarios(os.environ[GAMES_VARIABLE]).values())
    [index] = [i for i, s in enumerate(known) if s.observation == chat[0].content]
    plan = known[index].real["plan"] if index % 2 == 0 else ()
    return str([*plan, "look"][min(len(chat) // 2, len(plan))])


def run(*arguments: str | Path, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], input=stdin)


def succeed(*arguments: str | Path, stdin: str | None = None) -> str:
    result = run(*arguments, stdin=stdin)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def games(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("alfworld")
    folder = tmp_path_factory.mktemp("games")
    output = succeed(
        "games", "alfworld", "--out", folder, "--split", "valid_unseen", "--n", "4", "--seed", "1"
    )
    assert f"4 ALFWorld games of split 'valid_unseen': {folder}" in output
    file = folder / "valid_unseen" / "scenarios.jsonl"
    marked = [
        dataclasses.replace(s, hidden={**s.hidden, "context": s.id}) for s in read_scenarios(file)
    ]
    write_scenarios(file, marked)
    return folder


@pytest.fixture(scope="module")
def episodes(games: Path) -> Path:
    out = games / "real.jsonl"
    mixture = ("--policy", "expert:1,noisy:1", "--episodes", "4", "--seed", "1", "--workers", "0")
    succeed("collect", "alfworld", "--games", games, *mixture, "--max-steps", "15", "--out", out)
    return out


@pytest.fixture(autouse=True)
def _oracle_games(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "games" in request.fixturenames:
        monkeypatch.setenv(GAMES_VARIABLE, str(request.getfixturevalue("games")))


@pytest.fixture
def shipped(games: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretends that the games ship with the package."""
    file = games / "valid_unseen" / "scenarios.jsonl"
    write_scenarios(tmp_path / scenario_files.SHIPPED_FILE, read_scenarios(file))
    monkeypatch.setattr(scenario_files, "data_folder", lambda world: tmp_path)


def test_help_teaches_and_loads_nothing_heavy() -> None:
    output = succeed("--help")
    for command in (
        "games",
        "scenarios",
        "collect",
        "evaluate",
        "compare",
        "play",
        "bench",
        "doctor",
        "demo",
    ):
        assert command in output
        assert "Usage" in succeed(command, "--help")
    assert "llmworld compare LLMWorld-ALFWorld-v0" in output
    heavy = "{'torch', 'transformers', 'alfworld', 'textworld', 'matplotlib'}"
    code = f"import sys, gym_llmworld.cli; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_collect_resumes_instead_of_doubling(games: Path, tmp_path: Path) -> None:
    out = tmp_path / "e.jsonl"
    common = ("collect", "alfworld", "--games", games, "--policy", "expert", "--workers", "0")
    succeed(*common, "--episodes", "2", "--out", out)
    output = succeed(*common, "--episodes", "4", "--out", out)
    assert "2 of an earlier run" in output
    played = list(read_episodes(out))
    assert len(played) == 4
    assert all(episode.success for episode in played)


def test_evaluate_finds_the_oracle_perfect(games: Path, episodes: Path, tmp_path: Path) -> None:
    out, page = tmp_path / "em.json", tmp_path / "em.html"
    succeed(
        "evaluate", ENV_ID, "--episodes", episodes, "--model", ORACLE, "--json", out, "--html", page
    )
    data = json.loads(out.read_text())
    asked = [s for e in read_episodes(episodes) for s in e.steps if s.action.strip()]
    assert (data["env_id"], data["model"], data["n"]) == (ENV_ID, ORACLE, len(asked))
    assert set(data["em"]) == {
        "all",
        "changed",
        "unchanged",
        "copy_baseline",
        "majority_baseline",
    }
    assert data["em"]["all"] == data["em"]["changed"] == 1.0
    assert data["em"]["copy_baseline"] < 0.5
    assert "exact match" in page.read_text()


def test_compare_finds_the_oracle_consistent(games: Path, tmp_path: Path) -> None:
    out, page = tmp_path / "cr.json", tmp_path / "cr.html"
    options = ("--episodes", "3", "--seed", "2", "--max-steps", "25", "--model", ORACLE)
    agents = ("--agents", "expert,random")
    output = succeed(
        "compare", ENV_ID, "--games", games, *agents, *options, "--json", out, "--html", page
    )
    data = json.loads(out.read_text())
    assert (data["env_id"], data["model"], data["n"]) == (ENV_ID, ORACLE, 3)
    expert = data["agents"]["expert"]
    assert set(expert) >= {"real", "wm", "w2r", "cr", "cr_paired", "n"}
    assert [expert[key] for key in ("real", "wm", "w2r", "cr", "cr_paired")] == [1.0] * 5
    for row in data["agents"].values():
        assert (row["n"], row["errors"]) == (3, 0)
        assert row["real"] == row["wm"] == row["w2r"]
        assert row["divergences"]["n"] == 0
    assert all(row["value"] == 1.0 for row in data["agreement_by_step"])
    assert "side by side" in page.read_text()
    assert "average" in output


def test_a_model_that_acts(games: Path, tmp_path: Path) -> None:
    out, page = tmp_path / "cr.json", tmp_path / "cr.html"
    agent = "llm:scripted:tests.test_cli:planner"
    options = ("--episodes", "4", "--max-steps", "25", "--model", ORACLE, "--agent-style", "bare")
    files = ("--json", out, "--html", page)
    output = succeed(
        *("compare", ENV_ID, "--games", games, "--agents", agent, "--attempts", "2"),
        *options,
        *files,
    )
    assert "Solved at least once in 2 attempts" in output
    assert "Real pass@2" in page.read_text()
    data = json.loads(out.read_text())
    row = data["agents"][agent]
    assert (data["attempts"], row["n"], row["real"], row["wm"]) == (2, 8, 0.5, 0.5)
    assert row["pass_at"] == {k: {"real": 0.5, "wm": 0.5, "w2r": 0.5} for k in ("1", "2")}


def test_a_model_collects_and_is_watched(games: Path, tmp_path: Path) -> None:
    agent, out = "llm:scripted:tests.test_cli:planner", tmp_path / "real.jsonl"
    bare = ("--agent-style", "bare")
    command = ("collect", "alfworld", "--games", games, "--policy", agent, "--out", out, *bare)
    succeed(*command, "--episodes", "4", "--workers", "0")
    episodes = list(read_episodes(out))
    assert {episode.agent for episode in episodes} == {agent}
    assert sorted(episode.success for episode in episodes) == [False, False, True, True]
    play = ("play", ENV_ID, "--games", games, "--model", ORACLE, "--agent", agent)
    assert "ended unsolved after 2 steps" in succeed(*play, *bare, "--max-steps", "2")


def test_a_world_model_does_not_act(games: Path) -> None:
    model = str(embedded_model("alfworld"))
    result = run("compare", ENV_ID, "--games", games, "--agents", f"llm:{model}")
    assert result.exit_code == 2
    assert "is a world model, not an agent" in result.output


def test_same_seed_same_figures(games: Path, tmp_path: Path) -> None:
    def figures(name: str, seed: str) -> dict[str, Any]:
        out = tmp_path / name
        options = ("--episodes", "2", "--max-steps", "8", "--model", ECHO, "--agents", "noisy")
        succeed("compare", ENV_ID, "--games", games, *options, "--seed", seed, "--json", out)
        data: dict[str, Any] = json.loads(out.read_text())
        del data["seconds"]
        return data

    first = figures("a.json", "5")
    assert figures("b.json", "5") == first
    assert figures("c.json", "6") != first


@pytest.mark.parametrize("place", [(), ("--real",)])
def test_watching_an_agent_solve_a_game(games: Path, place: tuple[str, ...]) -> None:
    output = succeed(
        "play", ENV_ID, "--games", games, "--model", ORACLE, "--agent", "expert", *place
    )
    assert "Your task is to:" in output
    assert "\n> go to " in output
    assert "solved after" in output


def test_playing_by_hand(games: Path) -> None:
    script = (
        "look",
        "/whatif win | look",
        "/fork",
        "win",
        "look",
        "/undo",
        "/back",
        "/back",
        "/undo 9",
        "/undo x",
        "/nonsense",
        "/whatif",
        "/restart",
        "/quit",
    )
    output = succeed(
        "play", ENV_ID, "--games", games, "--model", ECHO, stdin="\n".join(script) + "\n"
    )
    for text in (
        "look+win [solved]",
        "remembered; 1",
        "\nsolved",
        "The episode has ended",
        "nothing remembered",
        "expected /undo",
        "unknown command /nonsense",
        "expected /whatif",
    ):
        assert text in output, text
    assert output.count("Your task is to:") == 3


def test_what_a_model_writes_cannot_command_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    say("[red]bold[/red] \x1b]0;owned\x07\x9b2J\nline")
    assert capsys.readouterr().out == "[red]bold[/red] \ufffd]0;owned\ufffd\ufffd2J\nline\n"


def test_the_real_world_cannot_be_rewound(games: Path) -> None:
    output = succeed(
        "play", ENV_ID, "--games", games, "--real", stdin="inventory\n/undo\n/fork\n/whatif look\n"
    )
    assert "You are not carrying anything." in output
    assert output.count("The real world cannot do that.") == 3


def test_bench_writes_its_contract(games: Path, tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    output = succeed(
        *("bench", ENV_ID, "--games", games, "--model", ECHO, "--num-envs", "1,3", "--steps", "4"),
        *("--cost-steps", "6", "--json", out),
    )
    data = json.loads(out.read_text())
    assert (data["env_id"], data["model"]) == (ENV_ID, ECHO)
    assert [row["num_envs"] for row in data["rows"]] == [1, 3]
    assert [row["steps"] for row in data["rows"]] == [100, 96]
    assert all(row["steps_per_second"] > 0 for row in data["rows"])
    assert {"num_envs", "steps_per_second", "tokens_per_second"} <= set(data["rows"][0])
    assert len(data["step_cost"]) == 6
    assert "most worlds over one" in output


def test_doctor_reports_and_says_whether_all_is_well(tmp_path: Path) -> None:
    out = tmp_path / "doctor.json"
    result = run("doctor", "--json", out)
    data = json.loads(out.read_text())
    assert result.exit_code == (0 if data["healthy"] else 1)
    assert "gymnasium" in {finding["name"] for finding in data["findings"]}


@pytest.mark.usefixtures("shipped")
def test_demo_shows_measures_and_reports(tmp_path: Path) -> None:
    out = tmp_path / "out"
    output = succeed("demo", "--games", "2", "--model", ORACLE, "--out", out)
    assert "solved after" in output
    assert "against the real world" in output
    data = json.loads((out / "demo.json").read_text())
    assert data["agents"]["expert"]["cr_paired"] == 1.0
    assert data["evaluation"]["em"]["all"] == 1.0
    assert "Imagined and real, side by side" in (out / "demo.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("compare", "LLMWorld-ALFWrld-v0"), "Did you mean"),
        (("play", "alfworld"), "expected the id of its environment, LLMWorld-ALFWorld-v0"),
        (("compare", "CartPole-v1"), "is no learned world; expected one of LLMWorld-ALFWorld-v0"),
        (("games", "nethack", "--out", "x"), "unknown world 'nethack'"),
        (("games", "alfworld", "--out", "x", "--split", "test"), "no split 'test'"),
        (("evaluate", ENV_ID, "--episodes", "nothing.jsonl"), "nothing.jsonl"),
        (("compare", ENV_ID, "--games", "nothing"), "no scenario file or folder at nothing"),
        (("bench", ENV_ID, "--num-envs", "1,x"), "numbers of worlds such as '1,16,64', got '1,x'"),
        (("bench", ENV_ID, "--agent", "nobody"), "has no agent 'nobody'; expected one of"),
        (
            ("collect", "alfworld", "--out", "x", "--episodes", "1", "--policy", "expert:-1"),
            "cannot read the policy mixture",
        ),
    ],
)
def test_expected_errors_are_one_line_and_status_2(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert "Traceback" not in result.output


def test_debug_keeps_the_traceback() -> None:
    result = run("--debug", "compare", "CartPole-v1")
    assert isinstance(result.exception, ValueError)
    assert result.exit_code == 1


def test_a_missing_model_is_named(episodes: Path) -> None:
    result = run("evaluate", ENV_ID, "--episodes", episodes, "--model", "scripted:no.such:thing")
    assert result.exit_code == 2
    assert "expected 'scripted:module:function'" in result.output


def test_json_files_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "taken.json"
    target.mkdir()
    result = run("doctor", "--json", target)
    assert result.exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["taken.json"]
