"""Object games: small worlds whose state is JSON, in ByteSized32-State-Prediction's schema.

The first observation is the whole state, every later one the difference that the action and the
passing of time made (arXiv 2406.06485; `gym_llmworld.objectstate`). Styles: ``engine``, task and
first state; ``word2world``, task, rules, what to answer, and the first state.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from gym_llmworld.agents import Agent, CorruptedAgent, NoisyAgent, ScriptedAgent
from gym_llmworld.core import Scenario
from gym_llmworld.objectstate import ObjectState, predicted_state, read_json, read_state
from gym_llmworld.worlds.base import World
from gym_llmworld.worlds.objects_more_games import GAMES
from gym_llmworld.worlds.objects_rules import WAIT, Board, Game

KEY = "objectgames"
REJECTION = "That is not an action of this game."

# How often a random player tries what has no effect.
_VAIN = 0.15
_TASKS = {game.task: game for game in GAMES.values()}


def game_of(scenario: Scenario) -> Game | None:
    """Returns the game that a scenario's instruction is of; None if it is of none of ours."""
    return _TASKS.get(scenario.instruction)


def engine_context(scenario: Scenario) -> str:
    """Words a scenario for models trained on these games: the task and the first state."""
    return f"{scenario.instruction}\n{scenario.observation}"


def told_context(scenario: Scenario) -> str:
    """Words a scenario for models that know nothing of these games."""
    game = game_of(scenario)
    told = [
        f"You simulate a game in which an agent acts on objects. Task: {scenario.instruction}",
        "Rules:",
        "- Each turn is one action, then one tick of time, then the score. An action that is not "
        "possible changes nothing, but time passes.",
        "- Actions: wait, take X, put X in Y, open X, close X, turn on X, turn off X"
        + "".join(
            f", {verb.words.replace('{}', 'X', 1).replace('{}', 'Y')}"
            for verb in (game.verbs if game else ())
        )
        + ".",
        "- Things can be taken if they are moveable and in no closed container; they can be put "
        "into containers that are not closed. What the agent contains is in its hands.",
        *([f"- {game.rules}"] if game else []),
        'Answer each action with JSON only: {"modified": [every object that changed, whole], '
        '"removed": [uuids], "score": {"score", "gameOver", "gameWon"}}.',
        "The state at the start:",
        scenario.observation,
    ]
    return "\n".join(told)


def is_over(observation: str) -> bool:
    """Returns whether an observation says that the game is over."""
    value = read_json(observation)
    score = value.get("score") if isinstance(value, Mapping) else None
    return isinstance(score, Mapping) and score.get("gameOver") is True


def canonical(observation: str) -> str:
    """Returns an observation with its lists in one order; text that is no JSON as it is."""
    value = read_json(observation)
    if not isinstance(value, Mapping):
        return observation
    return json.dumps(_ordered(value), sort_keys=True)


def _ordered(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _ordered(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set):
        key = partial(json.dumps, sort_keys=True, default=str)
        return sorted((_ordered(inner) for inner in value), key=key)
    return value


class ObjectPlayer:
    """Keeps the state up to date from what it reads, and acts on it.

    Args:
        expert: Does what leads to the goal; else anything that has an effect, and now and then
            something that has none.
        name: What episodes call it.
    """

    def __init__(self, expert: bool, *, name: str) -> None:
        self.name = name
        self._expert = expert
        self._rng = np.random.default_rng(0)
        self._game: Game | None = None
        self._state: ObjectState | None = None

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Starts an episode."""
        self._rng = np.random.default_rng(seed)
        self._game = game_of(scenario)
        self._state = read_state(scenario.observation)

    def act(self, observation: str, info: Mapping[str, Any]) -> str:
        """Chooses an action. Where an observation is no JSON, the state before it still counts."""
        if self._state is not None:
            self._state = predicted_state(self._state, observation) or self._state
        if self._state is None or self._game is None:
            return WAIT
        board = Board.of(self._state)
        if self._expert:
            return self._game.advise(board)
        vain = self._rng.random() < _VAIN
        actions = self._game.vain_actions(board) if vain else self._game.actions(board)
        return actions[int(self._rng.integers(len(actions)))] if actions else WAIT


def _noisy() -> Agent:
    return NoisyAgent(ObjectPlayer(True, name="expert"), 0.35, ObjectPlayer(False, name="random"))


def _corrupted() -> Agent:
    return CorruptedAgent(_noisy(), 0.2)


WORLD = World(
    key=KEY,
    title="ObjectGames",
    rejection=REJECTION,
    contexts={"engine": engine_context, "word2world": told_context},
    ends=is_over,
    agents={
        "expert": partial(ObjectPlayer, True, name="expert"),
        "noisy": _noisy,
        "random": partial(ObjectPlayer, False, name="random"),
        "corrupted": _corrupted,
        "plan": partial(ScriptedAgent, then=WAIT),
    },
    real_entry_point="gym_llmworld.real.objects:ObjectGamesEnv",
    games_module="gym_llmworld.real.objects",
    extra="",
    splits=("train", "valid", "test"),
    max_episode_steps=30,
    canonical=canonical,
)
