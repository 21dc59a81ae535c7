"""ALFWorld's own hand-coded expert as an agent: the demonstrator of ALFWorld's published data.

The expert that ships with alfworld 0.4 still looks for ``put`` in its last command, while the games
say ``move`` since 0.4; it then believes that it never lets go of anything. `HandcodedPolicy` hands
it the word it knows. And it gives it, as facts, only what the observations have said: upstream
reads the engine's facts, hidden ones too.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from gym_llmworld.core import Scenario
from gym_llmworld.errors import EngineError, MissingDependency, ScenarioError

_WELCOME = "-= Welcome to TextWorld, ALFRED! =-\n\n"
_IDLE = "look"
_GOAL = ("task_type", "object", "receptacle")

_THING = r"[a-z]+ \d+"
_TAKEN = re.compile(rf"You pick up the ({_THING}) from the ({_THING})\.")
_MOVED = re.compile(rf"You move the ({_THING}) to the ({_THING})\.")
_TREATED = re.compile(rf"You (heat|cool|clean) the ({_THING}) using")
_SEEN = re.compile(rf"(?:On the|The) ({_THING})(?: is open\. In it)?, you see (.*)\.$")
_STATES = {"heat": "ishot", "cool": "iscool", "clean": "isclean"}
_OPPOSITE = {"heat": "iscool", "cool": "ishot"}


class HandcodedPolicy:
    """Plays the six task types with upstream's heuristics: about 23 steps on average.

    Needs the list of admissible commands, so it plays the real environment.

    Args:
        max_steps: After as many commands upstream gives up; then it only looks around.
        name: What episodes call it.
    """

    def __init__(self, max_steps: int = 200, *, name: str = "handcoded") -> None:
        self.name = name
        self._max_steps = max_steps
        self._agent: Any = None
        self._facts: set[tuple[str, ...]] = set()
        self._last: str | None = None
        self._random_state = random.Random(0).getstate()

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Starts an episode.

        Raises:
            ScenarioError: ``scenario.real`` does not say what the goal is.
            MissingDependency: alfworld is not installed.
        """
        missing = [key for key in _GOAL if key not in scenario.real]
        if missing:
            raise ScenarioError(
                f"scenario {scenario.id!r} does not name its goal; expected {', '.join(_GOAL)} in "
                f"real, missing {', '.join(missing)}"
            )
        try:
            from alfworld.agents.expert import HandCodedTWAgent
        except ImportError as error:
            raise MissingDependency("alfworld", "alfworld") from error
        task_type, target, place = (str(scenario.real[key]) for key in _GOAL)
        goal = {
            "task_type": task_type,
            "object_target": target.lower(),
            "parent_target": place.lower(),
            "toggle_target": place.lower(),
        }
        agent = HandCodedTWAgent(max_steps=self._max_steps)
        agent.policy = agent.get_task_policy(goal)(goal, max_steps=self._max_steps)
        self._agent, self._last, self._facts = agent, None, set()
        self._random_state = random.Random(seed).getstate()

    def overruled(self, action: str) -> None:
        """Notes what was done in place of the last command."""
        self._last = action

    def act(self, observation: str, info: Mapping[str, Any]) -> str:
        """Chooses the next command.

        Raises:
            EngineError: ``reset`` was not called, or the world does not list its commands.
        """
        if self._agent is None or info.get("admissible_commands") is None:
            raise EngineError(
                "HandcodedPolicy needs reset() first, and info['admissible_commands'], which "
                "imagined worlds do not give; play the real environment with it"
            )
        if self._last is None:
            self._agent.observe(_WELCOME + observation.replace("\n", "\n\n", 1))
            self._last = _IDLE
        else:
            self._learn(observation)
            self._last = self._ask(observation, list(info["admissible_commands"]))
        return self._last

    def _ask(self, observation: str, admissible: list[str]) -> str:
        from alfworld.agents.expert.handcoded_expert import (
            HandCodedAgentFailed,
            HandCodedAgentTimeout,
        )

        state = {
            "feedback": observation,
            "admissible_commands": admissible,
            "facts": [_Fact(fact) for fact in sorted(self._facts)],
        }
        assert self._last is not None
        known_as = re.sub(r"^move\b", "put", self._last)
        with self._own_randomness():
            try:
                action = self._agent.act(state, 0, False, known_as)
            except (HandCodedAgentTimeout, HandCodedAgentFailed):
                return _IDLE
        return str(action) if action in admissible else _IDLE

    @contextmanager
    def _own_randomness(self) -> Iterator[None]:
        # Upstream draws from Python's global generator.
        others = random.getstate()
        random.setstate(self._random_state)
        try:
            yield
        finally:
            self._random_state = random.getstate()
            random.setstate(others)

    def _learn(self, observation: str) -> None:
        for thing, place in _TAKEN.findall(observation):
            self._facts.discard(("inreceptacle", thing, place))
            self._facts.add(("holds", "agent1", thing))
        for thing, place in _MOVED.findall(observation):
            self._facts.discard(("holds", "agent1", thing))
            self._facts.add(("inreceptacle", thing, place))
        for verb, thing in _TREATED.findall(observation):
            self._facts.discard((_OPPOSITE.get(verb, ""), thing))
            self._facts.add((_STATES[verb], thing))
        for place, listing in _SEEN.findall(observation):
            things = re.findall(_THING, listing)
            self._facts |= {("inreceptacle", thing, place) for thing in things}


class _Fact:
    """A fact with the attributes that upstream reads."""

    def __init__(self, fact: tuple[str, ...]) -> None:
        self.name, *self.names = fact
