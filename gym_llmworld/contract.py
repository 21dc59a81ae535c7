"""What the imagined and the real twin of a world show alike: info keys and rendered frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gymnasium.error import InvalidAction

MAX_ACTION_LENGTH = 1024
"""Length of the action space in characters; longer actions are answered, as invalid, too."""


def world_info(
    *,
    admissible: Sequence[str] | None,
    won: bool,
    llmworld: Mapping[str, Any],
    score: float | None = None,
    max_score: float = 1.0,
) -> dict[str, Any]:
    """Returns the info dict of a reset or step; equal episodes give equal infos.

    Args:
        admissible: Commands the world accepts now; None when nobody knows.
        won: The episode is solved.
        llmworld: Who answered (``source``) and how, see the environment classes.
        score: 0 to ``max_score``; by default 1.0 when won, else 0.0.
        max_score: Score of a solved episode.
    """
    return {
        "admissible_commands": None if admissible is None else list(admissible),
        "won": won,
        "score": float(won) if score is None else score,
        "max_score": max_score,
        "llmworld": dict(llmworld),
    }


def engine_failure(info: Mapping[str, Any]) -> str | None:
    """Returns why a real engine ended an episode without raising; None when it did not.

    A twin behind a server keeps what it has, truncates, and says so in its info.
    """
    error = info.get("llmworld", {}).get("error")
    return None if error is None else str(error)


def require_text(action: object) -> str:
    """Returns an action that is text.

    Raises:
        InvalidAction: It is not a string.
    """
    if not isinstance(action, str):
        raise InvalidAction(f"an action must be a str, got {type(action).__name__}: {action!r:.80}")
    return action


def frame(action: str | None, observation: str) -> str:
    """Returns what ``render`` shows: the last action (None after a reset) and its observation."""
    return observation if action is None else f"> {action}\n{observation}"
