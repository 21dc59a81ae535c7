from __future__ import annotations

import copy
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import gymnasium as gym
import pytest
from gymnasium.error import InvalidAction, ResetNeeded

pytest.importorskip("scienceworld", reason="pip install 'gym-llmworld[scienceworld]'")

from gym_llmworld.collection import play
from gym_llmworld.core import Completion, Scenario, Step
from gym_llmworld.errors import DataError, EngineError, ScenarioError
from gym_llmworld.real.scienceworld_engine import Game
from gym_llmworld.real.scienceworld_env import ScienceWorldEnv
from gym_llmworld.real.scienceworld_jvm import current_jvm
from gym_llmworld.real.scienceworld_scenarios import (
    game_of,
    game_of_id,
    game_scenario,
    game_stream,
    load_games,
    published_game,
    scenario_id,
    write_games,
)
from gym_llmworld.testing import check_text_env
from gym_llmworld.worlds.scienceworld import WORLD

SHORT = "sciworld-train-chemistry-mix-paint-secondary-color-1"
BOIL = "sciworld-train-boil-3"


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return game_scenario(game_of_id(SHORT))


@pytest.fixture
def env() -> Iterator[ScienceWorldEnv]:
    made = ScienceWorldEnv()
    yield made
    made.close()


def test_it_keeps_the_contract_of_text_worlds() -> None:
    name = "ScienceWorldUnderTest-v0"
    gym.register(name, entry_point=WORLD.real_entry_point)
    try:
        check_text_env(gym.make(name))
    finally:
        del gym.registry[name]


def test_a_reset_tells_the_task_and_shows_the_room(
    env: ScienceWorldEnv, scenario: Scenario
) -> None:
    observation, info = env.reset(options={"scenario": SHORT})
    task, room, *_ = observation.split("\n")
    assert task == scenario.instruction
    assert task.startswith("Your task is to use chemistry to create green paint.")
    assert room == "This room is called the art studio. In it, you see: "
    assert info == {
        "admissible_commands": None,
        "won": False,
        "score": 20.0,  # for being in the art studio
        "max_score": 100.0,
        "llmworld": {"source": "real", "scenario": SHORT},
    }
    assert env.scenario == scenario


def test_the_expert_solves_the_task(env: ScienceWorldEnv, scenario: Scenario) -> None:
    agent = WORLD.agents["expert"]()
    observation, info = env.reset(options={"scenario": scenario.to_json()})
    agent.reset(scenario, 0)
    rewards, scores, terminated = [], [], False
    while not terminated:
        action = agent.act(observation, info)
        observation, reward, terminated, truncated, info = env.step(action)
        rewards.append(reward)
        scores.append(info["score"])
        assert not truncated
    assert rewards == [0.0] * (len(scenario.real["plan"]) - 1) + [1.0]
    assert scores == sorted(scores)
    assert (info["won"], info["score"]) == (True, 100.0)
    with pytest.raises(ResetNeeded):
        env.step("look around")


def test_rooms_of_the_engine_are_told_by_changes(env: ScienceWorldEnv, scenario: Scenario) -> None:
    protocol = WORLD.protocol("recall")
    assert protocol.wording is not None
    episode = protocol.wording(scenario)
    env.reset(options={"scenario": SHORT})
    told, asked, steps = list[str](), list[str](), list[Step]()
    for action in (
        "look around",
        "open door to hallway",
        "pick up wood cup containing red paint",
        "look around",
        "go to hallway",
        "look around",
        "look at hallway",
        "inventory",
        "look at art studio",
        "open art studio",
    ):
        observation = env.step(action)[0]
        asked.append(episode.cue(action))
        told.append(episode.write(action, observation))
        answer = Completion(told[-1], "stop")
        assert protocol.decode(scenario, answer, steps).observation == observation
        steps.append(Step(action, observation))
    assert told[0] == "In @art studio"
    assert "\n- A door to the hallway (that is closed)" in told[3]
    assert "\n+ A door to the hallway (that is open)" in told[3]
    assert told[3].startswith("In @art studio\n- ")
    assert told[4] == "You move to the hallway."
    assert told[5].startswith("In @hallway\n- A door to the art studio (that is closed)\n+ ")
    assert told[6] == "In @hallway"
    assert told[7].startswith("In @inventory\n+ a wood cup (containing red paint)")
    assert "In @art studio" in told[8]
    # What is asked about is known: the studio's door, and who opened it since.
    assert asked[1] == " @art studio\n- A door to the hallway (that is closed)"
    # At the second look, what has been named in between.
    assert "\n- a wood cup (containing red paint)\n" in asked[3]
    assert "large cupboard" not in asked[3]
    assert asked[3].endswith("\n* open door to hallway\n* pick up wood cup containing red paint")
    assert (
        asked[4] == " @art studio\n- A door to the hallway (that is open)\n* open door to hallway"
    )
    assert asked[5].endswith(
        "\n~ A door to the hallway (that is closed)\n* open door to hallway @art studio"
    )
    assert "\n~ a wood cup (containing red paint)\n" in asked[7]
    assert asked[7].endswith("\n* pick up wood cup containing red paint @art studio")
    assert asked[9].startswith(" @hallway\n- A door to the art studio (that is open)")


