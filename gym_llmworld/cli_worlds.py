"""From what a command line says to worlds, scenarios, models and agents."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import gymnasium as gym
import numpy as np

from gym_llmworld.agents import Agent
from gym_llmworld.backends import BackendConfig, load_backend
from gym_llmworld.backends.base import Backend
from gym_llmworld.checkpoints import agent_style, checkpoint_style, embedded_model, read_card
from gym_llmworld.collection import resolve
from gym_llmworld.core import Episode, Scenario
from gym_llmworld.errors import DataError, ScenarioError
from gym_llmworld.llm_agent import LLMAgentMaker
from gym_llmworld.policy_prompt import PolicyPrompt
from gym_llmworld.protocol import Protocol
from gym_llmworld.scenarios import ScenarioStore
from gym_llmworld.worlds import World, get_world, world_keys

EMBEDDED = "embedded"
"""What reports call the model that ships with the package."""

LLM = "llm:"
"""What stands before the model of an agent that is one."""

SCENARIOS_FILE = "scenarios.jsonl"


def world_of(env_id: str) -> World:
    """Returns the world of an imagined environment's id.

    Raises:
        gymnasium.error.Error: There is no such id.
        ScenarioError: The id is another environment's, or the key of a world.
    """
    if env_id in world_keys():
        raise ScenarioError(
            f"{env_id!r} is a world; expected the id of its environment, "
            f"{get_world(env_id).imagined_id}"
        )
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
        # Games that lie in no split's folder are somebody's own, so no model has learned them.
        names = [split] if split else present or [world.splits[-1]]
        return [scenario for name in names for scenario in load(games, name)]
    store = ScenarioStore(world.key, games)
    splits = [split] if split else store.splits()
    return [scenario for name in splits for scenario in store.of_split(name)]


def _engine_tree(games: str | None) -> TypeGuard[str]:
    if games is None or not Path(games).is_dir():
        return False
    root = Path(games)
    return not any([*root.glob(SCENARIOS_FILE), *root.glob(f"*/{SCENARIOS_FILE}")])


def check_episodes(episodes: Sequence[Episode], world: World, file: Path) -> None:
    """Checks that a file holds real episodes of this world.

    Raises:
        DataError: It holds none, or others.
    """
    if not episodes:
        raise DataError(
            f"{file} holds no episode; make some with: llmworld collect {world.key} --out {file} "
            "--episodes 200"
        )
    for index, episode in enumerate(episodes):
        found = (episode.scenario.world, episode.source)
        if found != (world.key, "real"):
            raise DataError(
                f"{file}, episode {index}: expected real episodes of {world.key!r}, got a "
                f"{found[1]!r} one of {found[0]!r}; is this the right file, or the right ID?"
            )


def real_games(world: World) -> Any:
    """Returns the module with ``write_games`` and ``load_games`` of a world."""
    return importlib.import_module(world.games_module)


def scenario_of(world: World, games: str | None, identity: str) -> Scenario:
    """Returns the scenario of this id; the real twin makes one that no file holds.

    Raises:
        ScenarioError: There is no such scenario.
        MissingDependency: No file holds it, and the twin is not installed.
    """
    known = {scenario.id: scenario for scenario in games_of(world, games, None)}
    if identity in known:
        return known[identity]
    if games is not None:
        raise ScenarioError(
            f"unknown scenario {identity!r} among {len(known)} of {games}; list them with: "
            f"llmworld scenarios {world.key} --games {games}"
        )
    twin = gym.make(world.real_id, disable_env_checker=True)
    try:
        twin.reset(options={"scenario": identity})
        made: Scenario = twin.get_wrapper_attr("scenario")
    finally:
        twin.close()
    return made


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


@dataclass(frozen=True)
class LLMOptions:
    """How agents that are language models act.

    Attributes:
        style: How they are asked; None for what the checkpoint says.
        temperature: Of their answers; 0 is greedy.
    """

    style: str | None = None
    temperature: float = 0.0

    @classmethod
    def of(cls, style: str | None, temperature: float | None, *, again: bool) -> LLMOptions:
        """Chooses a temperature where none is given: 1 where games are played ``again``, else 0."""
        return cls(style, float(again) if temperature is None else temperature)


def agent_makers(
    world: World, names: str, *, real: bool = False, llm: LLMOptions | None = None
) -> dict[str, Callable[[], Agent]]:
    """Reads a list of agents such as ``"expert,llm:runs/agent"``, see `agent_maker`."""
    return {
        name: agent_maker(world, name, real=real, llm=llm)
        for name in map(str.strip, names.split(","))
    }


def agent_maker(
    world: World, name: str, *, real: bool = False, llm: LLMOptions | None = None
) -> Callable[[], Agent]:
    """Returns a maker of fresh agents; it can be pickled.

    Args:
        world: Whose agents.
        name: One of ``world.agents``, or ``llm:MODEL``: a checkpoint folder, hub id, server URL or
            script that acts.
        real: Allow ``world.real_policies``, too.
        llm: How a model acts; None for greedy answers, in the style that its checkpoint says.

    Raises:
        ScenarioError: The world has no agent of this name.
        CheckpointError: The model is no agent.
        ValueError: There is no such style.
    """
    if name.startswith(LLM):
        return _llm_maker(world, name, llm or LLMOptions())
    known = [*world.agents, *(world.real_policies if real else ())]
    if name not in known:
        raise ScenarioError(
            f"{world.title} has no agent {name!r}; expected one of {', '.join(known)}, or llm:MODEL"
        )
    return functools.partial(make_agent, world.key, name)


def _llm_maker(world: World, name: str, llm: LLMOptions) -> LLMAgentMaker:
    model = name.removeprefix(LLM)
    prompt = PolicyPrompt(llm.style or agent_style(model), world.key)
    return LLMAgentMaker(
        BackendConfig.resolve(model).model,
        prompt,
        llm.temperature,
        name=name,
    )


def make_agent(world: str, name: str) -> Agent:
    """Returns a fresh agent of a world."""
    spec = get_world(world)
    factory = spec.agents.get(name) or resolve(spec.real_policies[name])
    agent: Agent = factory()
    return agent


@dataclass(frozen=True)
class ModelChoice:
    """The world model that a command line names.

    Attributes:
        model: Folder, hub id, URL or script; None for the embedded one.
        backend: Who runs it.
        prompt_style: How scenarios are worded; None for what the checkpoint says.
    """

    model: str | None = None
    backend: str = "auto"
    prompt_style: str | None = None

    @property
    def name(self) -> str:
        """As reports call it."""
        return EMBEDDED if self.model is None else self.model

    def style(self, world: World) -> str:
        """Returns the prompt style that is used.

        Raises:
            CheckpointError: The world has no such style; or it ships no model, and none is named.
        """
        return world.protocol(
            self.prompt_style or checkpoint_style(self._place(world), world.key)
        ).style

    def doubt(self, world: World) -> str | None:
        """Returns what to tell somebody who overrides what the checkpoint says of itself."""
        own = read_card(self._place(world)).get("prompt_style")
        if self.prompt_style is None or own in (None, self.prompt_style):
            return None
        return f"{self.name} was trained on prompt style {own!r}; using {self.prompt_style!r}."

    def open(self, world: World) -> tuple[Backend, Protocol]:
        """Opens the model outside of an environment.

        Raises:
            CheckpointError: It cannot serve as a world model.
            MissingDependency: The backend needs an extra that is not installed.
        """
        protocol = world.protocol(self.style(world))
        return load_backend(self._place(world), self.backend), protocol

    def options(self, games: str | None, scenarios: Sequence[Scenario]) -> dict[str, Any]:
        """Returns the arguments of ``gym.make`` for an imagined world that plays these."""
        options: dict[str, Any] = {
            "model": self.model,
            "backend": self.backend,
            "prompt_style": self.prompt_style,
        }
        if not _engine_tree(games):
            options["scenarios"] = games
            options["split"] = scenarios[0].split
        return options

    def _place(self, world: World) -> str:
        return embedded_model(world.key) if self.model is None else self.model
