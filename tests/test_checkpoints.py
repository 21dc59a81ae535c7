"""What a checkpoint says of itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gym_llmworld.checkpoints import PUBLISHED_STYLE, agent_style, checkpoint_style
from gym_llmworld.errors import CheckpointError


@pytest.mark.parametrize(
    ("card", "style"),
    [
        ({"prompt_style": "engine"}, "engine"),
        ({"prompt_style": {"alfworld": "engine", "textworld": "nomap"}}, "nomap"),
        ({}, PUBLISHED_STYLE),
    ],
)
def test_the_card_says_the_style_of_a_world(
    card: dict[str, object], style: str, tmp_path: Path
) -> None:
    (tmp_path / "llmworld.json").write_text(json.dumps(card))
    assert checkpoint_style(str(tmp_path), "textworld") == style


def test_without_a_card_it_is_a_published_model(tmp_path: Path) -> None:
    assert checkpoint_style(str(tmp_path), "textworld") == PUBLISHED_STYLE
    assert checkpoint_style("http://127.0.0.1:8000/v1", "textworld") == PUBLISHED_STYLE


def test_a_world_that_it_has_not_learned_is_refused(tmp_path: Path) -> None:
    (tmp_path / "llmworld.json").write_text('{"prompt_style": {"alfworld": "engine"}}')
    with pytest.raises(CheckpointError, match=r"trained on alfworld, not on webshop; pass prompt"):
        checkpoint_style(str(tmp_path), "webshop")


@pytest.mark.parametrize(
    ("card", "style"), [({"role": "agent", "agent_style": "bare"}, "bare"), (None, "react")]
)
def test_the_card_says_how_an_agent_is_asked(
    card: dict[str, object] | None, style: str, tmp_path: Path
) -> None:
    if card is not None:
        (tmp_path / "llmworld.json").write_text(json.dumps(card))
    assert agent_style(str(tmp_path)) == style


def test_agents_and_world_models_do_not_pass_for_each_other(tmp_path: Path) -> None:
    (tmp_path / "llmworld.json").write_text('{"prompt_style": "engine"}')
    with pytest.raises(CheckpointError, match="is a world model, not an agent; make one of it"):
        agent_style(str(tmp_path))
    (tmp_path / "llmworld.json").write_text('{"role": "agent", "agent_style": "bare"}')
    with pytest.raises(CheckpointError, match=r"is an agent, not a world model: .* --agents llm:"):
        checkpoint_style(str(tmp_path), "alfworld")
