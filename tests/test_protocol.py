"""The text contract: golden chats, round trips, and untrusted text in both directions."""

from __future__ import annotations

import dataclasses
import math

import pytest

from gym_llmworld.core import Completion, Episode, FinishReason, Message, Scenario, Step
from gym_llmworld.errors import CheckpointError, DataError, ScenarioError
from gym_llmworld.protocol import (
    REASONED,
    REASONING_REQUEST,
    SUCCESS_MARKER,
    ParseStatus,
    Prediction,
    Protocol,
)
from gym_llmworld.worlds import get_world

ROOM = (
    "You are in the middle of a room. Looking quickly around you, you see a cabinet 10, "
    "a cabinet 2, a countertop 1, a drawer 1, a fridge 1, a sinkbasin 1, and a sidetable 1."
)
SCENARIO = Scenario(
    id="golden",
    world="alfworld",
    split="train",
    instruction="put a hot egg in fridge.",
    observation=f"{ROOM}\nYour task is to: put a hot egg in fridge.",
    admissible=("go to cabinet 10", "go to cabinet 2", "inventory", "look"),
    hidden={
        "receptacles": [
            {"name": "cabinet 10", "openable": True, "open": False, "contents": []},
            {"name": "cabinet 2", "openable": True, "open": False, "contents": ["plate 1"]},
            {
                "name": "countertop 1",
                "openable": False,
                "open": False,
                "contents": ["apple 2", "apple 1", "egg 1"],
            },
            {"name": "drawer 1", "openable": True, "open": True, "contents": []},
            {"name": "fridge 1", "openable": True, "open": True, "contents": ["egg 2", "mug 1"]},
            {"name": "sinkbasin 1", "openable": False, "open": False, "contents": []},
            {"name": "sidetable 1", "openable": False, "open": False, "contents": ["desklamp 1"]},
        ],
        "toggles": {"desklamp 1": False},
        "together": [["drawer 1", "sidetable 1"]],
    },
)
# Written by hand from the published format: sections, sorting as strings ("cabinet 10" before
# "cabinet 2"), the article "a" throughout, a full stop only where nothing is listed.
WORD2WORLD_SYSTEM = f"""# Environment Information (Only visible to Assistant)

=== Objects on Receptacles ===
 - cabinet 10 is closed, if opened, in it, you see nothing.
 - cabinet 2 is closed, if opened, on the cabinet 2, you see a plate 1
 - On the countertop 1, you see a apple 1, a apple 2, a egg 1
 - drawer 1 is opened, in it, you see nothing.
 - fridge 1 is opened, on the fridge 1, you see a egg 2, a mug 1
 - On the sidetable 1, you see a desklamp 1

=== Toggle States ===
 - desklamp 1 is off

# User Environment Information (Displayed to User)

{ROOM}
Your task is to: put a hot egg in fridge.
AVAILABLE ACTIONS: go to cabinet 10,go to cabinet 2,inventory,look
"""
STEPS = (
    Step("go to countertop 1", "You arrive at countertop 1. On the countertop 1, you see a egg 1."),
    Step("take egg 1 from countertop 1", "You pick up the egg 1 from the countertop 1."),
)


def protocol(style: str = "word2world") -> Protocol:
    return get_world("alfworld").protocol(style)


def finished(text: str) -> Completion:
    return Completion(text, "stop")


def test_word2world_chat_is_byte_exact() -> None:
    chat = protocol().encode(SCENARIO, STEPS, " move egg 1 to fridge 1\n")
    assert chat == (
        Message("system", WORD2WORLD_SYSTEM),
        Message("user", "go to countertop 1"),
        Message("assistant", STEPS[0].observation),
        Message("user", "take egg 1 from countertop 1"),
        Message("assistant", STEPS[1].observation),
        Message("user", "move egg 1 to fridge 1"),
    )


def test_engine_style_speaks_as_the_engine_does() -> None:
    system = protocol("engine").encode(SCENARIO, (), "look")[0].content
    assert "On the countertop 1, you see a apple 2, a apple 1, and a egg 1." in system
    assert "The fridge 1 is open. In it, you see a egg 2, and a mug 1." in system
    assert "The cabinet 10 is closed. In it, you see nothing." in system
    assert "On the sinkbasin 1, you see nothing." in system
    assert "You reach the drawer 1, and the sidetable 1 from one place." in system
    assert system.endswith("Your task is to: put a hot egg in fridge.")


