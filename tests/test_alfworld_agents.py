"""ALFWorld's agents, against a small simulator that speaks its sentences, and the real engine."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from gym_llmworld.agents import Agent
from gym_llmworld.collection import play as play_episode
from gym_llmworld.core import Scenario
from gym_llmworld.errors import ScenarioError
from gym_llmworld.worlds.alfworld_agents import (
    ALFWORLD_AGENTS,
    AlfworldDetour,
    AlfworldExpert,
)
from gym_llmworld.worlds.alfworld_belief import REFUSAL, AlfworldBelief, AlfworldGoal
from gym_llmworld.worlds.alfworld_explorer import AlfworldExplorer

KITCHEN = {
    "receptacles": [
        {"name": "cabinet 2", "openable": True, "open": False, "contents": ["plate 1"]},
        {"name": "cabinet 1", "openable": True, "open": False, "contents": []},
        {
            "name": "countertop 1",
            "openable": False,
            "open": False,
            "contents": ["knife 1", "mug 1"],
        },
        {"name": "drawer 1", "openable": True, "open": False, "contents": ["mug 2"]},
        {"name": "fridge 1", "openable": True, "open": False, "contents": ["apple 1"]},
        {"name": "microwave 1", "openable": True, "open": False, "contents": []},
        {"name": "sinkbasin 1", "openable": False, "open": False, "contents": []},
        {"name": "desk 1", "openable": False, "open": False, "contents": ["desklamp 1", "book 1"]},
    ],
    "toggles": {"desklamp 1": False},
}

TASKS = {
    "put a mug in cabinet.": ("pick_and_place_simple", "Mug", "Cabinet"),
    "put some apple on desk.": ("pick_and_place_simple", "Apple", "Desk"),
    "put two mug in fridge.": ("pick_two_obj_and_place", "Mug", "Fridge"),
    "find two mug and put them in cabinet.": ("pick_two_obj_and_place", "Mug", "Cabinet"),
    "put a clean plate in countertop.": ("pick_clean_then_place_in_recep", "Plate", "CounterTop"),
    "clean some knife and put it in drawer.": ("pick_clean_then_place_in_recep", "Knife", "Drawer"),
    "put a hot apple in fridge.": ("pick_heat_then_place_in_recep", "Apple", "Fridge"),
    "heat some mug and put it in desk.": ("pick_heat_then_place_in_recep", "Mug", "Desk"),
    "put a cool plate in desk.": ("pick_cool_then_place_in_recep", "Plate", "Desk"),
    "cool some apple and put it in sinkbasin.": (
        "pick_cool_then_place_in_recep",
        "Apple",
        "SinkBasin",
    ),
    "look at mug under the desklamp.": ("look_at_obj_in_light", "Mug", "DeskLamp"),
    "examine the book with the desklamp.": ("look_at_obj_in_light", "Book", "DeskLamp"),
}


def scenario_for(instruction: str, *, with_facts: bool = True) -> Scenario:
    task_type, thing, place = TASKS[instruction]
    names = [f"a {r['name']}" for r in KITCHEN["receptacles"]]  # type: ignore[index]
    room = "You are in the middle of a room. Looking quickly around you, you see "
    return Scenario(
        id=instruction,
        world="alfworld",
        split="train",
        instruction=instruction,
        observation=f"{room}{', '.join(names[:-1])}, and {names[-1]}.\n"
        f"Your task is to: {instruction}",
        hidden=KITCHEN,
        real={"task_type": task_type, "object": thing, "receptacle": place} if with_facts else {},
    )


class Simulator:
    """ALFWorld's rules and sentences, as far as the tests need them.

    Args:
        scenario: Where to start.
        refused: Pairs (kind of thing, kind of receptacle) that do not go together.
    """

    def __init__(self, scenario: Scenario, refused: Sequence[tuple[str, str]] = ()) -> None:
        self.goal = AlfworldGoal.of(scenario)
        self.places = {r["name"]: r for r in scenario.hidden["receptacles"]}
        self.inside = {name: list(r["contents"]) for name, r in self.places.items()}
        self.open = {name: bool(r["open"]) for name, r in self.places.items()}
        self.at: str | None = None
        self.held: str | None = None
        self.states: dict[str, str] = {}
        self.clean: set[str] = set()
        self.lit: set[str] = set()
        self.refused = set(refused)

    def step(self, command: str) -> str:
        """Answers a command."""
        verb, names = command.partition(" ")[0], re.findall(r"[a-z]+ \d+", command)
        patterns = {
            "go": r"go to \w+ \d+",
            "open": r"open \w+ \d+",
            "close": r"close \w+ \d+",
            "take": r"take \w+ \d+ from \w+ \d+",
            "move": r"move \w+ \d+ to \w+ \d+",
            "examine": r"examine \w+ \d+",
            "use": r"use \w+ \d+",
            "clean": r"clean \w+ \d+ with \w+ \d+",
            "heat": r"heat \w+ \d+ with \w+ \d+",
            "cool": r"cool \w+ \d+ with \w+ \d+",
        }
        if command == "inventory":
            return (
                f"You are carrying: a {self.held}."
                if self.held
                else "You are not carrying anything."
            )
        if command == "look":
            return f"You are facing the {self.at}. Next to it, you see nothing."
        if verb not in patterns or not re.fullmatch(patterns[verb], command):
            return "Nothing happens."
        handler = {"clean": self._treat, "heat": self._treat, "cool": self._treat}.get(verb)
        if handler:
            return handler(verb, *names) or "Nothing happens."
        return getattr(self, f"_{verb}")(*names) or "Nothing happens."

    def _describe(self, name: str) -> str:
        things = [f"a {t}" for t in self.inside[name]] or ["nothing"]
        listing = things[0] if len(things) == 1 else f"{', '.join(things[:-1])}, and {things[-1]}"
        if not self.places[name]["openable"]:
            return f"On the {name}, you see {listing}."
        if not self.open[name]:
            return f"The {name} is closed."
        return f"The {name} is open. In it, you see {listing}."

    def _reachable(self, name: str) -> bool:
        return name == self.at and (not self.places[name]["openable"] or self.open[name])

    def _go(self, name: str) -> str | None:
        if name not in self.places or name == self.at:
            return None
        self.at = name
        return f"You arrive at {name}. {self._describe(name)}"

    def _open(self, name: str) -> str | None:
        if name != self.at or not self.places[name]["openable"] or self.open[name]:
            return None
        self.open[name] = True
        return f"You open the {name}. {self._describe(name)}"

    def _close(self, name: str) -> str | None:
        if name != self.at or not self.open[name]:
            return None
        self.open[name] = False
        return f"You close the {name}."

    def _take(self, thing: str, name: str) -> str | None:
        fixed = thing.startswith("desklamp")
        if self.held or fixed or not self._reachable(name) or thing not in self.inside[name]:
            return None
        self.inside[name].remove(thing)
        self.held = thing
        return f"You pick up the {thing} from the {name}."

    def _move(self, thing: str, name: str) -> str | None:
        pair = (thing.split()[0], name.split()[0])
        if thing != self.held or not self._reachable(name) or pair in self.refused:
            return None
        self.inside[name].append(thing)
        self.held = None
        return f"You move the {thing} to the {name}."

    def _examine(self, name: str) -> str | None:
        if name == self.at:
            return self._describe(name)
        near = self.inside[self.at] if self.at and self._reachable(self.at) else []
        return f"There's nothing special about {name}." if name in [*near, self.held] else None

    def _use(self, thing: str) -> str | None:
        if self.at is None or thing not in self.inside[self.at] or "lamp" not in thing:
            return None
        self.lit.add(thing)
        return f"You turn on the {thing}."

    def _treat(self, verb: str, thing: str, name: str) -> str | None:
        appliance = {"clean": "sinkbasin", "heat": "microwave", "cool": "fridge"}[verb]
        if thing != self.held or name != self.at or not name.startswith(appliance):
            return None
        if verb == "clean":
            self.clean.add(thing)
        else:
            self.states[thing] = verb
        return f"You {verb} the {thing} using the {name}."

    @property
    def won(self) -> bool:
        """True when the goal holds."""
        goal = self.goal
        if goal.task_type == "look_at_obj_in_light":
            near = self.inside.get(self.at or "", [])
            return (self.held or "").startswith(goal.target) and any(t in self.lit for t in near)
        for name, things in self.inside.items():
            fitting = [t for t in things if t.split()[0] == goal.target and self._treated(t)]
            needed = 2 if goal.task_type == "pick_two_obj_and_place" else 1
            if name.split()[0] == goal.place and len(fitting) >= needed:
                return True
        return False

    def _treated(self, thing: str) -> bool:
        treatment = self.goal.treatment
        return treatment is None or (
            thing in self.clean if treatment == "clean" else self.states.get(thing) == treatment
        )


def play(
    agent: Agent, scenario: Scenario, simulator: Simulator, *, seed: int = 0, limit: int = 50
) -> list[tuple[str, str]]:
    agent.reset(scenario, seed)
    observation = scenario.observation
    turns: list[tuple[str, str]] = []
    info: Mapping[str, Any] = {"admissible_commands": None}
    while not simulator.won and len(turns) < limit:
        command = agent.act(observation, info)
        observation = simulator.step(command)
        turns.append((command, observation))
    return turns


@pytest.mark.parametrize("with_facts", [True, False])
@pytest.mark.parametrize("instruction", TASKS)
def test_goal_is_the_same_from_facts_and_from_the_instruction(
    instruction: str, with_facts: bool
) -> None:
    task_type, thing, place = TASKS[instruction]

    goal = AlfworldGoal.of(scenario_for(instruction, with_facts=with_facts))

    assert goal == AlfworldGoal(task_type, thing.lower(), place.lower())


def test_unreadable_instruction_names_scenario_and_expectation() -> None:
    scenario = Scenario("s1", "alfworld", "train", "dance on the table.", "...")

    with pytest.raises(ScenarioError, match=r"'s1'.*'dance on the table.'.*put a hot plate"):
        AlfworldGoal.of(scenario)


@pytest.mark.parametrize("instruction", TASKS)
def test_privileged_expert_solves_without_a_refused_command(instruction: str) -> None:
    scenario = scenario_for(instruction)
    simulator = Simulator(scenario)

    turns = play(AlfworldExpert(), scenario, simulator)

    assert simulator.won
    assert "Nothing happens." not in [observation for _, observation in turns]
    assert len(turns) <= 12


@pytest.mark.parametrize("instruction", TASKS)
def test_searching_expert_solves_from_the_text_alone(instruction: str) -> None:
    scenario = scenario_for(instruction, with_facts=False)
    simulator = Simulator(scenario)

    turns = play(AlfworldExpert(privileged=False), scenario, simulator)

    assert simulator.won
    assert "Nothing happens." not in [observation for _, observation in turns]


@pytest.mark.parametrize("name", ["noisy", "noisy50"])
def test_expert_recovers_from_disturbances(name: str) -> None:
    solved = 0
    for instruction in TASKS:
        for seed in range(4):
            scenario = scenario_for(instruction)
            simulator = Simulator(scenario)
            play(ALFWORLD_AGENTS[name](), scenario, simulator, seed=seed)
            solved += simulator.won

    assert solved >= 0.9 * 4 * len(TASKS)


@pytest.mark.parametrize("instruction", TASKS)
def test_detour_misses_the_task_first_and_then_does_it(instruction: str) -> None:
    longer = 0
    for seed in range(5):
        scenario = scenario_for(instruction)
        detour, direct = Simulator(scenario), Simulator(scenario)
        turns = play(AlfworldDetour(), scenario, detour, seed=seed)
        longer += len(turns) > len(play(AlfworldExpert(), scenario, direct))
        assert detour.won

    assert longer >= 3


def test_detour_without_hidden_facts_is_a_search() -> None:
    scenario = scenario_for("put a mug in cabinet.")
    blind = Scenario.from_json({**scenario.to_json(), "hidden": {}})
    simulator = Simulator(scenario)

    play(AlfworldDetour(), blind, simulator)

    assert simulator.won


def test_wrong_thing_in_hand_is_put_where_it_is_accepted() -> None:
    scenario = scenario_for("put a mug in cabinet.")
    everywhere = [r["name"].split()[0] for r in KITCHEN["receptacles"]]  # type: ignore[index]
    refused = [("book", kind) for kind in everywhere if kind != "drawer"]
    simulator = Simulator(scenario, refused)
    simulator.inside["desk 1"].remove("book 1")
    simulator.held = "book 1"
    agent = AlfworldExpert()
    agent.reset(scenario, 0)

    observation, info = "You pick up the book 1 from the desk 1.", {"admissible_commands": None}
    for _ in range(50):
        observation = simulator.step(agent.act(observation, info))
        if simulator.won:
            break

    assert simulator.won
    assert "book 1" in simulator.inside["drawer 1"]


def test_expert_survives_a_world_that_answers_nonsense() -> None:
    agent = AlfworldExpert()
    agent.reset(scenario_for("put a mug in cabinet."), 0)

    commands = [agent.act(text, {}) for text in ["", "???", "Nothing happens."] * 20]

    assert all(commands)
    assert len(set(commands)) > 3


def test_belief_follows_every_sentence_of_the_engine() -> None:
    belief = AlfworldBelief()
    for observation in (
        "You are in the middle of a room. Looking quickly around you, you see a shelf 2, "
        "a drawer 1, and a fridge 1.\nYour task is to: put a mug in shelf.",
        "You arrive at drawer 1. The drawer 1 is closed.",
        "You open the drawer 1. The drawer 1 is open. In it, you see a mug 1, and a pen 2.",
        "You pick up the mug 1 from the drawer 1.",
        "You close the drawer 1.",
        "You arrive at fridge 1. The fridge 1 is open. In it, you see nothing.",
        "You cool the mug 1 using the fridge 1.",
        "You arrive at shelf 2. On the shelf 2, you see a desklamp 1.",
        "You turn on the desklamp 1.",
    ):
        belief.update(observation)

    assert list(belief.places) == ["shelf 2", "drawer 1", "fridge 1"]
    assert belief.places["drawer 1"].is_shut
    assert belief.places["drawer 1"].contents == ["pen 2"]
    assert belief.places["fridge 1"].contents == []
    assert (belief.location, belief.held) == ("shelf 2", "mug 1")
    assert belief.treated == {"mug 1": {"cool"}}
    assert belief.lit == {"desklamp 1"}
    assert belief.origins == {"mug 1": "drawer 1"}

    belief.update("You move the mug 1 to the shelf 2.")

    assert belief.held is None
    assert belief.find("mug") == [("mug 1", "shelf 2")]
    assert belief.changed == {"drawer 1", "shelf 2"}

    belief.update("You arrive at shelf 2. On the shelf 2, you see a desklamp 1, and a mug 1.")

    assert belief.changed == {"drawer 1"}


def test_heating_cancels_cooling() -> None:
    belief = AlfworldBelief()
    belief.update("You cool the mug 1 using the fridge 1.")
    belief.update("You clean the mug 1 using the sinkbasin 1.")
    belief.update("You heat the mug 1 using the microwave 1.")

    assert belief.treated == {"mug 1": {"clean", "heat"}}


def test_tour_sees_everything_and_is_random() -> None:
    scenario = scenario_for("put a mug in cabinet.")
    orders = set()
    for seed in range(5):
        simulator = Simulator(scenario)
        simulator.goal = AlfworldGoal("pick_and_place_simple", "nothing", "nowhere")
        turns = play(AlfworldExplorer(tour=True), scenario, simulator, seed=seed, limit=40)
        texts = " ".join(observation for _, observation in turns)
        assert all(
            f"On the {name}, you see" in texts or f"The {name} is open. In it" in texts
            for name in simulator.places
        )
        orders.add(tuple(command for command, _ in turns if command.startswith("go to")))

    assert len(orders) == 5


def test_explorer_tries_every_verb_and_mostly_what_works() -> None:
    scenario = scenario_for("put a mug in cabinet.")
    turns: list[tuple[str, str]] = []
    for seed in range(30):
        simulator = Simulator(scenario)
        simulator.goal = AlfworldGoal("pick_and_place_simple", "nothing", "nowhere")
        turns += play(AlfworldExplorer(), scenario, simulator, seed=seed, limit=50)
    refused = sum(observation == "Nothing happens." for _, observation in turns)
    verbs = {command.split()[0] for command, _ in turns}

    assert verbs >= {"go", "open", "close", "take", "move", "examine", "use", "slice", "look"}
    assert verbs >= {"heat", "clean", "cool", "inventory", "help"}
    assert 0.02 < refused / len(turns) < 0.3


@pytest.mark.parametrize("name", ALFWORLD_AGENTS)
def test_agents_repeat_themselves_under_a_seed(name: str) -> None:
    scenario = scenario_for("put two mug in fridge.")
    scenario = Scenario.from_json(
        {**scenario.to_json(), "real": {**scenario.real, "plan": ["look"]}}
    )

    first, second, other = (
        play(ALFWORLD_AGENTS[name](), scenario, Simulator(scenario), seed=seed)
        for seed in (3, 3, 4)
    )

    assert first == second
    if name in ("noisy", "noisy50", "careless", "novice", "random", "tour", "corrupted"):
        assert first != other


@pytest.fixture(scope="module")
def real_games(tmp_path_factory: pytest.TempPathFactory) -> list[Scenario]:
    pytest.importorskip("fast_downward")
    from gym_llmworld.real.alfworld_scenarios import load_games, write_games

    folder = tmp_path_factory.mktemp("games")
    write_games(folder, "valid_unseen", 6, 11, scenarios_only=True)
    return list(load_games(folder, "valid_unseen"))


@pytest.mark.parametrize("name", ["expert", "search", "detour", "noisy", "careless"])
def test_real_games_of_all_six_kinds_are_solved(name: str, real_games: list[Scenario]) -> None:
    from gym_llmworld.real.alfworld_env import AlfworldEnv

    env, agent = AlfworldEnv(), ALFWORLD_AGENTS[name]()
    played = [play_episode(env, agent, game, seed=1, max_steps=50) for game in real_games]

    assert len({game.real["task_type"] for game in real_games}) == 6
    assert all(episode.success for episode in played)


def test_a_novice_asks_for_what_cannot_be(real_games: list[Scenario]) -> None:
    from gym_llmworld.real.alfworld_env import AlfworldEnv

    env = AlfworldEnv()

    def refused(name: str) -> float:
        played = [
            play_episode(env, ALFWORLD_AGENTS[name](), game, seed=3, max_steps=30)
            for game in real_games
        ]
        answers = [step.observation == REFUSAL for episode in played for step in episode.steps]
        return sum(answers) / len(answers)

    assert refused("expert") < 0.05 < 0.1 < refused("careless") < refused("novice")


@pytest.mark.parametrize("name", ["random", "noisy50", "careless", "novice", "corrupted"])
def test_belief_agrees_with_the_real_engines_facts(name: str, real_games: list[Scenario]) -> None:
    from gym_llmworld.real.alfworld_env import AlfworldEnv

    env, agent = AlfworldEnv(), ALFWORLD_AGENTS[name]()
    for game in real_games:
        episode = play_episode(env, agent, game, seed=2, max_steps=40)
        belief = AlfworldBelief.from_hidden(game.hidden)
        for step in episode.steps:
            belief.update(step.observation)

        facts: defaultdict[str, set[tuple[str, ...]]] = defaultdict(set)
        for predicate, *arguments in env.facts():
            facts[predicate].add(tuple(arguments))
        states = {"clean": "isclean", "heat": "ishot", "cool": "iscool"}

        assert facts["inreceptacle"] == {
            (thing, name) for name, p in belief.places.items() for thing in p.contents or ()
        }
        assert facts["opened"] == {(n,) for n, p in belief.places.items() if p.is_open}
        assert {thing for _, thing in facts["holds"]} == ({belief.held} if belief.held else set())
        assert facts["istoggled"] == {(lamp,) for lamp in belief.lit}
        for treatment, predicate in states.items():
            treated = {(t,) for t, done in belief.treated.items() if treatment in done}
            assert facts[predicate] == treated
