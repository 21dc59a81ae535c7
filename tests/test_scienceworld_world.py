from __future__ import annotations

import dataclasses
import itertools
import pickle
from collections.abc import Mapping
from typing import Any

import pytest

from gym_llmworld.agents import Agent
from gym_llmworld.core import Scenario
from gym_llmworld.errors import ScenarioError
from gym_llmworld.worlds.scienceworld import WORLD, canonical
from gym_llmworld.worlds.scienceworld_agents import ScienceworldExpert, ScienceworldExplorer

HALL = (
    "This room is called the hall. In it, you see: \n\tthe agent\n\ta lamp, which is off\n"
    "You also see:\n\tA door to the shed (that is closed)"
)
SHED = (
    "This room is called the shed. In it, you see: \n\tthe agent\n"
    "\ta chest.  The chest door is closed. \n"
    "You also see:\n\tA door to the hall (that is closed)"
)
GOAL = (
    "Completed keys: \n---\nSequential Subgoals:\n---\n"
    "0\tfalse\t     GoalFind\tfocus on the lamp\n"
    "---\nUnordered and Optional Subgoals:\n---\n"
    "0\tfalse\tGoalMove\tmove to a new location\n---\n"
)
SCENARIO = Scenario(
    id="sciworld-test-hall-1",
    world="scienceworld",
    split="test",
    instruction="Your task is to find a lamp.",
    observation=f"Your task is to find a lamp.\n{HALL}",
    hidden={
        "goal": GOAL,
        "actions": ["look around", "open OBJ"],
        "inventory": "In your inventory, you see:\n\tan orange\n",
        "rooms": [
            {"name": "hall", "look": f"{HALL}\n", "objects": ["agent", "lamp"], "opened": []},
            {
                "name": "shed",
                "look": f"{SHED}\n",
                "objects": [],
                "opened": ["\ta chest.  The chest door is open. In the chest is: a key."],
            },
        ],
    },
    real={"plan": ["open door to shed", "go to shed", "look at key", "0", "focus on key"]},
)


def test_engine_context_says_what_will_be_seen_and_nothing_twice() -> None:
    assert WORLD.contexts["engine"](SCENARIO) == (
        "This room is called the shed. In it, you see: \n\tthe agent\n"
        "\ta chest. The chest door is closed. \n"
        "You also see:\n\tA door to the hall (that is closed)\n"
        "Opened:\n\ta chest. The chest door is open. In the chest is: a key.\n"
        "In your inventory, you see:\n\tan orange\n"
        "Goals:\n\tfocus on the lamp\n"
        "Your task is to find a lamp.\n" + HALL
    )


def test_word2world_context_is_the_published_one_byte_for_byte() -> None:
    assert WORLD.contexts["word2world"](SCENARIO) == (
        "# Environment Information (Only visible to Assistant)\n\n"
        f"\n=== Goal Progress ===\n{GOAL}\n"
        "\n=== Possible Actions ===\n - look around\n - open OBJ\n"
        "\n=== Per-Room Observations ===\n"
        f"== Room: hall ==\n{HALL}\nPossible Objects: agent, lamp\n\n"
        f"== Room: shed ==\n{SHED}\nPossible Objects: (none)\n\n"
        "\n\n# User Environment Information (Displayed to User)\n\n"
        f"Your task is to find a lamp.\n{HALL}\n"
    )


