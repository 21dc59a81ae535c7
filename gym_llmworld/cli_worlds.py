"""From what a command line says to worlds, scenarios, models and agents."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import gymnasium as gym
import numpy as np

from gym_llmworld.agents import Agent
from gym_llmworld.backends import load_backend
from gym_llmworld.backends.base import Backend
from gym_llmworld.checkpoints import checkpoint_style, embedded_model
from gym_llmworld.collection import resolve
from gym_llmworld.core import Scenario
from gym_llmworld.errors import ScenarioError
from gym_llmworld.protocol import Protocol
from gym_llmworld.scenarios import ScenarioStore
from gym_llmworld.worlds import World, get_world, world_keys

EMBEDDED = "embedded"
"""What reports call the model that ships with the package."""

SCENARIOS_FILE = "scenarios.jsonl"


def world_of(env_id: str) -> World:
    """Returns the world of an imagined environment's id.

    Raises:
        gymnasium.error.Error: There is no such id.
        ScenarioError: The id is another environment's.
    """
    spec = gym.spec(env_id)
    for key in world_keys():
        world = get_world(key)
        if spec.id.replace("/", "-") == world.imagined_id:
            return world
    ids = ", ".join(get_world(key).imagined_id for key in world_keys())
    raise ScenarioError(f"{env_id} is no learned world; expected one of {ids}")


def games_of(world: World, games: str | None, split: str | None) -> list[Scenario]:
    """Returns games in file order.

    Args:
        world: Whose games.
        games: File or folder of scenarios, or the tree of games that the real engine's own download
            makes; None for those that ship with the package.
        split: One split; None for all.

    Raises:
        ScenarioError: There are no such games.
    """
    if _engine_tree(games):
        load, root = real_games(world).load_games, Path(games)
        present = [s for s in world.splits if (root / s).is_dir() or any(root.glob(f"*/{s}"))]
        names = [split] if split else present
        return [scenario for name in names for scenario in load(games, name)]
    store = ScenarioStore(world.key, games)
    splits = [split] if split else store.splits()
    return [scenario for name in splits for scenario in store.of_split(name)]


def _engine_tree(games: str | None) -> TypeGuard[str]:
    if games is None or not Path(games).is_dir():
        return False
    root = Path(games)
    return not any([*root.glob(SCENARIOS_FILE), *root.glob(f"*/{SCENARIOS_FILE}")])


def real_games(world: World) -> Any:
    """Returns the module with ``write_games`` and ``load_games`` of a world."""
    return importlib.import_module(world.games_module)


def held_out(
    world: World, games: str | None, split: str | None, count: int, seed: int
) -> list[Scenario]:
    """Draws at most ``count`` games without replacement, see `games_of`.

    Without a split, games of the training split (the first of ``world.splits``) are drawn only when
    there are no others.
    """
    pool = games_of(world, games, split)
    if split is None:
        pool = [s for s in pool if s.split != world.splits[0]] or pool
    order = np.random.default_rng(seed).permutation(len(pool))
    return [pool[i] for i in order[:count]]


def agent_makers(world: World, names: str, *, real: bool = False) -> dict[str, Callable[[], Agent]]:
    """Reads a list of agents such as ``"expert,noisy"``, see `agent_maker`."""
    return {name: agent_maker(world, name, real=real) for name in map(str.strip, names.split(","))}


def agent_maker(world: World, name: str, *, real: bool = False) -> Callable[[], Agent]:
    """Returns a maker of fresh agents; it can be pickled.

    Args:
        world: Whose agents.
        name: One of ``world.agents``.
        real: Allow ``world.real_policies``, too.

    Raises:
        ScenarioError: The world has no agent of this name.
    """
    known = [*world.agents, *(world.real_policies if real else ())]
    if name not in known:
        raise ScenarioError(
            f"{world.title} has no agent {name!r}; expected one of {', '.join(known)}"
        )
    return functools.partial(make_agent, world.key, name)


def make_agent(world: str, name: str) -> Agent:
    """Returns a fresh agent of a world."""
    spec = get_world(world)
    factory = spec.agents.get(name) or resolve(spec.real_policies[name])
    agent: Agent = factory()
    return agent


def open_model(world: World, model: str | None, backend: str) -> tuple[Backend, Protocol]:
    """Opens a world model outside of an environment.

    Raises:
        CheckpointError: It cannot serve as a world model.
        MissingDependency: The backend needs an extra that is not installed.
    """
    name = embedded_model(world.key) if model is None else model
    return load_backend(name, backend), world.protocol(checkpoint_style(name))


def imagined_options(
    model: str | None, backend: str, games: str | None, scenarios: Sequence[Scenario] = ()
) -> dict[str, Any]:
    """Returns the arguments of ``gym.make`` for an imagined world that plays these scenarios."""
    options: dict[str, Any] = {"model": model, "backend": backend}
    if not _engine_tree(games):
        options["scenarios"] = games
        if scenarios:
            options["split"] = scenarios[0].split
    return options
