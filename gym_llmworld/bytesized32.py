"""Readers for the user's own checkouts of ByteSized32 and of its state predictions.

Neither is redistributed with this package. Both become episodes of one step, in the form of the
object games: the first observation is the state before an action, the answer the difference that
followed. So they can be trained on and scored like any other episodes (``training.sft``,
``training.grpo``).

* **GPT-simulator** (ByteSized32-State-Prediction, arXiv 2406.06485): ``data/test.jsonl`` after
  unpacking ``data/test.zip``. What RLVR-World (arXiv 2505.13934) calls a next state is the objects
  after action *and* tick, with the score after both.
* **BYTESIZED32** (arXiv 2305.14879): ``data/programs/*.py``, games as Python programs. They are
  played here, which runs their code: read only checkouts that you trust. Their objects have no
  uuid; they are numbered in the order in which they are met.
"""

from __future__ import annotations

import importlib.util
import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gym_llmworld.core import Episode, Scenario, Step
from gym_llmworld.errors import DataError, EngineError
from gym_llmworld.objectstate import (
    SCORE_KEYS,
    ObjectState,
    StateTurn,
    difference_text,
    predicted_state,
    state_of,
)

WORLD = "objectgames"
_PUBLISHED_KEYS = ("current_state", "tick_state", "current_score_state", "next_score_state", "game")


@dataclass(frozen=True)
class StateTransition:
    """A transition of a published game.

    Attributes:
        game: Its name.
        name: Unique within the file.
        task: What the agent is asked to do.
        action: What it did.
        before: The state before it.
        after: The state after the action and the tick.
    """

    game: str
    name: str
    task: str
    action: str
    before: ObjectState
    after: ObjectState

    def predicted(self, text: str | None) -> StateTurn:
        """Returns this transition with a model's answer to it; None for no answer."""
        told = None if text is None else predicted_state(self.before, text)
        return StateTurn(self.before, self.after, told)

    def episode(self, split: str = "train") -> Episode:
        """Returns an episode of one step, in the form of the object games."""
        scenario = Scenario(
            id=f"{self.game}/{self.name}",
            world=WORLD,
            split=split,
            instruction=self.task,
            observation=self.before.text,
        )
        won = self.after.score.get("gameWon") is True
        over = won or self.after.score.get("gameOver") is True
        step = Step(self.action, difference_text(self.before, self.after), float(won), over)
        return Episode(scenario, (step,), "real", "bytesized32")


def read_gpt_simulator(file: Path) -> Iterator[StateTransition]:
    """Reads transitions of ByteSized32-State-Prediction, in the order of the file.

    Args:
        file: ``.jsonl`` with keys ``current_state``, ``tick_state``, ``current_score_state``,
            ``next_score_state``, ``game`` and ``state_id``.

    Raises:
        DataError: A line is something else; names file, line and field.
    """
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield _published(line, f"{file}, line {number}", number)


def _published(line: str, place: str, number: int) -> StateTransition:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{place}: not JSON: {error}") from error
    missing = [key for key in _PUBLISHED_KEYS if key not in row] if isinstance(row, dict) else [""]
    if missing:
        raise DataError(
            f"{place}: no {missing[0] or 'object'!r}; expected {', '.join(_PUBLISHED_KEYS)} as in "
            "GPT-simulator's data/test.jsonl (the annotators' file has no tick states)"
        )
    states = []
    for state, score in (
        ("current_state", "current_score_state"),
        ("tick_state", "next_score_state"),
    ):
        objects = row[state].get("objects") if isinstance(row[state], dict) else None
        found = None
        if isinstance(objects, list) and isinstance(row[score], dict):
            found = state_of(objects, row[score])
        if found is None:
            raise DataError(
                f"{place}: {state!r} and {score!r} are no state; expected 'objects' with name, "
                "uuid, type, properties and contains, and score, gameOver and gameWon"
            )
        states.append(found)
    told = row["tick_state"]
    return StateTransition(
        game=str(row["game"]),
        name=str(row.get("state_id", number)),
        task=str(told.get("taskDesc", "")),
        action=str(told.get("lastAction", "")),
        before=states[0],
        after=states[1],
    )


def play_bytesized32(
    program: Path, *, steps: int = 60, seed: int = 0, episodes: int = 1
) -> Iterator[StateTransition]:
    """Plays a BYTESIZED32 program at random, and yields what changes.

    An episode whose program fails, which five of the published ones do on odd actions, ends there.

    Args:
        program: ``data/programs/<game>.py`` of a checkout that you trust: its code is run.
        steps: Most actions of an episode.
        seed: Of the game and of the actions.
        episodes: How many.

    Raises:
        DataError: It is no program of BYTESIZED32.
        EngineError: It does not even start.
    """
    make = _load_program(program)
    game = program.stem
    for episode in range(episodes):
        rng = random.Random(f"{seed}/{episode}")
        try:
            engine = make(randomSeed=seed + episode)
            before = _snapshot(engine)
        except Exception as error:
            raise EngineError(f"{program} does not start: {error!r}") from error
        for step in range(steps):
            try:
                action = rng.choice(sorted(engine.generatePossibleActions()))
                engine.step(action)
                after = _snapshot(engine)
            except Exception:
                break
            name = f"{seed}-{episode}-{step}"
            yield StateTransition(
                game, name, str(engine.getTaskDescription()), action, before, after
            )
            before = after
            if after.score["gameOver"]:
                break


def _load_program(program: Path) -> Any:
    if not program.is_file():
        raise DataError(f"{program} is not a file; expected data/programs/<game>.py of a checkout")
    spec = importlib.util.spec_from_file_location("bytesized32_program", program)
    if spec is None or spec.loader is None:
        raise DataError(f"{program} is not a Python program")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise EngineError(f"{program} cannot be loaded: {error!r}") from error
    if not hasattr(module, "TextGame"):
        raise DataError(f"{program} has no class TextGame: it is no program of BYTESIZED32")
    return module.TextGame


def _snapshot(engine: Any) -> ObjectState:
    """Returns the state of a running program; objects are numbered where they are met first."""
    # The objects themselves are kept: Python may give the identity of one that is gone to another.
    known: dict[int, tuple[int, Any]] = engine.__dict__.setdefault("_llmworld_known", {})
    things = engine.rootObject.getAllContainedObjectsRecursive()
    for one in things:
        known.setdefault(id(one), (len(known), one))
    numbers = {identity: number for identity, (number, _) in known.items()}
    objects = [
        {
            "name": _name(one, numbers),
            "uuid": numbers[id(one)],
            "type": type(one).__name__,
            "properties": {key: _plain(value) for key, value in one.properties.items()},
            "contains": [_name(inner, numbers) for inner in one.contains],
        }
        for one in things
    ]
    values = (engine.score, engine.gameOver, engine.gameWon)
    state = state_of(objects, dict(zip(SCORE_KEYS, values, strict=True)))
    assert state is not None
    return state


def _name(one: Any, numbers: Mapping[int, int]) -> str:
    return f"{one.name} (ID: {numbers[id(one)]})"


def _plain(value: Any) -> Any:
    """Returns a property as JSON; objects in it by their name."""
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, list | tuple | set):
        plain = [_plain(inner) for inner in value]
        return sorted(plain, key=str) if isinstance(value, set) else plain
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    return str(getattr(value, "name", type(value).__name__))
