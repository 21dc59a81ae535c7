"""What is known behind each command: looked up by names, nothing lost, nothing made up."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import Any

import gymnasium as gym
import pytest

import gym_llmworld  # noqa: F401 - registers the ids
from gym_llmworld.core import Completion, Scenario, Step
from gym_llmworld.playing import BLIND
from gym_llmworld.scenarios import ScenarioStore
from gym_llmworld.worlds.alfworld import WORLD
from gym_llmworld.worlds.alfworld_text import in_engine_order
from gym_llmworld.worlds.alfworld_wording import AlfworldWording, without_contents

TASK = "put a hot mug in desk."
SCENARIO = Scenario(
    "x",
    "alfworld",
    "train",
    TASK,
    "You are in the middle of a room. Looking quickly around you, you see a desk 1, a safe 1, and "
    f"a shelf 1.\n\nYour task is to: {TASK}",
    hidden={
        "receptacles": [
            {"name": "desk 1", "openable": False, "open": False, "contents": ["mug 2", "mug 1"]},
            {"name": "safe 1", "openable": True, "open": False, "contents": ["pen 1"]},
            {"name": "shelf 1", "openable": False, "open": False, "contents": []},
        ],
        "toggles": {"desklamp 1": True},
        "together": [["desk 1", "shelf 1"]],
    },
)
UNKNOWN = replace(SCENARIO, hidden={})
REACH = "\n- from one place: desk 1, shelf 1"


def wording(scenario: Scenario = SCENARIO) -> AlfworldWording:
    return AlfworldWording(scenario)


def test_a_command_is_followed_by_what_it_names() -> None:
    episode = wording()
    assert episode.cue("go to safe 1") == " | room |\n- safe 1 closed"
    assert episode.cue("take pen 1 from desk 1") == (
        f" | room |\n- desk 1: mug 2, mug 1\n- safe 1 closed: pen 1\n= {TASK} desk"
    )
    assert episode.cue("use desklamp 1") == " | room |\n- desklamp 1 is on"
    assert episode.cue("inventory") == " | room |"
    assert episode.cue("move mug 3 to desk 1") == (
        f" | room |\n- desk 1: mug 2, mug 1\n? mug 3\n= {TASK} mug, desk"
    )


def test_what_nobody_has_told_is_marked() -> None:
    assert wording().cue("go to moon 1") == " | room |\n? moon 1"
    for unknown in (wording(UNKNOWN), without_contents(SCENARIO)):
        assert unknown.cue("take pen 1 from desk 1") == (
            f" | room |\n- desk 1 ?\n? pen 1\n= {TASK} desk"
        )
        unknown.write("go to safe 1", "You arrive at safe 1. The safe 1 is closed.")
        assert unknown.cue("open safe 1") == " | = |\n- safe 1 = closed ?"
        unknown.write(
            "open safe 1", "You open the safe 1. The safe 1 is open. In it, you see a pen 1."
        )
        assert unknown.cue("take pen 1 from safe 1") == " | = |\n- safe 1 = open: pen 1"
        unknown.write("take pen 1 from safe 1", "You pick up the pen 1 from the safe 1.")
        unknown.write("examine safe 1", "The safe 1 is open. In it, you see nothing.")
        # What is in hand, and what a command was about, has been told of.
        assert unknown.cue("examine pen 1") == " | safe 1 | =\n* take pen 1 from safe 1"


def test_one_place_for_several_matters_to_who_stands_there() -> None:
    episode = wording()
    assert REACH not in episode.cue("go to desk 1")
    episode.write(
        "go to desk 1", "You arrive at desk 1. On the desk 1, you see a mug 2, and a mug 1."
    )
    assert REACH in episode.cue("go to shelf 1")
    assert REACH in episode.cue("look")
    assert REACH not in episode.cue("examine desk 1")
    assert REACH not in episode.cue("go to safe 1")


def test_what_was_done_is_known_where_it_matters() -> None:
    episode = wording()
    for action, answer in (
        ("go to desk 1", "You arrive at desk 1. On the desk 1, you see a mug 2, and a mug 1."),
        ("take mug 2 from desk 1", "You pick up the mug 2 from the desk 1."),
        ("take mug 1 from desk 1", "Nothing happens."),
    ):
        episode.write(action, answer)
    took, there = "\n* take mug 2 from desk 1", "- desk 1 =: mug 2, mug 1"
    assert episode.cue("look") == f" | desk 1 | mug 2\n{there}{REACH}{took}\n= {TASK} mug"
    assert episode.cue("examine desk 1") == f" | = | mug 2\n{there}{took}\n= {TASK} desk, mug"
    # A task is about what is held, too; what was done about nothing else is behind it.
    task = f"\n= {TASK} mug\n+ take mug 2 from desk 1"
    assert episode.cue("go to safe 1") == f" | desk 1 | mug 2\n- safe 1 closed{task}"
    left = "On the desk 1, you see a mug 1."
    assert episode.write("examine desk 1", left) == "On the desk 1, you see as before less mug 2."
    # The list is newer than what was done to it.
    assert episode.cue("examine desk 1").startswith(" | = | mug 2\n- desk 1 =: mug 1\n= ")
    assert episode.write("move mug 2 to desk 1", "You move the mug 2 to the desk 1.") == (
        "You move the mug 2 to the desk 1."
    )
    both = "On the desk 1, you see a mug 2, and a mug 1."
    assert episode.write("look", "Well.") == "Well."
    assert episode.read("On the desk 1, you see as before plus mug 2.") == both


def test_doors_are_known_as_they_were_told() -> None:
    episode = wording()
    assert episode.write("go to safe 1", "You arrive at safe 1. The safe 1 is closed.") == (
        "You arrive at safe 1. The safe 1 is closed."
    )
    opened = "You open the safe 1. The safe 1 is open. In it, you see a pen 1."
    assert episode.write("open safe 1", opened) == (
        "You open the safe 1. The safe 1 is open. In it, you see as before."
    )
    assert episode.cue("close safe 1") == " | = |\n- safe 1 = open"
    episode.write("close safe 1", "You close the safe 1.")
    assert episode.cue("take pen 1 from safe 1") == (
        " | = |\n- safe 1 = closed: pen 1\n* close safe 1"
    )


@pytest.mark.parametrize(
    "text",
    [
        "On the moon 1, you see as before.",
        "On the desk 1, you see as before, more or less.",
        "On the desk 1, you see as before less mug 2 less.",
        "On the desk 1, you see a mug 9.",
        f"On the desk 1, you see as before plus mug {'9' * 5000}.",
        "as before",
        "",
    ],
)
def test_other_text_stays_as_it_is(text: str) -> None:
    assert wording().read(text) == text


def test_unknown_lists_are_told_in_full_once() -> None:
    episode = wording(UNKNOWN)
    seen = "You arrive at desk 1. On the desk 1, you see a mug 1."
    assert episode.write("go to desk 1", seen) == seen
    assert episode.write("examine desk 1", "On the desk 1, you see nothing.") == (
        "On the desk 1, you see as before less mug 1."
    )
    # No engine lists things so: as it cannot be told otherwise, it stays.
    odd = "On the desk 1, you see a mug 1, and a mug 2."
    assert episode.write("examine desk 1", odd) == odd


def test_things_stand_in_the_engines_order() -> None:
    names = ["mug 2", "book 1", "mug 10", "book 3"]
    assert in_engine_order(names) == ["book 3", "book 1", "mug 10", "mug 2"]


@pytest.mark.parametrize("style", ["recall", "nocontents"])
@pytest.mark.parametrize("agent", ["careless", "tour", "carrier"])
def test_episodes_of_the_engine_come_back_letter_by_letter(agent: str, style: str) -> None:
    pytest.importorskip("alfworld")
    protocol, short = WORLD.protocol(style), 0
    assert protocol.wording is not None
    with closing(gym.make("RealWorld-ALFWorld-v0", max_episode_steps=30)) as env:
        for start in ScenarioStore("alfworld").of_split("train")[:3]:
            player: Any = WORLD.agents[agent]()
            player.reset(start, 1)
            observation, _ = env.reset(options={"scenario": start.to_json()})
            episode, steps = protocol.wording(start), list[Step]()
            ended = False
            while not ended:
                action = player.act(observation, BLIND)
                observation, _, terminated, truncated, _ = env.step(action)
                told = episode.write(action, observation)
                short += " as before" in told
                answer = Completion(told, "stop")
                assert protocol.decode(start, answer, steps).observation == observation
                steps.append(Step(action, observation))
                ended = terminated or truncated
    assert short
