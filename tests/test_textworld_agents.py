"""TextWorld's agents: in the engine, and with nothing but text."""

from __future__ import annotations

import pytest

pytest.importorskip("textworld", reason="needs the textworld extra")

from gym_llmworld.agents import Agent, NoisyAgent
from gym_llmworld.collection import play
from gym_llmworld.core import Episode, Scenario
from gym_llmworld.errors import ScenarioError
from gym_llmworld.real.textworld_env import TextWorldEnv
from gym_llmworld.worlds.textworld_agents import (
    TEXTWORLD_AGENTS,
    TextWorldExpert,
    TextWorldExplorer,
    undo,
)
from tests.textworld_shared import SPECS, games, scenario, scenarios


def episode(agent: Agent, made: Scenario, seed: int = 0, told: bool = False) -> Episode:
    env = TextWorldEnv(games=games(), policy_commands=told)
    try:
        return play(env, agent, made, seed=seed, max_steps=50)
    finally:
        env.close()


@pytest.mark.parametrize(
    ("command", "observation", "back"),
    [
        ("go north", "-= Den =-\nYou are in a den.", "go south"),
        ("go north", "\n\n-= Den =-\nYou are in a den.\n\n>  -= Den =-0/3", "go south"),
        ("go north", "You can't go that way.", None),
        ("take key from box", "You take the key from the box.", "insert key into box"),
        ("take key from desk", "You take the key from the desk.", "put key on desk"),
        ("take key", "You pick up the key from the ground.", "drop key"),
        ("drop key", "You drop the key on the ground.", "take key"),
        ("drop key", "(the key)\nYou drop the key on the ground.", "take key"),
        ("put key on desk", "You put the key on the desk.", "take key from desk"),
        ("insert key into box", "You put the key into the box.", "take key from box"),
        ("open box", "You open the box, revealing a key.", "close box"),
        ("open box", "That's already open.", None),
        ("close plain door", "You close plain door.", "open plain door"),
        ("unlock door with key", "You unlock door.", "lock door with key"),
        ("lock box with key", "You lock the box.", "unlock box with key"),
        ("examine box", "A box. It is open.", None),
        ("eat apple", "You eat the apple. Not bad.", None),
        ("dance", "That's not a verb I recognise.", None),
    ],
)
def test_commands_are_taken_back(command: str, observation: str, back: str | None) -> None:
    assert undo(command, observation, frozenset({"box"})) == back


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("name", ["expert", "plan"])
def test_the_walkthrough_is_followed(kind: str, name: str) -> None:
    played = episode(TEXTWORLD_AGENTS[name](), scenario(kind))
    assert played.success
    assert list(played.actions) == scenario(kind).real["plan"]


def test_the_expert_takes_the_shorter_way_where_it_is_told() -> None:
    played = episode(TextWorldExpert(), scenario("cooking"), told=True)
    assert played.success
    assert len(played.steps) < len(scenario("cooking").real["plan"])


@pytest.mark.parametrize("told", [False, True])
def test_the_expert_comes_back_from_astray(told: bool) -> None:
    class Wanderer(TextWorldExplorer):
        def act(self, observation: str, info: object) -> str:
            command = super().act(observation, info)  # type: ignore[arg-type]
            # Eating the wrong thing, or taking the wrong one, cannot be taken back.
            return "look" if command.startswith(("eat", "take")) else command

    for kind in ("simple", "custom", "coin_collector"):
        for seed in range(3):
            agent = NoisyAgent(TextWorldExpert(), 0.5, Wanderer())
            assert episode(agent, scenario(kind), seed, told=told).success


def test_noisy_agents_mostly_win_and_random_ones_mostly_do_not() -> None:
    won = {
        name: sum(
            episode(TEXTWORLD_AGENTS[name](), made, seed).success
            for made in scenarios()
            for seed in range(2)
        )
        for name in ("noisy", "random")
    }
    assert won["noisy"] >= 7
    assert won["noisy"] > won["random"]


@pytest.mark.parametrize("name", TEXTWORLD_AGENTS)
def test_agents_repeat_themselves_under_a_seed(name: str) -> None:
    agent, made = TEXTWORLD_AGENTS[name](), scenario("custom")
    first = episode(agent, made, 3)
    assert episode(agent, made, 3) == first
    assert isinstance(agent, Agent)


def test_without_a_list_the_explorer_speaks_of_what_it_reads() -> None:
    explorer, made = TextWorldExplorer(blunders=0.0), scenario("cooking")
    explorer.reset(made, 1)
    observation = made.observation
    commands = {explorer.act(observation, {"admissible_commands": None}) for _ in range(300)}
    assert {"open fridge", "examine stove", "look", "inventory"} <= commands
    assert any(command.startswith("take ") for command in commands)
    assert not any("pork chop" in command for command in commands)
    explorer.act("You open the fridge, revealing a raw pork chop.", {})
    explorer.act("You take the pork chop from the fridge.", {})
    commands = {explorer.act("Nothing new.", {}) for _ in range(300)}
    assert {"drop pork chop", "insert pork chop into fridge", "put pork chop on stove"} <= commands
    assert "take pork chop" not in commands


def test_blunders_are_tried_too() -> None:
    explorer, made = TextWorldExplorer(blunders=1.0), scenario("custom")
    explorer.reset(made, 1)
    admissible = {"admissible_commands": list(made.admissible or ())}
    commands = {explorer.act(made.observation, admissible) for _ in range(60)}
    assert len(commands - set(made.admissible or ())) > 20


def test_an_expert_without_a_walkthrough_says_so() -> None:
    made = Scenario.from_json({**scenario("custom").to_json(), "real": {}})
    with pytest.raises(ScenarioError, match=r"no walkthrough in real\['plan'\]"):
        TextWorldExpert().reset(made, 0)
