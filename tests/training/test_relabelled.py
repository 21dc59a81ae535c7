"""Episodes with other tasks, against the real engine with those tasks."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gym_llmworld.core import Episode, Scenario, Step
from gym_llmworld.episodes import EpisodeWriter, read_episodes
from gym_llmworld.errors import DataError
from gym_llmworld.real.alfworld_engine import LoadedGame, Play
from gym_llmworld.real.alfworld_games import Game, build_game
from gym_llmworld.real.alfworld_scenarios import game_scenario
from gym_llmworld.real.alfworld_tasks import TASK_TYPES, GameSpec, Task, sample_specs
from gym_llmworld.worlds.alfworld_belief import AlfworldGoal
from training.relabelled import Course, Tasks, main, relabelled, with_task

# Five tasks that differ in nothing but what is to be done to an apple.
APPLES = [
    GameSpec(str(Task(kind, "Apple", "CounterTop", 7)), seed=3)
    for kind in TASK_TYPES
    if kind != "look_at_obj_in_light"
]
SPECS = [*sample_specs("train", 24, seed=5), *APPLES]
GOAL = re.compile(r"\(:goal\b.*", re.DOTALL)


def played(game: Game) -> Episode:
    """A solved episode: the game's own plan."""
    play, steps = Play(LoadedGame(game.game_data())), []
    for action in game.plan:
        turn = play.step(action)
        steps.append(Step(action, turn.observation, float(turn.won), turn.won))
    return Episode(game_scenario(game), tuple(steps), "real", "expert")


@pytest.fixture(scope="module")
def games() -> dict[str, Game]:
    """Games by instruction."""
    found = [build_game(spec) for spec in SPECS]
    return {game.instruction: game for game in found}


@pytest.fixture(scope="module")
def episodes(games: dict[str, Game]) -> list[Episode]:
    return [played(game) for game in games.values()]


def test_the_engine_says_the_same_with_the_other_task(
    games: dict[str, Game], episodes: list[Episode]
) -> None:
    own = {e.scenario.id: games[e.scenario.instruction] for e in episodes}
    by_id = {f"{e.scenario.id}/relabelled": e.scenario.instruction for e in episodes}
    of_apples = {build_game(spec).instruction for spec in APPLES}
    checked, apples = 0, 0
    for episode in relabelled(episodes, seed=0):
        data = own[episode.scenario.id.removesuffix("/relabelled")].game_data()
        goal = GOAL.search(games[episode.scenario.instruction].problem)
        assert goal is not None
        before, found, _ = data["pddl_problem"].partition("(:goal")
        assert found
        data["pddl_problem"] = before + goal[0]
        play = Play(LoadedGame(data))
        assert not play.turn.won
        for step in episode.steps:
            turn = play.step(step.action)
            assert (turn.observation, turn.won) == (step.observation, False)
        checked += 1
        apples += {episode.scenario.instruction, by_id[episode.scenario.id]} <= of_apples
    assert checked > 10
    assert apples > 1


def test_what_changes_is_the_task_and_the_end(episodes: list[Episode]) -> None:
    episode = episodes[0]
    other = with_task(episode, "put a pen in drawer.")
    scenario = other.scenario
    assert scenario.observation.endswith("\nYour task is to: put a pen in drawer.")
    assert (scenario.instruction, scenario.real) == ("put a pen in drawer.", {})
    assert scenario.hidden == episode.scenario.hidden
    assert (episode.success, other.success) == (True, False)
    assert [(s.action, s.observation) for s in other.steps] == [
        (s.action, s.observation) for s in episode.steps
    ]
    last = other.steps[-1]
    assert (last.reward, last.terminated, last.truncated) == (0.0, False, True)
    with pytest.raises(DataError, match="got it 0 times"):
        with_task(
            Episode(Scenario("x", "alfworld", "train", "look.", "a room"), (), "real", "x"), ""
        )


ROOM = {
    "receptacles": [
        {"name": "desk 1", "openable": False, "open": False, "contents": ["pen 1", "desklamp 1"]},
        {"name": "drawer 1", "openable": True, "open": False, "contents": ["book 1"]},
    ]
}
STEPS = (
    Step("go to desk 1", "You arrive at desk 1. On the desk 1, you see a desklamp 1, and a pen 1."),
    Step("take pen 1 from desk 1", "You pick up the pen 1 from the desk 1."),
    Step("go to drawer 1", "You arrive at drawer 1. The drawer 1 is closed."),
    Step("open drawer 1", "You open the drawer 1. The drawer 1 is open. In it, you see a book 1."),
    Step("move pen 1 to drawer 1", "You move the pen 1 to the drawer 1.", 1.0, True),
)


