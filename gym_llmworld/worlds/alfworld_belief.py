"""What an ALFWorld player knows: the task, and what the observations have said so far."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

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
REFUSAL = "Nothing happens."

TREATMENTS = {
    "pick_clean_then_place_in_recep": "clean",
    "pick_heat_then_place_in_recep": "heat",
    "pick_cool_then_place_in_recep": "cool",
}
APPLIANCES = {"clean": "sinkbasin", "heat": "microwave", "cool": "fridge"}
_CANCELLED_BY = {"heat": "cool", "cool": "heat"}

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
        return TREATMENTS.get(self.task_type)

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
        changed: Receptacles that were added to or taken from since they were last looked at.
    """

    places: dict[str, Place] = field(default_factory=dict)
    location: str | None = None
    held: str | None = None
    origins: dict[str, str] = field(default_factory=dict)
    treated: dict[str, set[str]] = field(default_factory=dict)
    lit: set[str] = field(default_factory=set)
    changed: set[str] = field(default_factory=set)

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
        self.changed.discard(name)

    def _see_hands(self, observation: str) -> None:
        for thing, name in _TAKEN.findall(observation):
            self._lift(thing)
            self.held, self.location, self.origins[thing] = thing, name, name
            self.changed.add(name)
        for thing, name in _MOVED.findall(observation):
            self._lift(thing)
            place = self.places.setdefault(name, Place())
            place.contents = [*(place.contents or ()), thing]
            self.held, self.location = None, name
            self.changed.add(name)
        carried = _CARRIED.search(observation)
        if carried:
            self.held = next(iter(_THING.findall(carried[1] or "")), None)

    def _lift(self, thing: str) -> None:
        """Removes an object from wherever it was believed to lie."""
        for place in self.places.values():
            if place.contents and thing in place.contents:
                place.contents.remove(thing)
