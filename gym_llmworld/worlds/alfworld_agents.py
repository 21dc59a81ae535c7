"""ALFWorld players that read text only.

They know what a good player knows (what the observations mean, how the six kinds of task are
solved) and look at nothing but observations, so that they play the mirrored engine and an imagined
world alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from gym_llmworld.agents import Agent, CorruptedAgent, NoisyAgent, ScriptedAgent
from gym_llmworld.core import Scenario
from gym_llmworld.worlds.alfworld_belief import (
    APPLIANCES,
    REFUSAL,
    TREATMENTS,
    AlfworldBelief,
    AlfworldGoal,
    kind_of,
)
from gym_llmworld.worlds.alfworld_explorer import AlfworldExplorer, AlfworldNovice

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

_SEATS = (
    "basketball book box cellphone cloth creditcard keychain laptop newspaper pillow remotecontrol"
)
# What is found in these receptacles, and nothing else: a player's household sense, and ALFRED's
# table of valid places. Receptacles that are not listed may hold anything.
_HOLDS = {
    kind: frozenset(things.split())
    for kind, things in {
        "armchair": _SEATS,
        "ottoman": _SEATS,
        "sofa": _SEATS,
        "bed": "baseballbat basketball book cellphone laptop newspaper pillow tennisracket",
        "bathtubbasin": "cloth dishsponge handtowel soapbar",
        "cabinet": "book bowl box candle cd cloth cup dishsponge glassbottle handtowel kettle "
        "ladle mug newspaper pan peppershaker plate plunger pot saltshaker soapbar soapbottle "
        "spraybottle tissuebox toiletpaper toiletpaperroll vase wateringcan winebottle",
        "coffeemachine": "mug",
        "drawer": "book butterknife candle cd cellphone cloth creditcard dishsponge fork handtowel "
        "keychain knife ladle newspaper pen pencil peppershaker remotecontrol saltshaker soapbar "
        "soapbottle spatula spoon spraybottle tissuebox toiletpaper toiletpaperroll watch "
        "wateringcan",
        "fridge": "apple bowl bread cup egg glassbottle lettuce mug pan plate pot potato tomato "
        "winebottle",
        "handtowelholder": "handtowel",
        "laundryhamper": "cloth",
        "microwave": "apple bowl bread cup egg glassbottle mug plate potato tomato",
        "safe": "cd cellphone creditcard keychain statue vase watch",
        "sinkbasin": "apple bowl butterknife cloth cup dishsponge egg fork glassbottle handtowel "
        "kettle knife ladle lettuce mug pan plate pot potato soapbar spatula spoon tomato",
        "stoveburner": "kettle pan pot",
        "toaster": "",
        "toiletpaperhanger": "toiletpaper toiletpaperroll",
        "towelholder": "towel",
        "tvstand": "tissuebox",
    }.items()
}


def _may_hold(place: str, thing: str) -> bool:
    holds = _HOLDS.get(kind_of(place))
    return holds is None or thing in holds


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
        self._learn(observation)
        self._last = next(filter(self._worth_trying, self._wishes()))
        return self._last

    def _learn(self, observation: str) -> None:
        self._belief.update(observation)
        if self._last is not None and observation.strip() == REFUSAL:
            self._refusals[self._last] += 1
            self._belief.refuse(self._last)

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
        yield from self._search(goal.place if belief.held else goal.target)
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
                yield from self._search(goal.target)

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
            if kind_of(name) == APPLIANCES[treatment] and self._worth_trying(command):
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
        homes.add(kind_of(belief.origins.get(thing, "")))

        def cost(name: str) -> tuple[bool, bool, bool, bool, int]:
            kind, shut = kind_of(name), belief.places[name].is_shut
            unfit = not _may_hold(name, kind_of(thing))
            rank = _RANK.get(kind, _UNRANKED)
            return (kind not in homes, unfit, name != belief.location, shut, rank)

        for name in sorted(belief.places, key=cost):
            yield from self._deliver(thing, name)

    def _search(self, kind: str) -> Iterator[str]:
        """Visits and opens what has not been seen yet, most promising first.

        Args:
            kind: What is looked for.
        """
        belief = self._belief

        def cost(name: str) -> tuple[bool, bool, int]:
            elsewhere = name != belief.location
            return (not _may_hold(name, kind), elsewhere, _RANK.get(kind_of(name), _UNRANKED))

        unseen = [name for name, place in belief.places.items() if place.contents is None]
        for name in sorted(unseen, key=cost):
            if name != belief.location:
                yield f"go to {name}"
            elif belief.places[name].is_shut:
                yield f"open {name}"
            else:
                yield f"examine {name}"

    def _wander(self) -> str:
        choices = ["look", "inventory", *(f"go to {name}" for name in self._belief.places)]
        return choices[int(self._rng.integers(len(choices)))]


class AlfworldDetour(AlfworldExpert):
    """Does something first that looks like the task and is not, then the task.

    A world model that has seen only purposeful play takes every delivery for a success. Here the
    wrong thing is brought, or the right thing untreated, treated wrongly, or to the wrong place.

    Args:
        patience: Commands after which the detour is given up.
        name: What episodes call it.
    """

    def __init__(self, *, patience: int = 20, name: str = "detour") -> None:
        super().__init__(name=name)
        self._patience = patience
        self._task = self._goal
        self._left = 0

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Starts an episode."""
        super().reset(scenario, seed)
        self._task = self._goal
        self._left = self._patience
        decoys = self._decoys()
        if decoys:
            self._goal = decoys[int(self._rng.integers(len(decoys)))]

    def _learn(self, observation: str) -> None:
        super()._learn(observation)
        self._left -= 1
        if self._goal != self._task and (self._left <= 0 or self._achieved()):
            self._return()

    def _return(self) -> None:
        self._goal = self._task
        self._refusals.clear()

    def _wander(self) -> str:
        if self._goal == self._task:
            return super()._wander()
        self._return()
        return next(filter(self._worth_trying, self._wishes()))

    def _decoys(self) -> list[AlfworldGoal]:
        """Returns one goal per way of missing the task that the room allows."""
        task, belief = self._task, self._belief
        decoys = [
            replace(task, task_type=other)
            for other in ("pick_and_place_simple", *TREATMENTS)
            if task.treatment and other != task.task_type
        ]
        things = sorted({kind_of(thing) for thing in belief.things()} - {task.target})
        places = sorted({kind_of(name) for name in belief.places} - {task.place})
        if things:
            decoys.append(replace(task, target=self._pick(things)))
        if places:
            elsewhere = self._pick(places)
            decoys.append(AlfworldGoal("pick_and_place_simple", task.target, elsewhere))
        return decoys

    def _achieved(self) -> bool:
        goal, belief = self._goal, self._belief
        if goal.task_type == "look_at_obj_in_light":
            near = belief.lit.intersection(belief.within_reach())
            return bool(near) and kind_of(belief.held or "") == goal.target
        return any(
            kind_of(name) == goal.place
            and (goal.treatment is None or goal.treatment in belief.treated.get(thing, ()))
            for thing, name in belief.find(goal.target)
        )

    def _pick(self, choices: Sequence[str]) -> str:
        return choices[int(self._rng.integers(len(choices)))]


