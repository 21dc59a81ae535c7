"""Who acts: policies that read observations and write commands.

An agent sees what a player sees, the text, so the same one plays a mirrored world and its imagined
twin. Agents that know one world live beside it (`gym_llmworld.worlds`); the ones here know none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from gym_llmworld.core import Scenario
from gym_llmworld.errors import ScenarioError


@runtime_checkable
class Agent(Protocol):
    """A policy.

    Attributes:
        name: What episodes call it.
    """

    name: str

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Starts an episode; everything random afterwards follows from ``seed``."""
        ...

    def act(self, observation: str, info: Mapping[str, Any]) -> str:
        """Chooses the next command.

        Args:
            observation: What the last command led to; in the first call, the first observation.
            info: As the environment gave it. ``admissible_commands`` may be missing or None:
                imagined worlds do not list them.
        """
        ...


@runtime_checkable
class Overrulable(Protocol):
    """An agent that wants to know when something else than its command was carried out."""

    def overruled(self, action: str) -> None:
        """Tells that ``action`` replaced the command which `Agent.act` returned last."""
        ...


def overrule(agent: Agent, action: str) -> None:
    """Tells an agent, if it cares, that ``action`` replaced its last command."""
    if isinstance(agent, Overrulable):
        agent.overruled(action)


class Policy(Protocol):
    """What agents of several episodes share, such as a language model."""

    def act(self, agents: Sequence[Any], observations: Sequence[str]) -> list[str]:
        """Chooses the next command of each agent, in one batch.

        Args:
            agents: ``B`` agents of this policy, each in an episode of its own.
            observations: ``B`` observations, as `Agent.act` gets them.
        """
        ...


@runtime_checkable
class PolicyAgent(Protocol):
    """An agent that is better asked together with others of the same policy.

    Attributes:
        policy: Answers them all in one call.
    """

    policy: Policy


@runtime_checkable
class Stoppable(Protocol):
    """An agent that may be unable to go on, such as a model whose context is full.

    Attributes:
        stopped: Why; None while it can act. Afterwards its commands are empty.
    """

    stopped: str | None


def has_stopped(agent: Agent) -> bool:
    """Whether an agent cannot go on: the step of its last command is to be the episode's last."""
    return isinstance(agent, Stoppable) and agent.stopped is not None


