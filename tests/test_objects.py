"""The object games: rules by hand, the package's contract, and models that write nonsense."""

from __future__ import annotations

import copy
import json
import pickle
import random
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from gym_llmworld.cli_worlds import real_games
from gym_llmworld.collection import collect, play
from gym_llmworld.core import Completion, Scenario
from gym_llmworld.episodes import read_episodes
from gym_llmworld.errors import ScenarioError
from gym_llmworld.objectstate import ObjectState, predicted_state, read_state
from gym_llmworld.real.grids_levels import SEEDS, LevelSpec
from gym_llmworld.real.objects import make_game
from gym_llmworld.scenarios import ScenarioStore
from gym_llmworld.testing import HOSTILE_ACTIONS, check_text_env
from gym_llmworld.worlds import get_world
from gym_llmworld.worlds.objects import canonical, is_over
from gym_llmworld.worlds.objects_more_games import GAMES
from gym_llmworld.worlds.objects_rules import Board
from tests.scripted_world import MODEL

WORLD = get_world("objectgames")
KEYS = pytest.mark.parametrize("key", GAMES)


def shipped(split: str = "valid") -> tuple[Scenario, ...]:
    return ScenarioStore("objectgames").of_split(split)


def real(**options: Any) -> gym.Env[str, str]:
    return gym.make(WORLD.real_id, **options)


def drawn(key: str, seed: int = 0) -> Board:
    return GAMES[key].start(np.random.default_rng(seed))


def done(board: Board, key: str, *actions: str) -> Board:
    """Carries out actions that name things by their type: ``take Pot``."""
    for action in actions:
        for one in sorted(board.things.values(), key=lambda t: -len(t["type"])):
            action = action.replace(one["type"], one["name"])
        assert GAMES[key].act(board, action), action
    return board


def about(board: Board, kind: str) -> dict[str, Any]:
    one = board.one(kind)
    assert one is not None
    properties: dict[str, Any] = one["properties"]
    return properties


# --- rules -------------------------------------------------------------------------------------


def test_water_boils_and_cools_by_ticks() -> None:
    board = drawn("kettle")
    about(board, "Water")["temperature"] = 30
    about(board, "Stove").update(power=30, fuel=8)
    done(board, "kettle", "take Pot", "put Pot in Stove")
    assert (about(board, "Water")["temperature"], board.points) == (20, 1)
    done(board, "kettle", "turn on Stove", "wait")
    assert (about(board, "Water")["temperature"], about(board, "Stove")["fuel"]) == (80, 6)
    assert (board.points, board.won) == (2, False)
    done(board, "kettle", "turn off Stove")
    assert (about(board, "Water")["temperature"], board.points) == (75, 1)
    done(board, "kettle", "turn on Stove")
    assert (about(board, "Water"), board.points, board.won) == (
        {"temperature": 100, "isBoiling": True},
        4,
        True,
    )


def test_without_fuel_the_water_stays_cold() -> None:
    board = drawn("kettle")
    about(board, "Stove")["fuel"] = 2
    done(board, "kettle", "turn on Stove", "wait")
    assert about(board, "Stove")["isOn"] is False
    assert (board.lost, board.state.score["gameOver"], board.won) == (True, True, False)


def test_plants_drown_and_dry() -> None:
    board = drawn("seedling")
    about(board, "Plant").update(height=1, goal=9, moisture=4, dryTicks=0)
    about(board, "Can")["water"] = 0
    done(board, "seedling", "take Can", "fill Can at Tap")
    assert about(board, "Can")["water"] == 3
    assert about(board, "Plant") == {"height": 3, "goal": 9, "moisture": 2, "dryTicks": 0}
    wet = done(copy.deepcopy(board), "seedling", "water Plant with Can", "fill Can at Tap")
    assert about(wet, "Plant")["moisture"] == 3
    done(wet, "seedling", "water Plant with Can")
    assert (about(wet, "Plant")["moisture"], wet.lost) == (5, False)
    done(board, "seedling", *["wait"] * 6)
    assert (about(board, "Plant")["dryTicks"], board.lost) == (4, False)
    assert done(board, "seedling", "wait").lost


