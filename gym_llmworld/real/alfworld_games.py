"""ALFWorld games without a download: generated from what the ``alfworld`` wheel ships.

ALFWorld's own games are a release download. The wheel has everything else: the rooms, what fits
where, the goals in PDDL with their wording, the domain and the grammar. A game here is one of
ALFWorld's tasks (type, object, receptacle, room) with objects placed at random, in the file format
of the download, so that ALFWorld's own classes play it too.

The same `GameSpec` always gives the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from gym_llmworld.errors import MissingDependency, ScenarioError
from gym_llmworld.real.alfworld_names import mangle, names_of
from gym_llmworld.real.alfworld_rooms import (
    Draw,
    Receptacle,
    Room,
    alfworld_constants,
    fixed_receptacle_types,
    holdable,
    object_id,
    read_room,
)
from gym_llmworld.real.alfworld_tasks import (
    GENERATOR_VERSION,
    TREATMENTS,
    GameSpec,
    Task,
    placeable_types,
    tasks_of,
)

_OPENABLE = frozenset({"Fridge", "Cabinet", "Microwave", "Drawer", "Safe"})
_SURFACES = ("CounterTop", "DiningTable", "CoffeeTable", "SideTable", "Desk", "Dresser", "TVStand")
_SEATS = ("Bed", "Sofa", "ArmChair")
_DECOR = {
    "DeskLamp": _SURFACES,
    "FloorLamp": _SURFACES,
    "HousePlant": _SURFACES,
    "Television": _SURFACES,
    "Mirror": _SURFACES,
    "ShowerGlass": _SURFACES,
    "PaperTowelRoll": _SURFACES,
    "TeddyBear": _SEATS,
}
_ROOMY = frozenset({*_SURFACES, "Bed", "Sofa", "Fridge"})


@dataclass(frozen=True, slots=True)
class Game:
    """A generated game.

    Attributes:
        spec: What it follows from.
        instruction: ``put a hot plate in cabinet.``
        domain: PDDL domain.
        problem: PDDL problem: the room, where things are, the goal.
        grammar: How the engine words what happens.
        plan: Commands that solve it.
    """

    spec: GameSpec
    instruction: str
    domain: str
    problem: str
    grammar: str
    plan: tuple[str, ...]

    @property
    def task(self) -> Task:
        """The task, taken apart."""
        return Task.parse(self.spec.task)

    def game_data(self) -> dict[str, Any]:
        """Returns what ``game.tw-pddl`` holds."""
        return {
            "pddl_domain": self.domain,
            "grammar": self.grammar,
            "pddl_problem": self.problem,
            "solvable": True,
            "walkthrough": list(self.plan),
        }

    def traj_data(self) -> dict[str, Any]:
        """Returns what ``traj_data.json`` holds: the part of ALFRED's that ALFWorld reads."""
        task = self.task
        looks = task.type == "look_at_obj_in_light"
        return {
            "task_id": self.spec.trial,
            "task_type": task.type,
            "pddl_params": {
                "object_target": task.object,
                "parent_target": "" if looks else task.receptacle,
                "toggle_target": task.receptacle if looks else "",
                "mrecep_target": "",
                "object_sliced": False,
            },
            "scene": {"floor_plan": f"FloorPlan{task.scene}", "scene_num": task.scene},
            "turk_annotations": {"anns": [{"task_desc": self.instruction}]},
            "generator": {"version": GENERATOR_VERSION, **_as_json(self.spec)},
        }


def _as_json(spec: GameSpec) -> dict[str, Any]:
    return {"task": spec.task, "seed": spec.seed}


@dataclass(slots=True)
class _Thing:
    id: str
    type: str
    place: Receptacle


def build_game(spec: GameSpec) -> Game:
    """Generates a game.

    The plan is written from the known places, not searched for; `game_scenario` proves it in the
    engine.

    Raises:
        ScenarioError: The room does not allow the task.
        MissingDependency: alfworld is not installed.
    """
    task = Task.parse(spec.task)
    room = read_room(task.scene)
    if task not in tasks_of(task.scene):
        raise ScenarioError(
            f"{room.kind} {task.scene} does not allow {spec.task!r}: the object, the "
            f"receptacle or what the task needs is not there. See tasks_of({task.scene})"
        )
    draw = Draw(f"game {GENERATOR_VERSION} {spec.task} {spec.seed}")
    things = _place_things(room, task, draw)
    start = draw.pick(room.starts)
    instruction = _instruction(task, draw)
    plan = _plan(room, task, things, draw)
    return Game(
        spec=spec,
        instruction=instruction,
        domain=_shipped("alfred.pddl"),
        problem=_problem(spec, room, task, things, start),
        grammar=_shipped("alfred.twl2").replace("UNKNOWN GOAL.", instruction),
        plan=plan,
    )


