"""Numbered descriptions: the same piece of the same place keeps its number, and nothing is lost."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from gym_llmworld.core import Scenario
from gym_llmworld.worlds.numbered import NumberedWording, Pieces, number_all

PIECES = Pieces(
    head=re.compile(r"^== (\w[\w #@]*) ==$", re.MULTILINE),
    joint=" ",
    begins=re.compile(r"(?<=[.!?]) (?=\S)|\n+"),
    tail=re.compile(r"\n\nScore: "),
)
HALL = "== Hall ==\nA hall. It is dark.\n\nA door leads east."


def known(scenario: Scenario) -> Iterator[tuple[str, str]]:
    yield "hall", HALL
    yield "shed", "== Shed ==\nIt is dark. A rake lies here."


def wording() -> NumberedWording:
    scenario = Scenario("x", "textworld", "train", "find it.", f"Find it. Now!\n{HALL}")
    return NumberedWording(scenario, place=PIECES.described, pieces=PIECES, known=known)


def test_numbers_are_counted_place_by_place() -> None:
    assert number_all(PIECES, [*known(None), ("hall", "== Hall ==\nIt is dark. Oh.")]) == [  # type: ignore[arg-type]
        "== Hall ==\n @hall #1 A hall. @hall #2 It is dark.\n\n @hall #3 A door leads east.",
        "== Shed ==\n @shed #1 It is dark. @shed #2 A rake lies here.",
        "== Hall ==\n @hall #2 It is dark. @hall #4 Oh.",
    ]


def test_an_episode_goes_on_counting() -> None:
    told = wording()
    assert told.cue("go east") == " @hall"
    assert told.write("go east", "You bump into a door. Ouch!") == "You bump into a door. Ouch!"
    changed = "== Hall ==\nA hall. It is bright.\n\nA door leads east.\n\nScore: 1. Well done."
    assert told.write("light lamp", changed) == (
        "== Hall ==\n @hall #1 A hall. @hall #4 It is bright.\n\n @hall #3 A door leads east."
        "\n\nScore: 1. Well done."
    )
    again = "So. Here:\n== Hall ==\nIt is bright. It is dark."
    assert told.write("look", again) == (
        "So. Here:\n== Hall ==\n @hall #4 It is bright. @hall #2 It is dark."
    )
    told.write("go east", "== Shed ==\nIt is dark.")
    assert told.cue("go west") == " @shed"


@pytest.mark.parametrize(
    "text",
    [
        HALL,
        "== Hall ==",
        "== Hall ==\n",
        "== Hall ==\n\n\nA hall.  Two blanks. ",
        "== Hall ==\nMind the @sign #3 here. Really.",
        "== A #1 @b ==\nOdd. Name.",
        "no description @hall #1 at all. Or so.",
        "",
    ],
)
def test_what_is_written_reads_as_what_was_said(text: str) -> None:
    written = wording().write("look", text)
    assert written == text or wording().read(written) == text
    assert wording().write("look", "== Hall ==\nIt is dark.") == "== Hall ==\n @hall #2 It is dark."


def test_numbers_that_a_model_made_up_are_taken_out() -> None:
    assert wording().read("== Hall ==\n @cave #77 Dark. @hall #0 Wet.") == "== Hall ==\nDark. Wet."