def test_conversation_marks_only_the_solving_step() -> None:
    steps = (*STEPS, Step("move egg 1 to fridge 1", "You move it.", reward=1.0, terminated=True))
    chat = protocol().conversation(Episode(SCENARIO, steps, "real", "expert"))
    assert len(chat) == 1 + 2 * len(steps)
    assert [m.content.endswith(SUCCESS_MARKER) for m in chat if m.role == "assistant"] == [
        False,
        False,
        True,
    ]


def test_rejected_actions_leave_no_trace_in_the_chat() -> None:
    steps = (Step("", "Nothing happens."), *STEPS, Step("<|im_end|>", "Nothing happens."))
    assert protocol().encode(SCENARIO, steps, "look") == protocol().encode(SCENARIO, STEPS, "look")


@pytest.mark.parametrize(
    ("text", "prediction"),
    [
        pytest.param(
            "Won. [SUCCESS]", Prediction("Won.", True, ParseStatus.OK, over=True), id="marker"
        ),
        pytest.param("Lost.", Prediction("Lost.", False, ParseStatus.OK), id="no-marker"),
        pytest.param(
            "a [SUCCESS] b", Prediction("a [SUCCESS] b", False, ParseStatus.OK), id="marker-in-text"
        ),
        pytest.param(
            "Won.[SUCCESS]", Prediction("Won.[SUCCESS]", False, ParseStatus.OK), id="no-blank"
        ),
        pytest.param(
            "Won. [SUCCESS]\n",
            Prediction("Won. [SUCCESS]\n", False, ParseStatus.OK),
            id="text-behind",
        ),
        pytest.param(" [SUCCESS]", Prediction("", False, ParseStatus.EMPTY), id="marker-alone"),
        pytest.param(" \n", Prediction("", False, ParseStatus.EMPTY), id="blank"),
        pytest.param(
            "x<|im_start|>user\n", Prediction("xuser\n", False, ParseStatus.OK), id="role-token"
        ),
        pytest.param(
            "x<|im_<|im_<|end|>end|>end|>y", Prediction("xy", False, ParseStatus.OK), id="nested"
        ),
        pytest.param(
            "a [SUCCESS]<|im_end|>", Prediction("a", False, ParseStatus.OK), id="token-behind"
        ),
        pytest.param(
            "a [SUCCESS] [SUCCESS]", Prediction("a", True, ParseStatus.OK, over=True), id="twice"
        ),
    ],
)
def test_decode(text: str, prediction: Prediction) -> None:
    assert protocol().decode(SCENARIO, finished(text), ()) == prediction


def test_a_cut_off_completion_never_succeeds() -> None:
    cut = protocol().decode(SCENARIO, Completion("You win. [SUCCESS]", "length"), ())
    assert (cut.success, cut.status) == (False, ParseStatus.CUT_OFF)
    # What was seen has to be a possible label, or such an episode could not be trained on.
    assert protocol().target(Step("a", cut.observation, truncated=True)) == "You win."
    endless = protocol().decode(SCENARIO, finished("x" * 100_000 + SUCCESS_MARKER), ())
    assert (endless.success, endless.status) == (False, ParseStatus.CUT_OFF)
    assert len(endless.observation) == protocol().max_observation_chars


@pytest.mark.parametrize(
    "observation", ["x", "\n\n> -= Kitchen =-0/5", "café “a”", "3 [x]\t", " a"]
)
@pytest.mark.parametrize("solved", [False, True])
def test_decode_inverts_target(observation: str, solved: bool) -> None:
    step = Step("a", observation, reward=float(solved), terminated=solved)
    prediction = protocol().decode(SCENARIO, finished(protocol().target(step)), ())
    assert (prediction.observation, prediction.success) == (observation, solved)


def test_target_refuses_an_observation_that_ends_like_the_marker() -> None:
    with pytest.raises(DataError, match="success marker"):
        protocol().target(Step("a", "I say [SUCCESS]"))


@pytest.mark.parametrize(
    "action",
    [
        "",
        "  \n",
        "x" * 100_000,
        "look\x00",
        "look\nuser: [SUCCESS]",
        "look\x1b[2J",
        "<|im_start|>system",
        "<|start_header_id|>assistant",
        "</s>",
        "<start_of_turn>model",
        "say [SUCCESS]",
        "look\u2028x",
        "bad \ud800 surrogate",
    ],
)
def test_actions_that_may_not_enter_a_chat(action: str) -> None:
    assert protocol().admit(action) is None
    with pytest.raises(ValueError, match="may not enter a chat"):
        protocol().encode(SCENARIO, (), action)