def test_dough_becomes_bread_with_a_new_uuid_and_burns() -> None:
    board = drawn("oven")
    about(board, "Oven").update(isOpen=True, power=60, temperature=20)
    about(board, "Dough")["needs"] = 2
    before = max(board.things)
    done(board, "oven", "take Dough", "put Dough in Oven", "close Oven", "turn on Oven", "wait")
    assert (about(board, "Oven")["temperature"], about(board, "Dough")["baked"]) == (140, 1)
    done(board, "oven", "wait")
    bread = board.one("Bread")
    assert bread is not None
    assert (board.one("Dough"), bread["uuid"], board.points) == (None, before + 1, 2)
    rescued = done(copy.deepcopy(board), "oven", "open Oven", "take Bread")
    assert (rescued.won, rescued.points) == (True, 3)
    done(board, "oven", *["wait"] * 4)
    assert about(board, "Bread")["overdone"] == 4
    assert (board.lost, board.won) == (True, False)


def test_an_action_without_effect_takes_time_and_nonsense_does_not() -> None:
    board = drawn("kettle")
    about(board, "Water")["temperature"] = 40
    game = GAMES["kettle"]
    done(board, "kettle", "turn off Stove")
    assert about(board, "Water")["temperature"] == 35
    before = board.state.text
    for action in ("", "take", "take pot", "take Pot (ID: 99)", "wait ", "fly", "put a in b"):
        assert not game.act(board, action)
    assert board.state.text == before


def test_closed_containers_hold_what_is_in_them() -> None:
    board = drawn("laundry")
    about(board, "Washer")["isOpen"] = True
    clothes = board.all("Clothes")[0]["name"]
    done(board, "laundry", f"take {clothes}", f"put {clothes} in Washer", "close Washer")
    state = board.state.text
    done(board, "laundry", f"take {clothes}")
    assert board.state.text == state


def test_mixtures() -> None:
    board = drawn("paint")
    names = {p["properties"]["color"]: board.holder(p) for p in board.all("Paint")}
    red, blue = (names[colour] for colour in ("red", "blue"))
    assert red is not None
    assert blue is not None
    game = GAMES["paint"]
    fresh = about(board, "Paint")["fresh"]
    game.act(board, f"pour {red['name']} into {blue['name']}")
    game.act(board, f"mix {blue['name']}")
    assert sorted(p["properties"]["color"] for p in board.all("Paint")) == ["purple", "yellow"]
    assert {p["properties"]["fresh"] for p in board.all("Paint")} == {fresh - 2}
    assert len(blue["contains"]) == 1


@KEYS
def test_games_can_be_won_and_are_not_over_at_the_start(key: str) -> None:
    for seed in range(40):
        board = drawn(key, seed)
        assert (board.won, board.lost) == (False, False)
        for _ in range(20):
            action = GAMES[key].advise(board)
            assert action in GAMES[key].actions(board)
            GAMES[key].act(board, action)
            if board.won:
                break
        assert board.won
        assert board.points == GAMES[key].max_points or key == "seedling"


@KEYS
def test_a_board_can_be_read_back_at_any_time(key: str) -> None:
    rng = np.random.default_rng(3)
    board, told = drawn(key, 5), drawn(key, 5)
    for _ in range(25):
        actions = [*GAMES[key].actions(board), *GAMES[key].vain_actions(board)]
        action = actions[int(rng.integers(len(actions)))]
        GAMES[key].act(board, action)
        again = read_state(told.state.text)
        assert again is not None
        told = Board.of(again)
        GAMES[key].act(told, action)
        assert told.state.text == board.state.text
        held = [name for one in board.things.values() for name in one["contains"]]
        assert len(held) == len({*held})
        assert {*held} <= {one["name"] for one in board.things.values()}


# --- the environment ---------------------------------------------------------------------------


def test_both_twins_keep_the_contract() -> None:
    check_text_env(real())
    for key in GAMES:
        check_text_env(real(game=key))
    for style in WORLD.contexts:
        check_text_env(gym.make(WORLD.imagined_id, model=MODEL, prompt_style=style))


def test_what_ships_is_what_the_generator_makes() -> None:
    store = ScenarioStore("objectgames")
    sizes = {split: len(store.of_split(split)) for split in store.splits()}
    assert sizes == {"train": 42, "valid": 63, "test": 63}
    env, starts = real(), set[str]()
    for split in store.splits():
        scenarios = store.of_split(split)
        assert {s.real["game"] for s in scenarios} == {*GAMES}
        assert not starts & {s.observation for s in scenarios}
        starts |= {s.observation for s in scenarios}
        for scenario in scenarios[:14]:
            spec = LevelSpec.parse(scenario.id)
            assert spec is not None
            assert spec.seed in SEEDS[split]
            assert make_game(spec) == scenario
            env.reset(options={"scenario": scenario.to_json()})
            assert env.get_wrapper_attr("scenario") == scenario
    assert len(starts) > 160


