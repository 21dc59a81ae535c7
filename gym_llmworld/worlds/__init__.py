"""The mirrored worlds: what is specific to one of them, in one module each.

A world is data and a few pure functions: how its prompt styles word a scenario, which agents know
it, what its engine answers to nonsense. Adding one means a module here, a twin in
`gym_llmworld.real`, and a folder of data.
"""

from __future__ import annotations

from gym_llmworld.errors import ScenarioError
from gym_llmworld.worlds.base import World

_MODULES = {
    "alfworld": "gym_llmworld.worlds.alfworld",
    "scienceworld": "gym_llmworld.worlds.scienceworld",
    "textworld": "gym_llmworld.worlds.textworld",
    "webshop": "gym_llmworld.worlds.webshop",
    "frozenlake": "gym_llmworld.worlds.frozenlake",
    "sokoban": "gym_llmworld.worlds.sokoban",
    "sudoku": "gym_llmworld.worlds.sudoku",
    "objectgames": "gym_llmworld.worlds.objects",
    "miniwob": "gym_llmworld.worlds.miniwob",
}


def world_keys() -> tuple[str, ...]:
    """Returns the keys that `get_world` knows."""
    return tuple(_MODULES)


def get_world(key: str) -> World:
    """Returns the world of this key.

    Raises:
        ScenarioError: Unknown key.
    """
    import importlib

    if key not in _MODULES:
        raise ScenarioError(f"unknown world {key!r}; expected one of {', '.join(_MODULES)}")
    world: World = importlib.import_module(_MODULES[key]).WORLD
    return world


__all__ = ["World", "get_world", "world_keys"]
