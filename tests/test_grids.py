"""What the grid puzzles share: turns, coordinates, levels, players, and the package's contract."""

from __future__ import annotations

import copy
import itertools
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
from gym_llmworld.core import Scenario
from gym_llmworld.episodes import read_episodes
from gym_llmworld.errors import ScenarioError
from gym_llmworld.real.grids_levels import SEEDS, LevelSpec, make_level, split_of
from gym_llmworld.scenarios import ScenarioStore
from gym_llmworld.testing import HOSTILE_ACTIONS, check_text_env
from gym_llmworld.worlds import get_world
from gym_llmworld.worlds.grids import SEPARATOR, Puzzle, actions_left, is_exhausted
from tests.grids_shared import ALL, begun, level, real
from tests.scripted_world import MODEL

KEYS = pytest.mark.parametrize("key", ALL)


def shipped(key: str, split: str = "valid") -> tuple[Scenario, ...]:
    return ScenarioStore(key).of_split(split)


@KEYS
def test_both_twins_keep_the_contract(key: str) -> None:
    world = get_world(key)
    check_text_env(gym.make(world.real_id))
    for coordinates in ("off", "random"):
        check_text_env(gym.make(world.real_id, coordinates=coordinates))
    for style in world.contexts:
        check_text_env(gym.make(world.imagined_id, model=MODEL, prompt_style=style))


@pytest.mark.parametrize(
    ("text", "actions", "well_formed"),
    [
        ("Up || Left", ("Up", "Left"), True),
        ("  up||LEFT ", ("Up", "Left"), True),
        ("Up", ("Up",), True),
        ("Up || Jump || Left", ("Up", "Left"), False),
        ("Up | Left", (), False),
        ("Up ||", ("Up",), False),
        ("", (), False),
        (" || ".join(["Up"] * 6), ("Up",) * 5, False),
        ("||".join(["?"] * 5 + ["Up"]), (), False),
        ("1,2,3", (), False),
    ],
)
def test_turns_of_moves(text: str, actions: tuple[str, ...], well_formed: bool) -> None:
    turn = ALL["sokoban"].puzzle.read_turn(text)
    assert (turn.actions, turn.well_formed) == (actions, well_formed)


@pytest.mark.parametrize(
    ("text", "actions", "well_formed"),
    [
        ("1,2,3 || 4 , 4,01", ("1,2,3", "4,4,1"), True),
        ("1,2 || 1,2,3,4 || a,b,c", (), False),
        ("-1,2,3", (), False),
        ("1,2,333", (), False),
        ("１,２,３", (), False),  # noqa: RUF001 - digits of another script
    ],
)
def test_turns_of_sudoku(text: str, actions: tuple[str, ...], well_formed: bool) -> None:
    turn = ALL["sudoku"].puzzle.read_turn(text)
    assert (turn.actions, turn.well_formed) == (actions, well_formed)


# The first three are the examples that SPA prints (appendix A, section 2.1, prompts).
@pytest.mark.parametrize(
    ("key", "board", "estimate"),
    [
        (
            "frozenlake",
            "_O__ O___ G___ __P_",
            "Player at (3,2); holes at (0,1) and (1,0); goal at (2,0).",
        ),
        (
            "sokoban",
            "###### #_#### #_P### #_X#_# #__O_# ######",
            "Player (P) is at (2,2); box (X) is at (3,2); target (O) is at (4,3).",
        ),
        (
            "sudoku",
            "..14 14.3 42.. .142",
            "Empty positions to be filled are at (1,1), (1,2), (2,3), (3,3), (3,4), (4,1).",
        ),
        ("frozenlake", "P_ _G", "Player at (0,0); goal at (1,1)."),
        ("frozenlake", "O√ OO", "Player at (0,1); holes at (0,0), (1,0) and (1,1); goal at (0,1)."),
        ("frozenlake", "_X _G", "Player at (0,1); hole at (0,1); goal at (1,1)."),
        (
            "sokoban",
            "√S XO",
            "Player (P) is at (0,1); boxes (X) are at (0,0) and (1,0); "
            "targets (O) are at (0,0), (0,1) and (1,1).",
        ),
        ("sudoku", "2314 1423 4231 .142", "Empty position to be filled is at (4,1)."),
        ("sudoku", "2314 1423 4231 3142", "No empty positions."),
    ],
)
def test_state_estimates(key: str, board: str, estimate: str) -> None:
    puzzle = ALL[key].puzzle
    rows = tuple(board.split())
    state = puzzle.state(rows, puzzle.groups(rows))
    drawn = "| " + board.replace("", " ").replace("   ", " | ").strip()
    expected = drawn if key == "sudoku" else board.replace(" ", "\n")
    assert state == f"{expected}\n{estimate}"
    observation = puzzle.observation(state, 7)
    assert observation == f"{state}\nYou have 7 actions left."
    assert puzzle.read_board(observation) == puzzle.read_board(puzzle.draw(rows)) == rows
    assert (actions_left(observation), is_exhausted(observation)) == (7, False)
    assert is_exhausted(puzzle.observation(state, 0))


