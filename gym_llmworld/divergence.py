"""Where an imagined episode leaves the real one, and how: pure functions over steps."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gym_llmworld.core import Step
from gym_llmworld.metrics import action_verb, exact_match

DivergenceKind = Literal[
    "success claimed",
    "success missed",
    "no answer",
    "ended early",
    "ended late",
    "action refused",
    "action accepted",
    "missing object",
    "extra object",
    "wrong object",
    "wrong state",
    "other wording",
]

_WORD = re.compile(r"[a-z]+")
_OBJECT = re.compile(r"\b([a-z]+ \d+)\b")
_STATES = frozenset(
    ("open", "opened", "closed", "on", "off", "hot", "cold", "cool", "clean", "sliced", "nothing")
)


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first turn where an imagined episode leaves the real one.

    Attributes:
        step: 1 for the first action.
        kind: What differs.
        verb: First word of the action.
    """

    step: int
    kind: DivergenceKind
    verb: str


def divergence_kind(
    imagined: str,
    real: str,
    *,
    imagined_success: bool = False,
    real_success: bool = False,
    rejection: str | None = None,
) -> DivergenceKind | None:
    """Names the most telling difference between two answers to the same action.

    Args:
        imagined: Observation of the imagined world.
        real: Observation of the real world.
        imagined_success: The imagined world ended the episode with success.
        real_success: The real world did.
        rejection: What the real world answers to an action that it cannot carry out.

    Returns:
        None when text and success are the same. Otherwise, in this order: a wrong success, no
        answer at all, a wrong refusal, wrong objects (``name number``, counted), wrong states of
        the right objects, any other wording.
    """
    if imagined_success != real_success:
        return "success claimed" if imagined_success else "success missed"
    if exact_match(imagined, real):
        return None
    if not imagined.strip():
        return "no answer"
    if rejection is not None and exact_match(imagined, rejection):
        return "action refused"
    if rejection is not None and exact_match(real, rejection):
        return "action accepted"
    return _text_difference(imagined.lower(), real.lower())


def _text_difference(imagined: str, real: str) -> DivergenceKind:
    seen, true = Counter(_OBJECT.findall(imagined)), Counter(_OBJECT.findall(real))
    if seen != true:
        if not seen - true:
            return "missing object"
        return "extra object" if not true - seen else "wrong object"
    if _state_words(imagined) != _state_words(real):
        return "wrong state"
    return "other wording"


def _state_words(text: str) -> Counter[str]:
    return Counter(word for word in _WORD.findall(text) if word in _STATES)


def first_divergence(
    imagined: Sequence[Step], real: Sequence[Step], *, rejection: str | None = None
) -> Divergence | None:
    """Finds where two episodes with the same actions part.

    Args:
        imagined: Steps of the imagined episode.
        real: Steps of its replay; shorter when the real world ended first.
        rejection: What the real world answers to an action that it cannot carry out.

    Returns:
        The first differing step; None when every step is the same. One episode ending while the
        other goes on, without a wrong success, is ``"ended early"`` (the imagined one stopped) or
        ``"ended late"``.
    """
    for step, (ours, true) in enumerate(zip(imagined, real, strict=False), start=1):
        kind = divergence_kind(
            ours.observation,
            true.observation,
            imagined_success=_succeeded(ours),
            real_success=_succeeded(true),
            rejection=rejection,
        )
        if kind:
            return Divergence(step, kind, action_verb(true.action))
    if len(imagined) == len(real):
        return None
    late = len(imagined) > len(real)
    longer, played = (imagined, len(real)) if late else (real, len(imagined))
    kind = "ended late" if late else "ended early"
    return Divergence(played + 1, kind, action_verb(longer[played].action))


def _succeeded(step: Step) -> bool:
    return step.terminated and step.reward > 0