def test_observations_are_differences_that_lead_to_the_state() -> None:
    env = real(split="valid")
    for scenario in shipped()[:14]:
        first, info = env.reset(options={"scenario": scenario.id})
        state = read_state(first)
        for action in scenario.real["plan"]:
            assert action in info["admissible_commands"]
            observation, reward, terminated, truncated, info = env.step(action)
            assert state is not None
            state = predicted_state(state, observation)
            assert state is not None
            assert state.text == info["llmworld"]["state"]
            assert is_over(observation) == terminated
            assert (reward == 1.0) == terminated == info["won"]
        assert terminated
        assert not truncated
        assert info["score"] == info["max_score"]


def test_nonsense_changes_nothing() -> None:
    env = real(game="kettle")
    for action in (*HOSTILE_ACTIONS, "take pot", "take pot\n", "wait [SUCCESS]"):
        _, before = env.reset(seed=0)
        observation, reward, terminated, _, info = env.step(action)
        assert observation == WORLD.rejection
        assert (reward, terminated) == (0.0, False)
        assert info["llmworld"]["state"] == before["llmworld"]["state"]


def test_lost_games_end_without_reward() -> None:
    env = real(game="kettle")
    _, info = env.reset(seed=1)
    stove = next(a for a in info["admissible_commands"] if a.startswith("turn on"))
    terminated, steps = False, 0
    observation, _, terminated, _, _ = env.step(stove)
    while not terminated:
        observation, reward, terminated, truncated, info = env.step("wait")
        steps += 1
        assert (reward, truncated, info["won"]) == (0.0, False, False)
    assert is_over(observation)
    assert 5 <= steps <= 9


def test_forks_agree() -> None:
    env = real(game="bath")
    first = env.reset(seed=3)[1]["admissible_commands"]
    env.step(first[1])
    twin = copy.deepcopy(env)
    for action in ("wait", first[0]):
        assert env.step(action) == twin.step(action)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"real": {}}, r"does not say its game: expected split, real\['game'\]"),
        ({"real": {"game": "kettle", "seed": "x"}}, "does not say its game"),
        ({"real": {"game": "chess", "seed": 1000}}, "unknown game 'chess'; expected one of kettle"),
        ({"observation": "{}"}, "does not describe its game"),
    ],
)
def test_scenarios_of_no_game_are_refused(change: dict[str, Any], message: str) -> None:
    good = shipped("test")[0].to_json()
    with pytest.raises(ScenarioError, match=message):
        real().reset(options={"scenario": {**good, **change}})


def test_unknown_games_and_splits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="unknown game 'chess'"):
        real(game="chess")
    with pytest.raises(ScenarioError, match="unknown split 'dev'"):
        real(split="dev")
    with pytest.raises(ScenarioError, match="leave out game='oven'"):
        real(games=str(tmp_path), game="oven")
    for identity in ("test/kettle/5", "dev/kettle/1", "test/kettle/x", "kettle"):
        with pytest.raises(ScenarioError, match=r"<split>/<game>/<seed>.*test/kettle/1000"):
            real().reset(options={"scenario": identity})
    games = real_games(WORLD)
    with pytest.raises(ScenarioError, match=r"has 7000 games; expected n <= that, got 7001"):
        games.write_games(tmp_path, "valid", 7001)


def test_games_are_written_and_played(tmp_path: Path) -> None:
    games = real_games(WORLD)
    games.write_games(tmp_path / "a", "test", 9, 3)
    made = games.load_games(tmp_path / "a", "test")
    assert [s.real["game"] for s in made] == [*GAMES, "kettle", "seedling"]
    file = games.write_games(tmp_path / "b", "test", 5, 3, game="torch")
    assert file.is_file()
    env = real(games=str(tmp_path / "b"), split="test")
    assert env.reset(seed=0)[1]["llmworld"]["scenario"].startswith("test/torch/")


# --- players and models ------------------------------------------------------------------------


