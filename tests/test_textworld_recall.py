"""TextWorld's look-up: what is told behind a command was said before, and all reads back."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

pytest.importorskip("textworld", reason="needs the textworld extra")

from gym_llmworld.worlds.textworld import WORLD
from gym_llmworld.worlds.textworld_recall import RecallWording
from gym_llmworld.worlds.textworld_text import place_of
from gym_llmworld.worlds.textworld_walked import WalkedWording
from tests.test_textworld_wording import FIRST, SCENARIO
from tests.textworld_shared import SPECS, scenario, walk

SCORE = "\n\nYour score has just gone up by one point."


def wording() -> RecallWording:
    return RecallWording(SCENARIO)


def test_the_context_is_the_quest() -> None:
    assert WORLD.contexts["recall"](SCENARIO) == "Eat."


@pytest.mark.parametrize(
    ("action", "observation", "told"),
    [
        ("look", FIRST, "At @hall"),
        (
            "look",
            "-= Hall =-\nA hall. You see a open box. It holds an egg and a key. And a cup on a "
            f"desk.\n\nThere is an open gate.\n\nThere is a rat on the floor.{SCORE}",
            # The key came after the egg had been there: what is new comes first.
            "At @hall; box open less egg plus key plus egg; desk plus cup; gate open; "
            f"floor plus rat{SCORE}",
        ),
        ("examine gate", "A gate. Locked.", "About gate"),
        ("examine gate", "A gate. Open.", "About gate open"),
        ("examine desk", "The desk.", "About desk"),
        ("x desk", "The desk.\n\nOn the desk is an egg.", "About desk plus egg"),
        ("open box", "You open the box, revealing an egg.", "You open the box, revealing it all."),
        ("open box", "You open the box.", "You open the box, revealing it all less egg."),
        (
            "open box",
            f"You open the box, revealing a fried egg and some salt.{SCORE}",
            f"You open the box, revealing it all less egg plus some salt plus fried egg.{SCORE}",
        ),
        ("inventory", "You are carrying: a key.", "You are carrying it all."),
        ("i", "You are carrying nothing.", "You are carrying it all less key."),
        ("i", "You are carrying: a rat and a key.", "You are carrying it all plus rat."),
        ("open gate", "You open gate.", "You open gate."),
        ("open can", "You open the can.", "You open the can."),
        ("look", "-= Cave =-\nA cave.", "-= Cave =-\nA cave."),
        ("examine egg", "You can't see any such thing.", "You can't see any such thing."),
    ],
)
def test_what_is_otherwise_is_told_and_read_back(action: str, observation: str, told: str) -> None:
    assert wording().write(action, observation) == told
    assert wording().read(told) == observation


def test_what_was_done_to_food_is_told_in_place() -> None:
    episode = wording()
    episode.write("open box", "You open the box, revealing a raw egg and a rat.")
    told = episode.write("examine box", "A box.\n\nIn the box are a fried egg and a rat.")
    assert told == "About box with fried egg"


@pytest.mark.parametrize(
    "made_up",
    [
        "At @cave",
        "At @hall; chest open",
        "At @hall; box ajar",
        "At @hall; gate plus egg",
        "At @hall; desk less egg",
        "At @hall; desk" + " plus egg" * 100,
        "About unicorn",
        "About desk less egg",
        "You open the gate, revealing it all.",
        "You open the carried, revealing it all.",
        "You are carrying it all less egg.",
        "You are carrying it all and more.",
    ],
)
def test_changes_that_fit_nothing_are_read_as_they_stand(made_up: str) -> None:
    assert wording().read(made_up) == made_up


def test_a_stutter_does_not_take_long() -> None:
    for text in (
        "-= Hall =-\n" + "\n" * 8000,
        FIRST + " on a desk" * 700,
        "You are carrying: " + "a key, " * 1000 + "a key.",
        "You open " + "the box, " * 900 + ".",
        "At @hall; desk" + " less egg" * 900,
    ):
        episode = wording()
        assert episode.write("look", text) == text
        assert episode.read(text) == text
        assert len(episode.cue("open box")) < 1000


def test_what_is_known_stands_behind_a_command() -> None:
    episode = wording()
    for action, observation, cue in (
        # A locked gate, whose key the agent has; what is behind the gate.
        ("go east", "You have to open the gate first.", "- @shed; gate locked"),
        ("go south", "You can't go that way.", "? south"),
        (
            "unlock gate with key",
            "You unlock gate.",
            "- gate locked =\n- key opens gate\n- key: carried",
        ),
        ("open gate", "You open gate.", "- gate locked =\n* You unlock gate\n- key opens gate"),
        ("go east", "-= Shed =-\nA shed.", "- @shed; gate locked\n* You open gate"),
        ("drop key", "You drop the key on the ground.", "- key: carried\n- key opens gate"),
        # The box stands elsewhere, and what lies in it counts.
        (
            "take egg from box",
            "You can't see any such thing.",
            "- egg: box closed @hall\n- box closed @hall\n- desk @hall\n= +1: egg on desk\n"
            "= lost: egg eaten\n= 0 of 1",
        ),
        ("go west", FIRST.replace("a closed gate", "an open gate"),
         "- @hall; gate locked\n* You open gate @hall"),
        ("look twice", "What?", "? twice"),
    ):  # fmt: skip
        assert episode.cue(action).partition("\n")[2] == cue
        episode.write(action, observation)
    assert episode.cue("take key") == (
        " @hall\n- key: carried\n* You drop the key on the ground @shed\n- key opens gate"
    )


def test_without_hidden_context_texts_stay_as_they_are() -> None:
    episode = RecallWording(replace(SCENARIO, hidden={}))
    for action, text in (("look", FIRST), ("open box", "You open the box."), ("go east", "No.")):
        assert episode.cue(action).startswith(" @hall")
        assert episode.write(action, text) == text
    assert episode.read("At @hall; gate open") == "At @hall; gate open"


def test_a_room_that_has_scored_is_told() -> None:
    quest = {"points": 1, "win": [[["at", "P", "shed"]]], "lose": []}
    episode = RecallWording(replace(SCENARIO, hidden={**SCENARIO.hidden, "quests": [quest]}))
    assert episode.cue("go east").splitlines()[-2:] == ["= +1: you in shed", "= 0 of 1"]
    assert episode.write("go east", f"-= Shed =-\nA shed.{SCORE}") == f"At @shed{SCORE}"
    assert episode.cue("look").splitlines()[-3:] == [
        "+ You come to @shed +1",
        "= +1: you in shed",
        "= 1 of 1",
    ]


def test_only_the_last_of_moves_is_told() -> None:
    episode = wording()
    for action, observation in (
        ("open box", f"You open the box, revealing an egg.{SCORE}"),
        ("take egg from box", "You take the egg from the box."),
        ("put egg on desk", "You put the egg on the desk."),
        ("close box", "You close the box."),
    ):
        episode.write(action, observation)
    assert episode.cue("look").splitlines() == [
        " @hall",
        "* You put the egg on the desk",
        "* You close the box",
        "- box open: egg",
    ]
    assert "= 1 of 1" in episode.cue("eat egg")


@pytest.mark.parametrize("kind", SPECS)
def test_episodes_of_the_engine_are_told_by_what_is_otherwise(kind: str) -> None:
    rooms = 0
    for seed in range(3):
        told, heard = RecallWording(scenario(kind)), RecallWording(scenario(kind))
        for command, observation, _ in itertools.islice(walk(kind, seed), 40):
            assert told.cue(command) == heard.cue(command)
            text = told.write(command, observation)
            # Whoever reads has been told no more than the steps before.
            assert heard.read(text) == observation
            heard.write(command, observation)
            if observation.startswith("-= "):
                rooms += 1
                assert text.startswith("At @")
    assert rooms


@pytest.mark.parametrize("kind", SPECS)
def test_without_a_map_known_rooms_are_told_by_changes(kind: str) -> None:
    protocol = WORLD.protocol("recall-nomap")
    # What is hidden is not read.
    start = replace(scenario(kind), hidden={})
    again = 0
    for seed in range(3):
        assert protocol.wording is not None
        episode, heard = protocol.wording(scenario(kind)), WalkedWording(start)
        seen = {place_of(start.observation)}
        for command, observation, _ in walk(kind, seed):
            assert episode.cue(command) == heard.cue(command)
            told = episode.write(command, observation)
            assert heard.read(told) == observation
            heard.write(command, observation)
            place = place_of(observation)
            if place is not None:
                again += place in seen
                assert told.startswith(f"In @{place}" if place in seen else "-= ")
                seen.add(place)
    assert again


def test_a_walked_way_is_told_there_and_back() -> None:
    episode = WalkedWording(replace(SCENARIO, hidden={}))
    assert episode.cue("go east").splitlines()[:2] == [" @hall", "? east"]
    episode.write("go east", "-= Shed =-\nA shed. To the west is the hall.")
    way = episode.cue("go west").splitlines()
    assert way[:3] == [" @shed", "- @hall", "- To the west is the hall."]
    assert "- You see a closed box." in way
    episode.write("go west", FIRST)
    episode.write("take egg", f"You pick up the egg from the ground.{SCORE}")
    assert episode.cue("go east").splitlines()[1:] == ["- @shed", "= 1 so far"]
    assert episode.cue("eat egg").splitlines()[1:] == ["* take egg", "= 1 so far"]
