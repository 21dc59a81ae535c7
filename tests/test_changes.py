"""Descriptions as what has changed: nothing is lost, nothing else is taken for one."""

from __future__ import annotations

import re

import pytest

from gym_llmworld.backends.scripted import ScriptedBackend
from gym_llmworld.core import Chat, Completion, Episode, Scenario, Step
from gym_llmworld.evaluation import evaluate_episodes
from gym_llmworld.protocol import Protocol
from gym_llmworld.session import Session
from gym_llmworld.worlds.changes import ChangesWording, Pieces

PIECES = Pieces(
    head=re.compile(r"^== (\w+) ==$", re.MULTILINE),
    between=re.compile(r"(?<=[.!?]) (?=\S)|\n+"),
    joint="\n\n",
    tail=re.compile(r"\n\nScore: "),
)
HALL = "== Hall ==\nA hall. It is dark.\n\nA door leads east."
SHED = "== Shed ==\nIt is dark. A rake lies here. It is dark."
SCENARIO = Scenario("x", "textworld", "train", "find it.", f"Find it. Now!\n{HALL}")


def wording(scenario: Scenario = SCENARIO) -> ChangesWording:
    return ChangesWording(
        scenario, place=PIECES.described, pieces=PIECES, known=lambda s: (s.observation, SHED)
    )


@pytest.mark.parametrize(
    ("now", "told"),
    [
        (HALL, "In @hall"),
        (HALL.replace("dark", "bright"), "In @hall\n- It is dark.\n+ It is bright."),
        (
            "== Hall ==\nIt is dark.\n\nA door leads east.",
            "In @hall\n- A hall. It is dark.\n+ It is dark.",
        ),
        (f"{HALL}\n\nA rat lies there.", "In @hall\n+ A rat lies there."),
        (
            "== Hall ==\nA hall. Oh. It is dark.\n\nA door leads east.",
            "In @hall\n- A hall.\n+ A hall. Oh.",
        ),
        (
            "== Hall ==\nA hall.\n\nNo door leads east.\n\nScore: 1. Well done.",
            "In @hall\n- It is dark.\n- A door leads east.\n+ No door leads east."
            "\n\nScore: 1. Well done.",
        ),
        # The sentence is there twice, so that it is told with the one before.
        (
            "== Shed ==\nIt is dark. A rake lies here. It is bright.",
            "In @shed\n- A rake lies here. It is dark.\n+ A rake lies here. It is bright.",
        ),
        # Nothing could be said of this but all of it.
        (f"So. Here:\n{HALL}", f"So. Here:\n{HALL}"),
        ("== Cave ==\nIt is dark.", "== Cave ==\nIt is dark."),
        ("You bump into a door. Ouch!", "You bump into a door. Ouch!"),
    ],
)
def test_what_has_changed(now: str, told: str) -> None:
    assert wording().write("look", now) == told
    assert wording().read(told) == now


def test_an_episode_compares_with_the_last_description() -> None:
    episode = wording()
    assert episode.cue("go east") == " @hall"
    bright = HALL.replace("dark", "bright")
    assert episode.write("light lamp", bright) == "In @hall\n- It is dark.\n+ It is bright."
    assert episode.write("look", bright) == "In @hall"
    assert episode.write("go east", "== Cave ==\nIt is wet.") == "== Cave ==\nIt is wet."
    assert episode.cue("go west") == " @cave"
    assert episode.write("look", "== Cave ==\nIt is wet.") == "In @cave"
    assert episode.write("go west", HALL) == "In @hall\n- It is bright.\n+ It is dark."


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("== Hall ==", "In @hall\n- A hall. It is dark.\n\nA door leads east."),
        ("== Hall ==\n\n\nA hall.  Two blanks. ", None),
        ("== Hall ==\nA list:\n- A hall.\n+ It is dark.", None),
        ("In @hall", None),
        ("In @hall\n- It is dark.", None),
        ("", None),
    ],
)
def test_what_cannot_be_told_by_changes_is_told_in_full(text: str, told: str | None) -> None:
    assert wording().write("look", text) == (text if told is None else told)
    assert wording().read(text if told is None else told) == text or told is None


@pytest.mark.parametrize(
    "made_up",
    [
        "In @cave",
        "In @hall\n- It is bright.\n+ It is dark.",
        "In @shed\n- It is dark.",
        "In @hall and so on",
        "In @",
    ],
)
def test_changes_that_a_model_made_up_are_read_as_they_stand(made_up: str) -> None:
    assert wording().read(made_up) == made_up


def test_a_protocol_reads_an_answer_after_what_has_happened() -> None:
    protocol = Protocol("changes", lambda s: s.observation, wording=wording)
    cave = Step("go east", "== Cave ==\nIt is wet.")
    answer = Completion("In @cave\n- It is wet.\n+ It is dry.", "stop")
    assert protocol.decode(SCENARIO, answer, (cave,)).observation == "== Cave ==\nIt is dry."
    assert protocol.decode(SCENARIO, answer, ()).observation == answer.text


def test_control_tokens_do_not_come_together_where_something_is_left_out() -> None:
    protocol = Protocol("changes", lambda s: s.observation, wording=wording)
    cave = Step("go east", "== Cave ==\nfoo <|en X d|> bar")
    answer = Completion("In @cave\n-  X ", "stop")
    assert protocol.decode(SCENARIO, answer, (cave,)).observation == "== Cave ==\nfoo  bar"


def test_a_stutter_does_not_take_long() -> None:
    episode = wording()
    for text in ("a. " * 2700, "a. b. " * 1350):
        shown = f"== Cave ==\n{text}"
        assert episode.write("look", shown) == shown
    assert episode.write("look", shown) == "In @cave"


def test_sessions_and_evaluations_read_answers_after_what_has_happened() -> None:
    protocol = Protocol("changes", lambda s: s.observation, wording=wording)
    cave = Step("go east", "== Cave ==\nIt is wet.")
    dry = "== Cave ==\nIt is dry."
    session = Session(protocol, SCENARIO, "What?", (cave,))
    outcome = session.advance("look", Completion("In @cave\n- It is wet.\n+ It is dry.", "stop"))
    assert outcome.session.observation == dry
    episode = Episode(SCENARIO, (cave, Step("look", dry)), "real", "x")

    def answer(chat: Chat) -> str:
        return cave.observation if len(chat) == 2 else "In @cave\n- It is wet.\n+ It is dry."

    result = evaluate_episodes(ScriptedBackend(answer), protocol, [episode])
    assert [turn.correct for turn in result.turns] == [True, True]
