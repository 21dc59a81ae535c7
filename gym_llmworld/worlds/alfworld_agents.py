"""ALFWorld players that read text only.

They know what a good player knows (what the observations mean, how the six kinds of task are
solved) and look at nothing but observations, so that they play the mirrored engine and an imagined
world alike.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from gym_llmworld.agents import Agent, CorruptedAgent, NoisyAgent, ScriptedAgent
from gym_llmworld.core import Scenario
from gym_llmworld.errors import ScenarioError

_NAME = r"[a-z]+ \d+"
_THING = re.compile(_NAME)
_ROOM = re.compile(r"Looking quickly around you, you see ([^.]*)\.")
_ON = re.compile(rf"On the ({_NAME}), you see ([^.]*)\.")
_IN = re.compile(rf"The ({_NAME}) is open\. In it, you see ([^.]*)\.")
_CLOSED = re.compile(rf"(?:The ({_NAME}) is closed|You close the ({_NAME}))\.")
_ARRIVED = re.compile(rf"You arrive at ({_NAME})\.")
_FACING = re.compile(r"You are facing the ([^.]*)\.")
_TAKEN = re.compile(rf"You pick up the ({_NAME}) from the ({_NAME})\.")
_MOVED = re.compile(rf"You move the ({_NAME}) to the ({_NAME})\.")
_TREATED = re.compile(rf"You (heat|clean|cool) the ({_NAME}) using the ({_NAME})\.")
_LIT = re.compile(rf"You turn on the ({_NAME})\.")
_CARRIED = re.compile(r"You are (?:not carrying anything|carrying: ([^.]*))\.")
_REFUSED = "Nothing happens."

_TREATMENTS = {
    "pick_clean_then_place_in_recep": "clean",
    "pick_heat_then_place_in_recep": "heat",
    "pick_cool_then_place_in_recep": "cool",
}
_APPLIANCES = {"clean": "sinkbasin", "heat": "microwave", "cool": "fridge"}
_CANCELLED_BY = {"heat": "cool", "cool": "heat"}
_KNIVES = ("knife", "butterknife")

# ALFWorld's instruction templates (alfworld/gen/goal_library.py), most specific first.
_INSTRUCTIONS = (
    (r"(?:look at|examine the) (\w+) (?:under|with) the (\w+)", "look_at_obj_in_light"),
    (r"(?:put|find) two (\w+) (?:and put them )?in (\w+)", "pick_two_obj_and_place"),
    (
        r"(?:put a clean|clean some) (\w+) (?:and put it )?in (\w+)",
        "pick_clean_then_place_in_recep",
    ),
    (r"(?:put a hot|heat some) (\w+) (?:and put it )?in (\w+)", "pick_heat_then_place_in_recep"),
    (r"(?:put a cool|cool some) (\w+) (?:and put it )?in (\w+)", "pick_cool_then_place_in_recep"),
    (r"put (?:a|some) (\w+) (?:in|on) (\w+)", "pick_and_place_simple"),
)


def kind_of(name: str) -> str:
    """Returns what a numbered thing is: ``"cabinet"`` for ``"cabinet 1"``."""
    return name.rpartition(" ")[0]


@dataclass(frozen=True, slots=True)
class AlfworldGoal:
    """What to achieve.

    Attributes:
        task_type: As ALFRED calls it, for example ``"pick_two_obj_and_place"``.
        target: Kind of object to bring or to look at, lower case.
        place: Kind of receptacle it goes to, or of lamp to look at it under.
    """

    task_type: str
    target: str
    place: str

    @property
    def treatment(self) -> str | None:
        """``"clean"``, ``"heat"``, ``"cool"``, or None when the object goes as it is."""
        return _TREATMENTS.get(self.task_type)

    @classmethod
    def of(cls, scenario: Scenario) -> AlfworldGoal:
        """Reads the goal of a scenario: from ``real`` if it is there, else from the instruction.

        Raises:
            ScenarioError: The instruction follows none of ALFWorld's templates.
        """
        real = scenario.real
        if {"task_type", "object", "receptacle"} <= set(real):
            target, place = str(real["object"]).lower(), str(real["receptacle"]).lower()
            return cls(str(real["task_type"]), target, place)
        for pattern, task_type in _INSTRUCTIONS:
            match = re.fullmatch(pattern, scenario.instruction.strip().rstrip("."))
            if match:
                return cls(task_type, match[1], match[2])
        raise ScenarioError(
            f"scenario {scenario.id!r}: cannot read a goal from {scenario.instruction!r}; expected "
            "an ALFWorld template such as 'put a hot plate in cabinet.', or task_type, object and "
            "receptacle in `real`"
        )


@dataclass(slots=True)
class Place:
    """What is believed about a receptacle.

    Attributes:
        openable: Whether it has a door; None while unknown.
        is_open: Whether its door is open; None while unknown.
        contents: What lies on or in it; None while unseen.
    """

    openable: bool | None = None
    is_open: bool | None = None
    contents: list[str] | None = None

    @property
    def is_shut(self) -> bool:
        """True when the door is known to be closed."""
        return bool(self.openable) and self.is_open is False


@dataclass(slots=True)
class AlfworldBelief:
    """What a player knows, from the text alone.

    Attributes:
        places: Receptacle -> what is believed about it, in the order of the first observation.
        location: The receptacle the player stands at; None in the middle of the room.
        held: The object in hand.
        origins: Object -> the receptacle it was last taken from.
        treated: Object -> those of ``{"clean", "heat", "cool"}`` that hold for it.
        lit: Lamps that have been turned on.
    """

    places: dict[str, Place] = field(default_factory=dict)
    location: str | None = None
    held: str | None = None
    origins: dict[str, str] = field(default_factory=dict)
    treated: dict[str, set[str]] = field(default_factory=dict)
    lit: set[str] = field(default_factory=set)

    @classmethod
    def from_hidden(cls, hidden: Mapping[str, Any]) -> AlfworldBelief:
        """Starts from everything that there is to know (``Scenario.hidden``)."""
        places = {
            r["name"]: Place(bool(r["openable"]), bool(r["open"]), list(r["contents"]))
            for r in hidden["receptacles"]
        }
        return cls(places, lit={name for name, on in hidden.get("toggles", {}).items() if on})

    @property
    def here(self) -> Place | None:
        """The place the player stands at."""
        return self.places.get(self.location or "")

    def within_reach(self) -> list[str]:
        """Returns the objects that can be taken where the player stands."""
        return [] if self.here is None or self.here.is_shut else list(self.here.contents or ())

    def find(self, kind: str) -> list[tuple[str, str]]:
        """Returns every known object of a kind that lies somewhere, with where it lies."""
        return [
            (thing, name)
            for name, place in self.places.items()
            for thing in place.contents or ()
            if kind_of(thing) == kind
        ]

    def things(self) -> list[str]:
        """Returns every known object that lies somewhere."""
        return [thing for place in self.places.values() for thing in place.contents or ()]

    def update(self, observation: str) -> None:
        """Takes in what an observation says. What it does not say stays as believed."""
        self._see_room(observation)
        self._see_places(observation)
        self._see_hands(observation)
        for verb, thing, _ in _TREATED.findall(observation):
            states = self.treated.setdefault(thing, set())
            states.discard(_CANCELLED_BY.get(verb, ""))
            states.add(verb)
        self.lit.update(_LIT.findall(observation))

    def refuse(self, command: str) -> None:
        """Takes in that a command did nothing: drops a belief under which it would have worked."""
        verb, names, here = command.partition(" ")[0], _THING.findall(command), self.here
        if verb == "go" and names and names[0] in self.places:
            # Nobody goes where they stand already; some receptacles share a standing point.
            self.location = names[0]
        elif here is None or names[-1:] != [self.location]:
            return
        elif verb == "open":
            here.is_open = None
        elif verb == "take" and self.held is None and names[0] in self.within_reach():
            here.contents = None

    def _see_room(self, observation: str) -> None:
        room = _ROOM.search(observation)
        if room:
            self.location = None
            for name in _THING.findall(room[1]):
                self.places.setdefault(name, Place())
        facing = _FACING.search(observation)
        if facing and self.location not in (reachable := _THING.findall(facing[1])):
            self.location = next(iter(reachable), None)
        arrived = _ARRIVED.search(observation)
        if arrived:
            self.location = arrived[1]

    def _see_places(self, observation: str) -> None:
        for name, listing in _ON.findall(observation):
            self._see_contents(name, listing, openable=False)
        for name, listing in _IN.findall(observation):
            self._see_contents(name, listing, openable=True)
        for match in _CLOSED.finditer(observation):
            place = self.places.setdefault(match[1] or match[2], Place())
            place.openable, place.is_open = True, False

    def _see_contents(self, name: str, listing: str, *, openable: bool) -> None:
        place = self.places.setdefault(name, Place())
        things = _THING.findall(listing)
        for thing in things:
            self._lift(thing)
        place.openable, place.is_open, place.contents = openable, openable, things

    def _see_hands(self, observation: str) -> None:
        for thing, name in _TAKEN.findall(observation):
            self._lift(thing)
            self.held, self.location, self.origins[thing] = thing, name, name
        for thing, name in _MOVED.findall(observation):
            self._lift(thing)
            place = self.places.setdefault(name, Place())
            place.contents = [*(place.contents or ()), thing]
            self.held, self.location = None, name
        carried = _CARRIED.search(observation)
        if carried:
            self.held = next(iter(_THING.findall(carried[1] or "")), None)

    def _lift(self, thing: str) -> None:
        """Removes an object from wherever it was believed to lie."""
        for place in self.places.values():
            if place.contents and thing in place.contents:
                place.contents.remove(thing)


# Where to look first when nothing is known. Open surfaces cost one command each and hold the most;
# drawers and cabinets cost two, and there are many of them.
_PROMISING = (
    ("countertop", "diningtable", "desk", "dresser", "sidetable", "coffeetable", "bed", "sofa"),
    ("shelf", "sinkbasin", "armchair", "ottoman", "cart", "tvstand", "stoveburner", "toilet"),
    ("fridge", "garbagecan", "bathtubbasin", "coffeemachine", "microwave", "safe", "toaster"),
    ("handtowelholder", "towelholder", "toiletpaperhanger", "laundryhamper"),
    ("cabinet", "drawer"),
)
_RANK = {kind: rank for rank, kinds in enumerate(_PROMISING) for kind in kinds}
_UNRANKED = 2


class AlfworldExpert:
    """Solves the six kinds of ALFWorld task by rules, and decides anew after every observation.

    Args:
        privileged: Start from the scenario's hidden facts; otherwise search for what is needed.
        name: What episodes call it.
    """

    def __init__(self, *, privileged: bool = True, name: str | None = None) -> None:
        self.name = name or ("expert" if privileged else "search")
        self._privileged = privileged
        self._goal = AlfworldGoal("", "", "")
        self._belief = AlfworldBelief()
        self._last: str | None = None
        self._refusals: Counter[str] = Counter()
        self._rng = np.random.default_rng(0)

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Starts an episode.

        Raises:
            ScenarioError: The task is none of ALFWorld's.
        """
        self._goal = AlfworldGoal.of(scenario)
        informed = self._privileged and bool(scenario.hidden)
        self._belief = AlfworldBelief.from_hidden(scenario.hidden) if informed else AlfworldBelief()
        self._last = None
        self._refusals = Counter()
        self._rng = np.random.default_rng(seed)

    def overruled(self, action: str) -> None:
        """Notes what was really done, so that a refusal is not blamed on the own command."""
        self._last = action

    def act(self, observation: str, info: Mapping[str, Any]) -> str:
        """Chooses the next command."""
        self._belief.update(observation)
        if self._last is not None and observation.strip() == _REFUSED:
            self._refusals[self._last] += 1
            self._belief.refuse(self._last)
        self._last = next(filter(self._worth_trying, self._wishes()))
        return self._last

    def _worth_trying(self, command: str) -> bool:
        return self._refusals[command] < 2

    def _wishes(self) -> Iterator[str]:
        """Yields what would help, best first, without end."""
        goal, belief = self._goal, self._belief
        if belief.held and kind_of(belief.held) != goal.target:
            yield from self._put_away(belief.held)
        elif goal.task_type == "look_at_obj_in_light":
            yield from self._look_in_light()
        else:
            yield from self._bring()
        yield from self._search()
        while True:
            yield self._wander()

    def _bring(self) -> Iterator[str]:
        goal, belief = self._goal, self._belief
        for destination in self._destinations():
            if belief.held:
                if goal.treatment and goal.treatment not in belief.treated.get(belief.held, ()):
                    yield from self._treat(belief.held, goal.treatment)
                yield from self._deliver(belief.held, destination)
            else:
                for thing, name in self._fetchable(destination):
                    yield from self._fetch(thing, name)
                yield from self._search()

    def _destinations(self) -> list[str]:
        """Returns the receptacles to fill: the one that holds most of what is wanted first."""
        goal, belief = self._goal, self._belief

        def cost(name: str) -> tuple[int, bool]:
            place = belief.places[name]
            done = sum(kind_of(thing) == goal.target for thing in place.contents or ())
            return (-done, place.is_shut)

        return sorted((n for n in belief.places if kind_of(n) == goal.place), key=cost)

    def _fetchable(self, destination: str) -> list[tuple[str, str]]:
        """Returns the objects worth fetching: treated ones first, then what is near."""
        goal, belief = self._goal, self._belief

        def cost(found: tuple[str, str]) -> tuple[bool, bool, bool]:
            thing, name = found
            treated = goal.treatment in belief.treated.get(thing, ())
            return (not treated, name != belief.location, belief.places[name].is_shut)

        # What lies at its destination stays there, unless it still has to be treated.
        return sorted(
            (f for f in belief.find(goal.target) if goal.treatment or f[1] != destination), key=cost
        )

    def _look_in_light(self) -> Iterator[str]:
        goal, belief = self._goal, self._belief
        lamps = belief.find(goal.place)
        if not belief.held:
            # What lies beside a lamp need not be carried to one.
            lamp_places = {name for _, name in lamps}
            targets = sorted(belief.find(goal.target), key=lambda f: f[1] not in lamp_places)
            for thing, name in targets:
                yield from self._fetch(thing, name)
        else:
            for lamp, name in lamps:
                if belief.location != name:
                    yield f"go to {name}"
                yield f"use {lamp}"

    def _fetch(self, thing: str, name: str) -> Iterator[str]:
        if self._worth_trying(f"take {thing} from {name}"):
            yield from self._reach(name)
            yield f"take {thing} from {name}"

    def _deliver(self, thing: str, name: str) -> Iterator[str]:
        if self._worth_trying(f"move {thing} to {name}"):
            yield from self._reach(name)
            yield f"move {thing} to {name}"

    def _treat(self, thing: str, treatment: str) -> Iterator[str]:
        for name in self._belief.places:
            command = f"{treatment} {thing} with {name}"
            if kind_of(name) == _APPLIANCES[treatment] and self._worth_trying(command):
                if self._belief.location != name:
                    yield f"go to {name}"
                yield command

    def _reach(self, name: str) -> Iterator[str]:
        """Goes there and opens the door."""
        place = self._belief.places[name]
        if self._belief.location != name:
            yield f"go to {name}"
        if place.is_shut:
            yield f"open {name}"
        elif place.is_open is None or place.contents is None:
            yield f"examine {name}"

    def _put_away(self, thing: str) -> Iterator[str]:
        """Frees the hand: here if such things lie here, else where the thing was, else anywhere."""
        belief = self._belief
        homes = {kind_of(name) for _, name in belief.find(kind_of(thing))}
        origin = belief.origins.get(thing)
        if origin:
            homes.add(kind_of(origin))

        def cost(name: str) -> tuple[bool, bool, bool, int]:
            home = kind_of(name) in homes
            shut = belief.places[name].is_shut
            return (not home, name != belief.location, shut, _RANK.get(kind_of(name), _UNRANKED))

        for name in sorted(belief.places, key=cost):
            yield from self._deliver(thing, name)

    def _search(self) -> Iterator[str]:
        """Visits and opens what has not been seen yet, most promising first."""
        belief = self._belief
        here = belief.here
        if here is not None and here.contents is None:
            yield f"open {belief.location}" if here.is_shut else f"examine {belief.location}"
        unseen = [name for name, place in belief.places.items() if place.contents is None]
        for name in sorted(unseen, key=lambda n: _RANK.get(kind_of(n), _UNRANKED)):
            yield f"go to {name}"

    def _wander(self) -> str:
        choices = ["look", "inventory", *(f"go to {name}" for name in self._belief.places)]
        return choices[int(self._rng.integers(len(choices)))]


