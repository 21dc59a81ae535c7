"""Boards as the embedded models write them, against what the real engines show."""

from __future__ import annotations

import re

import pytest

from gym_llmworld.collection import play
from gym_llmworld.core import Completion, Scenario
from gym_llmworld.real.grids_levels import LevelSpec, make_level
from gym_llmworld.worlds import get_world
from gym_llmworld.worlds.grids_wording import BoardWording
from tests.grids_shared import ALL, real

KEYS = pytest.mark.parametrize("key", ALL)


def wording(key: str, scenario: Scenario) -> BoardWording:
    return BoardWording(ALL[key].puzzle, scenario)


@pytest.mark.parametrize(
    ("key", "board"), [(key, board) for key in ALL for board in ALL[key].boards]
)
def test_nothing_is_lost(key: str, board: str) -> None:
    """What the engine shows comes back from what the model is to write, step by step."""
    world, env = get_world(key), real(key)
    protocol, short = world.protocol("engine"), 0
    made = [make_level(ALL[key], LevelSpec("valid", board, seed)) for seed in range(12)]
    for number, scenario in enumerate(made):
        for name in ("noisy", "corrupted"):
            episode = play(env, world.agents[name](), scenario, seed=number, max_steps=5)
            labels = protocol.conversation(episode)[2::2]
            asked = [step for step in episode.steps if protocol.admit(step.action) is not None]
            for step, label in zip(asked, labels, strict=True):
                read = protocol.decode(scenario, Completion(label.content, "stop"), ())
                assert read.observation == step.observation
                assert read.success == (step.reward > 0)
                short += len(label.content) < len(step.observation) / 2
    assert short > 25


LAKE = "P_OG\n____\n_O__\n____"


def lake(rest: str = "Player at (0,0); holes at (0,2) and (2,1); goal at (0,3).") -> Scenario:
    return Scenario("x", "frozenlake", "valid", "Go.", f"{LAKE}\n{rest}\nYou have 10 actions left.")


def test_what_is_written() -> None:
    told = wording("frozenlake", lake())
    assert told.cue("Down || Down") == " (0,0)P"
    seen = (
        "__OG\n____\nPO__\n____\n"
        "Player at (2,0); holes at (0,2) and (2,1); goal at (0,3).\nYou have 8 actions left."
    )
    assert told.write("Down || Down", seen) == "(2,0)P (0,0)_ 8"
    assert told.cue("Right") == " (2,0)P"
    drowned = seen.replace("PO__", "_X__").replace("Player at (2,0)", "Player at (2,1)")
    assert told.write("Right", drowned) == "(2,1)X (0,0)_ 8"
    assert told.read("(2,1)X (0,0)_ 8") == drowned


def test_sudoku_counts_from_one_and_shows_its_digits() -> None:
    first = "| 1 . . 4 | 4 3 2 1 | 2 . 4 3 | 3 . . .\n"
    empty = "Empty positions to be filled are at (1,2), (1,3), (3,2), (4,2), (4,3), (4,4)."
    scenario = Scenario(
        "x", "sudoku", "valid", "Fill.", f"{first}{empty}\nYou have 50 actions left."
    )
    told = wording("sudoku", scenario)
    assert told.cue("1,2,2") == ""
    seen = told.read("(1,2)2 49")
    assert seen.startswith("| 1 2 . 4 | 4 3 2 1 |")
    assert seen.endswith("at (1,3), (3,2), (4,2), (4,3), (4,4).\nYou have 49 actions left.")
    assert told.write("1,2,2", seen) == "(1,2)2 49"
    assert told.write("1,3,1", told.read("49")) == "49"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Invalid action.",
        "(9,9)P 7",
        "(0,0)Z 7",
        "(0,0)P  7",
        "(0,0)P 7 more",
        "(0,0)P seven",
        "(0,0)P 123",
        "(0,٣)P 7",
        LAKE,
        "√" * 500,
    ],
)
def test_other_text_stays_as_it_is(text: str) -> None:
    assert wording("frozenlake", lake()).read(text) == text
    assert wording("frozenlake", Scenario("x", "frozenlake", "valid", "Go.", "no board")).read(
        text
    ) == (text)


def test_what_a_short_form_would_lose_is_written_out() -> None:
    """Coordinates that mean nothing, another board, a refusal; the last board still counts."""
    scattered = "P___\n__OG\n_O__\n____\nPlayer at (3,3); hole at (0,0); goal at (1,1)."
    for seen, cue in (
        (f"{scattered}\nYou have 9 actions left.", " (0,0)P"),
        ("_P\n_G\nPlayer at (0,1); goal at (1,1).\nYou have 9 actions left.", " (0,1)P"),
        ("Invalid action.", " (0,0)P"),
        (LAKE.replace("P_", "_P"), " (0,1)P"),
    ):
        told = wording("frozenlake", lake())
        assert told.write("Left", seen) == seen
        assert told.cue("Left") == cue


def test_a_board_of_more_than_ten_columns() -> None:
    wide = f"P{'_' * 13}G\n{'_' * 15}"
    scenario = Scenario(
        "x", "frozenlake", "valid", "Go.",
        f"{wide}\nPlayer at (0,0); goal at (0,14).\nYou have 10 actions left.",
    )  # fmt: skip
    told = wording("frozenlake", scenario)
    seen = told.read("(1,12)P (0,0)_ 5")
    assert seen.startswith(f"_{'_' * 13}G\n{'_' * 12}P__\nPlayer at (1,12); ")
    assert told.write("Right", seen) == "(1,12)P (0,0)_ 5"


def test_a_claim_on_the_board_is_no_success() -> None:
    """Only the marker at the end is, as everywhere."""
    protocol = get_world("frozenlake").protocol("engine")
    read = protocol.decode(lake(), Completion("(0,3)√ (0,0)_ 7", "stop"), ())
    assert "√" in read.observation
    assert not read.success
    marked = protocol.decode(lake(), Completion("(0,3)√ (0,0)_ 7 [SUCCESS]", "stop"), ())
    assert marked.success
    assert re.sub(r"\s", "", marked.observation) == re.sub(r"\s", "", read.observation)
