"""ScienceWorld players that read text only: they play the engine and an imagined world alike.

The engine knows a solution of each game; the expert follows it, and finds back to it when somebody
else moved in between.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np

from gym_llmworld.agents import Agent, CorruptedAgent, NoisyAgent, ScriptedAgent
from gym_llmworld.core import Scenario
from gym_llmworld.errors import ScenarioError

QUESTION = "Ambiguous request:"
"""How the engine begins to ask which of several things was meant."""

_LOOK = "look around"
_SHUT = "The door is not open."
_VIEW = re.compile(r"This (?:room|outside location) is called the ([a-z ]+)\.")
_MOVED = re.compile(r"You move to the ([a-z ]+)\.$")
_DOOR = re.compile(r"A door to the ([a-z ]+) \(that is (open|closed)\)")
_SUBSTANCE = re.compile(r"a substance called ([a-z ]+)")
_THING = re.compile(r"\b(?:an?|the) (?!substance )([a-z][a-z0-9 ]*?)(?= \(|[.,)\n]|$)")
_OPTION = re.compile(r"^(\d+):", re.MULTILINE)


def room_in(observation: str) -> str | None:
    """Returns the room that an observation says the agent is in."""
    match = _VIEW.match(observation) or _MOVED.match(observation)
    return match[1] if match else None


class ScienceworldExpert:
    """Follows the engine's own solution, ``scenario.real["plan"]``.

    When another agent overruled it, it goes back to the room where it was and repeats the command
    that was not carried out. What was eaten, mixed or focused on in between stays so: it does not
    always win then.

    Args:
        name: What episodes call it.
    """

    def __init__(self, *, name: str = "expert") -> None:
        self.name = name
        self._begin(())

    def _begin(self, plan: Sequence[str]) -> None:
        self._plan = tuple(plan)
        self._next = 0
        # From the room where the plan goes on to the room where the agent is.
        self._trail: list[str] = []
        self._last: Literal["plan", "answer", "detour", "stray"] = "stray"

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Starts an episode.

        Raises:
            ScenarioError: The scenario has no plan.
        """
        plan = scenario.real.get("plan")
        if not plan:
            raise ScenarioError(
                f"scenario {scenario.id!r} has no plan in real['plan'], which the {self.name!r} "
                "agent follows; use another agent"
            )
        self._begin(plan)
        self._trail = [
            room for line in scenario.observation.splitlines() if (room := room_in(line))
        ]

    def act(self, observation: str, info: Mapping[str, Any]) -> str:
        """Returns the plan's next command, or one that leads back to it."""
        planned = self._last in ("plan", "answer")
        if observation.startswith(QUESTION):
            return self._go_on("answer") if planned else self._detour("none")
        self._follow(room_in(observation), planned)
        if observation == _SHUT and self._last != "stray":
            if planned:
                self._next -= 1
            return self._detour(f"open door to {self._destination()}")
        if len(self._trail) > 1:
            return self._detour(f"go to {self._trail[-2]}")
        return self._go_on("plan")

    def overruled(self, action: str) -> None:
        """Notes that its last command was not carried out."""
        # The answer to a question is worth nothing without asking it again.
        self._next -= {"plan": 1, "answer": 2}.get(self._last, 0)
        self._last = "stray"

    def _go_on(self, kind: Literal["plan", "answer"]) -> str:
        self._last = kind
        if self._next >= len(self._plan):
            self._next = len(self._plan) + 1
            return _LOOK
        self._next += 1
        return self._plan[self._next - 1]

    def _detour(self, command: str) -> str:
        self._last = "detour"
        return command

    def _follow(self, room: str | None, planned: bool) -> None:
        if room is None or (self._trail and room == self._trail[-1]):
            return
        if planned:
            self._trail = [room]
        elif len(self._trail) > 1 and room == self._trail[-2]:
            self._trail.pop()
        else:
            self._trail.append(room)

    def _destination(self) -> str:
        """Returns the room behind the door that turned out to be shut."""
        if len(self._trail) > 1:
            return self._trail[-2]
        return self._plan[self._next].removeprefix("go to ")