def test_a_failed_task_terminates_without_reward(env: ScienceWorldEnv) -> None:
    env.reset(options={"scenario": BOIL})
    observation, reward, terminated, truncated, info = env.step("focus on orange")
    assert observation == "You focus on the orange."
    assert (reward, terminated, truncated) == (0.0, True, False)
    assert (info["won"], info["score"]) == (False, 0.0)


def test_a_step_limit_truncates() -> None:
    env = ScienceWorldEnv(max_episode_steps=2)
    env.reset(options={"scenario": BOIL})
    assert env.step("look around")[2:4] == (False, False)
    assert env.step("look around")[2:4] == (False, True)
    env.close()


def test_commands_are_listed_on_request() -> None:
    env = ScienceWorldEnv(admissible=True, render_mode="ansi")
    _, info = env.reset(options={"scenario": BOIL})
    assert {"open door to kitchen", "wait1"} <= set(info["admissible_commands"])
    assert "reset task" not in info["admissible_commands"]
    *_, info = env.step("look at door")
    assert info["admissible_commands"] == ["0", "1", "2"]
    *_, info = env.step("2")
    assert len(info["admissible_commands"]) > 100
    assert env.render() == "> 2\nA door to the foundry (that is closed)"
    env.close()


def test_a_rejected_action_leaves_a_question_open(env: ScienceWorldEnv) -> None:
    env.reset(options={"scenario": BOIL})
    env.step("look at door")
    assert env.step("")[0] == WORLD.rejection
    assert env.step("2")[0] == "A door to the foundry (that is closed)"
    assert env.step("reset task")[0] == WORLD.rejection


def test_very_long_questions_are_cut_at_a_line() -> None:
    env = ScienceWorldEnv(simplifications="teleportAction")
    env.reset(options={"scenario": f"{BOIL}+teleportAction"})
    env.step("teleport to kitchen")
    observation = env.step("move terminal to terminal")[0]
    assert env.observation_space.contains(observation)
    assert len(observation) > 8000
    assert observation.endswith("\n")
    assert env.step("0")[0] != WORLD.rejection
    env.close()


def test_two_environments_of_a_process_share_a_jvm_and_nothing_else() -> None:
    one, other = ScienceWorldEnv(), ScienceWorldEnv(simplifications="easy")
    one.reset(options={"scenario": BOIL})
    jvm = current_jvm().process_id
    other.reset(seed=1)
    assert current_jvm().process_id == jvm
    assert one.step("go to kitchen")[0] == "The door is not open."
    fork = copy.deepcopy(one)
    one.step("open door to kitchen")
    assert fork.step("go to kitchen")[0] == "The door is not open."
    assert one.step("go to kitchen")[0] == "You move to the kitchen."
    for env in (one, other, fork):
        env.close()


def test_episodes_end_with_their_jvm_and_the_next_ones_begin(env: ScienceWorldEnv) -> None:
    other = copy.deepcopy(env)
    for one in (env, other):
        one.reset(options={"scenario": BOIL})
    victim = current_jvm().process_id
    os.kill(victim, signal.SIGKILL)
    with pytest.raises(EngineError, match=r"exit status -9.*reset starts a new JVM"):
        env.step("look around")
    with pytest.raises(ResetNeeded):
        env.step("look around")
    env.reset(options={"scenario": BOIL})
    assert env.step("open door to kitchen")[0] == "The door is now open."
    assert current_jvm().process_id != victim
    with pytest.raises(EngineError, match="reset starts a new JVM"):
        other.step("look around")
    other.close()