@pytest.mark.parametrize("text", ["", "Invalid action.", "PP\n_", "| 1 . | . ?", "|", "\n"])
def test_what_is_no_board(text: str) -> None:
    assert all(levels.puzzle.read_board(text) is None for levels in ALL.values())
    assert actions_left(f"{text} You have no actions left.") is None


def scattered_cells(puzzle: Puzzle, board: tuple[str, ...], seed: int) -> list[list[Any]]:
    groups = puzzle.scattered(board, np.random.default_rng(seed))
    return [list(group.cells) for group in groups]


@KEYS
def test_random_coordinates_keep_the_counts_only(key: str) -> None:
    puzzle, board = ALL[key].puzzle, tuple(shipped(key)[0].real["level"])
    true = [list(group.cells) for group in puzzle.groups(board)]
    drawn = [scattered_cells(puzzle, board, seed) for seed in range(20)]
    assert all([len(cells) for cells in d] == [len(cells) for cells in true] for d in drawn)
    assert all(d != true for d in drawn[:10])
    for cells in itertools.chain(*drawn):
        assert len({*cells}) == len(cells)
        assert cells == sorted(cells)
        assert all(0 <= r < len(board) and 0 <= c < len(board[0]) for r, c in cells)


@KEYS
def test_coordinates_on_off_and_random(key: str) -> None:
    scenario, move = shipped(key)[0], shipped(key)[0].admissible
    assert move is not None
    seen = {}
    for mode in ("on", "off", "random"):
        env = real(key, coordinates=mode)
        options = {"scenario": scenario.to_json()}
        first = env.reset(seed=4, options=options)[0]
        later, _, _, _, info = env.step(move[0])
        assert later.startswith(f"{info['llmworld']['state']}\nYou have ")
        assert env.get_wrapper_attr("scenario").observation == first
        assert env.reset(seed=4, options=options)[0] == first
        assert env.step(move[0])[0] == later
        seen[mode] = (first.split("\n"), later.split("\n"))
    for on, off, scattered in zip(*seen.values(), strict=True):
        assert [*on[:-2], on[-1]] == off == [*scattered[:-2], scattered[-1]]
        assert on[-2] != scattered[-2]
    with pytest.raises(ValueError, match="coordinates must be one of on, off, random, got 'both'"):
        real(key, coordinates="both")


@KEYS
def test_what_ships_is_what_the_generator_makes(key: str) -> None:
    store = ScenarioStore(key)
    assert {split: len(store.of_split(split)) for split in store.splits()} == {
        "train": 40,
        "valid": 60,
        "test": 60,
    }
    env = real(key)
    for split in store.splits():
        for scenario in store.of_split(split)[:8]:
            spec = LevelSpec.parse(scenario.id)
            assert spec is not None
            assert spec.seed in SEEDS[split]
            assert make_level(ALL[key], spec) == scenario
            assert json.loads(json.dumps(scenario.to_json())) == scenario.to_json()
            env.reset(options={"scenario": scenario.id})
            assert env.get_wrapper_attr("scenario") == scenario


@KEYS
def test_splits_share_no_board(key: str) -> None:
    boards: dict[str, set[tuple[str, ...]]] = {}
    for split, seeds in SEEDS.items():
        made = [make_level(ALL[key], LevelSpec(split, ALL[key].usual, s)) for s in seeds[:20]]
        boards[split] = {tuple(scenario.real["level"]) for scenario in made}
        assert {split_of(board) for board in boards[split]} == {split}
        assert len(boards[split]) > 15
    assert not {*SEEDS["train"]} & {*SEEDS["valid"], *SEEDS["test"]}