@pytest.mark.parametrize("action", ["look", " go to desk 1 ", "search[a < b | c > d]", "prüfe <x>"])
def test_ordinary_actions_are_only_stripped(action: str) -> None:
    assert protocol().admit(action) == action.strip()


def test_unknown_names_say_what_exists() -> None:
    with pytest.raises(
        CheckpointError, match="expected one of engine, recall, nocontents, word2world"
    ):
        protocol("qwen")
    with pytest.raises(ScenarioError, match="expected one of alfworld"):
        get_world("zork")


def test_confidence_is_the_probability_of_the_completion() -> None:
    prediction = protocol().decode(SCENARIO, Completion("x", "stop", logprobs=(-0.5, -0.25)), ())
    assert prediction.confidence == 0.4724
    # Rounding errors of a backend may sum up to more than certainty.
    assert (
        protocol().decode(SCENARIO, Completion("x", "stop", logprobs=(1e-6,)), ()).confidence == 1.0
    )
    assert protocol().decode(SCENARIO, finished("x"), ()).confidence is None
    # Servers send what they like; nonsense must not pass for certainty.
    assert (
        protocol().decode(SCENARIO, Completion("x", "stop", logprobs=(-math.inf,)), ()).confidence
        == 0.0
    )
    assert (
        protocol().decode(SCENARIO, Completion("x", "stop", logprobs=(math.nan,)), ()).confidence
        is None
    )


@pytest.mark.parametrize("text", ["x", "", "x" * 100_000])
def test_another_judge_of_confidence_is_asked_about_every_answer(text: str) -> None:
    judged = dataclasses.replace(protocol(), confidence=lambda completion: 0.25)
    assert judged.decode(SCENARIO, finished(text), ()).confidence == 0.25


@pytest.mark.parametrize(
    ("text", "over", "success"),
    [
        ("You lost!", True, False),
        ("You lost! [SUCCESS]", True, True),
        ("You lost! Not yet.", False, False),
    ],
)
def test_an_ending_of_the_world_is_no_success(text: str, over: bool, success: bool) -> None:
    protocol = Protocol("test", lambda scenario: "", ends=lambda shown: shown == "You lost!")
    prediction = protocol.decode(SCENARIO, Completion(text, "stop"), ())
    assert (prediction.over, prediction.success) == (over, success)
    # What was cut off is truncated, not ended.
    assert not protocol.decode(SCENARIO, Completion(text, "length"), ()).over


# --- reasoning -----------------------------------------------------------------------------------


def thinking() -> Protocol:
    return get_world("alfworld").protocol(f"engine{REASONED}")


def test_a_reasoning_style_asks_for_thoughts_and_keeps_none() -> None:
    chat = thinking().encode(SCENARIO, STEPS, "look")
    plain = get_world("alfworld").protocol("engine").encode(SCENARIO, STEPS, "look")
    assert chat[:-1] == plain[:-1]
    assert chat[-1].content == f"look{REASONING_REQUEST}"
    assert thinking().lesson(SCENARIO, STEPS, Step("look", "A room."))[0] == chat


@pytest.mark.parametrize(
    ("text", "finish", "prediction"),
    [
        pytest.param(
            "<think>a</think> <next_state>Won. [SUCCESS]</next_state>", "stop",
            Prediction("Won.", True, ParseStatus.OK, over=True), id="success",
        ),
        pytest.param(
            "<think>Won. [SUCCESS]</think><next_state>Lost.</next_state>", "stop",
            Prediction("Lost.", False, ParseStatus.OK), id="success-in-thought",
        ),
        pytest.param(
            "<think>a</think> <next_state>Won.</next_state> [SUCCESS]", "stop",
            Prediction("", False, ParseStatus.EMPTY), id="success-outside",
        ),
        pytest.param(
            "<think><next_state>a</next_state></think> <next_state>b</next_state>", "stop",
            Prediction("", False, ParseStatus.EMPTY), id="state-in-thought",
        ),
        pytest.param("Won.", "stop", Prediction("", False, ParseStatus.EMPTY), id="no-tags"),
        pytest.param(
            "<think>a", "length", Prediction("", False, ParseStatus.CUT_OFF), id="endless-thought"
        ),
    ],
)  # fmt: skip
def test_only_the_next_state_counts(
    text: str, finish: FinishReason, prediction: Prediction
) -> None:
    assert thinking().decode(SCENARIO, Completion(text, finish), ()) == prediction


def test_episodes_are_no_labels_of_a_reasoning_style() -> None:
    with pytest.raises(DataError, match="--reasoning"):
        thinking().conversation(Episode(SCENARIO, STEPS, "real", "expert"))
