"""The real environment: Gymnasium's rules, and episodes that do not disturb each other."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.utils.env_checker import check_env

from gym_llmworld.agents import RandomAgent
from gym_llmworld.core import Scenario
from gym_llmworld.episodes import read_scenarios
from gym_llmworld.errors import EngineError, ScenarioError

pytest.importorskip("alfworld")

from gym_llmworld.real import alfworld_source
from gym_llmworld.real.alfworld_env import AlfworldEnv
from gym_llmworld.real.alfworld_expert import HandcodedPolicy
from gym_llmworld.real.alfworld_games import build_game, dump_game
from gym_llmworld.real.alfworld_scenarios import write_games
from gym_llmworld.real.alfworld_tasks import GameSpec, sample_specs

SPLIT = "valid_seen"


@pytest.fixture(scope="module")
def games(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("games")
    write_games(folder, SPLIT, 6, 11, scenarios_only=True)
    return str(folder)


@pytest.fixture
def env(games: str) -> AlfworldEnv:
    return AlfworldEnv(SPLIT, games)


@pytest.fixture
def scenarios(games: str) -> list[Scenario]:
    return read_scenarios(Path(games) / SPLIT / "scenarios.jsonl")


@pytest.fixture
def nothing_ships(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(alfworld_source, "data_folder", lambda world: tmp_path)


@pytest.mark.filterwarnings("ignore:.*render modes:UserWarning")
def test_follows_gymnasium(games: str, capsys: pytest.CaptureFixture[str]) -> None:
    gym.register("TestALFWorld-v0", entry_point="gym_llmworld.real.alfworld_env:AlfworldEnv")
    try:
        made = gym.make("TestALFWorld-v0", split=SPLIT, games=games, disable_env_checker=True)
        check_env(made.unwrapped)
    finally:
        gym.registry.pop("TestALFWorld-v0")


def test_the_plan_wins(env: AlfworldEnv, scenarios: list[Scenario]) -> None:
    for scenario in scenarios:
        observation, info = env.reset(options={"scenario": scenario.id})
        assert observation == scenario.observation
        assert info == {
            "admissible_commands": list(scenario.admissible or ()),
            "won": False,
            "score": 0.0,
            "max_score": 1.0,
            "llmworld": {"source": "real", "scenario": scenario.id},
        }
        *plan, last = scenario.real["plan"]
        for command in plan:
            assert env.step(command)[1:4] == (0.0, False, False)
        _, reward, terminated, truncated, info = env.step(last)
        assert (reward, terminated, truncated) == (1.0, True, False)
        assert (info["won"], info["score"]) == (True, 1.0)
        with pytest.raises(ResetNeeded, match="has ended"):
            env.step("look")


def test_a_seed_fixes_the_scenario(env: AlfworldEnv, games: str) -> None:
    drawn = [env.reset(seed=seed)[1]["llmworld"]["scenario"] for seed in range(12)]
    assert drawn == [
        AlfworldEnv(SPLIT, games).reset(seed=seed)[1]["llmworld"]["scenario"] for seed in range(12)
    ]
    assert len(set(drawn)) > 2


def test_needs_a_reset_first(env: AlfworldEnv) -> None:
    for use in (lambda: env.step("look"), lambda: env.scenario, lambda: env.facts()):
        with pytest.raises(ResetNeeded):
            use()


def test_other_than_text_is_refused(env: AlfworldEnv) -> None:
    env.reset(seed=0)
    with pytest.raises(InvalidAction, match="must be a str, got NoneType"):
        env.step(None)  # type: ignore[arg-type]
    assert env.step("look")[0]


@pytest.mark.parametrize("action", ["", "dance", "x" * 100_000, "\x00\x1b[2J", "go to\nlook"])
def test_nonsense_does_nothing(env: AlfworldEnv, action: str) -> None:
    _, before = env.reset(seed=0)
    observation, reward, terminated, truncated, info = env.step(action)
    assert (observation, reward, terminated, truncated) == ("Nothing happens.", 0.0, False, False)
    assert info == before


def test_truncates_where_asked(games: str) -> None:
    env = AlfworldEnv(SPLIT, games, max_episode_steps=2)
    env.reset(seed=0)
    assert env.step("look")[2:4] == (False, False)
    assert env.step("look")[2:4] == (False, True)
    with pytest.raises(ResetNeeded):
        env.step("look")


def test_winning_on_the_last_step_is_no_truncation(games: str, scenarios: list[Scenario]) -> None:
    plan = scenarios[0].real["plan"]
    env = AlfworldEnv(SPLIT, games, max_episode_steps=len(plan))
    env.reset(options={"scenario": scenarios[0].id})
    steps = [env.step(command) for command in plan]
    assert steps[-1][1:4] == (1.0, True, False)


def test_a_scenario_can_be_given_whole(games: str, scenarios: list[Scenario]) -> None:
    data = json.loads(json.dumps(scenarios[2].to_json()))
    for given in (data, scenarios[2]):
        env = AlfworldEnv(SPLIT, games)
        assert env.reset(options={"scenario": given})[0] == scenarios[2].observation
        assert env.scenario == scenarios[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scenario": "nothing/like/it"}, "unknown scenario 'nothing/like/it'"),
        ({"scenario": {"id": "x"}}, "missing or wrong field"),
        ({"split": "test"}, "unknown split 'test'; expected one of train"),
        ({"split": "train"}, "no scenario of split 'train'"),
        ({"task": "x"}, "unknown reset option 'task'; expected scenario, split"),
    ],
)
def test_wrong_options_are_named(env: AlfworldEnv, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        env.reset(options=options)


def test_a_wrong_scenario_is_noticed(env: AlfworldEnv, scenarios: list[Scenario]) -> None:
    data = {**scenarios[0].to_json(), "observation": "You are on the moon."}
    with pytest.raises(ScenarioError, match="does not describe its game"):
        env.reset(options={"scenario": data})
    with pytest.raises(ScenarioError, match="expected a scenario of alfworld"):
        env.reset(options={"scenario": {**data, "world": "mars"}})


def test_wrong_arguments_are_named(games: str, tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="unknown split 'test'"):
        AlfworldEnv("test", games)
    with pytest.raises(ScenarioError, match="which does not exist"):
        AlfworldEnv(SPLIT, str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="max_episode_steps"):
        AlfworldEnv(SPLIT, games, max_episode_steps=0)
    with pytest.raises(ValueError, match="render_mode"):
        AlfworldEnv(SPLIT, games, render_mode="rgb_array")


@pytest.mark.usefixtures("nothing_ships")
def test_games_are_generated_where_none_ship() -> None:
    env = AlfworldEnv("valid_unseen")
    observation, info = env.reset(seed=4)
    assert env.scenario.split == "valid_unseen"
    again = AlfworldEnv("train")
    assert again.reset(seed=4)[0] != observation
    assert again.reset(options={"scenario": info["llmworld"]["scenario"]}) == (observation, info)
    with pytest.raises(ScenarioError, match="not a task: 'x'"):
        again.reset(options={"scenario": "train/x/3"})
    with pytest.raises(ScenarioError, match="unknown scenario 'x'"):
        again.reset(options={"scenario": "x"})


def test_plays_a_download(tmp_path: Path) -> None:
    spec = GameSpec("pick_two_obj_and_place-SoapBar-None-GarbageCan-419", 12)
    trial = tmp_path / "json_2.1.1" / "valid_unseen" / spec.task / "trial_T1"
    trial.mkdir(parents=True)
    for name, text in dump_game(build_game(spec)).items():
        (trial / name).write_text(text)
    env = AlfworldEnv("valid_unseen", str(tmp_path))
    scenario_id = env.reset(seed=0)[1]["llmworld"]["scenario"]
    env.reset(options={"scenario": scenario_id})
    for command in env.scenario.real["plan"]:
        *_, info = env.step(command)
    assert info["won"]
    with pytest.raises(ScenarioError, match="unknown scenario 'valid_unseen/x/y'"):
        env.reset(options={"scenario": "valid_unseen/x/y"})


def walk(env: gym.Env[str, str], seed: int) -> Iterator[Any]:
    """Plays at random, through several episodes."""
    rng = random.Random(seed)
    yield (result := env.reset(seed=seed))
    commands = result[1]["admissible_commands"]
    for number in range(40):
        if number % 12 == 11:
            yield (result := env.reset())
            commands = result[1]["admissible_commands"]
        step = env.step(rng.choice(commands))
        commands = step[-1]["admissible_commands"]
        yield step
        if step[2]:
            yield env.reset()


def test_environments_of_a_process_do_not_disturb_each_other(games: str) -> None:
    alone = [list(walk(AlfworldEnv(SPLIT, games), seed)) for seed in range(3)]
    walks = [walk(AlfworldEnv(SPLIT, games), seed) for seed in range(3)]
    together: list[list[Any]] = [[] for _ in walks]
    rng, left = random.Random(0), {0, 1, 2}
    while left:
        number = rng.choice(sorted(left))
        try:
            together[number].append(next(walks[number]))
        except StopIteration:
            left.remove(number)
    assert together == alone


def test_a_copy_goes_on_from_the_same_point(games: str, scenarios: list[Scenario]) -> None:
    env: gym.Env[str, str] = gym.wrappers.TimeLimit(AlfworldEnv(SPLIT, games), 30)
    env.reset(seed=1, options={"scenario": scenarios[0].id})
    plan = scenarios[0].real["plan"]
    for command in plan[:2]:
        env.step(command)
    fork = copy.deepcopy(env)
    forked = [fork.step(command) for command in plan[2:]]
    strayed = env.step("look")
    assert forked[-1][1:3] == (1.0, True)
    assert strayed[2] is False
    assert [env.step(command) for command in plan[2:]] == forked
    assert env.reset()[1] == fork.reset()[1]


def test_renders(games: str, capsys: pytest.CaptureFixture[str]) -> None:
    ansi = AlfworldEnv(SPLIT, games, render_mode="ansi")
    first, _ = ansi.reset(seed=0)
    assert ansi.render() == first
    observation = ansi.step("inventory")[0]
    assert ansi.render() == f"> inventory\n{observation}"
    assert capsys.readouterr().out == ""
    human = AlfworldEnv(SPLIT, games, render_mode="human")
    human.reset(seed=0)
    human.step("inventory")
    assert human.render() is None
    assert capsys.readouterr().out == f"{first}\n\n> inventory\n{observation}\n\n"


def test_facts_tell_what_is_hidden(env: AlfworldEnv) -> None:
    env.reset(seed=0)
    told = {fact[1:] for fact in env.facts() if fact[0] == "inreceptacle"}
    hidden = env.scenario.hidden["receptacles"]
    assert told == {(thing, place["name"]) for place in hidden for thing in place["contents"]}


def play(env: AlfworldEnv, agent: Any, scenario: Scenario, seed: int) -> list[str]:
    observation, info = env.reset(options={"scenario": scenario.to_json()})
    agent.reset(scenario, seed)
    actions: list[str] = []
    while not info["won"] and len(actions) < 120:
        actions.append(agent.act(observation, info))
        observation, _, _, _, info = env.step(actions[-1])
    return actions


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_handcoded_expert_solves_every_kind_of_task(
    env: AlfworldEnv, scenarios: list[Scenario]
) -> None:
    random.seed(5)
    state = random.getstate()
    for scenario in scenarios:
        actions = play(env, HandcodedPolicy(), scenario, 3)
        assert len(actions) < 120, scenario.id
        assert play(env, HandcodedPolicy(), scenario, 3) == actions
    assert random.getstate() == state


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_handcoded_expert_copes_with_being_overruled(
    env: AlfworldEnv, scenarios: list[Scenario]
) -> None:
    agent, stray = HandcodedPolicy(), RandomAgent(["look"])
    won = 0
    for scenario in scenarios:
        observation, info = env.reset(options={"scenario": scenario.to_json()})
        agent.reset(scenario, 0)
        stray.reset(scenario, 1)
        for number in range(120):
            action = agent.act(observation, info)
            if number % 4 == 3:
                action = stray.act(observation, info)
                agent.overruled(action)
            observation, _, terminated, _, info = env.step(action)
            if terminated:
                won += 1
                break
    assert won >= 3


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_handcoded_expert_says_what_it_needs(scenarios: list[Scenario]) -> None:
    agent = HandcodedPolicy()
    with pytest.raises(EngineError, match="needs reset"):
        agent.act("", {"admissible_commands": ["look"]})
    agent.reset(scenarios[0], 0)
    with pytest.raises(EngineError, match="admissible_commands"):
        agent.act(scenarios[0].observation, {})
    with pytest.raises(ScenarioError, match="missing task_type, object, receptacle"):
        agent.reset(Scenario("x", "alfworld", "train", "", ""), 0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_handcoded_expert_solves_many(games: str) -> None:
    env = AlfworldEnv(SPLIT, games)
    ids = [f"train/{spec.task}/{spec.seed}" for spec in sample_specs("train", 60, seed=31)]
    source = alfworld_source.ScenarioSource(None)
    lengths = [len(play(env, HandcodedPolicy(), source.get(name), 0)) for name in ids]
    assert sum(length < 120 for length in lengths) >= 58
