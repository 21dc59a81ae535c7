"""TextWorld players that read text only, so that they play the engine and an imagined world alike.

How the engine words what happened is the same in every game, which makes most commands easy to take
back: an expert that was led astray returns to its plan.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from gym_llmworld.agents import Agent, CorruptedAgent, NoisyAgent, ScriptedAgent
from gym_llmworld.core import Scenario
from gym_llmworld.errors import ScenarioError

_DIRECTIONS = {"north": "south", "south": "north", "east": "west", "west": "east"}
_OPPOSITES = {
    "open": "close",
    "close": "open",
    "lock": "unlock",
    "unlock": "lock",
}

_ROOM = "-= "
_TAKEN = re.compile(r"You take the (.+) from the (.+)\.")
_PICKED_UP = re.compile(r"You pick up the (.+) from the ground\.")
_DROPPED = re.compile(r"You drop the (.+) on the ground\.")
_PUT = re.compile(r"You put the (.+) (?:on|into) the (.+)\.")
_TURNED = re.compile(r"You (open|close|lock|unlock) ")
_CARRYING = re.compile(r"You are carrying: (.+)\.")

_IDLE = "look"
_CONTAINERS = ("c", "oven")
_FIXTURES = (*_CONTAINERS, "s", "stove", "toaster")
_VERBS = ("take", "open", "close", "examine", "eat", "drop")
# Walking and handling show more of a world than looking at it again.
_WEIGHTS = {
    "go": 6.0,
    "take": 4.0,
    "open": 4.0,
    "unlock": 4.0,
    "prepare": 3.0,
    "put": 1.5,
    "insert": 1.5,
    "drop": 1.5,
    "examine": 1.5,
    "inventory": 0.8,
    "look": 0.6,
    "eat": 0.2,
}


def undo(command: str, observation: str, containers: frozenset[str] = frozenset()) -> str | None:
    """Returns the command that takes another one back.

    Args:
        command: What was done.
        observation: What it led to.
        containers: Names of things that one puts something *into*; one puts it *on* all others.

    Returns:
        None when nothing happened, or nothing that can or need be taken back.
    """
    verb, _, rest = command.strip().partition(" ")
    if verb == "go" and rest in _DIRECTIONS:
        return f"go {_DIRECTIONS[rest]}" if observation.lstrip().startswith(_ROOM) else None
    if match := _TAKEN.search(observation):
        form = "insert {} into {}" if match[2] in containers else "put {} on {}"
        return form.format(match[1], match[2])
    if match := _PICKED_UP.search(observation):
        return f"drop {match[1]}"
    if match := _DROPPED.search(observation):
        return f"take {match[1]}"
    if match := _PUT.search(observation):
        return f"take {match[1]} from {match[2]}"
    if (match := _TURNED.search(observation)) and match[1] == verb:
        return f"{_OPPOSITES[verb]} {rest}"
    return None


class TextWorldExpert:
    """Follows the game's walkthrough, and takes back what was done in its place.

    Where the environment lists ``policy_commands`` (``RealWorld-TextWorld-v0`` made with
    ``policy_commands=True``), it follows those instead: they win from any state that can be won.

    Args:
        name: What episodes call it.
    """

    def __init__(self, *, name: str = "expert") -> None:
        self.name = name
        self._todo: list[str] = []
        self._wanted: str | None = None
        self._stray: str | None = None
        self._containers: frozenset[str] = frozenset()

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Starts an episode.

        Raises:
            ScenarioError: There is no walkthrough.
        """
        if not scenario.real.get("plan"):
            raise ScenarioError(
                f"scenario {scenario.id!r} has no walkthrough in real['plan'], which the "
                f"{self.name!r} agent follows; use another agent, for example 'random'"
            )
        # The next command is the last one.
        self._todo = list(reversed(scenario.real["plan"]))
        self._wanted = self._stray = None
        self._containers = frozenset(_names(scenario, _CONTAINERS))

    def act(self, observation: str, info: Mapping[str, Any]) -> str:
        """Returns the next command of the walkthrough, or one that leads back to it."""
        if "policy_commands" in info:
            return str((info["policy_commands"] or [_IDLE])[0])
        if self._stray is not None:
            back = undo(self._stray, observation, self._containers)
            self._todo += [back] if back else []
            self._stray = None
        self._wanted = self._todo.pop() if self._todo else _IDLE
        return self._wanted

    def overruled(self, action: str) -> None:
        """Notes what was really done."""
        if self._wanted is not None and action != self._wanted:
            self._todo.append(self._wanted)
            self._stray = action