class ScienceworldExplorer:
    """Takes a random command: a listed one where the world lists them, else one of its own making.

    Listed commands are drawn by verb first: most of them connect things to things. Commands of its
    own name what it has read, in ways that work and in ways that do not.

    Args:
        focus: Weight of focusing on something, which mostly ends the episode as a failure.
        name: What episodes call it.
    """

    def __init__(self, *, focus: float = 0.2, name: str = "random") -> None:
        self.name = name
        self._focus = focus
        self._rng = np.random.default_rng(0)
        self._begin()

    def _begin(self) -> None:
        self._doors: dict[str, bool] = {}
        self._near: list[str] = []
        self._known: list[str] = ["metal pot", "thermometer", "apple"]

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Starts an episode."""
        self._rng = np.random.default_rng(seed)
        self._begin()

    def act(self, observation: str, info: Mapping[str, Any]) -> str:
        """Draws a command."""
        if observation.startswith(QUESTION):
            return self._pick([*_OPTION.findall(observation), "cancel"])
        self._read(observation)
        listed = info.get("admissible_commands")
        return self._draw(self._listed(listed) if listed else self._menu())

    def _read(self, observation: str) -> None:
        if _MOVED.match(observation):
            self._doors, self._near = {}, []
        is_view = _VIEW.search(observation) is not None
        if is_view:
            self._doors = {room: state == "open" for room, state in _DOOR.findall(observation)}
        things = _SUBSTANCE.findall(observation)
        things += [name for name in _THING.findall(observation) if "door" not in name]
        things = list(dict.fromkeys(name for name in things if name not in ("agent", "nothing")))
        if is_view:
            self._near = things
        else:
            self._near += [name for name in things if name not in self._near]
        self._known += [name for name in things if name not in self._known]

    def _listed(self, commands: Sequence[str]) -> Iterator[tuple[float, str]]:
        by_verb: defaultdict[str, list[str]] = defaultdict(list)
        for command in commands:
            by_verb[command.partition(" ")[0]].append(command)
        for verb, group in by_verb.items():
            weight = {"focus": self._focus, "connect": 0.3, "eat": 0.3, "look": 3.0}.get(verb, 1.0)
            yield weight, self._pick(group)

    def _menu(self) -> Iterator[tuple[float, str]]:
        yield (1.5 if self._doors else 8.0), _LOOK
        yield 0.6, "inventory"
        yield 0.1, "task"
        yield 0.3, self._pick(("wait", "wait1"))
        for room, is_open in self._doors.items():
            yield (2.0 if is_open else 0.2), f"go to {room}"
            yield (0.2 if is_open else 1.5), f"open door to {room}"
            yield (0.3 if is_open else 0.05), f"close door to {room}"
        yield from self._handle(self._pick(self._near or self._known))
        yield from self._handle(self._pick(self._known), weight=0.15)

    def _handle(self, thing: str, weight: float = 1.0) -> Iterator[tuple[float, str]]:
        other = self._pick(self._near or self._known)
        for share, command in (
            (1.5, f"look at {thing}"),
            (1.0, f"look in {thing}"),
            (0.3, f"read {thing}"),
            (1.5, f"open {thing}"),
            (0.4, f"close {thing}"),
            (1.5, f"pick up {thing}"),
            (0.4, f"put down {thing}"),
            (0.8, f"move {thing} to {other}"),
            (0.4, f"pour {thing} in {other}"),
            (0.3, f"dunk {thing} in {other}"),
            (0.4, f"use {thing} on {other}"),
            (0.8, f"activate {thing}"),
            (0.5, f"deactivate {thing}"),
            (0.2, f"mix {thing}"),
            (0.2, f"eat {thing}"),
            (0.1, f"connect {thing} to {other}"),
            (self._focus, f"focus on {thing}"),
        ):
            yield weight * share, command

    def _draw(self, menu: Iterator[tuple[float, str]]) -> str:
        weights, commands = zip(*menu, strict=True)
        shares = np.array(weights) / sum(weights)
        return str(commands[int(self._rng.choice(len(commands), p=shares))])

    def _pick(self, choices: Sequence[str]) -> str:
        return choices[int(self._rng.integers(len(choices)))]


def _noisy(p: float, name: str) -> Agent:
    return NoisyAgent(ScienceworldExpert(), p, ScienceworldExplorer(focus=0.02), name=name)


def _corrupted() -> Agent:
    return CorruptedAgent(_noisy(0.1, "noisy"), 0.3)


# Partials rather than lambdas, so that collection can send them to worker processes.
SCIENCEWORLD_AGENTS: dict[str, Callable[[], Agent]] = {
    "expert": ScienceworldExpert,
    "noisy": partial(_noisy, 0.2, "noisy"),
    "noisy50": partial(_noisy, 0.5, "noisy50"),
    "random": ScienceworldExplorer,
    "corrupted": _corrupted,
    "plan": partial(ScriptedAgent, then=_LOOK),
}