@pytest.mark.parametrize(
    ("key", "board"), [(key, board) for key, levels in ALL.items() for board in levels.boards]
)
def test_every_kind_of_board_is_solved_by_its_plan(key: str, board: str) -> None:
    env = real(key, board=board, split="test")
    firm = 0
    for seed in SEEDS["test"][: 1 if board == "10x10" else 10]:
        _, info = env.reset(seed=seed, options={"scenario": f"test/{board}/{seed}"})
        scenario = env.get_wrapper_attr("scenario")
        assert info["llmworld"]["scenario"] == scenario.id == f"test/{board}/{seed}"
        size = int(board.partition("x")[0])
        assert [len(row) for row in scenario.real["level"]] == [size] * size
        if scenario.hidden.get("slippery"):
            continue
        assert len(scenario.real["plan"]) <= 2
        for turn in scenario.real["plan"]:
            _, reward, terminated, truncated, info = env.step(turn)
        assert (reward, terminated, truncated, info["won"]) == (1.0, True, False, True)
        firm += 1
    assert firm or key == "frozenlake"
    drawn = env.reset(seed=1)[1]["llmworld"]["scenario"]
    assert drawn.startswith(f"test/{board}/")


@KEYS
def test_the_twins_start_alike(key: str) -> None:
    world = get_world(key)
    imagined = gym.make(world.imagined_id, model=MODEL)
    assert imagined.spec is not None
    assert imagined.spec.max_episode_steps == 5
    for seed in range(5):
        there, here = imagined.reset(seed=seed), real(key).reset(seed=seed)
        assert there[0] == here[0]
        assert there[1]["admissible_commands"] == here[1]["admissible_commands"]
        assert there[1]["llmworld"]["scenario"] == here[1]["llmworld"]["scenario"]


@KEYS
def test_what_is_no_turn_changes_nothing(key: str) -> None:
    env = real(key)
    first, _ = env.reset(seed=0)
    protocol = get_world(key).protocol("engine")
    good = env.reset(seed=0)[1]["admissible_commands"][0]
    for action in (*HOSTILE_ACTIONS, "Jump", f"{good}\n", f"{good} || [SUCCESS]", "x || y"):
        env.reset(seed=0)
        answer, reward, terminated, _, info = env.step(action)
        if protocol.admit(action) is None or action == "Jump":
            assert answer == "Invalid action."
            assert info["llmworld"]["well_formed"] is False
        if answer == "Invalid action.":
            assert first.startswith(info["llmworld"]["state"])
            assert (reward, terminated, info["llmworld"]["turn_reward"]) == (0.0, False, 0.0)
    assert protocol.admit(f"{good} || [SUCCESS]") is None


