"""Object states: hand-computed differences, and what models write instead of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gym_llmworld.objectstate import (
    ObjectState,
    StateTurn,
    apply_difference,
    difference,
    difference_text,
    predicted_state,
    read_json,
    read_state,
    state_accuracy,
    state_credit,
    state_of,
)


def thing(uuid: int, contains: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    name = f"thing (ID: {uuid})"
    return {
        "name": name,
        "uuid": uuid,
        "type": "Thing",
        "properties": properties,
        "contains": list(contains),
    }


def score(points: int = 0, over: bool = False, won: bool = False) -> dict[str, Any]:
    return {"score": points, "gameOver": over, "gameWon": won}


def state(*things: dict[str, Any], points: int = 0) -> ObjectState:
    made = state_of(things, score(points))
    assert made is not None
    return made


BEFORE = state(thing(1, isOn=False), thing(2, ("a", "b"), heat=20), thing(3))
AFTER = state(thing(1, isOn=True), thing(2, ("b", "a"), heat=20), thing(4), points=1)


def test_text_reads_back() -> None:
    again = read_state(BEFORE.text)
    assert again is not None
    assert again.same_as(BEFORE)
    assert json.loads(BEFORE.text)["game_state"][-1] == score()


def test_difference_has_whole_objects_removals_and_the_score() -> None:
    assert difference(BEFORE, AFTER) == {
        "modified": [thing(1, isOn=True), thing(4)],
        "removed": [3],
        "score": score(1),
    }
    nothing = {"modified": [], "removed": [], "score": score()}
    assert difference(BEFORE, BEFORE) == nothing
    lost = state(thing(1), thing(2, ("a", "b"), heat=20), thing(3))
    assert difference(BEFORE, lost)["modified"] == [thing(1)]


@pytest.mark.parametrize(("one", "other"), [(BEFORE, AFTER), (AFTER, BEFORE), (BEFORE, BEFORE)])
def test_applying_a_difference_leads_there(one: ObjectState, other: ObjectState) -> None:
    for text in (difference_text(one, other), other.text):
        found = predicted_state(one, text)
        assert found is not None
        assert found.same_as(other)


def test_an_empty_score_keeps_it_and_a_missing_one_is_wrong() -> None:
    kept = apply_difference(AFTER, {"modified": [], "removed": [], "score": {}})
    assert kept is not None
    assert kept.same_as(AFTER)
    lost = apply_difference(AFTER, {"modified": [], "removed": []})
    assert lost is not None
    assert not lost.same_as(AFTER)
    partly = apply_difference(AFTER, {"modified": [], "removed": [], "score": {"score": 1}})
    assert partly is not None
    assert not partly.same_as(AFTER)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "it will describe the contents of countertop 1",
        "[]",
        "null",
        "{",
        '{"modified": []}',
        '{"removed": [], "score": {}}',
        '{"modified": {}, "removed": [], "score": {}}',
        '{"modified": [3], "removed": [], "score": {}}',
        '{"modified": [{"name": "x"}], "removed": [], "score": {}}',
        '{"modified": [], "removed": [true], "score": {}}',
        '{"modified": [], "removed": [], "score": 3}',
        '{"game_state": 3}',
        '{"game_state": [3]}',
        "[" * 50_000,
        '{"a":' * 500,
        "9" * 300_000,
    ],
)
def test_what_is_no_state_is_none(text: str) -> None:
    assert predicted_state(BEFORE, text) is None


def test_answers_are_found_as_the_published_parser_finds_them() -> None:
    answer = difference_text(BEFORE, AFTER)
    for text in (
        f"First I think {{...}}. The final answer is: {{}} no. The final answer is:\n{answer}",
        f"```json\n{{'old': 'answer'}}\n```\nor rather\n```json\n{answer}\n```",
        f"The final state is: ```{answer}```",
        repr(json.loads(answer)),
    ):
        found = predicted_state(BEFORE, text)
        assert found is not None, text
        assert found.same_as(AFTER)
    assert read_json('{"a": True}') == {"a": True}


def test_objects_invented_by_a_model_make_it_wrong() -> None:
    invented = json.loads(difference_text(BEFORE, AFTER))
    invented["modified"].append(thing(99))
    turn = StateTurn(BEFORE, AFTER, apply_difference(BEFORE, invented))
    assert not turn.correct
    honest = StateTurn(BEFORE, AFTER, AFTER)
    assert state_credit(turn) < state_credit(honest) - 0.2


def test_accuracy_on_changed_and_unchanged_beside_the_copy_baseline() -> None:
    won = state(thing(1, isOn=False), thing(2, ("a", "b"), heat=20), thing(3), points=1)
    turns = [
        StateTurn(BEFORE, AFTER, AFTER),
        StateTurn(BEFORE, AFTER, BEFORE),
        StateTurn(BEFORE, won, None),
        StateTurn(BEFORE, BEFORE, BEFORE),
        StateTurn(BEFORE, BEFORE, AFTER),
    ]
    found = state_accuracy(turns)
    assert (found.all.hits, found.all.n) == (2, 5)
    assert (found.changed.hits, found.changed.n) == (1, 3)
    assert (found.unchanged.hits, found.unchanged.n) == (1, 2)
    assert found.copy_baseline.value == 2 / 5
    copied = state_accuracy([StateTurn(t.before, t.after, t.before) for t in turns])
    assert copied.all == copied.copy_baseline
    assert copied.changed.value == 0


def test_credit_by_hand() -> None:
    before, after = state(thing(1, a=0, b=0)), state(thing(1, a=1, b=0))
    assert state_credit(StateTurn(before, after, after)) == pytest.approx(1.3)
    assert state_credit(StateTurn(before, before, before)) == pytest.approx(0.3)
    # Five properties (name, type, contains, a, b), one of them wrong; the score is right.
    copied = state_credit(StateTurn(before, after, before))
    assert copied == pytest.approx(0.09 * 4 / 5 + 0.01)
    # The change is right, and b changes in vain: one of two.
    vain = state(thing(1, a=1, b=7))
    assert state_credit(StateTurn(before, after, vain)) == pytest.approx(0.09 * 4 / 5 + 0.01 + 0.5)
    assert state_credit(StateTurn(before, after, None)) == 0.0
