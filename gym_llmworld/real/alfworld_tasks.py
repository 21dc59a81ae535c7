"""The tasks that ALFWorld's rooms allow, and how they are drawn."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from gym_llmworld.errors import ScenarioError
from gym_llmworld.real.alfworld_rooms import (
    Draw,
    Room,
    alfworld_constants,
    holdable,
    read_room,
    scenes_of,
)

GENERATOR_VERSION = 1
"""Moves when a spec would give another game than before."""

TASK_TYPES = (
    "pick_and_place_simple",
    "look_at_obj_in_light",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_two_obj_and_place",
)
"""The six task types of ALFWorld."""

SPLITS = ("train", "valid_seen", "valid_unseen")

LAMPS = ("DeskLamp", "FloorLamp")

TREATMENTS = {
    "pick_clean_then_place_in_recep": ("clean", "SinkBasin", "Cleanable"),
    "pick_heat_then_place_in_recep": ("heat", "Microwave", "Heatable"),
    "pick_cool_then_place_in_recep": ("cool", "Fridge", "Coolable"),
}
"""How an object is treated on its way: verb, where, and ALFWorld's list of objects for it."""


@dataclass(frozen=True, slots=True)
class Task:
    """What is to be done, and where.

    Attributes:
        type: One of `TASK_TYPES`.
        object: Type of the object, as ALFRED spells it (``Plate``).
        receptacle: Type of the goal receptacle; of the lamp in ``look_at_obj_in_light``.
        scene: Number of the room.
    """

    type: str
    object: str
    receptacle: str
    scene: int

    def __str__(self) -> str:
        return f"{self.type}-{self.object}-None-{self.receptacle}-{self.scene}"

    @classmethod
    def parse(cls, text: str) -> Task:
        """Reads ``pick_heat_then_place_in_recep-Plate-None-Cabinet-19``.

        Raises:
            ScenarioError: The text has another form, or names an unknown task type.
        """
        match = re.fullmatch(r"(\w+)-(\w+)-None-(\w+)-(\d+)", text)
        if match is None or match[1] not in TASK_TYPES:
            raise ScenarioError(
                f"not a task: {text!r}; expected <type>-<Object>-None-<Receptacle>-<scene> with a "
                f"type out of {', '.join(TASK_TYPES)}"
            )
        return cls(match[1], match[2], match[3], int(match[4]))


@dataclass(frozen=True, slots=True)
class GameSpec:
    """All that a generated game follows from.

    Attributes:
        task: For example ``pick_heat_then_place_in_recep-Plate-None-Cabinet-19``.
        seed: Decides where things are, and how the task is worded.
    """

    task: str
    seed: int

    @property
    def trial(self) -> str:
        """Name of the game's folder."""
        return f"trial_{self.seed:012d}"


@cache
def tasks_of(scene: int) -> tuple[Task, ...]:
    """Returns every task that a room allows, in a fixed order.

    Raises:
        ScenarioError: No such room.
        MissingDependency: alfworld is not installed.
    """
    room = read_room(scene)
    valid = alfworld_constants().GOALS_VALID
    types = (kind for kind in TASK_TYPES if room.kind in valid[kind])
    return tuple(task for kind in types for task in _tasks_of_type(room, kind))


def _tasks_of_type(room: Room, kind: str) -> Iterable[Task]:
    objects = placeable_types(room)
    if kind == "look_at_obj_in_light":
        for lamp in (lamp for lamp in LAMPS if lamp in room.object_types):
            yield from (Task(kind, thing, lamp, room.scene) for thing in objects)
        return
    treated_at = None
    if kind in TREATMENTS:
        _, treated_at, table = TREATMENTS[kind]
        if treated_at not in room.receptacle_types:
            return
        objects = tuple(o for o in objects if o in alfworld_constants().VAL_ACTION_OBJECTS[table])
    for thing in objects:
        places = sorted(t for t in room.receptacle_types if thing in holdable().get(t, ()))
        for place in places:
            # It must start somewhere else than where it shall end.
            if place != treated_at and len(places) > 1:
                yield Task(kind, thing, place, room.scene)


def placeable_types(room: Room) -> tuple[str, ...]:
    """Returns the object types of a room that one of its receptacles can contain, sorted."""
    held = {thing for place in room.receptacle_types for thing in holdable().get(place, ())}
    return tuple(thing for thing in room.object_types if thing in held)


def sample_specs(split: str, n: int, seed: int = 0) -> list[GameSpec]:
    """Draws tasks with their game seeds; see `spec_stream`. A longer list starts with the shorter.

    Args:
        split: ``train``, ``valid_seen`` or ``valid_unseen``.
        n: How many.
        seed: Of the draw.

    Raises:
        ScenarioError: There is no such split.
        MissingDependency: alfworld is not installed.
    """
    return list(itertools.islice(spec_stream(split, seed), n))


def spec_stream(split: str, seed: int = 0) -> Iterator[GameSpec]:
    """Draws without end: task types in turn; rooms, objects, places and game seeds at random.

    ``valid_seen`` plays in the rooms of ``train`` with other games: the seeds of different splits
    never coincide.

    Raises:
        ScenarioError: There is no such split.
        MissingDependency: alfworld is not installed.
    """
    scenes = scenes_of(split)
    return _draw_specs(split, seed, scenes)


def _draw_specs(split: str, seed: int, scenes: Sequence[int]) -> Iterator[GameSpec]:
    draw = Draw(f"specs {GENERATOR_VERSION} {split} {seed}")
    rooms = {
        kind: [scene for scene in scenes if any(task.type == kind for task in tasks_of(scene))]
        for kind in TASK_TYPES
    }
    seen: set[GameSpec] = set()
    for kind in itertools.cycle(TASK_TYPES):
        spec = None
        while spec is None or spec in seen:
            tasks = [task for task in tasks_of(draw.pick(rooms[kind])) if task.type == kind]
            thing = draw.pick(sorted({task.object for task in tasks}))
            task = draw.pick([task for task in tasks if task.object == thing])
            game_seed = draw.below(10**9) * len(SPLITS) + SPLITS.index(split)
            spec = GameSpec(str(task), game_seed)
        seen.add(spec)
        yield spec


def split_of(spec: GameSpec) -> str:
    """Returns the split whose draw a spec belongs to."""
    return SPLITS[spec.seed % len(SPLITS)]
