"""Confidence: measures by hand, the fit against its objective, and a tiny model end to end."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from gym_llmworld.backends import ScriptedBackend, load_backend
from gym_llmworld.calibration import (
    CALIBRATION_FILE,
    FEATURES,
    Calibration,
    calibrated,
    features,
    read_calibration,
    with_calibration,
)
from gym_llmworld.checkpoints import checkpoint_style, embedded_model
from gym_llmworld.cli_calibrate import calibrate
from gym_llmworld.core import Completion, Episode, Message, Sampling, Scenario, Step
from gym_llmworld.errors import BackendError, CheckpointError, ContextOverflow, DataError
from gym_llmworld.protocol import Protocol, sequence_probability
from gym_llmworld.reliability import (
    JudgedStep,
    auroc,
    compare_confidences,
    fit,
    judge,
    reliability,
    split_by_scenario,
)
from gym_llmworld.scenarios import ScenarioStore
from gym_llmworld.worlds import get_world
from tests.tiny_models import save_checkpoint

PROTOCOL = Protocol("plain", lambda scenario: f"World {scenario.id}")
EXAMPLE = Calibration((0.0,) * 4, (1.0,) * 4, (-1.0, 0.0, -0.5, 0.25), 2.0)


def episode(name: str, *turns: tuple[str, str], world: str = "toy") -> Episode:
    scenario = Scenario(name, world, "test", "Win.", f"Start of {name}.")
    return Episode(scenario, tuple(Step(a, o) for a, o in turns), "real", "nobody")


def completion(*logprobs: float) -> Completion:
    return Completion("x", "stop", logprobs=logprobs)


def write(folder: Path, style: str = "plain", **changes: Any) -> Path:
    """Puts the example beside a checkpoint's weights, with some of its fields changed."""
    data = with_calibration(str(folder), style, EXAMPLE, {})
    data["styles"][style].update(changes.pop("fit", {}))
    (folder / CALIBRATION_FILE).write_text(json.dumps({**data, **changes}), encoding="utf-8")
    return folder


def test_reliability_by_hand() -> None:
    # Bins of a 15th: two at 0.95 (one right), one at 0.05 (wrong), one at 0.5 (right).
    result = reliability([0.95, 0.95, 0.05, 0.5], [True, False, False, True], list("aabb"))
    assert (result.n, result.wrong) == (4, 2)
    assert result.ece == pytest.approx((2 * 0.45 + 0.05 + 0.5) / 4)
    assert result.brier == pytest.approx((0.05**2 + 0.95**2 + 0.05**2 + 0.5**2) / 4)
    # Right against wrong: a tie, a win; a loss, a win.
    assert result.auroc == pytest.approx(2.5 / 4)
    filled = {i: (b.n, b.confidence, b.accuracy) for i, b in enumerate(result.bins) if b.n}
    assert filled == {0: (1, 0.05, 0.0), 7: (1, 0.5, 1.0), 14: (2, 0.95, 0.5)}


def test_certain_and_right_is_perfect() -> None:
    result = reliability([1.0, 0.0, 1.0], [True, False, True], list("abc"))
    assert (result.ece, result.brier, result.auroc) == (0.0, 0.0, 1.0)
    assert result.auroc_95 == (1.0, 1.0)


def test_undefined_measures_are_none() -> None:
    assert reliability([], [], []).ece is None
    all_right = reliability([0.5, 0.7], [True, True], list("ab"))
    assert (all_right.auroc, all_right.auroc_95) == (None, None)
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        reliability([1.2], [True], ["a"])


def test_auroc_agrees_with_counting_pairs() -> None:
    rng = np.random.default_rng(5)
    p, right = rng.integers(0, 6, 60) / 5, rng.random(60) < 0.6
    pairs = [(p[i] > p[j]) + (p[i] == p[j]) / 2 for i in range(60) for j in range(60)
             if right[i] and not right[j]]  # fmt: skip
    assert auroc(p, right) == pytest.approx(float(np.mean(pairs)))