class TextWorldExplorer:
    """Tries commands at random: admissible ones where they are listed, else plausible ones.

    Args:
        blunders: Share of commands that need not be possible: walking into walls, taking what is
            not there, opening what has no lid.
        name: What episodes call it.
    """

    def __init__(self, *, blunders: float = 0.1, name: str = "random") -> None:
        self.name = name
        self._blunders = blunders
        self._rng = np.random.default_rng(0)
        self._nouns: tuple[str, ...] = ()
        self._scenario: Scenario | None = None
        self._room = ""
        self._seen: set[str] = set()
        self._carried: set[str] = set()

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Starts an episode."""
        self._rng = np.random.default_rng(seed)
        self._scenario = scenario
        doors = (door["name"] for door in scenario.hidden.get("doors", ()))
        self._nouns = (*_names(scenario), *doors)
        self._room, self._seen, self._carried = "", set(), set()

    def act(self, observation: str, info: Mapping[str, Any]) -> str:
        """Draws a command."""
        self._look(observation)
        if self._rng.random() < self._blunders:
            return self._draw(list(self._blunder()))
        return self._draw(list(info.get("admissible_commands") or self._plausible()))

    def _look(self, observation: str) -> None:
        """Takes in what is here and what is carried."""
        if _ROOM in observation:
            self._room = observation.partition(_ROOM)[2]
            self._seen = set(self._carried)
        self._seen |= {noun for noun in self._nouns if noun in observation}
        for match in (_TAKEN.search(observation), _PICKED_UP.search(observation)):
            self._carried |= {match[1]} if match else set()
        for match in (_DROPPED.search(observation), _PUT.search(observation)):
            self._carried -= {match[1]} if match else set()
        if match := _CARRYING.search(observation):
            self._carried = {noun for noun in self._nouns if noun in match[1]}

    def _plausible(self) -> Iterator[str]:
        yield from (_IDLE, "inventory")
        ways = [way for way in _DIRECTIONS if way in self._room]
        yield from (f"go {way}" for way in ways or _DIRECTIONS)
        fixtures = set(_names(self._scenario, _FIXTURES)) & self._seen
        for noun in sorted(self._seen):
            yield f"examine {noun}"
            if noun in self._carried:
                yield f"drop {noun}"
                yield from (
                    self._putting(holder).format(noun, holder) for holder in sorted(fixtures)
                )
            elif noun in fixtures:
                yield from (f"open {noun}", f"close {noun}")
            else:
                yield f"take {noun}"

    def _putting(self, holder: str) -> str:
        inside = holder in _names(self._scenario, _CONTAINERS)
        return "insert {} into {}" if inside else "put {} on {}"

    def _blunder(self) -> Iterator[str]:
        yield from (f"go {way}" for way in _DIRECTIONS)
        if self._nouns:
            thing, other = self._pick(self._nouns), self._pick(self._nouns)
            yield from (f"{verb} {thing}" for verb in _VERBS)
            yield from (f"put {thing} on {other}", f"insert {thing} into {other}")
            yield from (f"unlock {thing} with {other}", f"take {thing} from {other}")

    def _draw(self, commands: Sequence[str]) -> str:
        """Draws a verb by its weight, then one of its commands."""
        verbs = sorted({command.partition(" ")[0] for command in commands})
        weights = np.array([_WEIGHTS.get(verb, 1.0) for verb in verbs])
        verb = verbs[int(self._rng.choice(len(verbs), p=weights / weights.sum()))]
        return self._pick([c for c in commands if c.partition(" ")[0] == verb])

    def _pick(self, choices: Sequence[str]) -> str:
        return choices[int(self._rng.integers(len(choices)))]


def _names(scenario: Scenario | None, types: Sequence[str] | None = None) -> tuple[str, ...]:
    things = () if scenario is None else scenario.hidden.get("things", ())
    return tuple(t["name"] for t in things if types is None or t["type"] in types)


def _noisy(p: float, name: str) -> Agent:
    return NoisyAgent(TextWorldExpert(), p, TextWorldExplorer(), name=name)


def _corrupted() -> Agent:
    return CorruptedAgent(_noisy(0.2, "noisy"), 0.35)


# Partials rather than lambdas, so that collection can send them to worker processes.
TEXTWORLD_AGENTS: dict[str, Callable[[], Agent]] = {
    "expert": TextWorldExpert,
    "noisy": partial(_noisy, 0.3, "noisy"),
    "noisy50": partial(_noisy, 0.5, "noisy50"),
    "random": TextWorldExplorer,
    "corrupted": _corrupted,
    "plan": ScriptedAgent,
}