def _noisy(p: float, name: str) -> Agent:
    return NoisyAgent(AlfworldExpert(), p, AlfworldExplorer(), name=name)


def _careless() -> Agent:
    return NoisyAgent(AlfworldExpert(), 0.45, AlfworldNovice(), name="careless")


def _corrupted() -> Agent:
    return CorruptedAgent(_noisy(0.2, "noisy"), 0.35)


# Partials rather than lambdas, so that collection can send them to worker processes.
ALFWORLD_AGENTS: dict[str, Callable[[], Agent]] = {
    "expert": AlfworldExpert,
    "search": partial(AlfworldExpert, privileged=False),
    "noisy": partial(_noisy, 0.3, "noisy"),
    "noisy50": partial(_noisy, 0.5, "noisy50"),
    "random": AlfworldExplorer,
    "detour": AlfworldDetour,
    "careless": _careless,
    "novice": AlfworldNovice,
    "tour": partial(AlfworldExplorer, tour=True),
    "carrier": partial(AlfworldExplorer, carrier=True),
    "corrupted": _corrupted,
    "plan": ScriptedAgent,
}
"""Players by name: those that know the hidden facts (``expert``, and with ever more strays or slips
``noisy``, ``noisy50``, ``careless``, ``corrupted``; ``detour``), those that do not (``search``,
``random``, ``tour``, ``carrier``, ``novice``), and ``plan``, which replays the proof that a game is
solvable."""
