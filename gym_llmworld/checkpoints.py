"""What stands beside a checkpoint's weights, and where the embedded models lie."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gym_llmworld.errors import CheckpointError
from gym_llmworld.policy_prompt import BARE, REACT
from gym_llmworld.scenarios import data_folder

CARD_FILE = "llmworld.json"
PUBLISHED_STYLE = "word2world"
"""Prompt style of a checkpoint without ``llmworld.json``: the one of the published models."""
AGENT = "agent"
"""``role`` in the ``llmworld.json`` of a model that acts; those of world models have none."""


def embedded_model(world: str) -> str:
    """Returns the folder of the world model that ships with the package.

    Raises:
        CheckpointError: This world ships none.
    """
    folder = data_folder(world) / "model"
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"no embedded world model for {world!r} in this installation; pass model= (a folder, a "
            "hub id) or train one: python -m training.sft --help"
        )
    return str(folder)


def read_card(model: str) -> Mapping[str, Any]:
    """Returns the ``llmworld.json`` of a checkpoint folder, or an empty mapping.

    Args:
        model: A folder, or anything else (a hub id, a URL), for which nothing is known locally.

    Raises:
        CheckpointError: The file is not a JSON object.
    """
    file = Path(model) / CARD_FILE
    if not file.is_file():
        return {}
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file} is not JSON: {error}") from error
    if not isinstance(card, dict):
        raise CheckpointError(f"{file}: expected a JSON object, got {type(card).__name__}")
    return card


def checkpoint_style(model: str, world: str) -> str:
    """Returns the prompt style that a checkpoint was trained on for a world.

    Raises:
        CheckpointError: It was trained on several worlds in styles of their own, and not on this;
            or it is an agent.
    """
    card = read_card(model)
    if card.get("role") == AGENT:
        raise CheckpointError(
            f"{model} is an agent, not a world model: let it act with --agents llm:{model}"
        )
    style = card.get("prompt_style", PUBLISHED_STYLE)
    if not isinstance(style, Mapping):
        return str(style)
    if world not in style:
        raise CheckpointError(
            f"{model} was trained on {', '.join(sorted(style))}, not on {world}; pass "
            "prompt_style= to use it there all the same"
        )
    return str(style[world])


def agent_style(model: str) -> str:
    """Returns how a checkpoint was trained to act, see `gym_llmworld.policy_prompt`.

    A model that says nothing of itself is somebody else's, and is asked as Word2World asks.

    Raises:
        CheckpointError: It is a world model.
    """
    card = read_card(model)
    if not card:
        return REACT
    if card.get("role") != AGENT:
        raise CheckpointError(
            f"{model} is a world model, not an agent; make one of it with: python -m training.sft "
            f"--role agent --model {model}"
        )
    return str(card.get("agent_style", BARE))
