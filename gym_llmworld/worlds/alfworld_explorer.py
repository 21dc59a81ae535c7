"""An ALFWorld player without a goal: episodes of every kind of turn, for training world models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gym_llmworld.core import Scenario
from gym_llmworld.worlds.alfworld_belief import (
    APPLIANCES,
    REFUSAL,
    AlfworldBelief,
    AlfworldGoal,
    kind_of,
)

_KNIVES = ("knife", "butterknife")


class AlfworldExplorer:
    """Tries plausible commands at random, from the names it has read so far.

    Args:
        tour: Visit and open every receptacle once, in random order, with little else between.
        carrier: Take one thing after another and try to leave it wherever the way leads. What may
            lie where is the engine's table, and other players try little of it.
        name: What episodes call it.
    """

    def __init__(
        self, *, tour: bool = False, carrier: bool = False, name: str | None = None
    ) -> None:
        self.name = name or ("tour" if tour else "carrier" if carrier else "random")
        self._tour = tour
        self._carrier = carrier
        self._tried: set[str] = set()
        self._belief = AlfworldBelief()
        self._rng = np.random.default_rng(0)
        self._last: str | None = None

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Starts an episode."""
        self._belief = AlfworldBelief()
        self._rng = np.random.default_rng(seed)
        self._last = None
        self._tried = set()

    def act(self, observation: str, info: Mapping[str, Any]) -> str:
        """Draws a command."""
        belief = self._belief
        belief.update(observation)
        if self._last is not None and observation.strip() == REFUSAL:
            belief.refuse(self._last)
        purposeful = (self._tour or self._carrier) and self._rng.random() >= 0.15
        if not purposeful:
            self._last = self._draw(self._menu())
        else:
            self._last = self._next_stop() if self._tour else self._carry()
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

    def _carry(self) -> str:
        belief = self._belief
        name, near = belief.location, belief.within_reach()
        if belief.here is not None and belief.here.is_shut:
            return f"open {name}"
        if belief.held is not None and name not in (None, belief.origins.get(belief.held)):
            move = f"move {belief.held} to {name}"
            if move not in self._tried:
                self._tried.add(move)
                return move
        if belief.held is None and near:
            return f"take {self._pick(near)} from {name}"
        elsewhere = [place for place in belief.places if place != name]
        return f"go to {self._pick(elsewhere)}" if elsewhere else self._draw(self._menu())

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
            name: 4.0 if name in belief.changed else 3.0 if place.contents is None else 1.0
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
            yield 0.2 / len(near), f"examine {thing}"
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
            for verb, appliance in APPLIANCES.items():
                if kind_of(name or "") == appliance:
                    yield 5.0, f"{verb} {held} with {name}"

    def _blunders(self) -> Iterator[tuple[float, str]]:
        belief = self._belief
        places = list(belief.places) or ["countertop 1"]
        things = belief.things() or ["mug 1"]
        thing, place, other = self._pick(things), self._pick(places), self._pick(places)
        verb = self._pick(tuple(APPLIANCES))
        appliances = [n for n in places if kind_of(n) == APPLIANCES[verb]] or [place]
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


class AlfworldNovice(AlfworldExplorer):
    """Knows the words of the task and the verbs, and nothing of what has to come first.

    It takes what lies elsewhere, puts down what it does not hold, heats what it has not fetched, as
    a language model does that has read too few episodes. A world model that never met such a player
    believes it: every delivery that is worded like a success is taken for one.

    Args:
        name: What episodes call it.
    """

    def __init__(self, *, name: str = "novice") -> None:
        super().__init__(name=name)
        self._goal = AlfworldGoal("", "", "")

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Starts an episode.

        Raises:
            ScenarioError: The task is none of ALFWorld's.
        """
        super().reset(scenario, seed)
        self._goal = AlfworldGoal.of(scenario)

    def _menu(self) -> list[tuple[float, str]]:
        goal, belief = self._goal, self._belief
        places = list(belief.places) or [f"{goal.place} 1"]
        wanted = [thing for thing in belief.things() if kind_of(thing) == goal.target]
        target = self._pick([*wanted, f"{goal.target} 1", f"{goal.target} 2"])
        thing = self._pick([target, belief.held or target, *belief.things()[:3]])
        where = [name for name in places if kind_of(name) == goal.place] or [f"{goal.place} 1"]
        here = belief.location or self._pick(places)
        menu = [
            (3.0, f"go to {self._pick(places)}"),
            (1.5, f"go to {self._pick(where)}"),
            (0.5, f"go to {here}"),
            (1.5, f"open {here}"),
            (0.3, f"open {self._pick(places)}"),
            (0.3, f"close {here}"),
            (2.0, f"take {target} from {here}"),
            (1.0, f"take {thing} from {here}"),
            (0.7, f"take {target} from {self._pick(places)}"),
            (2.0, f"move {thing} to {self._pick(where)}"),
            (1.0, f"move {belief.held or target} to {here}"),
            (0.3, f"examine {self._pick((target, here))}"),
            (0.2, "inventory"),
            (0.2, "look"),
        ]
        verb = goal.treatment or self._pick(tuple(APPLIANCES))
        appliances = [n for n in places if kind_of(n) == APPLIANCES[verb]] or [here]
        menu.append((2.0 if goal.treatment else 0.3, f"{verb} {thing} with {appliances[0]}"))
        lamps = [thing for thing in belief.things() if kind_of(thing).endswith("lamp")]
        if goal.task_type == "look_at_obj_in_light" or lamps:
            menu.append((1.5, f"use {self._pick([*lamps, f'{goal.place} 1'])}"))
        return menu