def test_bad_input_says_what_was_expected(env: ScienceWorldEnv, scenario: Scenario) -> None:
    for wrong, expected in (
        ("sciworld-test-boil-3", "belongs to split 'train'; expected 'sciworld-train-boil-3'"),
        ("sciworld-train-boyl-3", "expected one of boil"),
        ("sciworld-train-boil-30", "from 0 to 29"),
        ("boil", "expected sciworld-<split>-<task>-<variation>"),
        ({"id": "x"}, "missing or wrong field: 'world'"),
        ({**scenario.to_json(), "world": "alfworld"}, "expected a scenario of scienceworld"),
        ({**scenario.to_json(), "real": {}}, "expected 'task' and 'variation' in real"),
        ({**scenario.to_json(), "observation": "?"}, "does not describe its game"),
    ):
        with pytest.raises(ScenarioError, match=expected):
            env.reset(options={"scenario": wrong})
    with pytest.raises(ScenarioError, match="unknown reset option 'task'"):
        env.reset(options={"task": "boil"})
    with pytest.raises(ScenarioError, match="unknown split 'valid'; expected one of train"):
        ScienceWorldEnv(split="valid")
    with pytest.raises(ScenarioError, match="unknown ScienceWorld task 'boyl'"):
        ScienceWorldEnv(tasks=["boyl"])
    with pytest.raises(ScenarioError, match="unknown simplification 'hard'"):
        ScienceWorldEnv(simplifications="hard")
    with pytest.raises(ValueError, match="render_mode must be None or one of"):
        ScienceWorldEnv(render_mode="rgb_array")
    with pytest.raises(ValueError, match="at least 1 or None, got 0"):
        ScienceWorldEnv(max_episode_steps=0)
    with pytest.raises(ResetNeeded):
        env.step("look around")
    env.reset(options={"scenario": BOIL})
    with pytest.raises(InvalidAction, match="must be a str, got int"):
        env.step(3)  # type: ignore[arg-type]


def test_games_are_drawn_from_the_wanted_split_and_tasks() -> None:
    env = ScienceWorldEnv(split="test", tasks=["melt", "boil"])
    ids = {env.reset(seed=seed)[1]["llmworld"]["scenario"] for seed in range(4)}
    assert {game_of_id(identity).task for identity in ids} == {"melt", "boil"}
    _, info = env.reset(options={"split": "dev"})
    assert game_of_id(info["llmworld"]["scenario"]).split == "dev"
    env.close()


def test_a_stream_of_games_takes_the_tasks_in_turn_and_each_game_once() -> None:
    games = list(game_stream("test", seed=3, tasks=["melt", "power-component"]))
    assert len({games[0].task, games[1].task}) == 2
    assert sorted(scenario_id(game) for game in games) == sorted(
        [f"sciworld-test-melt-{v}" for v in range(21, 30)]
        + [f"sciworld-test-power-component-{v}" for v in range(15, 20)]
    )
    assert games != list(game_stream("test", seed=4, tasks=["melt", "power-component"]))


def test_ids_and_games_are_inverse() -> None:
    for game in (Game("boil", 3), Game("identify-life-stages-1", 2, "openDoors,teleportAction")):
        assert game_of_id(scenario_id(game)) == game


def test_published_items_are_counted_as_their_authors_do() -> None:
    assert published_game(0) == Game("boil", 0)
    assert published_game(30) == Game("melt", 0)
    assert published_game(4638) == Game("identify-life-stages-2", 9)
    with pytest.raises(ScenarioError, match="expected 0 to 4638"):
        published_game(4639)


def test_a_collected_episode_is_solved(env: ScienceWorldEnv, scenario: Scenario) -> None:
    episode = play(env, WORLD.agents["plan"](), scenario, seed=0, max_steps=50)
    assert episode.success
    assert episode.actions == tuple(scenario.real["plan"])
    assert game_of(episode.scenario) == Game("chemistry-mix-paint-secondary-color", 1)


@pytest.mark.slow
def test_written_games_are_read_and_played(tmp_path: Path) -> None:
    target = write_games(tmp_path, "dev", 3, seed=5)
    assert target == tmp_path / "dev" / "scenarios.jsonl"
    before = target.read_bytes()
    assert write_games(tmp_path, "dev", 3, seed=5).read_bytes() == before
    scenarios = load_games(tmp_path, "dev")
    assert len(scenarios) == 3
    env = ScienceWorldEnv(split="dev", games=str(tmp_path))
    for scenario in scenarios:
        assert play(env, WORLD.agents["expert"](), scenario, seed=0, max_steps=300).success
    with pytest.raises(ScenarioError, match="unknown scenario"):
        env.reset(options={"scenario": BOIL})
    env.close()
    with pytest.raises((ScenarioError, DataError)):
        load_games(tmp_path / "missing", "dev")


@pytest.mark.slow
def test_compat_scenarios_repeat_rooms_and_others_do_not() -> None:
    game = game_of_id(SHORT)
    rooms = game_scenario(game).hidden["rooms"]
    looks = [room["look"].partition(" In it")[0].partition(" Here")[0] for room in rooms]
    assert len(set(looks)) == len(rooms) == 10
    assert all(f"called the {room['name']}." in room["look"] for room in rooms)
    compat = game_scenario(game, compat=True)
    assert compat == game_scenario(game, compat=True)
    wrong = [r for r in compat.hidden["rooms"] if f"called the {r['name']}." not in r["look"]]
    assert {"sewer", "terminal 1", "terminal 2"} <= {room["name"] for room in wrong}
    assert "teleport OBJ" in compat.hidden["actions"]
