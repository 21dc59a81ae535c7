"""The 120 rooms of ALFWorld, read from the layout files that the ``alfworld`` wheel ships.

A layout names the receptacles of an AI2-THOR floor plan with the point from which the agent reaches
them, the object types of the room and the points on which the agent can stand. Receptacle types
that a layout lists without a place (stove burners, the toaster, ...) are put at a free point, the
same one in every game of the room.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from gym_llmworld.errors import MissingDependency, ScenarioError

UNSEEN_SCENES = (10, 219, 308, 424)
"""The rooms of ALFWorld's ``valid_unseen`` split: one of each kind, never in ``train``."""

ROOM_KINDS = {"Kitchen": 0, "LivingRoom": 200, "Bedroom": 300, "Bathroom": 400}
_ROOMS_PER_KIND = 30

# AI2-THOR's grid and camera, as ALFRED's planner uses them.
_GRID = 0.25
_CAMERA_HEIGHT = 1.65
_HORIZON_STEP = 15
_FORCED_HORIZON = {"FloorLamp": 0, "Toilet": 15}
_START_HORIZON = 30

# Height in metres of the receptacles that a layout does not place.
_ADDED_HEIGHT = {
    "StoveBurner": 0.92,
    "CoffeeMachine": 0.9,
    "Toaster": 0.9,
    "TowelHolder": 1.35,
    "HandTowelHolder": 1.6,
    "ToiletPaperHanger": 0.8,
    "SinkBasin": 0.85,
    "Shelf": 1.1,
    "Cabinet": 0.5,
    "Drawer": 0.55,
}
_ADDED_COPIES = {"StoveBurner": 4}

T = TypeVar("T")


class Draw:
    """A source of choices that is the same on every platform and Python version.

    Only ``random.Random.random`` promises an unchanging sequence for a seed; every choice is
    derived from it.

    Args:
        key: What the choices follow from.
    """

    def __init__(self, key: str) -> None:
        self._random = random.Random(key).random

    def below(self, bound: int) -> int:
        """Returns an integer in [0, bound)."""
        return int(self._random() * bound)

    def chance(self, p: float) -> bool:
        """Returns True with probability ``p``."""
        return self._random() < p

    def between(self, low: float, high: float) -> float:
        """Returns a number in [low, high)."""
        return low + (high - low) * self._random()

    def pick(self, choices: Sequence[T]) -> T:
        """Returns one of the choices, all equally likely."""
        return choices[self.below(len(choices))]

    def weighted(self, choices: Sequence[T], weight: Callable[[T], float]) -> T:
        """Returns one of the choices, likely in proportion to its weight."""
        weights = [weight(choice) for choice in choices]
        left = self._random() * sum(weights)
        for choice, share in zip(choices, weights, strict=True):
            left -= share
            if left < 0:
                return choice
        return choices[-1]

    def shuffled(self, choices: Sequence[T]) -> list[T]:
        """Returns the choices in random order."""
        rest, order = list(choices), []
        while rest:
            order.append(rest.pop(self.below(len(rest))))
        return order


@dataclass(frozen=True, slots=True)
class Receptacle:
    """A place that can hold objects.

    Attributes:
        id: As AI2-THOR writes it, ``Type|x|y|z``, basins ``Sink|x|y|z|SinkBasin``.
        type: For example ``Cabinet``.
        location: From where the agent reaches it, ``loc|x|z|rotation|horizon`` in grid steps.
    """

    id: str
    type: str
    location: str

    @property
    def position(self) -> tuple[float, float, float]:
        """x, y (height) and z in metres."""
        return _position(self.id)


@dataclass(frozen=True, slots=True)
class Room:
    """A floor plan.

    Attributes:
        scene: Its number.
        kind: ``Kitchen``, ``LivingRoom``, ``Bedroom`` or ``Bathroom``.
        receptacles: In the order of their ids.
        object_types: What the floor plan contains, sorted, receptacles left out.
        starts: Locations where an episode can begin: nothing is reached from there.
    """

    scene: int
    kind: str
    receptacles: tuple[Receptacle, ...]
    object_types: tuple[str, ...]
    starts: tuple[str, ...]

    @property
    def receptacle_types(self) -> frozenset[str]:
        """Types of its receptacles."""
        return frozenset(receptacle.type for receptacle in self.receptacles)


def alfworld_constants() -> ModuleType:
    """Imports ALFWorld's tables of what fits where.

    Raises:
        MissingDependency: alfworld is not installed.
    """
    try:
        from alfworld.gen import constants
    except ImportError as error:
        raise MissingDependency("alfworld", "alfworld") from error
    return constants  # type: ignore[no-any-return]


@lru_cache(maxsize=1)
def fixed_receptacle_types() -> frozenset[str]:
    """Returns the receptacle types that cannot be carried."""
    constants = alfworld_constants()
    return frozenset(constants.RECEPTACLES) - frozenset(constants.MOVABLE_RECEPTACLES_SET)


@lru_cache(maxsize=1)
def holdable() -> dict[str, tuple[str, ...]]:
    """Returns for each receptacle type the object types it can contain, sorted, slices left out."""
    constants = alfworld_constants()
    return {
        receptacle: tuple(sorted(o for o in objects if not o.endswith("Sliced")))
        for receptacle, objects in sorted(constants.VAL_RECEPTACLE_OBJECTS.items())
        if receptacle in fixed_receptacle_types()
    }


