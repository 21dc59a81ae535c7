"""What a game looks like from outside: the first observation, and what it hides."""

from __future__ import annotations

from typing import Any

from gym_llmworld.real.alfworld_names import names_of
from gym_llmworld.real.alfworld_pddl import Problem
from gym_llmworld.real.alfworld_tasks import Task


def first_view(intro: str) -> str:
    """Returns the first observation as agents see it: no welcome line, no blank line."""
    return "\n".join(intro.split("\n\n")[1:])


def hidden_state(problem: Problem) -> dict[str, Any]:
    """Returns what is where at first, in the engine's names and order.

    Returns:
        ``{"receptacles": [{"name", "openable", "open", "contents"}], "toggles": {lamp: is it on},
        "together": [[names of receptacles reached from one and the same point], ...]}``.
    """
    names = names_of({thing for _, arguments in problem.facts for thing in arguments})
    openable = {r for (r,) in problem.of("openable")}
    opened = {r for (r,) in problem.of("opened")}
    toggled = {o for (o,) in problem.of("istoggled")}
    contents: dict[str, list[str]] = {}
    for thing, receptacle in problem.of("inreceptacle"):
        contents.setdefault(receptacle, []).append(names[thing])
    reached: dict[str, list[str]] = {}
    for receptacle, location in problem.of("receptacleatlocation"):
        reached.setdefault(location, []).append(names[receptacle])
    return {
        "receptacles": [
            {
                "name": names[receptacle],
                "openable": receptacle in openable,
                "open": receptacle in opened,
                "contents": contents.get(receptacle, []),
            }
            for receptacle, _ in problem.of("receptacleatlocation")
        ],
        "toggles": {names[lamp]: lamp in toggled for (lamp,) in problem.of("toggleable")},
        "together": [group for group in reached.values() if len(group) > 1],
    }


def task_facts(task: Task) -> dict[str, Any]:
    """Returns what ``Scenario.real`` says about a task."""
    return {
        "task_type": task.type,
        "object": task.object,
        "receptacle": task.receptacle,
        "scene": task.scene,
        "task": str(task),
    }