def test_the_interval_resamples_scenarios_not_steps() -> None:
    # One scenario holds all wrong steps: without it, there is nothing to tell apart.
    rng = np.random.default_rng(0)
    p = rng.random(200)
    right = rng.random(200) < p
    few = reliability(list(p), list(right), [str(i // 50) for i in range(200)])
    many = reliability(list(p), list(right), [str(i) for i in range(200)])
    assert few.auroc == many.auroc
    assert few.auroc_95 is not None
    assert few.auroc_95[0] <= few.auroc <= few.auroc_95[1]  # type: ignore[operator]


def test_features_by_hand() -> None:
    found = dict(zip(FEATURES, features((-0.5, -0.0, -2.0)), strict=True))
    expected = {"lowest": 2.0001, "second_lowest": 0.5001, "sum": 2.5001, "length": 3.0}
    assert found == pytest.approx({name: math.log(x) for name, x in expected.items()})
    assert np.isfinite(features((0.0,))).all()
    assert np.isfinite(features((-1e9, 1e-6))).all()


def test_confidence_by_hand() -> None:
    one = completion(-1.0)
    surprise = math.log(1.0001)
    odds = -surprise - 0.5 * surprise + 0.25 * math.log(1) + 2.0
    assert EXAMPLE.confidence(one) == pytest.approx(1 / (1 + math.exp(-odds)), abs=1e-4)
    assert EXAMPLE.confidence(completion()) is None
    assert sequence_probability(completion()) is None


def test_log_probabilities_that_no_model_has() -> None:
    calibration = Calibration((0.0,) * 4, (1.0,) * 4, (-1.0, -0.5, 0.5, 0.1), 0.0)
    assert calibration.confidence(completion(-math.inf, -1.0)) == 0.0106
    assert calibration.confidence(completion(-math.inf, -math.inf)) == 0.0002
    assert calibration.confidence(completion(math.nan)) is None


def steps_of(rng: np.random.Generator, n: int) -> list[JudgedStep]:
    """Completions whose chance of being right falls with their least probable token."""
    steps = []
    for i in range(n):
        surprise = rng.exponential(0.3, size=int(rng.integers(2, 9)))
        right = rng.random() < 1 / (1 + math.exp(4 * (surprise.max() - 0.6)))
        steps.append(JudgedStep(str(i % 40), completion(*(-surprise)), bool(right)))
    return steps


def test_fit_is_the_maximum_of_the_penalised_likelihood() -> None:
    steps = steps_of(np.random.default_rng(1), 300)
    best = fit(steps)
    x = np.stack([features(s.completion.logprobs) for s in steps])
    x = (x - best.center) / np.asarray(best.scale)
    y = np.array([s.right for s in steps])

    def loss(weights: Sequence[float], bias: float) -> float:
        odds = x @ np.asarray(weights) + bias
        return float(
            np.logaddexp(0, np.where(y, -odds, odds)).sum() + 0.5 * np.square(weights).sum()
        )

    least = loss(best.weights, best.bias)
    for i in range(4):
        for h in (-1e-3, 1e-3):
            moved = [w + h * (i == j) for j, w in enumerate(best.weights)]
            assert loss(moved, best.bias) > least
    assert loss(best.weights, best.bias + 1e-3) > least < loss(best.weights, best.bias - 1e-3)


def test_a_fit_is_calibrated_where_the_sequence_probability_is_not() -> None:
    rng = np.random.default_rng(2)
    ways = compare_confidences(fit(steps_of(rng, 2000)), steps_of(rng, 2000))
    assert set(ways) == {"calibrated", "sequence probability"}
    ours, plain = ways["calibrated"], ways["sequence probability"]
    assert ours.ece is not None
    assert plain.ece is not None
    assert ours.ece < 0.05 < plain.ece
    assert (ours.auroc or 0) > (plain.auroc or 0)


def test_separable_steps_still_have_a_fit() -> None:
    steps = [
        JudgedStep(str(i), completion(-0.01 if i % 2 else -3.0), i % 2 == 1) for i in range(40)
    ]
    found = fit(steps)
    assert (found.confidence(completion(-0.01)) or 0) > 0.9
    assert (found.confidence(completion(-3.0)) or 1) < 0.1


@pytest.mark.parametrize("right", [True, False])
def test_nothing_to_tell_apart_is_an_error(right: bool) -> None:
    with pytest.raises(DataError, match="right and wrong predictions"):
        fit([JudgedStep("a", completion(-0.1), right)] * 3)
    with pytest.raises(DataError, match="right and wrong predictions"):
        fit([])


def test_halves_share_no_scenario() -> None:
    episodes = [episode(str(i % 7), ("look", "A room.")) for i in range(30)]
    first, second = split_by_scenario(episodes, seed=3)
    ids = [{e.scenario.id for e in half} for half in (first, second)]
    assert not ids[0] & ids[1]
    assert (len(ids[0]), len(ids[1])) == (3, 4)
    assert len(first) + len(second) == 30
    assert split_by_scenario(episodes, seed=3) == (first, second)
    with pytest.raises(DataError, match="at least 2 scenarios, got 1"):
        split_by_scenario(episodes[:1])


def test_judged_steps_and_agreement_by_hand() -> None:
    answers = iter(["A room.", "A room.", "No.", "A room.", "A cave.", "A cave.", "A cave.", "x"])

    def script(chat: Sequence[Message]) -> Completion | BackendError:
        if chat[-1].content == "long":
            return ContextOverflow("too long")
        return Completion(next(answers), "stop", logprobs=(-0.5,))

    backend = ScriptedBackend(script)
    turns = (("look", "A room."), ("go", "A hall."), ("long", "A room."))
    steps = judge(backend, PROTOCOL, [episode("a", *turns)], samples=3, batch_size=8)
    assert [(s.scenario, s.right, s.agreement) for s in steps] == [
        ("a", True, 2 / 3),
        ("a", False, 2 / 3),
    ]
    # Two conversations fit into a call, each with its three samples.
    assert backend.batch_sizes == [1, 3] * 3
    ways = compare_confidences(EXAMPLE, steps)
    assert ways["agreement"].n == 2


def test_a_model_without_log_probabilities_is_named() -> None:
    backend = ScriptedBackend(lambda chat: "A room.", name="mute")
    with pytest.raises(DataError, match="mute tells no log-probabilities"):
        judge(backend, PROTOCOL, [episode("a", ("look", "A room."))])


def test_judging_a_real_model_changes_nothing_about_its_answers(tmp_path: Path) -> None:
    backend = load_backend(str(save_checkpoint(tmp_path)))
    episodes = [episode(str(i), ("look", f"A {i}."), ("go", "Hall.")) for i in range(3)]
    steps = judge(backend, PROTOCOL, episodes, samples=2, max_tokens=8)
    for number, found in enumerate(steps):
        e, t = divmod(number, 2)
        played = episodes[e].steps
        chat = PROTOCOL.encode(episodes[e].scenario, played[:t], played[t].action)
        [alone] = backend.generate([chat], [Sampling(max_tokens=8)])
        assert isinstance(alone, Completion)
        assert found.completion.text == alone.text
        assert found.completion.logprobs == pytest.approx(alone.logprobs, abs=1e-4)
        assert found.agreement in (0.0, 0.5, 1.0)
    backend.close()


SCENE = Scenario("s", "alfworld", "train", "do it.", "You see a box.")


def test_a_calibration_survives_its_file(tmp_path: Path) -> None:
    assert read_calibration(str(tmp_path), "plain") is None
    write(save_checkpoint(tmp_path))
    assert read_calibration(str(tmp_path), "plain") == EXAMPLE
    protocol = calibrated(PROTOCOL, str(tmp_path))
    one = completion(-1.0)
    assert protocol.decode(SCENE, one, ()).confidence == EXAMPLE.confidence(one)
    assert PROTOCOL.decode(SCENE, one, ()).confidence == sequence_probability(one)
    assert calibrated(PROTOCOL, "owner/name") is PROTOCOL


def test_each_prompt_style_has_its_own(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path)
    other = dataclasses.replace(EXAMPLE, bias=-2.0)
    (write(folder) / CALIBRATION_FILE).write_text(
        json.dumps(with_calibration(str(folder), "fancy", other, {"n": 3}))
    )
    assert read_calibration(str(folder), "plain") == EXAMPLE
    assert read_calibration(str(folder), "fancy") == other
    assert read_calibration(str(folder), "engine") is None
    save_checkpoint(tmp_path, seed=1)
    assert set(with_calibration(str(folder), "fancy", other, {})["styles"]) == {"fancy"}


def test_other_weights_leave_the_calibration_aside(tmp_path: Path) -> None:
    write(save_checkpoint(tmp_path, seed=0))
    save_checkpoint(tmp_path, seed=1)
    with pytest.warns(UserWarning, match="was fitted to other weights"):
        assert read_calibration(str(tmp_path), "plain") is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "expected format 1"),
        ({"checkpoint": None}, "expected format 1"),
        ({"styles": ["plain"]}, "AttributeError"),
        ({"fit": {"features": ["sum"]}}, "expected the features lowest"),
        ({"fit": {"weights": [1.0]}}, "expected 4 numbers"),
        ({"fit": {"bias": None}}, "TypeError"),
        ({"fit": {"center": ["a", 0, 0, 0]}}, "ValueError"),
    ],
)
def test_a_damaged_file_says_what_is_wrong(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    write(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=message):
        read_calibration(str(tmp_path), "plain")


@pytest.mark.parametrize("text", ["", "[]", "{}", "{", "null"])
def test_a_file_that_is_no_calibration(tmp_path: Path, text: str) -> None:
    (tmp_path / CALIBRATION_FILE).write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match="llmworld calibrate"):
        read_calibration(str(tmp_path), "plain")