# Pairs that list the same things; taken from stock JVMs that disagreed.
SAME = [
    (
        "You see: \n\tan axe\n\ta cup (containing red paint)\n\ta cup\nYou also see:\n\tA door",
        "You see: \n\ta cup\n\ta cup (containing red paint)\n\tan axe\nYou also see:\n\tA door",
    ),
    (
        "\ta counter. On the counter is: a bowl (containing a fig, a nut), a drawer.",
        "\ta counter. On the counter is: a drawer, a bowl (containing a nut, a fig).",
    ),
    (
        "\ta pot (containing soil, a tree. On the tree you see: a bee, a pea, a bee. )",
        "\ta pot (containing a tree. On the tree you see: a pea, a bee, a bee. , soil)",
    ),
    (
        "\ta table. On the table is: a red bulb, which is off, a wire, a blue bulb, which is on.",
        "\ta table. On the table is: a blue bulb, which is on, a wire, a red bulb, which is off.",
    ),
    (
        "\ta bed. On the bed is: a mattress. On the mattress is: a cap, a pillow..",
        "\ta bed. On the bed is: a mattress. On the mattress is: a pillow, a cap..",
    ),
]
DIFFERENT = [
    ("\ta cup (containing a fig), a nut", "\ta cup (containing a nut), a fig"),
    ("\ta table. On the table is: a cup.", "\ta table. On the table is: a cup, a cup."),
    (
        "\ta table. On the table is: a red bulb, which is off, a blue bulb, which is on.",
        "\ta table. On the table is: a red bulb, which is on, a blue bulb, which is off.",
    ),
    ("In it:\n\ta cup\nYou also see:\n\tA door", "In it:\n\tA door\nYou also see:\n\ta cup"),
    ("0:\tlook at cup\n1:\tlook at fig\n", "0:\tlook at fig\n1:\tlook at cup\n"),
    ("It measures 10.5 degrees", "It measures 10.4 degrees"),
    ("You move to the kitchen.", "You move to the hallway."),
    ("", "\n"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_the_order_of_lists_does_not_count(one: str, other: str) -> None:
    assert one != other
    assert canonical(one) == canonical(other)
    assert canonical(canonical(one)) == canonical(one)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_everything_else_counts(one: str, other: str) -> None:
    assert canonical(one) != canonical(other)


@pytest.mark.parametrize("text", ["\t" + "(" * 3000, "\t" + "a: " * 3000, "\t) a, (b: ", "\t"])
def test_what_a_model_stutters_is_compared_too(text: str) -> None:
    assert canonical(text) != canonical("\ta cup")


def test_the_world_says_that_the_order_of_lists_is_open() -> None:
    assert WORLD.canonical is canonical


class Doors:
    """Two rooms, a door between them, and a question: as much of the engine as the expert reads."""

    def __init__(self) -> None:
        self.room, self.is_open, self.asked, self.done = "hall", False, False, list[str]()

    def step(self, command: str) -> str:
        other = {"hall": "shed", "shed": "hall"}[self.room]
        asked, self.asked = self.asked, command == "look at key"
        if asked:
            self.done += ["answered"] if command == "0" else []
            return "A key." if command == "0" else "Unknown action."
        if self.asked:
            return "Ambiguous request: Please enter the number\n0:\tlook at key\n1:\tlook at key\n"
        if command in (f"open door to {other}", f"close door to {other}"):
            self.is_open = command.startswith("open")
            return "The door is now open." if self.is_open else "The door is now closed."
        if command == f"go to {other}":
            if not self.is_open:
                return "The door is not open."
            self.room = other
            return f"You move to the {other}."
        if command == "focus on key":
            self.done += ["won"] if self.room == "shed" and self.done else ["lost"]
        return "Fine."


def test_the_expert_finds_back_to_its_plan() -> None:
    strays = ("go to hall", "close door to shed", "close door to hall")
    for times in itertools.permutations(range(1, 9), len(strays)):
        assert follow_plan(dict(zip(times, strays, strict=True))) == "won", times


def follow_plan(strays: Mapping[int, str]) -> str:
    doors, agent = Doors(), ScienceworldExpert()
    agent.reset(SCENARIO, 0)
    observation = SCENARIO.observation
    for time in range(40):
        command = agent.act(observation, {})
        if time in strays:
            command = strays[time]
            agent.overruled(command)
        observation = doors.step(command)
        if doors.done[-1:] in (["won"], ["lost"]):
            return doors.done[-1]
    return "unfinished"


def test_the_expert_needs_a_plan() -> None:
    with pytest.raises(ScenarioError, match="has no plan in real"):
        ScienceworldExpert().reset(dataclasses.replace(SCENARIO, real={}), 0)


def commands(agent: Agent, info: Mapping[str, Any], seed: int, count: int = 200) -> list[str]:
    agent.reset(SCENARIO, seed)
    return [agent.act(SCENARIO.observation, info) for _ in range(count)]


def test_the_explorer_names_what_it_has_read() -> None:
    said = commands(ScienceworldExplorer(), {"admissible_commands": None}, 0)
    assert {"look around", "open door to shed", "look at lamp"} <= set(said)
    assert said == commands(ScienceworldExplorer(), {}, 0)
    assert said != commands(ScienceworldExplorer(), {}, 1)


def test_the_explorer_takes_listed_commands_and_few_connections() -> None:
    listed = [*(f"connect {i} to {j}" for i in "abcdef" for j in "abcdef"), "wait", "look around"]
    said = commands(ScienceworldExplorer(), {"admissible_commands": listed}, 0)
    assert set(said) <= set(listed)
    assert said.count("look around") > 50


def test_the_explorer_answers_questions() -> None:
    agent = ScienceworldExplorer()
    agent.reset(SCENARIO, 0)
    question = "Ambiguous request: Please enter the number\n0:\topen door\n1:\topen box\n"
    assert {agent.act(question, {}) for _ in range(50)} == {"0", "1", "cancel"}


def test_agents_can_be_sent_to_other_processes() -> None:
    for name, maker in WORLD.agents.items():
        agent = pickle.loads(pickle.dumps(maker))()
        agent.reset(SCENARIO, 0)
        assert isinstance(agent.act(SCENARIO.observation, {}), str)
        assert agent.name == name


def test_the_world_can_be_opened_by_its_strings() -> None:
    assert (WORLD.imagined_id, WORLD.real_id) == ("LLMWorld-SciWorld-v0", "RealWorld-SciWorld-v0")
    assert WORLD.rejection == "No known action matches that input."