KITCHEN = {
    "receptacles": [
        {"name": name, "openable": False, "open": False, "contents": contents}
        for name, contents in {
            "diningtable 1": [], "fridge 1": [], "microwave 1": [], "cabinet 1": ["cup 1"],
            "countertop 1": ["tomato 1", "tomato 2"], "countertop 2": ["tomato 3", "cup 2"],
        }.items()
    ]
}  # fmt: skip
COOLED = (
    Step("take tomato 1 from countertop 1", "You pick up the tomato 1 from the countertop 1."),
    Step("cool tomato 1 with fridge 1", "You cool the tomato 1 using the fridge 1."),
    Step("heat tomato 1 with microwave 1", "You heat the tomato 1 using the microwave 1."),
    Step("move tomato 1 to diningtable 1", "You move the tomato 1 to the diningtable 1."),
    Step("take cup 1 from cabinet 1", "You pick up the cup 1 from the cabinet 1."),
    Step("cool cup 1 with fridge 1", "You cool the cup 1 using the fridge 1."),
    Step("move cup 1 to diningtable 1", "You move the cup 1 to the diningtable 1."),
)


IN_ROOM = (
    ("put a pen in drawer.", True),
    ("put a pen in desk.", True),  # it lay there
    ("put a book in drawer.", True),  # it lies there all the time
    ("put a book in desk.", False),
    ("look at pen under the desklamp.", True),
    ("examine the book with the desklamp.", False),
)
IN_KITCHEN = (
    ("put a hot tomato in diningtable.", True),
    ("put a cool tomato in diningtable.", True),  # it was heated since: better left alone
    ("put a hot cup in diningtable.", False),
    ("put a cool cup in diningtable.", True),
    ("put a cup in diningtable.", True),
    ("put a cool tomato in countertop.", False),  # the ones there have not been cooled
    ("put two tomato in countertop.", True),
    ("put two tomato in diningtable.", False),
    ("put two cup in countertop.", False),  # both were somewhere, never at once
)


@pytest.mark.parametrize(
    ("hidden", "steps", "instruction", "met"),
    [
        *((ROOM, STEPS, *case) for case in IN_ROOM),
        *((KITCHEN, COOLED, *case) for case in IN_KITCHEN),
    ],
)
def test_goals_that_might_be_met(
    hidden: dict[str, Any], steps: tuple[Step, ...], instruction: str, met: bool
) -> None:
    scenario = Scenario("x", "alfworld", "train", "put a pen in drawer.", "", hidden=hidden)
    goal = AlfworldGoal.of(Scenario("y", "alfworld", "train", instruction, ""))
    course = Course.of(Episode(scenario, steps, "real", "expert"))
    assert course.might_meet(goal) is met
    assert course.makes_sense(goal)


def test_half_of_the_tasks_differ_as_little_as_there_is() -> None:
    scenario = Scenario("x", "alfworld", "train", "put a cool cup in diningtable.",
                        "Task: put a cool cup in diningtable.", hidden=KITCHEN)  # fmt: skip
    others = ("put a hot cup in diningtable.", "put a cup in fridge.", "put a tomato in cabinet.")
    tasks = Tasks([scenario, *(replace(scenario, instruction=other) for other in others)])
    episode = Episode(scenario, COOLED, "real", "expert")
    drawn = [tasks.other(episode, random.Random(n)) for n in range(200)]
    # Half of them by what is in common, a third of the others by chance.
    assert 110 < drawn.count(others[0]) < 160
    assert set(drawn) == set(others)


def test_goals_of_other_rooms_make_no_sense() -> None:
    scenario = Scenario("x", "alfworld", "train", "put a pen in drawer.", "", hidden=ROOM)
    for instruction in ("put a pen in fridge.", "look at pen under the floorlamp.",
                        "put a cup in desk.", "put a clean pen in desk.",
                        "put two pen in desk."):  # fmt: skip
        goal = AlfworldGoal.of(Scenario("y", "alfworld", "train", instruction, ""))
        assert not Course.of(Episode(scenario, STEPS, "real", "expert")).makes_sense(goal)


def test_no_other_task_means_no_episode() -> None:
    scenario = Scenario("x", "alfworld", "train", "put a pen in drawer.",
                        "Your task is to: put a pen in drawer.", hidden=ROOM)  # fmt: skip
    episode = Episode(scenario, STEPS, "real", "expert")
    assert list(relabelled([episode], seed=0)) == []
    assert Tasks([scenario]).other(episode, random.Random(0)) is None


def test_as_a_program(
    episodes: list[Episode], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "real.jsonl", tmp_path / "other.jsonl"
    with EpisodeWriter(source) as writer:
        for episode in episodes:
            writer.write(episode)
    assert main(["--data", str(source), "--output", str(target)]) == 0
    assert list(read_episodes(target)) == list(relabelled(episodes, 0))
    assert f"of {len(episodes)} episodes" in capsys.readouterr().out
    imagined = Episode(episodes[0].scenario, episodes[0].steps, "model", "expert")
    with EpisodeWriter(tmp_path / "imagined.jsonl") as writer:
        writer.write(imagined)
    assert main(["--data", str(tmp_path / "imagined.jsonl"), "--output", str(target)]) == 2
    assert "expected real episodes of alfworld" in capsys.readouterr().err
