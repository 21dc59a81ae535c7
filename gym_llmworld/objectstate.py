"""Object states as JSON, in the schema of ByteSized32-State-Prediction (arXiv 2406.06485).

A state is ``{"game_state": [object, ..., score record]}``. An object is ``{"name", "uuid", "type",
"properties": {...}, "contains": [names]}``, the score record ``{"score", "gameOver", "gameWon"}``.
What an action changes is a *difference*, ``{"modified": [objects], "removed": [uuids], "score":
{...}}``, with whole objects in it. RLVR-World (arXiv 2505.13934, section 5.1 and its published
scorer) lets models predict differences, and compares the states that they lead to.

Model output is read leniently and never raises: what cannot be read is None, a wrong prediction.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gym_llmworld.metrics import Rate

SCORE_KEYS = ("score", "gameOver", "gameWon")

_OBJECT_KEYS = ("name", "uuid", "type", "properties", "contains")
_ANSWERS = re.compile(r"(?:the final (?:answer|state)|game state) is:", re.IGNORECASE)
_BLOCK = re.compile(r"```(?:json)?\s*(.{10,}?)```", re.DOTALL)
# json and ast recurse: deeper nesting than any state has would exhaust the stack.
_MAX_DEPTH = 16
_MAX_CHARS = 200_000
_COMPACT = {"ensure_ascii": False}


@dataclass(frozen=True)
class ObjectState:
    """Where a game stands.

    Attributes:
        objects: uuid -> ``{"name", "uuid", "type", "properties", "contains"}``.
        score: ``{"score", "gameOver", "gameWon"}``; empty when unknown.
    """

    objects: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    score: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """As JSON, objects in the order of ``objects``."""
        return json.dumps({"game_state": [*self.objects.values(), dict(self.score)]}, **_COMPACT)  # type: ignore[arg-type]

    def facts(self) -> dict[tuple[int, str], str]:
        """Returns every property as ``(uuid, name) -> JSON value``; contents have no order."""
        result: dict[tuple[int, str], str] = {}
        for uuid, thing in self.objects.items():
            result[uuid, "name"] = json.dumps(thing["name"])
            result[uuid, "type"] = json.dumps(thing["type"])
            result[uuid, "contains"] = json.dumps(sorted(thing["contains"]))
            for name, value in thing["properties"].items():
                result[uuid, f"properties.{name}"] = json.dumps(value, sort_keys=True)
        return result

    def same_as(self, other: ObjectState) -> bool:
        """Returns whether all objects and the score are equal; an invented object is not."""
        return self.facts() == other.facts() and _scored(self) == _scored(other)


def _scored(state: ObjectState) -> dict[str, str]:
    return {key: json.dumps(state.score[key]) for key in SCORE_KEYS if key in state.score}


def state_of(objects: Iterable[Mapping[str, Any]], score: Mapping[str, Any]) -> ObjectState | None:
    """Builds a state from JSON values; None if an object is none, or two share a uuid."""
    checked = [_object(thing) for thing in objects]
    found = {thing["uuid"]: thing for thing in checked if thing is not None}
    if len(found) < len(checked):
        return None
    return ObjectState(found, {key: score[key] for key in SCORE_KEYS if key in score})


def _object(value: Any) -> dict[str, Any] | None:
    if not isinstance(value, Mapping) or any(key not in value for key in _OBJECT_KEYS):
        return None
    uuid, contains = _uuid(value["uuid"]), value["contains"]
    if uuid is None or not isinstance(value["properties"], Mapping):
        return None
    if not isinstance(contains, list) or not all(isinstance(name, str) for name in contains):
        return None
    return {**{key: value[key] for key in _OBJECT_KEYS}, "uuid": uuid}


def _uuid(value: Any) -> int | None:
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 10:
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def read_state(text: str) -> ObjectState | None:
    """Reads a state from text; None if there is none in it."""
    value = read_json(text)
    items = value.get("game_state") if isinstance(value, Mapping) else None
    if not isinstance(items, list) or not all(isinstance(item, Mapping) for item in items):
        return None
    scores = [item for item in items if "uuid" not in item]
    return state_of((item for item in items if "uuid" in item), scores[-1] if scores else {})


def difference(before: ObjectState, after: ObjectState) -> dict[str, Any]:
    """Returns what leads from one state to another; a whole score record is always part of it."""
    old, new = before.facts(), after.facts()
    changed = {uuid for (uuid, name), value in new.items() if old.get((uuid, name)) != value}
    # A property that went away leaves its object changed as well.
    changed |= {uuid for uuid, name in old if uuid in after.objects and (uuid, name) not in new}
    return {
        "modified": [thing for uuid, thing in after.objects.items() if uuid in changed],
        "removed": [uuid for uuid in before.objects if uuid not in after.objects],
        "score": {key: after.score[key] for key in SCORE_KEYS if key in after.score},
    }


def difference_text(before: ObjectState, after: ObjectState) -> str:
    """Returns `difference` as JSON."""
    return json.dumps(difference(before, after), **_COMPACT)  # type: ignore[arg-type]


def apply_difference(before: ObjectState, change: Any) -> ObjectState | None:
    """Returns the state that a difference leads to.

    As the published scorer has it, a difference without ``modified`` or ``removed`` is none; an
    empty ``score`` keeps the score, a missing one leaves it unknown, and so wrong. Objects that a
    model invents become part of the state, where the published scorer leaves them out.

    Returns:
        None if ``change`` is no difference.
    """
    if not isinstance(change, Mapping):
        return None
    modified, removed, score = (change.get(key) for key in ("modified", "removed", "score"))
    if not isinstance(modified, list) or not isinstance(removed, list):
        return None
    things, gone = [_object(value) for value in modified], [_uuid(value) for value in removed]
    if None in things or None in gone or not isinstance(score, Mapping | None):
        return None
    objects = {uuid: thing for uuid, thing in before.objects.items() if uuid not in gone}
    objects |= {thing["uuid"]: thing for thing in things if thing is not None}
    if score is None:
        return ObjectState(objects)
    kept = score or before.score
    return ObjectState(objects, {key: kept[key] for key in SCORE_KEYS if key in kept})


def predicted_state(before: ObjectState, text: str) -> ObjectState | None:
    """Returns the state that a model's answer means: a difference, or a whole state.

    The answer is what follows the last ``The final answer is:``, or else the last code block, or
    else the whole text (the order of the published parser).
    """
    value = read_json(text)
    if isinstance(value, Mapping) and "game_state" in value:
        return read_state(text)
    return apply_difference(before, value)


def read_json(text: str) -> Any:
    """Reads the JSON value (or Python literal) that an answer ends with; None if there is none."""
    answer = _ANSWERS.split(text)[-1] if _ANSWERS.search(text) else text
    blocks = _BLOCK.findall(answer)
    answer = (blocks[-1] if blocks else answer).strip()
    if len(answer) > _MAX_CHARS or _depth(answer) > _MAX_DEPTH:
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            return read(answer)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    return None


def _depth(text: str) -> int:
    depth = deepest = 0
    for character in text:
        depth += (character in "{[(") - (character in "}])")
        deepest = max(deepest, depth)
    return deepest


@dataclass(frozen=True, slots=True)
class StateTurn:
    """A predicted transition.

    Attributes:
        before: The state that the action was taken in.
        after: The state that followed.
        predicted: The one that the model wrote; None when it wrote none.
    """

    before: ObjectState
    after: ObjectState
    predicted: ObjectState | None

    @property
    def changed(self) -> bool:
        """Whether an object or the score changed (table 1 of RLVR-World)."""
        return not self.before.same_as(self.after)

    @property
    def correct(self) -> bool:
        """Whether the predicted state is the true one; see `ObjectState.same_as`."""
        return self.predicted is not None and self.predicted.same_as(self.after)


@dataclass(frozen=True, slots=True)
class StateAccuracy:
    """Exact states, as table 1 of RLVR-World counts them.

    Attributes:
        all: Over all transitions.
        changed: Over those that change an object or the score.
        unchanged: Over the others.
        copy_baseline: A predictor that says nothing changes: 59.04 % on the published test set.
    """

    all: Rate
    changed: Rate
    unchanged: Rate
    copy_baseline: Rate


def state_accuracy(turns: Sequence[StateTurn]) -> StateAccuracy:
    """Counts exact predictions; a prediction that cannot be read counts as wrong."""
    return StateAccuracy(
        all=Rate.of(turn.correct for turn in turns),
        changed=Rate.of(turn.correct for turn in turns if turn.changed),
        unchanged=Rate.of(turn.correct for turn in turns if not turn.changed),
        copy_baseline=Rate.of(not turn.changed for turn in turns),
    )


def state_credit(turn: StateTurn) -> float:
    """Returns RLVR-World's task-specific reward of a predicted state.

    ``0.09 * properties + 0.01 * score + 0.2 * exact + changed`` as in its published code (equation
    4 has slightly other numbers), at most 1.3, and at most 0.3 where nothing changes. Unlike there,
    what a model invents or changes in vain counts against it: shares are of all properties of
    either state, not of the true ones only.
    """
    if turn.predicted is None:
        return 0.0
    old, true, told = (s.facts() for s in (turn.before, turn.after, turn.predicted))
    scores = [turn.predicted.score.get(key) == turn.after.score.get(key) for key in SCORE_KEYS]
    credit: float = 0.09 * _share(true, told, {*true, *told})
    credit += 0.01 * sum(scores) / len(scores) + 0.2 * turn.correct
    changed = {key for key in {*old, *true} if old.get(key) != true.get(key)}
    if changed:
        vain = {key for key in {*old, *told} if old.get(key) != told.get(key)}
        credit += _share(true, told, changed | vain)
    return credit


def _share(
    true: Mapping[tuple[int, str], str],
    told: Mapping[tuple[int, str], str],
    keys: Iterable[tuple[int, str]],
) -> float:
    outcomes = [true.get(key) == told.get(key) for key in keys]
    return sum(outcomes) / len(outcomes) if outcomes else 1.0