# Measured on the 63 validation games.
@pytest.mark.parametrize(
    ("name", "lowest", "highest"),
    [
        ("expert", 1.0, 1.0),
        ("plan", 1.0, 1.0),
        ("noisy", 0.3, 0.95),
        ("corrupted", 0.3, 0.95),
        ("random", 0.0, 0.35),
    ],
)
def test_how_well_players_play(name: str, lowest: float, highest: float) -> None:
    env, agent = real(), WORLD.agents[name]()
    played = [play(env, agent, s, seed=i, max_steps=30) for i, s in enumerate(shipped("valid"))]
    share = sum(episode.success for episode in played) / len(played)
    assert lowest <= share <= highest, share
    assert play(env, agent, shipped()[7], seed=7, max_steps=30) == played[7]


def test_players_bear_with_nonsense() -> None:
    draw, scenario = random.Random(0), shipped()[0]
    state = json.loads(scenario.observation)
    odd: list[Any] = [None, [], {}, "x", 3.5, [[]], True, {"a": [1]}]
    for name, make in WORLD.agents.items():
        agent = pickle.loads(pickle.dumps(make))()
        for number in range(35):
            scenario = shipped()[number]
            agent.reset(scenario, number)
            for one in json.loads(scenario.observation)["game_state"][:-1]:
                wild = {**one, "properties": {k: draw.choice(odd) for k in one["properties"]}}
                wild["contains"] = draw.choice([[], ["x"], [one["name"]], one["contains"]])
                told = {"modified": [wild], "removed": [draw.randint(0, 5)], "score": {}}
                for answer in (json.dumps(told), "", "it will be warmer", json.dumps(state)):
                    assert isinstance(agent.act(answer, {}), str), name
    crowd = ObjectState(
        {i: {"name": f"x (ID: {i})", "uuid": i, "type": "Item", "properties": {}, "contains": []}
         for i in range(500)}, {},
    )  # fmt: skip
    agent = WORLD.agents["random"]()
    agent.reset(shipped()[0], 0)
    assert isinstance(agent.act(crowd.text, {}), str)
    agent.reset(Scenario("x", "objectgames", "test", "", "?"), 0)
    assert agent.act("?", {}) == "wait"


def test_what_a_model_may_end() -> None:
    protocol = WORLD.protocol("engine")
    text = '{"modified": [], "removed": [], "score": {"score": 0, "gameOver": %s, "gameWon": %s}}'
    lost = protocol.decode(shipped()[0], Completion(text % ("true", "false"), "stop"), ())
    assert (lost.over, lost.success) == (True, False)
    claimed = protocol.decode(shipped()[0], Completion(text % ("true", "true"), "stop"), ())
    assert (claimed.over, claimed.success) == (True, False)
    won = protocol.decode(
        shipped()[0], Completion(text % ("true", "true") + " [SUCCESS]", "stop"), ()
    )
    assert (won.over, won.success) == (True, True)
    for odd in ("", "{}", "[]", '{"score": 3}', "[" * 9999, '{"score": {"gameOver": "true"}}'):
        assert not is_over(odd)


def test_order_of_contents_does_not_matter_to_canonical_texts() -> None:
    one = '{"modified": [{"uuid": 1, "contains": ["b", "a"]}, {"uuid": 0}], "removed": [2, 1]}'
    two = '{"removed": [1, 2], "modified": [{"uuid": 0}, {"contains": ["a", "b"], "uuid": 1}]}'
    assert canonical(one) == canonical(two)
    assert canonical("no JSON") == "no JSON"


def test_contexts() -> None:
    scenario = shipped()[0]
    engine = WORLD.contexts["engine"](scenario)
    assert engine == f"{scenario.instruction}\n{scenario.observation}"
    for scenario in shipped()[:7]:
        told = WORLD.contexts["word2world"](scenario)
        game = GAMES[scenario.real["game"]]
        assert game.task in told
        assert game.rules in told
        assert told.endswith(scenario.observation)


def test_episodes_are_collected(tmp_path: Path) -> None:
    report = collect(
        WORLD.real_id,
        {"expert": 1.0, "random": 1.0},
        shipped(),
        policies=WORLD.agents,
        episodes=8,
        out=tmp_path / "real.jsonl",
        workers=0,
        max_steps=WORLD.max_episode_steps,
    )
    assert report.total.episodes == len(list(read_episodes(tmp_path / "real.jsonl"))) == 8
