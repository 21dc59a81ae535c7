"""Gives real ALFWorld episodes other tasks, so that a world model learns what success is not.

    python -m training.relabelled --data episodes.jsonl --output relabelled.jsonl --seed 0
    python -m training.sft --data episodes.jsonl relabelled.jsonl --output runs/alfworld

Players who know what they do bring what they were asked for, and a model that has seen nobody else
calls every delivery a success; whoever trains in it learns to deliver anything. What the engine
answers does not depend on the task, apart from where it ends the episode. So a solved episode with
another task that was not met on the way is what the engine would have said to somebody who went
astray: the same observations, and no success. (Relabelling as in hindsight experience replay,
Andrychowicz et al., arXiv 1707.01495, in the opposite direction: for negatives.)

The other task is one of the file's that makes sense in the room: its object, its place and what
treats the object are there. Half of them have as much in common with the episode's own as there is:
object and place (a tomato that was to be cooled, and is now to be heated, or to be brought twice),
or one of them. A task that any moment of the episode might meet is never taken: no object of its
kind that has been treated as asked may ever lie in a place of its kind, no two of them where two
are asked for, and none may be in hand where it is to be looked at. The new scenarios cannot be
started in the engine.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gym_llmworld.core import Episode, Scenario, Step
from gym_llmworld.episodes import read_episodes, write_episodes
from gym_llmworld.errors import DataError, WorldModelError
from gym_llmworld.worlds.alfworld_belief import APPLIANCES, AlfworldBelief, AlfworldGoal, kind_of

_LOOK = "look_at_obj_in_light"
_TWO = "pick_two_obj_and_place"
_AKIN = 0.5
"""Share of the new tasks that have as much in common with the old one as there is."""


@dataclass(frozen=True, slots=True)
class Course:
    """What an episode's room holds, and where things have been on the way; all of them kinds.

    Attributes:
        things: Objects in the room.
        several: Those of which there are two or more.
        places: Receptacles in the room.
        lying: Objects, each with a receptacle that one of them was in at some moment.
        treated: The same with a treatment that the one in the receptacle had had by then.
        together: Objects, each with a receptacle that held two of them at some moment.
        held: Objects that were in hand at some moment.
    """

    things: frozenset[str]
    several: frozenset[str]
    places: frozenset[str]
    lying: frozenset[tuple[str, str]]
    treated: frozenset[tuple[str, str, str]]
    together: frozenset[tuple[str, str]]
    held: frozenset[str]

    @classmethod
    def of(cls, episode: Episode) -> Course:
        """Follows an episode from everything that there is to know at its start."""
        belief = AlfworldBelief.from_hidden(episode.scenario.hidden)
        count = Counter(map(kind_of, belief.things()))
        several = frozenset(kind for kind, n in count.items() if n > 1)
        places = frozenset(map(kind_of, belief.places))
        lying, together, held = set[tuple[str, str]](), set[tuple[str, str]](), set[str]()
        treated, treatments = set[tuple[str, str, str]](), defaultdict[str, set[str]](set)
        for observation in ("", *(step.observation for step in episode.steps)):
            belief.update(observation)
            held.update(kind_of(thing) for thing in (belief.held,) if thing is not None)
            # A no must be certain: what was cooled and has been heated since still counts as cold.
            for thing, had in belief.treated.items():
                treatments[thing] |= had
            lie = [
                (thing, kind_of(name))
                for name, place in belief.places.items()
                for thing in place.contents or ()
            ]
            now = Counter((kind_of(thing), place) for thing, place in lie)
            lying.update(now)
            together.update(both for both, n in now.items() if n > 1)
            treated.update(
                (kind_of(thing), place, treatment)
                for thing, place in lie
                for treatment in treatments[thing]
            )
        return cls(
            frozenset(count),
            several,
            places,
            frozenset(lying),
            frozenset(treated),
            frozenset(together),
            frozenset(held),
        )

    def makes_sense(self, goal: AlfworldGoal) -> bool:
        """Returns whether what a goal needs is in the room; a lamp is an object."""
        if goal.task_type == _TWO and goal.target not in self.several:
            return False
        if goal.treatment is not None and APPLIANCES[goal.treatment] not in self.places:
            return False
        there = self.things if goal.task_type == _LOOK else self.places
        return goal.target in self.things and goal.place in there

    def might_meet(self, goal: AlfworldGoal) -> bool:
        """Returns whether a goal may be met at some moment; never a wrong no."""
        if goal.task_type == _LOOK:
            return goal.target in self.held
        if goal.task_type == _TWO:
            return (goal.target, goal.place) in self.together
        if goal.treatment is not None:
            return (goal.target, goal.place, goal.treatment) in self.treated
        return (goal.target, goal.place) in self.lying


class Tasks:
    """The tasks of some scenarios, to choose others from.

    Args:
        scenarios: Of ALFWorld.

    Raises:
        ScenarioError: An instruction follows none of ALFWorld's templates.
    """

    def __init__(self, scenarios: Iterable[Scenario]) -> None:
        self._goals = {s.instruction: AlfworldGoal.of(s) for s in scenarios}

    def other(self, episode: Episode, rng: random.Random) -> str | None:
        """Returns an instruction that an episode does not meet; None if there is none."""
        own = AlfworldGoal.of(episode.scenario)
        told = [text for text in self._goals if text != episode.scenario.instruction]
        rng.shuffle(told)
        if rng.random() < _AKIN:
            told.sort(key=lambda text: -_in_common(self._goals[text], own))
        course = Course.of(episode)
        for text in told:
            goal = self._goals[text]
            if course.makes_sense(goal) and not course.might_meet(goal):
                return text
        return None


def _in_common(one: AlfworldGoal, other: AlfworldGoal) -> int:
    return (one.target == other.target) + (one.place == other.place)


def with_task(episode: Episode, instruction: str) -> Episode:
    """Returns an episode as if it had been played with another task, which it did not meet.

    Args:
        episode: A solved one.
        instruction: Of a task that `Course.might_meet` excludes.

    Raises:
        DataError: The first observation does not tell the task.
    """
    scenario = episode.scenario
    told = scenario.observation.count(scenario.instruction)
    if told != 1:
        raise DataError(
            f"{scenario.id}: expected a first observation that tells the task "
            f"{scenario.instruction!r} once, got it {told} times"
        )
    changed = replace(
        scenario,
        id=f"{scenario.id}/relabelled",
        instruction=instruction,
        observation=scenario.observation.replace(scenario.instruction, instruction),
        # The engine would start the game with its own task.
        real={},
    )
    *before, last = episode.steps
    ended = Step(last.action, last.observation, truncated=True)
    return replace(
        episode, scenario=changed, steps=(*before, ended), agent=f"{episode.agent}, relabelled"
    )


def check_source(episode: Episode, world: str = "alfworld") -> None:
    """Refuses what is not known to be worded by a world's engine.

    Raises:
        DataError: The episode is of another world, or imagined.
    """
    if episode.scenario.world != world or episode.source != "real":
        raise DataError(
            f"{episode.scenario.id}: expected real episodes of {world}, got "
            f"{episode.source!r} of {episode.scenario.world!r}; in other worlds what is "
            "answered depends on the task and on names"
        )


def relabelled(episodes: Sequence[Episode], seed: int) -> Iterator[Episode]:
    """Yields every solved episode for which there is another task, with that task.

    Args:
        episodes: Real ones of ALFWorld.
        seed: Of the choice.

    Raises:
        DataError: An episode is of another world, or imagined.
    """
    for episode in episodes:
        check_source(episode)
    tasks = Tasks(episode.scenario for episode in episodes)
    for number, episode in enumerate(episodes):
        if not episode.success:
            continue
        instruction = tasks.other(episode, random.Random(f"{seed}/{number}"))
        if instruction is not None:
            yield with_task(episode, instruction)


def parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    built = argparse.ArgumentParser(
        prog="python -m training.relabelled",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = built.add_argument
    add("--data", type=Path, nargs="+", required=True, metavar="FILE", help="real episodes")
    add("--output", type=Path, required=True, metavar="FILE", help="JSON Lines; replaced")
    add("--seed", type=int, default=0, help="of the tasks (default: 0)")
    return built


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    options = parser().parse_args(argv)
    try:
        episodes = [episode for file in options.data for episode in read_episodes(file)]
        count = write_episodes(options.output, relabelled(episodes, options.seed))
    except (WorldModelError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.output}: {count} of {len(episodes)} episodes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