def _place_things(room: Room, task: Task, draw: Draw) -> list[_Thing]:
    things: list[_Thing] = []
    fill = draw.between(0.6, 1.0)
    for kind in draw.shuffled(placeable_types(room)):
        target = kind == task.object
        if not target and not draw.chance(fill):
            continue
        copies = 1 + draw.chance(0.4) + draw.chance(0.2)
        if target and task.type == "pick_two_obj_and_place":
            copies = 2 + draw.chance(0.3)
        barred = task.receptacle if target else None
        places = [r for r in room.receptacles if r.type != barred and kind in holdable()[r.type]]
        things += [_put(kind, places, things, draw) for _ in range(copies)]
    for kind, preferred in _DECOR.items():
        if kind in room.object_types:
            places = [r for r in room.receptacles if r.type in preferred] or [
                r for r in room.receptacles if r.type not in _OPENABLE
            ]
            things.append(_put(kind, places, things, draw))
    return things


def _put(kind: str, places: Sequence[Receptacle], things: Sequence[_Thing], draw: Draw) -> _Thing:
    def room_left(place: Receptacle) -> float:
        crowd = sum(thing.place == place for thing in things)
        return (3.0 if place.type in _ROOMY else 1.0) / (1 + crowd)

    place = draw.weighted(places, room_left)
    taken = {thing.id for thing in things}
    while True:
        x, y, z = place.position
        name = object_id(
            kind,
            x + draw.between(-0.4, 0.4),
            y + draw.between(0.0, 0.1),
            z + draw.between(-0.4, 0.4),
        )
        if name not in taken:
            return _Thing(name, kind, place)


def _instruction(task: Task, draw: Draw) -> str:
    try:
        from alfworld.gen.goal_library import gdict
    except ImportError as error:
        raise MissingDependency("alfworld", "alfworld") from error
    wording = draw.pick(gdict[task.type]["templates"])
    place = task.receptacle.lower()
    return f"{wording.format(obj=task.object.lower(), recep=place, toggle=place, mrecep='')}."