def act_together(
    agents: Sequence[Agent], observations: Sequence[str], infos: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Asks ``B`` agents for their next commands; those of one policy in one call.

    Args:
        agents: Each in an episode of its own.
        observations: One per agent, see `Agent.act`.
        infos: One per agent; policies choose without them.
    """
    actions = [""] * len(agents)
    groups: dict[int, list[int]] = {}
    for i, agent in enumerate(agents):
        if isinstance(agent, PolicyAgent):
            groups.setdefault(id(agent.policy), []).append(i)
        else:
            actions[i] = agent.act(observations[i], infos[i])
    for members in groups.values():
        policy: Policy = agents[members[0]].policy  # type: ignore[attr-defined]
        chosen = policy.act([agents[i] for i in members], [observations[i] for i in members])
        for i, action in zip(members, chosen, strict=True):
            actions[i] = action
    return actions


def derive_seeds(seed: int, count: int) -> list[int]:
    """Derives independent seeds, so that parts of an agent do not share a random stream."""
    return [int(s) for s in np.random.SeedSequence(seed).generate_state(count)]


class RandomAgent:
    """Takes any admissible command, each as likely as the other.

    Args:
        fallback_commands: What to choose from where the world does not list its commands.
        name: What episodes call it.

    Raises:
        ValueError: ``fallback_commands`` is empty.
    """

    def __init__(self, fallback_commands: Sequence[str], *, name: str = "random") -> None:
        if not fallback_commands:
            raise ValueError(
                "RandomAgent needs at least one fallback command, for worlds that do not list what "
                "they accept; got none. Pass for example ['look']"
            )
        self.name = name
        self._fallback = tuple(fallback_commands)
        self._rng = np.random.default_rng(0)

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Starts an episode."""
        self._rng = np.random.default_rng(seed)

    def act(self, observation: str, info: Mapping[str, Any]) -> str:
        """Draws a command."""
        commands = info.get("admissible_commands") or self._fallback
        return str(commands[int(self._rng.integers(len(commands)))])


class ScriptedAgent:
    """Carries out given commands, then repeats a last one.

    Args:
        actions: The script; None takes the plan that proves the scenario solvable,
            ``scenario.real["plan"]``.
        then: What follows the script.
        name: What episodes call it.
    """

    def __init__(
        self, actions: Sequence[str] | None = None, *, then: str = "look", name: str = "plan"
    ) -> None:
        self.name = name
        self._given = None if actions is None else tuple(actions)
        self._script: tuple[str, ...] = ()
        self._then = then
        self._position = 0

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Starts an episode.

        Raises:
            ScenarioError: There is neither a script nor a plan.
        """
        if self._given is None and not scenario.real.get("plan"):
            raise ScenarioError(
                f"scenario {scenario.id!r} has no plan in real['plan'], which the {self.name!r} "
                "agent replays; pass actions, or use another agent"
            )
        self._script = tuple(scenario.real["plan"]) if self._given is None else self._given
        self._position = 0

    def act(self, observation: str, info: Mapping[str, Any]) -> str:
        """Returns the script's next command."""
        if self._position >= len(self._script):
            return self._then
        self._position += 1
        return self._script[self._position - 1]


class NoisyAgent:
    """Lets an explorer overrule another agent now and then, so that episodes leave the best path.

    Args:
        base: Who acts otherwise; learns what was done in its place if it is `Overrulable`.
        p: Probability that the explorer's command is taken, per step.
        explorer: Sees every observation, too.
        name: What episodes call it.

    Raises:
        ValueError: ``p`` is no probability.
    """

    def __init__(self, base: Agent, p: float, explorer: Agent, *, name: str = "noisy") -> None:
        _check_probability(p)
        self.name = name
        self._base, self._p, self._explorer = base, p, explorer
        self._rng = np.random.default_rng(0)

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Starts an episode for both agents, with a seed of its own each."""
        own, base, explorer = derive_seeds(seed, 3)
        self._rng = np.random.default_rng(own)
        self._base.reset(scenario, base)
        self._explorer.reset(scenario, explorer)

    def act(self, observation: str, info: Mapping[str, Any]) -> str:
        """Asks both agents and takes one command."""
        wanted = self._base.act(observation, info)
        stray = self._explorer.act(observation, info)
        if self._rng.random() < self._p:
            overrule(self._base, stray)
            return stray
        overrule(self._explorer, wanted)
        return wanted

    def overruled(self, action: str) -> None:
        """Passes the news on to both agents."""
        overrule(self._base, action)
        overrule(self._explorer, action)


class CorruptedAgent:
    """Garbles another agent's commands now and then.

    A world model that has only seen commands which work believes every command. These are the
    mistakes that language agents make: typos, wrong numbers, things that are not there, swapped
    things, verbs that do not exist, the ``put x in/on y`` of older ALFWorld versions, no command.

    Args:
        base: Whose commands; learns what was sent in their place if it is `Overrulable`.
        p: Probability that a command is garbled, per step.
        name: What episodes call it.

    Raises:
        ValueError: ``p`` is no probability.
    """

    def __init__(self, base: Agent, p: float, *, name: str = "corrupted") -> None:
        _check_probability(p)
        self.name = name
        self._base, self._p = base, p
        self._rng = np.random.default_rng(0)
        self._nouns: list[str] = []

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Starts an episode."""
        own, base = derive_seeds(seed, 2)
        self._rng = np.random.default_rng(own)
        self._nouns = []
        self._base.reset(scenario, base)

    def act(self, observation: str, info: Mapping[str, Any]) -> str:
        """Returns the base agent's command, or what is left of it."""
        self._nouns += [n for n in _NOUN.findall(observation) if n not in self._nouns]
        command = self._base.act(observation, info)
        if self._rng.random() >= self._p:
            return command
        garbled = garble(command, self._nouns, self._rng)
        overrule(self._base, garbled)
        return garbled

    def overruled(self, action: str) -> None:
        """Passes the news on to the base agent."""
        overrule(self._base, action)


def _check_probability(p: float) -> None:
    if not 0 <= p <= 1:
        raise ValueError(f"p is a probability per step and must be in [0, 1], got {p}")


# "cabinet 1", as ALFWorld and TextWorld's numbered things are called.
_NOUN = re.compile(r"[a-z]+ \d+")

_UNKNOWN_THINGS = ("unicorn 1", "dragon 2", "banana 1", "piano 1", "door 3", "robot 1", "car 2")
_UNKNOWN_VERBS = (
    "grab",
    "walk to",
    "place",
    "throw",
    "turn on",
    "pick up",
    "search",
    "eat",
    "goto",
)
_OTHER_GRAMMARS = ("put {0} in/on {1}", "put {0} in {1}", "put {0} on {1}", "place {0} on {1}")

Garbler = Callable[[str, Sequence[str], np.random.Generator], str]


def garble(command: str, nouns: Sequence[str], rng: np.random.Generator) -> str:
    """Spoils a command in one of the ways that `CorruptedAgent` lists.

    Args:
        command: What was meant.
        nouns: Things that have been mentioned, for mistaking one for another.
        rng: Chooses the way and the place.
    """
    garbler = _GARBLERS[int(rng.choice(len(_GARBLERS), p=_GARBLER_SHARES))]
    garbled = garbler(command, nouns, rng)
    return garbled if garbled != command else _typo(command, nouns, rng)


def _typo(command: str, nouns: Sequence[str], rng: np.random.Generator) -> str:
    if len(command) < 2:
        return command + "x"
    place = int(rng.integers(len(command) - 1))
    head, pair, tail = command[:place], command[place : place + 2], command[place + 2 :]
    other = chr(ord("a") + int(rng.integers(26)))
    spoilt = [s for s in (pair[::-1], pair[0], pair + pair[1], other + pair[1]) if s != pair]
    return head + _pick(spoilt, rng) + tail


def _wrong_number(command: str, nouns: Sequence[str], rng: np.random.Generator) -> str:
    numbers = list(re.finditer(r"\d+", command))
    if not numbers:
        return f"{command} {int(rng.integers(1, 10))}"
    match = numbers[int(rng.integers(len(numbers)))]
    wrong = int(match.group()) + int(rng.integers(1, 30))
    return command[: match.start()] + str(wrong) + command[match.end() :]


def _no_number(command: str, nouns: Sequence[str], rng: np.random.Generator) -> str:
    return re.sub(r" \d+", "", command)


def _swapped(command: str, nouns: Sequence[str], rng: np.random.Generator) -> str:
    found = list(_NOUN.finditer(command))
    if len(found) < 2:
        return _mistaken(command, nouns, rng)
    first, second = found[0], found[-1]
    between = command[first.end() : second.start()]
    swapped = f"{second.group()}{between}{first.group()}"
    return command[: first.start()] + swapped + command[second.end() :]


def _mistaken(command: str, nouns: Sequence[str], rng: np.random.Generator) -> str:
    found = list(_NOUN.finditer(command))
    if not found or not nouns:
        return _nonexistent(command, nouns, rng)
    match = found[int(rng.integers(len(found)))]
    return command[: match.start()] + _pick(nouns, rng) + command[match.end() :]


def _nonexistent(command: str, nouns: Sequence[str], rng: np.random.Generator) -> str:
    found = list(_NOUN.finditer(command))
    if not found:
        return f"{command} {_pick(_UNKNOWN_THINGS, rng)}"
    match = found[int(rng.integers(len(found)))]
    return command[: match.start()] + _pick(_UNKNOWN_THINGS, rng) + command[match.end() :]


def _wrong_verb(command: str, nouns: Sequence[str], rng: np.random.Generator) -> str:
    first_noun = _NOUN.search(command)
    rest = command[first_noun.start() :] if first_noun else command
    return f"{_pick(_UNKNOWN_VERBS, rng)} {rest}"


def _other_grammar(command: str, nouns: Sequence[str], rng: np.random.Generator) -> str:
    found = _NOUN.findall(command)
    if not found:
        return _wrong_verb(command, nouns, rng)
    return _pick(_OTHER_GRAMMARS, rng).format(found[0], found[-1])


def _cut_short(command: str, nouns: Sequence[str], rng: np.random.Generator) -> str:
    words = command.split(" ")
    return " ".join(words[: int(rng.integers(1, len(words)))]) if len(words) > 1 else command[:-1]


def _empty(command: str, nouns: Sequence[str], rng: np.random.Generator) -> str:
    return ""


def _pick(choices: Sequence[str], rng: np.random.Generator) -> str:
    return choices[int(rng.integers(len(choices)))]


_GARBLERS: tuple[Garbler, ...] = (
    _typo,
    _wrong_number,
    _no_number,
    _swapped,
    _mistaken,
    _nonexistent,
    _wrong_verb,
    _other_grammar,
    _cut_short,
    _empty,
)
_GARBLER_SHARES = (0.15, 0.15, 0.05, 0.1, 0.2, 0.08, 0.1, 0.1, 0.05, 0.02)
