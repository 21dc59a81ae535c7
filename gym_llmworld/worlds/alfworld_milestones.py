"""How much of an ALFWorld task is done, read from the observations alone.

The way to a solved task has milestones: the thing is in hand, it has been cleaned, it lies where it
was wanted. AgentBoard's progress rate (Ma et al., arXiv 2401.13178, section 3.2) counts such
subgoals in the engine's state; here they are read from text, so that they mean the same in an
imagined world and in the real one.
"""

from __future__ import annotations

from collections.abc import Sequence

from gym_llmworld.core import Scenario, Step
from gym_llmworld.worlds.alfworld_belief import AlfworldBelief, AlfworldGoal, kind_of

_TWO = "pick_two_obj_and_place"
_LOOK = "look_at_obj_in_light"


def milestones(scenario: Scenario, steps: Sequence[Step]) -> list[float]:
    """Returns the share of the task's milestones that are behind the player, before and after.

    Milestones of a thing: it is in hand; it is in hand and has been treated, where the task wants
    it clean, hot or cool; it lies in a place of the wanted kind. Of two things both are counted.
    Giving up a milestone takes it back, so that a detour earns nothing. What is solved is 1, and
    nothing else is.

    Args:
        scenario: Where the episode starts.
        steps: What happened.

    Returns:
        Shares in [0, 1]: before the first step, then after each.

    Raises:
        ScenarioError: The instruction follows none of ALFWorld's templates.
    """
    goal = AlfworldGoal.of(scenario)
    belief = AlfworldBelief()
    belief.update(scenario.observation)
    found = [_share(goal, belief)]
    for step in steps:
        belief.update(step.observation)
        solved = step.terminated and step.reward > 0
        found.append(1.0 if solved else _share(goal, belief))
    return found


def _share(goal: AlfworldGoal, belief: AlfworldBelief) -> float:
    """Returns what is known to be done, short of the end that only the world declares."""
    things = 2 if goal.task_type == _TWO else 1
    of_each = 3 if goal.treatment else 2
    lying = () if goal.task_type == _LOOK else belief.find(goal.target)
    delivered = sum(
        _treated(goal, belief, thing) and kind_of(place) == goal.place for thing, place in lying
    )
    done = min(delivered, things) * of_each
    if delivered < things and belief.held is not None and kind_of(belief.held) == goal.target:
        done += 2 if goal.treatment and _treated(goal, belief, belief.held) else 1
    whole = things * of_each
    return min(done, whole - 1) / whole


def _treated(goal: AlfworldGoal, belief: AlfworldBelief, thing: str) -> bool:
    return goal.treatment is None or goal.treatment in belief.treated.get(thing, ())