@pytest.mark.parametrize(
    ("scenario", "wait"),
    [
        (level("frozenlake", "P_ _G", slippery=False), "Up"),
        (level("sokoban", "##### #PXO# #####"), "Up"),
        (level("sudoku", "..14 14.3 42.. .142"), "9,9,9"),
    ],
)
def test_without_actions_left_the_episode_is_lost(scenario: Scenario, wait: str) -> None:
    env, world = begun(scenario).unwrapped, get_world(scenario.world)
    most, terminated, steps = ALL[world.key].puzzle.max_actions, False, 0
    assert world.ends is not None
    while not terminated:
        observation, reward, terminated, truncated, info = env.step(" || ".join([wait] * 4))
        steps += 1
        assert actions_left(observation) == max(0, most - 4 * steps)
        assert (reward, truncated, info["won"]) == (0.0, False, False)
        assert info["llmworld"]["well_formed"] is True
        assert world.ends(observation) == terminated
    assert steps == -(-most // 4)


@KEYS
def test_five_turns_are_the_limit(key: str) -> None:
    env = real(key)
    env.reset(seed=0)
    assert [env.step("nothing")[3] for _ in range(5)] == [False] * 4 + [True]


@pytest.mark.parametrize(
    ("scenario", "message"),
    [
        (level("frozenlake", "PO OG"), r"cannot be solved.*at most 10 actions"),
        (level("frozenlake", "P__________G"), r"cannot be solved.*at most 10 actions"),
        (level("frozenlake", "P_ __"), "expected one P, one G and no X or √"),
        (level("frozenlake", "PP _G"), "expected one P, one G and no X or √"),
        (level("frozenlake", "XG _G"), "expected one P, one G and no X or √"),
        (level("frozenlake", "P_ G"), "no frozenlake board.*rows of equal length"),
        (level("frozenlake", "P_ _#"), "no frozenlake board.*made of 'P_OGX√'"),
        (level("frozenlake", ""), "no frozenlake board"),
        (level("frozenlake", "P_ _G", slippery="no"), "must be true or false, got 'no'"),
        (level("sokoban", "##### #X_P# #O__# #__O# #####"), "got 1 players, 1 boxes, 2 targets"),
        (level("sokoban", "##### #X_P# #__O# #####"), "cannot be solved"),
        (level("sokoban", "#### #P√# ####"), "a box to push"),
        (level("sokoban", "#### #XO# ####"), "got 0 players"),
        (level("sudoku", "1234 3412 2143 4321"), "an empty cell"),
        (level("sudoku", "11.. .... .... ...."), "no digit twice"),
        (level("sudoku", ".... .... .... ...."), "cannot be solved"),
        (level("sudoku", "123. ...4 .... ...."), "cannot be solved"),
        (level("sudoku", "123. 3412 2143 432"), "rows of equal length"),
        (level("sudoku", "129. 3412 2143 4321"), "cannot be started"),
    ],
)
def test_impossible_boards_are_refused(scenario: Scenario, message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        real(scenario.world).reset(options={"scenario": scenario.to_json()})


def test_scenarios_without_a_board_are_refused() -> None:
    env = real("sokoban")
    good = shipped("sokoban")[0].to_json()
    for rows in (None, 3, "#P#", [1, 2]):
        with pytest.raises(ScenarioError, match=r"has no board in real\['level'\]"):
            env.reset(options={"scenario": {**good, "real": {"level": rows}}})
    other = shipped("sokoban")[1].real
    with pytest.raises(ScenarioError, match="does not describe its game"):
        env.reset(options={"scenario": {**good, "real": other}})


@pytest.mark.parametrize(
    "identity", ["test/6x6/5", "dev/6x6/5", "test/6x6/x", "test/6x6", "", "test/6x6/²"]
)
def test_unknown_levels_are_refused(identity: str) -> None:
    with pytest.raises(ScenarioError, match=r"<split>/<board>/<seed>.*test/6x6/1000.*0 to 999"):
        real("sokoban").reset(options={"scenario": identity})
    assert LevelSpec.parse(identity) is None


def test_unknown_boards_and_splits_are_refused(tmp_path: Path) -> None:
    message = "sokoban has no board '7x7'; expected one of 6x6, 10x10"
    with pytest.raises(ScenarioError, match=message):
        real("sokoban", board="7x7")
    with pytest.raises(ScenarioError, match=message):
        real("sokoban").reset(options={"scenario": "test/7x7/1000"})
    with pytest.raises(ScenarioError, match="unknown split 'dev'; expected one of train, valid"):
        real("sokoban", split="dev")
    with pytest.raises(ScenarioError, match="no scenario file or folder"):
        real("sokoban", games=str(tmp_path / "nowhere"))
    with pytest.raises(ScenarioError, match="leave out board='6x6'"):
        real("sokoban", games=str(tmp_path), board="6x6")
    games = real_games(get_world("sudoku"))
    with pytest.raises(ScenarioError, match=r"split 'valid' has 1000 levels.*got 1001"):
        games.write_games(tmp_path, "valid", 1001)
    with pytest.raises(ScenarioError, match=r"has no test/scenarios\.jsonl"):
        games.load_games(tmp_path, "test")


@KEYS
def test_games_are_written_and_played(key: str, tmp_path: Path) -> None:
    games, board = real_games(get_world(key)), next(iter(ALL[key].boards))
    games.write_games(tmp_path / "a", "test", 4, 3)
    games.write_games(tmp_path / "a", "test", 8, 3)
    file = games.write_games(tmp_path / "b", "test", 8, 3, boards=[board])
    made = games.load_games(tmp_path / "a", "test")
    assert len({s.id for s in made}) == 8
    assert (tmp_path / "a" / "test" / "scenarios.jsonl").read_bytes() == file.read_bytes()
    env = real(key, games=str(tmp_path / "b"), split="test")
    assert env.reset(seed=0)[1]["llmworld"]["scenario"] in {s.id for s in made}
    with pytest.raises(ScenarioError, match="unknown scenario"):
        env.reset(options={"scenario": shipped(key)[0].id})


def test_levels_of_other_sizes_for_transfer(tmp_path: Path) -> None:
    games = real_games(get_world("frozenlake"))
    games.write_games(tmp_path, "valid", 5, boards=["6x6-firm"])
    for scenario in games.load_games(tmp_path, "valid"):
        assert (len(scenario.real["level"]), scenario.hidden) == (6, {"slippery": False})
        assert "The ice is not slippery." in scenario.instruction
    imagined = gym.make(
        "LLMWorld-FrozenLake-v0", model=MODEL, scenarios=str(tmp_path), split="valid"
    )
    assert imagined.reset(seed=0)[1]["llmworld"]["scenario"].startswith("valid/6x6-firm/")


@KEYS
def test_what_is_no_turn_is_not_asked_about(key: str) -> None:
    """The twin's rule, so the model need not know what it is."""
    protocol = get_world(key).protocol("engine")
    env = gym.make(get_world(key).imagined_id, model=MODEL)
    env.reset(seed=0)
    for action in ("look", "dance || sing", "1,2"):
        assert protocol.admit(action) is None
        answer, reward, terminated, truncated, info = env.step(action)
        assert (answer, info["llmworld"]["source"]) == ("Invalid action.", "rule")
        assert (reward, terminated, truncated) == (0.0, False, False)
    assert env.unwrapped.imagination.stats.requests == 0  # type: ignore[attr-defined]


@KEYS
def test_models_see_turns_as_the_engine_carries_them_out(key: str) -> None:
    """Not as they were typed: nobody can write what `BoardWording` puts behind an action."""
    protocol, scenario = get_world(key).protocol("engine"), shipped(key)[0]
    good = (scenario.admissible or ())[0]
    spaced = good.replace(",", " , 0") if key == "sudoku" else good.upper()
    plain = protocol.encode(scenario, (), f"{good} || {good}")
    for typed in (
        f"{good}||{good}",
        f" {spaced} ||   {spaced}",
        f"{good} || dance || {good}",
        f"{good} || (0,0)√ || {good} || (0,0)P",
    ):
        assert protocol.encode(scenario, (), typed) == plain
        info = begun(scenario).step(typed)[4]
        assert info["llmworld"]["well_formed"] is not any(sign in typed for sign in ("dance", "√"))
    many = " || ".join([good] * 8)
    assert protocol.admit(many) == " || ".join([good] * 5)


def test_kinds_of_boards_take_turns(tmp_path: Path) -> None:
    games = real_games(get_world("frozenlake"))
    games.write_games(tmp_path, "valid", 6, boards=["4x4", "4x4-firm", "6x6-firm"])
    made = [
        (len(s.real["level"]), s.hidden["slippery"]) for s in games.load_games(tmp_path, "valid")
    ]
    assert made == [(4, True), (4, False), (6, False)] * 2
    with pytest.raises(ScenarioError, match=r"holds boards 4x4, 4x4-firm, 6x6-firm; expected no"):
        games.write_games(tmp_path, "valid", 6, boards=["4x4-firm"])
    with pytest.raises(ScenarioError, match="no board '5x5'; expected one of 4x4, "):
        games.write_games(tmp_path, "train", 6, boards=["4x4", "5x5"])


def test_only_slippery_ice_is_left_to_chance() -> None:
    """One slips to either side: a greedy model would always slip to the same."""
    for asked, slippery, expected in (
        (None, True, 1.0), (None, False, 0.0), (0.0, True, 0.0), (0.5, False, 0.5),
    ):  # fmt: skip
        env = gym.make("LLMWorld-FrozenLake-v0", model=MODEL, temperature=asked)
        lake = level("frozenlake", "P_ _G", slippery=slippery)
        assert env.unwrapped.imagination.temperature_of(lake) == expected  # type: ignore[attr-defined]
    for key in ("sokoban", "sudoku"):
        assert get_world(key).temperature is None


@KEYS
def test_contexts(key: str) -> None:
    world, scenario = get_world(key), shipped(key)[0]
    ice = "Slippery ice.\n" if key == "frozenlake" else ""
    assert world.contexts["engine"](scenario) == ice + scenario.observation
    told = world.contexts["word2world"](scenario)
    assert told == f"{scenario.instruction}\n\n{scenario.observation}"
    firm = level("frozenlake", "P_ _G", slippery=False)
    assert get_world("frozenlake").contexts["engine"](firm).startswith("Firm ice.\nP_\n_G\n")


# Measured on the 60 validation levels; slippery ice leaves much to luck.
@pytest.mark.parametrize(
    ("key", "name", "lowest", "highest"),
    [
        ("frozenlake", "expert", 0.4, 0.7),
        ("frozenlake", "random", 0.05, 0.3),
        *((key, "expert", 1.0, 1.0) for key in ("sokoban", "sudoku")),
        *((key, "plan", 1.0, 1.0) for key in ("sokoban", "sudoku")),
        *((key, "noisy", 0.6, 0.99) for key in ("sokoban", "sudoku")),
        *((key, "corrupted", 0.6, 0.98) for key in ("sokoban", "sudoku")),
        *((key, "random", 0.02, 0.25) for key in ("sokoban", "sudoku")),
    ],
)
def test_how_well_players_play(key: str, name: str, lowest: float, highest: float) -> None:
    env, agent = real(key), get_world(key).agents[name]()
    played = [play(env, agent, s, seed=i, max_steps=5) for i, s in enumerate(shipped(key))]
    assert lowest <= sum(episode.success for episode in played) / len(played) <= highest
    again = play(env, agent, shipped(key)[7], seed=7, max_steps=5)
    assert again == played[7]
    marked = get_world(key).protocol("engine").conversation(played[7])[-1].content
    assert marked.endswith(" [SUCCESS]") == played[7].success


@KEYS
def test_one_player_takes_single_actions(key: str) -> None:
    env, agent = real(key), get_world(key).agents["single"]()
    played = [play(env, agent, s, seed=i, max_steps=5) for i, s in enumerate(shipped(key)[:10])]
    asked = [step.action for episode in played for step in episode.steps]
    assert len(asked) >= 20
    assert not any(SEPARATOR in action for action in asked)
    assert len(set(asked)) > 3


@KEYS
def test_turns_of_all_lengths_are_shown(key: str) -> None:
    env, agent = real(key), get_world(key).agents["noisy"]()
    lengths = {
        action.count("||") + 1
        for i, s in enumerate(shipped(key)[:40])
        for action in play(env, agent, s, seed=i, max_steps=5).actions
    }
    assert lengths == {1, 2, 3, 4, 5}


@KEYS
def test_players_bear_with_nonsense(key: str) -> None:
    draw, world = random.Random(0), get_world(key)
    scenario, symbols = shipped(key)[0], ALL[key].puzzle.symbols + " |\n"
    for name, make in world.agents.items():
        agent = pickle.loads(pickle.dumps(make))()
        for seed in range(6):
            agent.reset(scenario, seed)
            for _ in range(6):
                noise = "".join(draw.choices(symbols, k=draw.randrange(40)))
                answers = ["", "Invalid action.", noise, scenario.observation[seed * 7 :]]
                assert isinstance(agent.act(draw.choice(answers), {}), str), name


def test_players_manage_without_a_first_board() -> None:
    for key in ALL:
        for make in get_world(key).agents.values():
            agent = make()
            agent.reset(Scenario("x", key, "test", "", "?", real={"plan": ["Up"]}), 0)
            assert isinstance(agent.act("?", {}), str)


@KEYS
def test_forks_agree(key: str) -> None:
    env = real(key, coordinates="random")
    first = env.reset(seed=3)[1]["admissible_commands"]
    env.step(first[0])
    twin = copy.deepcopy(env)
    for action in (first[-1], " || ".join(first[:3])):
        assert env.step(action) == twin.step(action)


def test_episodes_are_collected(tmp_path: Path) -> None:
    world = get_world("sokoban")
    report = collect(
        world.real_id,
        {"expert": 1.0, "random": 1.0},
        shipped("sokoban"),
        policies=world.agents,
        episodes=8,
        out=tmp_path / "real.jsonl",
        workers=0,
        max_steps=world.max_episode_steps,
    )
    assert report.total.episodes == len(list(read_episodes(tmp_path / "real.jsonl"))) == 8