class _Planner:
    """Writes commands and keeps track of where the agent is and what is open."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self.commands: list[str] = []
        self._names = names
        self._location = ""
        self._opened: set[str] = set()

    def visit(self, place: Receptacle, *, inside: bool) -> None:
        if place.location != self._location:
            self.commands.append(f"go to {self._names[place.id]}")
            self._location = place.location
        if inside and place.type in _OPENABLE and place.id not in self._opened:
            self.commands.append(f"open {self._names[place.id]}")
            self._opened.add(place.id)

    def take(self, thing: _Thing) -> None:
        self.visit(thing.place, inside=True)
        self.commands.append(f"take {self._names[thing.id]} from {self._names[thing.place.id]}")

    def treat(self, verb: str, thing: _Thing, place: Receptacle) -> None:
        self.visit(place, inside=False)
        self.commands.append(f"{verb} {self._names[thing.id]} with {self._names[place.id]}")

    def move(self, thing: _Thing, place: Receptacle) -> None:
        self.visit(place, inside=True)
        self.commands.append(f"move {self._names[thing.id]} to {self._names[place.id]}")

    def use(self, lamp: _Thing) -> None:
        self.visit(lamp.place, inside=True)
        self.commands.append(f"use {self._names[lamp.id]}")


def _plan(room: Room, task: Task, things: Sequence[_Thing], draw: Draw) -> tuple[str, ...]:
    ids = [mangle(x) for x in (*(r.id for r in room.receptacles), *(t.id for t in things))]
    named = names_of(ids)
    planner = _Planner({raw: named[mangle(raw)] for raw in _raw_ids(room, things)})
    targets = draw.shuffled([thing for thing in things if thing.type == task.object])
    if task.type == "look_at_obj_in_light":
        planner.take(targets[0])
        planner.use(draw.pick([thing for thing in things if thing.type == task.receptacle]))
        return tuple(planner.commands)
    goal = draw.pick([r for r in room.receptacles if r.type == task.receptacle])
    for target in targets[: 2 if task.type == "pick_two_obj_and_place" else 1]:
        planner.take(target)
        if task.type in TREATMENTS:
            verb, place_type, _ = TREATMENTS[task.type]
            planner.treat(
                verb, target, draw.pick([r for r in room.receptacles if r.type == place_type])
            )
        planner.move(target, goal)
    return tuple(planner.commands)


def _raw_ids(room: Room, things: Sequence[_Thing]) -> list[str]:
    return [*(r.id for r in room.receptacles), *(t.id for t in things)]


@cache
def _shipped(name: str) -> str:
    return (Path(str(alfworld_constants().__file__)).parents[1] / "data" / name).read_text()


def _problem(spec: GameSpec, room: Room, task: Task, things: Sequence[_Thing], start: str) -> str:
    """Writes ``initial_state.pddl`` with ALFWorld's sections, in its order."""
    constants = alfworld_constants()
    fixed = sorted(fixed_receptacle_types())
    loose = sorted(set(constants.OBJECTS_SET) - set(fixed))
    things = sorted(things, key=lambda thing: thing.id)
    locations = sorted({start, *(r.location for r in room.receptacles)})
    objects = [
        "agent1 # agent",
        *(f"{kind} # object" for kind in loose),
        *(f"{kind}Type # otype" for kind in loose),
        *(f"{kind}Type # rtype" for kind in fixed),
        *(f"{thing.id} # object" for thing in things),
        *(f"{place.id} # receptacle" for place in room.receptacles),
        *(f"{location} # location" for location in locations),
    ]
    present = {thing.type for thing in things}
    actions = constants.VAL_ACTION_OBJECTS
    decor = frozenset(_DECOR)
    facts = [
        "= (totalCost) 0",
        *(f"receptacleType {r.id} {r.type}Type" for r in room.receptacles),
        *(f"objectType {thing.id} {thing.type}Type" for thing in things),
        *(
            f"canContain {place}Type {kind}Type"
            for place in sorted(room.receptacle_types)
            for kind in holdable().get(place, ())
            if kind in present
        ),
        *(f"pickupable {thing.id}" for thing in things if thing.type not in decor),
        *(
            f"isReceptacleObject {thing.id}"
            for thing in things
            if thing.type in constants.MOVABLE_RECEPTACLES_SET
        ),
        *(f"openable {r.id}" for r in room.receptacles if r.type in _OPENABLE),
        f"atLocation agent1 {start}",
        *(
            f"{predicate} {thing.id}"
            for predicate, table in (
                ("cleanable", "Cleanable"),
                ("heatable", "Heatable"),
                ("coolable", "Coolable"),
                ("toggleable", "Toggleable"),
                ("sliceable", "Sliceable"),
            )
            for thing in things
            if thing.type in actions[table]
        ),
        *(f"inReceptacle {thing.id} {thing.place.id}" for thing in things),
        *(f"receptacleAtLocation {r.id} {r.location}" for r in room.receptacles),
    ]
    text = (
        f"(define (problem plan_{spec.trial})\n"
        "    (:domain alfred)\n"
        "    (:objects\n" + "".join(f"        {line}\n" for line in objects) + "    )\n"
        "    (:init\n" + "".join(f"        ({line})\n" for line in facts) + "    )\n"
    )
    return mangle(text) + _goal(task)


def _goal(task: Task) -> str:
    from alfworld.gen.goal_library import gdict

    pddl = gdict[task.type]["pddl"].format(
        obj=task.object, recep=task.receptacle, toggle=task.receptacle
    )
    return mangle("\n".join(line.rstrip() for line in pddl.splitlines() if line.strip()) + "\n")


def dump_game(game: Game) -> dict[str, str]:
    """Returns the game's files by name, as ALFWorld lays them out."""
    return {
        "game.tw-pddl": json.dumps(game.game_data()),
        "initial_state.pddl": game.problem,
        "traj_data.json": json.dumps(game.traj_data(), indent=1),
    }