def scenes_of(split: str) -> tuple[int, ...]:
    """Returns the numbers of the rooms of a split.

    Raises:
        ScenarioError: There is no such split.
    """
    if split == "valid_unseen":
        return UNSEEN_SCENES
    if split not in ("train", "valid_seen"):
        raise ScenarioError(
            f"unknown split {split!r}; expected one of train, valid_seen, valid_unseen"
        )
    every = (
        base + number for base in ROOM_KINDS.values() for number in range(1, _ROOMS_PER_KIND + 1)
    )
    return tuple(scene for scene in every if scene not in UNSEEN_SCENES)


def room_kind(scene: int) -> str:
    """Returns ``Kitchen``, ``LivingRoom``, ``Bedroom`` or ``Bathroom``.

    Raises:
        ScenarioError: No such floor plan.
    """
    for kind, base in ROOM_KINDS.items():
        if base < scene <= base + _ROOMS_PER_KIND:
            return kind
    raise ScenarioError(f"no floor plan {scene}; expected 1-30, 201-230, 301-330 or 401-430")


@cache
def read_room(scene: int) -> Room:
    """Reads a floor plan.

    Args:
        scene: Its number, 1-30 kitchens, 201-230 living rooms, 301-330 bedrooms, 401-430 bathrooms.

    Raises:
        ScenarioError: No such floor plan.
        MissingDependency: alfworld is not installed.
    """
    import numpy as np

    kind = room_kind(scene)
    layouts = Path(str(alfworld_constants().__file__)).parent / "layouts"
    placed = json.loads((layouts / f"FloorPlan{scene}-openable.json").read_text())
    types = set(json.loads((layouts / f"FloorPlan{scene}-objects.json").read_text()))
    grid = np.load(layouts / f"FloorPlan{scene}-layout.npy")
    points = sorted((float(x), float(z)) for x, z in grid)

    receptacles = [
        Receptacle(id=name, type=_type_of(name), location=_location(name, (point[0], point[1])))
        for name, point in placed.items()
        if _type_of(name) in fixed_receptacle_types()
    ]
    receptacles += _added_receptacles(scene, types, receptacles, points)
    taken = {receptacle.location for receptacle in receptacles}
    starts = [_pose(x, z, turn, _START_HORIZON) for x, z in points for turn in range(4)]
    return Room(
        scene=scene,
        kind=kind,
        receptacles=tuple(sorted(receptacles, key=lambda r: r.id)),
        object_types=tuple(sorted(types - fixed_receptacle_types())),
        starts=tuple(start for start in starts if start not in taken),
    )


def _added_receptacles(
    scene: int,
    types: set[str],
    placed: Sequence[Receptacle],
    points: Sequence[tuple[float, float]],
) -> list[Receptacle]:
    draw = Draw(f"receptacles of {scene}")
    missing = sorted((types & fixed_receptacle_types()) - {r.type for r in placed})
    used = {receptacle.location for receptacle in placed}
    added: list[Receptacle] = []
    for kind in [name for name in missing for _ in range(_ADDED_COPIES.get(name, 1))]:
        while True:
            point = draw.pick(points)
            angle = draw.between(0, 2 * math.pi)
            name = object_id(
                kind,
                point[0] + 0.6 * math.cos(angle),
                _ADDED_HEIGHT.get(kind, 0.0),
                point[1] + 0.6 * math.sin(angle),
            )
            location = _location(name, point)
            if location not in used:
                break
        used.add(location)
        added.append(Receptacle(id=name, type=kind, location=location))
    return added


def object_id(kind: str, x: float, y: float, z: float) -> str:
    """Writes an AI2-THOR id from a type and a position in metres."""
    place = f"{x:+06.2f}|{y:+06.2f}|{z:+06.2f}"
    if kind.endswith("Basin"):
        return f"{kind.removesuffix('Basin')}|{place}|{kind}"
    return f"{kind}|{place}"


def _type_of(name: str) -> str:
    parts = name.split("|")
    return parts[-1] if parts[-1].endswith("Basin") else parts[0]


def _position(name: str) -> tuple[float, float, float]:
    x, y, z = (float(part) for part in name.split("|")[1:4])
    return x, y, z


def _location(name: str, point: tuple[float, float]) -> str:
    """Words from where a receptacle is reached: position, facing it, looking at its height.

    The angles are ALFRED's: the horizon in steps of 15 degrees, between 30 up and 60 down.
    """
    x, y, z = _position(name)
    east, north = x - point[0], z - point[1]
    sideways = abs(east) > abs(north)
    rotation = (1 if east > 0 else 3) if sideways else (0 if north > 0 else 2)
    kind = _type_of(name)
    if kind in _FORCED_HORIZON:
        return _pose(*point, rotation, _FORCED_HORIZON[kind])
    distance = max(abs(east), abs(north))
    steps = round(math.degrees(math.atan2(_CAMERA_HEIGHT - y, distance)) / _HORIZON_STEP)
    return _pose(*point, rotation, min(60, max(-30, steps * _HORIZON_STEP)))


def _pose(x: float, z: float, rotation: int, horizon: int) -> str:
    return f"loc|{round(x / _GRID)}|{round(z / _GRID)}|{rotation}|{horizon}"
