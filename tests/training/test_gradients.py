"""Cosines of policy gradients: hand-computed credit, plain forward passes, the whole program."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl")

from tests.tiny_models import tiny_model
from tests.training.test_credit import rollout
from tests.training.test_policy import agent  # noqa: F401 - a fixture
from training import gradients
from training.policy_config import PolicyConfig
from training.token_policy import Rollout

# TRL and transformers warn about their own deprecations.
pytestmark = pytest.mark.filterwarnings("ignore")

CONFIG = PolicyConfig(model="x", group_size=2, groups=2, batch_size=4)


def episode(*tokens: int, shares: tuple[float, ...]) -> Rollout:
    """An episode whose commands are one token each, with an answer of one token behind it."""
    played = rollout(*shares)
    played.prompt = [5, 6]
    played.completion = [part for token in tokens for part in (token, 7)]
    played.mask = [1, 0] * len(tokens)
    return played


def test_credit_is_told_per_command() -> None:
    group = [episode(8, 9, shares=(0.0, 1.0)), episode(8, shares=(0.0,))]
    refused = rollout(0.0)
    played = refused.played
    assert played is not None
    step = replace(played.episode.steps[0], observation=CONFIG.world.rejection)
    refused.played = replace(played, episode=replace(played.episode, steps=(step,)))
    found = gradients.credits_of([*group, refused, rollout(0.0)], CONFIG, [1.0, 0.5])
    assert list(found) == ["episode", "command 1", "command 0.5", "refusal"]
    unit = 0.5 / (0.5**0.5 + 1e-4)
    assert found["episode"][0] == pytest.approx([unit, unit])
    assert found["episode"][1:] == [pytest.approx([-unit]), [0.0], [0.0]]
    assert found["refusal"] == [[0.2, 0.2], [0.2], [0.2 - 1], [0.2]]


def test_the_gradient_is_that_of_plain_forward_passes() -> None:
    model: Any = tiny_model("llama", 40)
    played = [
        episode(8, 9, 10, shares=(0.0, 0.0, 1.0)),
        episode(11, shares=(0.0,)),
        episode(12, 13, shares=(0.0, 0.0)),
    ]
    credit = {"mine": [[1.0, -2.0, 0.5], [3.0], [0.0, 1.0]], "none": [[0.0] * 3, [0.0], [0.0] * 2]}
    found = gradients.gradients(model, played, credit)
    total = torch.zeros(())
    for one, values in zip(played, credit["mine"], strict=True):
        ids = torch.tensor([one.prompt + one.completion])
        chosen = model(input_ids=ids).logits[0].log_softmax(-1)
        for n, value in enumerate(values):
            at = len(one.prompt) + 2 * n
            total = total - value * chosen[at - 1, ids[0, at]] / len(played)
    parts = torch.autograd.grad(total, list(model.parameters()))
    expected = torch.cat([part.flatten() for part in parts])
    torch.testing.assert_close(found["mine"], expected, atol=1e-5, rtol=1e-4)
    assert not found["none"].any()


def test_every_pair_is_compared() -> None:
    x, y = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])
    assert gradients.cosines([x, y, -x]) == pytest.approx([0.5**0.5, -1, -(0.5**0.5)])


def test_the_program(agent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    file = tmp_path / "noise.json"
    arguments = ["--model", str(agent), "--groups", "2", "--max-steps", "2", "--json", str(file)]
    world = "scripted:tests.training.test_policy:likes_e"
    assert gradients.main([*arguments, "--batches", "3", "--world-model", world]) == 0
    found = json.loads(file.read_text())
    assert found["episodes"] == 3 * 16
    assert 0 < found["success"] < 1
    assert set(found["cosines"]) == {
        "episode",
        "command 1",
        "command 0.95",
        "command 0.8",
        "refusal",
    }
    for row in found["cosines"].values():
        assert len(row["values"]) == 3
        # Four words, of which some are always right: nearly all of it is signal.
        assert row["mean"] > 0.3
    assert "batches per direction" in capsys.readouterr().out
    for wrong in (["--batches", "1"], ["--discounts", "2"]):
        assert gradients.main([*arguments, *wrong]) == 2
    assert "must be >= 2" in capsys.readouterr().err