def test_infos_carry_the_calibrated_confidence(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, context=2048)
    options: dict[str, Any] = {"model": str(folder), "prompt_style": "engine", "max_tokens": 8}
    found = []
    for _ in range(2):
        env = gym.make("LLMWorld-ALFWorld-v0", disable_env_checker=True, **options)
        env.reset(seed=0)
        found.append(env.step("look")[4]["llmworld"]["confidence"])
        env.close()
        write(folder, "engine")
    assert 0 <= found[0] <= 1
    assert found[0] != found[1]


def test_the_shipped_calibration_belongs_to_the_shipped_weights() -> None:
    folder = embedded_model("alfworld")
    shipped = read_calibration(folder, checkpoint_style(folder, "alfworld"))
    assert shipped is not None
    sure, unsure = shipped.confidence(completion(-1e-4)), shipped.confidence(completion(-2.0))
    assert sure is not None
    assert unsure is not None
    assert sure > 0.95
    assert unsure < 0.5


def said_by(model: Path, count: int) -> list[Episode]:
    """Episodes of one step; every other one says what the model will predict."""
    protocol = get_world("alfworld").protocol(checkpoint_style(str(model), "alfworld"))
    backend = load_backend(str(model))
    episodes = []
    for i, scenario in enumerate(ScenarioStore("alfworld").of_split("valid_seen")[:count]):
        [answer] = backend.generate([protocol.encode(scenario, (), "look")], [Sampling()])
        assert isinstance(answer, Completion)
        said = protocol.decode(scenario, answer, ()).observation
        text = said if i % 2 else f"Room {i}."
        episodes.append(Episode(scenario, (Step("look", text),), "real", "nobody"))
    backend.close()
    return episodes


def test_the_command_writes_report_diagram_and_calibration(tmp_path: Path) -> None:
    folder, out, data = tmp_path / "model", tmp_path / "out", tmp_path / "real.jsonl"
    shutil.copytree(embedded_model("alfworld"), folder)
    episodes = said_by(folder, 8)
    data.write_text("".join(json.dumps(e.to_json()) + "\n" for e in episodes), encoding="utf-8")
    (folder / CALIBRATION_FILE).unlink()
    calibrate("LLMWorld-ALFWorld-v0", data, model=str(folder), samples=1, out=out, install=True)
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["fit"]["scenarios"] == report["scenarios"] == 4
    assert set(report["ways"]) == {"calibrated", "sequence probability", "agreement"}
    assert (out / "reliability.png").stat().st_size > 10_000
    assert read_calibration(str(folder), checkpoint_style(str(folder), "alfworld")) is not None
    assert (out / CALIBRATION_FILE).read_text() == (folder / CALIBRATION_FILE).read_text()
    with pytest.raises(ValueError, match="is no folder"):
        calibrate("LLMWorld-ALFWorld-v0", data, model="http://localhost:1/v1", install=True)