class AlfworldExplorer:
    """Tries plausible commands at random, from the names it has read so far.

    Args:
        tour: Visit and open every receptacle once, in random order, with little else between.
        name: What episodes call it.
    """

    def __init__(self, *, tour: bool = False, name: str | None = None) -> None:
        self.name = name or ("tour" if tour else "random")
        self._tour = tour
        self._belief = AlfworldBelief()
        self._rng = np.random.default_rng(0)
        self._stale: set[str] = set()
        self._last: str | None = None

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Starts an episode."""
        self._belief = AlfworldBelief()
        self._rng = np.random.default_rng(seed)
        self._stale = set()
        self._last = None

    def act(self, observation: str, info: Mapping[str, Any]) -> str:
        """Draws a command."""
        belief = self._belief
        belief.update(observation)
        if self._last is not None and observation.strip() == _REFUSED:
            belief.refuse(self._last)
        for match in (_TAKEN.search(observation), _MOVED.search(observation)):
            if match:
                self._stale.add(match[2])
        if _ON.search(observation) or _IN.search(observation):
            self._stale.discard(belief.location or "")
        touring = self._tour and self._rng.random() >= 0.15
        self._last = self._next_stop() if touring else self._draw(self._menu())
        return self._last

    def overruled(self, action: str) -> None:
        """Notes what was really done."""
        self._last = action

    def _next_stop(self) -> str:
        belief = self._belief
        if belief.here is not None and belief.here.is_shut:
            return f"open {belief.location}"
        unseen = [name for name, place in belief.places.items() if place.contents is None]
        if not unseen:
            return self._draw(self._menu())
        return f"go to {self._pick(unseen)}"

    def _menu(self) -> list[tuple[float, str]]:
        """Returns weights and commands: the likely ones, and a few that a player gets wrong."""
        return [
            (1.0, "look"),
            (0.8, "inventory"),
            (0.15, "help"),
            *self._travel(),
            *self._handle_place(),
            *self._handle_things(),
            *self._blunders(),
        ]

    def _travel(self) -> Iterator[tuple[float, str]]:
        belief = self._belief
        interest = {
            # What was changed is worth seeing again: that is where a world model has to remember.
            name: 4.0 if name in self._stale else 3.0 if place.contents is None else 1.0
            for name, place in belief.places.items()
            if name != belief.location
        }
        whole = sum(interest.values()) or 1.0
        for name, share in interest.items():
            yield 6.0 * share / whole, f"go to {name}"

    def _handle_place(self) -> Iterator[tuple[float, str]]:
        name, place = self._belief.location, self._belief.here
        if name is None or place is None:
            return
        yield 0.7, f"examine {name}"
        if place.is_shut:
            yield 6.0, f"open {name}"
        elif place.openable:
            yield 1.5, f"close {name}"

    def _handle_things(self) -> Iterator[tuple[float, str]]:
        belief = self._belief
        name, held, near = belief.location, belief.held, belief.within_reach()
        for thing in near:
            yield 1.0 / len(near), f"examine {thing}"
            if held is None:
                yield 5.0 / len(near), f"take {thing} from {name}"
            elif kind_of(held) in _KNIVES:
                yield 1.0 / len(near), f"slice {thing} with {held}"
            if kind_of(thing).endswith("lamp"):
                yield 3.0, f"use {thing}"
        if held is not None:
            yield 1.0, f"examine {held}"
            if name is not None:
                yield 2.5, f"move {held} to {name}"
            for verb, appliance in _APPLIANCES.items():
                if kind_of(name or "") == appliance:
                    yield 5.0, f"{verb} {held} with {name}"

    def _blunders(self) -> Iterator[tuple[float, str]]:
        belief = self._belief
        places = list(belief.places) or ["countertop 1"]
        things = belief.things() or ["mug 1"]
        thing, place, other = self._pick(things), self._pick(places), self._pick(places)
        verb = self._pick(tuple(_APPLIANCES))
        appliances = [n for n in places if kind_of(n) == _APPLIANCES[verb]] or [place]
        yield 0.3, f"take {thing} from {place}"
        yield 0.2, f"open {place}"
        yield 0.1, f"close {other}"
        yield 0.2, f"{verb} {belief.held or thing} with {self._pick(appliances)}"
        yield 0.2, f"move {belief.held or thing} to {place}"
        yield 0.15, f"examine {self._pick((thing, other))}"
        yield 0.1, f"use {thing}"
        yield 0.1, f"slice {thing} with {belief.held or self._pick(things)}"
        yield 0.1, f"go to {belief.location or place}"

    def _draw(self, menu: Sequence[tuple[float, str]]) -> str:
        weights = np.array([weight for weight, _ in menu])
        return menu[int(self._rng.choice(len(menu), p=weights / weights.sum()))][1]

    def _pick(self, choices: Sequence[str]) -> str:
        return choices[int(self._rng.integers(len(choices)))]


def _noisy(p: float, name: str) -> Agent:
    return NoisyAgent(AlfworldExpert(), p, AlfworldExplorer(), name=name)


def _corrupted() -> Agent:
    return CorruptedAgent(_noisy(0.2, "noisy"), 0.35)


# Partials rather than lambdas, so that collection can send them to worker processes.
ALFWORLD_AGENTS: dict[str, Callable[[], Agent]] = {
    "expert": AlfworldExpert,
    "search": partial(AlfworldExpert, privileged=False),
    "noisy": partial(_noisy, 0.3, "noisy"),
    "noisy50": partial(_noisy, 0.5, "noisy50"),
    "random": AlfworldExplorer,
    "tour": partial(AlfworldExplorer, tour=True),
    "corrupted": _corrupted,
    "plan": ScriptedAgent,
}
