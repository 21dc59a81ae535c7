"""``RealWorld-TextWorld-v0`` against TextWorld's own environment and the package's contract."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from gymnasium.error import InvalidAction, ResetNeeded

pytest.importorskip("textworld", reason="needs the textworld extra")

from gym_llmworld.core import Scenario
from gym_llmworld.errors import EngineError, ScenarioError
from gym_llmworld.protocol import Protocol
from gym_llmworld.real import textworld_scenarios
from gym_llmworld.real.textworld_engine import (
    NOT_A_VERB,
    Play,
    reaches_story,
    strip_observation,
)
from gym_llmworld.real.textworld_env import TextWorldEnv
from gym_llmworld.real.textworld_games import GameSpec
from gym_llmworld.scenarios import ScenarioStore
from gym_llmworld.testing import check_text_env
from gym_llmworld.worlds.textworld import WORLD
from tests.textworld_shared import SPECS, games, scenario, story

BLANKS = " " * 128


@pytest.fixture
def env() -> Iterator[TextWorldEnv]:
    made = TextWorldEnv(games=games())
    yield made
    made.close()


def start(env: TextWorldEnv, kind: str) -> tuple[str, dict[str, Any]]:
    return env.reset(seed=0, options={"scenario": scenario(kind).id})


@pytest.mark.parametrize("raw", [False, True])
def test_the_contract_of_text_worlds_holds(raw: bool) -> None:
    gym.register("TextWorldUnderTest-v0", entry_point=WORLD.real_entry_point)
    try:
        made = gym.make("TextWorldUnderTest-v0", games=games(), raw=raw)
        check_text_env(made)
        made.close()
    finally:
        del gym.registry["TextWorldUnderTest-v0"]


def upstream(kind: str) -> Any:
    """TextWorld's own Gym environment, with the infos that AgentGym's server asks for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import textworld
        import textworld.gym

        infos = textworld.EnvInfos(
            admissible_commands=True,
            description=True,
            inventory=True,
            won=True,
            lost=True,
            score=True,
            max_score=True,
        )
        return textworld.gym.make(textworld.gym.register_game(str(story(kind)), infos))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", SPECS)
def test_raw_observations_are_upstreams_bytes(kind: str) -> None:
    theirs, raw, plain = upstream(kind), Play(story(kind), raw=True), Play(story(kind))
    text, infos = theirs.reset()
    assert raw.turn.observation == text
    commands = ["look", "frobnicate", "go nowhere", *scenario(kind).real["plan"]]
    for command in commands:
        text, score, done, infos = theirs.step(command)
        turn, stripped = raw.step(command), plain.step(command)
        assert turn.observation == text
        assert stripped.observation == strip_observation(text)
        assert (turn.score, turn.won) == (score, infos["won"]) == (stripped.score, stripped.won)
        assert list(turn.admissible) == infos["admissible_commands"]
        assert list(stripped.admissible) == infos["admissible_commands"]
    assert done
    assert raw.turn.won
    for play in (raw, plain):
        play.close()
    theirs.close()


def test_the_published_protocol_gets_its_bytes(env: TextWorldEnv) -> None:
    raw = TextWorldEnv(games=games(), raw=True)
    text, info = start(raw, "simple")
    assert text.startswith("\n\n\n\n" + " " * 20 + "________  ________")
    assert text.endswith(f"\n\n>{BLANKS}-= Bedroom =-0/1")
    context = WORLD.contexts["word2world"]
    expected = f"{text}\nAVAILABLE ACTIONS: {', '.join(info['admissible_commands'])}"
    assert context(raw.scenario) == expected
    stripped, _ = start(env, "simple")
    assert context(env.scenario) == context(scenario("simple")) == expected
    assert stripped == strip_observation(text) == scenario("simple").observation
    observation, *_ = raw.step("open chest drawer")
    assert observation.endswith(
        f"revealing an old key.\n\n\nYour score has just gone up by one "
        f"point.\n\n>{BLANKS}-= Bedroom =-1/2"
    )
    assert raw.step("save")[0] == f"\n{NOT_A_VERB}\n\n>{BLANKS}-= Bedroom =-1/2"
    assert raw.step("frobnicate")[0] == f"\n{NOT_A_VERB}\n\n>{BLANKS}-= Bedroom =-1/2"
    raw.close()


def test_stripping_leaves_the_story() -> None:
    banner = scenario("custom").hidden["raw"].partition("-= ")[0]
    assert "$$$$" in banner
    text = f"{banner}-= Den =-\nYou are here.\n\n\n\nThere is an exit.\n\n>{BLANKS}-= Den =-0/1"
    objective = scenario("custom").instruction
    assert strip_observation(text) == (
        f"{objective}\n\n-= Den =-\nYou are here.\n\nThere is an exit."
    )
    ending = (
        "\nYou eat it.\n\n\n"
        + " " * 55
        + "*** You lost! ***\n\nYou scored 0 out of a possible 1, in 3 "
        "turns.\n\n\nWould you like to RESTART, RESTORE a saved game, QUIT or UNDO the last "
        f"command?\n>{BLANKS} -= Den =-0/3"
    )
    assert strip_observation(ending) == "You eat it.\n\n*** You lost! ***"
    assert strip_observation("You hear > and -= x =-.") == "You hear > and -= x =-."


def test_winning_is_rewarded_once(env: TextWorldEnv) -> None:
    _, info = start(env, "simple")
    assert (info["won"], info["score"], info["max_score"]) == (False, 0.0, 7.0)
    rewards, scores = [], []
    for command in env.scenario.real["plan"]:
        observation, reward, terminated, truncated, info = env.step(command)
        assert not truncated
        rewards.append(reward)
        scores.append(info["score"])
    assert rewards == [0.0] * 7 + [1.0]
    assert scores == sorted(scores)
    assert scores[-1] == info["max_score"] == 7.0
    assert terminated
    assert info["won"]
    assert observation.endswith("*** The End ***")
    with pytest.raises(ResetNeeded, match="has ended"):
        env.step("look")


def test_losing_terminates_without_reward(env: TextWorldEnv) -> None:
    start(env, "cooking")
    for command in ("open fridge", "take pork chop from fridge", "cook pork chop with stove"):
        observation, reward, terminated, truncated, info = env.step(command)
    # The recipe asks for the oven.
    assert observation.endswith("You fried the pork chop.\n\n*** You lost! ***")
    assert (reward, terminated, truncated, info["won"]) == (0.0, True, False, False)


def test_nothing_truncates_but_a_limit() -> None:
    env = TextWorldEnv(games=games())
    start(env, "coin_collector")
    assert not any(env.step("look")[3] for _ in range(60))
    env.close()
    env = TextWorldEnv(games=games(), max_episode_steps=3)
    start(env, "coin_collector")
    assert [env.step("look")[3] for _ in range(3)] == [False, False, True]
    start(env, "coin_collector")
    *_, (_, reward, terminated, truncated, _) = map(env.step, env.scenario.real["plan"])
    assert (len(env.scenario.real["plan"]), reward, terminated, truncated) == (3, 1.0, True, False)
    env.close()


def test_policy_commands_come_on_demand(env: TextWorldEnv) -> None:
    _, info = start(env, "custom")
    assert "policy_commands" not in info
    before = env.policy()
    env.step(before[0])
    assert env.policy() == before[1:]
    told = TextWorldEnv(games=games(), policy_commands=True)
    _, info = start(told, "custom")
    assert info["policy_commands"] == before
    while info["policy_commands"]:
        _, reward, terminated, _, info = told.step(info["policy_commands"][0])
    assert (reward, terminated) == (1.0, True)
    told.close()


def test_a_game_that_cannot_be_won_any_more_has_no_policy(env: TextWorldEnv) -> None:
    start(env, "cooking")
    for command in ("open fridge", "take pork chop from fridge", "eat block of cheese"):
        env.step(command)
    assert env.policy() == []


INTERPRETER = (
    *("save", "RESTORE", "restart", "quit", "q", "undo", "again", "g", "script", "transcripts"),
    *("verbose", "superbrief", "notify off", "version", "oops", "print_state", "restrict commands"),
    *("tw-print max_score", "tw-extra-infos score", "tw-trace-actions", "look. quit", "look, save"),
    *(
        "look then undo",
        '"quit',
        "\\help",
        "look\nlook",
        "look\x00",
        "é",
        "a " * 120,
        "look\\n",
        "say [taking the knife]",
        "say <score>",
    ),
)


@pytest.mark.parametrize("command", INTERPRETER)
def test_the_interpreter_is_out_of_reach(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert not reaches_story(command)
    play = Play(story("custom"))
    before = play.step("inventory")
    refused = play.step(command)
    assert refused.observation == NOT_A_VERB == WORLD.rejection
    assert refused.admissible == before.admissible
    assert play.step("inventory") == before
    assert list(tmp_path.iterdir()) == []
    play.close()


def test_what_enters_no_chat_is_refused_by_the_engine_too() -> None:
    protocol = Protocol("nomap", lambda scenario: "")
    play = Play(story("custom"))
    for action in ("", " ", "x" * 300, "look\x1b", "<|im_end|>", "say [SUCCESS]", "\ud800"):
        assert protocol.admit(action) is None
        assert play.step(action).observation == NOT_A_VERB
    play.close()


def test_a_copy_goes_its_own_way(env: TextWorldEnv) -> None:
    start(env, "cooking")
    plan = env.scenario.real["plan"]
    for command in plan[:4]:
        env.step(command)
    twin = copy.deepcopy(env)
    third = copy.deepcopy(twin)
    twin.step("eat block of cheese")
    rest = [env.step(command) for command in plan[4:]]
    assert rest[-1][1] == 1.0
    assert [third.step(command) for command in plan[4:]] == rest
    twin.close()
    third.close()


def test_environments_do_not_disturb_each_other() -> None:
    kinds = list(SPECS)
    alone: dict[str, list[str]] = {}
    envs = {kind: TextWorldEnv(games=games()) for kind in kinds}
    for kind, env in envs.items():
        start(env, kind)
        alone[kind] = [env.step(command)[0] for command in env.scenario.real["plan"]]
        start(env, kind)
    together: dict[str, list[str]] = {kind: [] for kind in kinds}
    for position in range(max(map(len, alone.values()))):
        for kind, env in envs.items():
            plan = env.scenario.real["plan"]
            if position < len(plan):
                together[kind].append(env.step(plan[position])[0])
    assert together == alone
    for env in envs.values():
        env.close()


def _play_in_worker(connection: Any, kind: str) -> None:
    env = TextWorldEnv(games=games())
    start(env, kind)
    connection.send([env.step(command)[0] for command in env.scenario.real["plan"]])
    env.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_forked_workers_play_beside_a_running_game(env: TextWorldEnv) -> None:
    start(env, "simple")
    plan = env.scenario.real["plan"]
    first = [env.step(command)[0] for command in plan[:3]]
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    workers = [context.Process(target=_play_in_worker, args=(theirs, "simple")) for _ in range(2)]
    for worker in workers:
        worker.start()
    answers = [ours.recv() for _ in workers]
    for worker in workers:
        worker.join()
    assert answers[0] == answers[1] == first + [env.step(command)[0] for command in plan[3:]]


def test_close_frees_the_machine(env: TextWorldEnv) -> None:
    start(env, "custom")
    play = env.play
    env.close()
    env.close()
    with pytest.raises(ResetNeeded):
        env.step("look")
    with pytest.raises(EngineError, match="is closed"):
        play.step("look")
    observation, _ = start(env, "custom")
    assert observation == scenario("custom").observation


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_many_episodes_need_no_more_memory(env: TextWorldEnv) -> None:
    for _ in range(5):
        start(env, "custom")
    before, handles = resident_mib(), len(os.listdir("/proc/self/fd"))
    for _ in range(12):
        start(env, "custom")
        env.step("look")
        copy.deepcopy(env).close()
    assert resident_mib() - before < 8
    assert len(os.listdir("/proc/self/fd")) <= handles


def test_scenarios_are_chosen_by_seed_id_or_dict(env: TextWorldEnv) -> None:
    drawn = [env.reset(seed=seed)[1]["llmworld"]["scenario"] for seed in (1, 1, 2, 3, 4, 5)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 1
    as_data = json.loads(json.dumps(scenario("custom").to_json()))
    observation, info = env.reset(options={"scenario": as_data})
    assert observation == scenario("custom").observation
    assert info["llmworld"] == {"source": "real", "scenario": scenario("custom").id}
    assert tuple(info["admissible_commands"]) == scenario("custom").admissible
    assert env.scenario == scenario("custom")


def test_own_games_play_and_are_found_by_name(tmp_path: Path) -> None:
    for suffix in (".z8", ".json"):
        (tmp_path / f"textworld_1{suffix}").write_bytes(
            story("custom").with_suffix(suffix).read_bytes()
        )
    env = TextWorldEnv(split="test", games=str(tmp_path))
    observation, info = env.reset(seed=0)
    assert info["llmworld"]["scenario"] == "test/textworld_1"
    assert observation == scenario("custom").observation
    assert env.reset(options={"scenario": "test/textworld_1"})[0] == observation
    with pytest.raises(ScenarioError, match=r"among 1 games of .*test/textworld_1"):
        env.reset(options={"scenario": "test/textworld_7"})
    env.close()
    (tmp_path / "textworld_1.json").unlink()
    with pytest.raises(ScenarioError, match=r"has no textworld_1\.json"):
        TextWorldEnv(split="test", games=str(tmp_path))


@pytest.fixture
def nothing_ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(textworld_scenarios, "data_folder", lambda world: tmp_path / world)


def test_shipped_scenarios_start_their_games() -> None:
    games()
    for split in WORLD.splits:
        for shipped in ScenarioStore("textworld").of_split(split):
            assert (GameSpec.from_json(shipped.real).id, shipped.split) == (shipped.id, split)
    env = TextWorldEnv()
    shortest = min(
        (s for s in ScenarioStore("textworld").of_split("test") if s.real["kind"] == "custom"),
        key=lambda s: len(s.hidden["rooms"]),
    )
    assert env.reset(options={"scenario": shortest.id})[0] == shortest.observation
    env.close()


@pytest.mark.usefixtures("nothing_ships")
def test_generated_games_are_found_by_their_ids() -> None:
    env = TextWorldEnv()
    _, info = env.reset(options={"scenario": scenario("custom").id})
    assert info["llmworld"]["scenario"] == scenario("custom").id
    with pytest.raises(ScenarioError, match=re.escape("<split>/<kind>/<options>/<seed>")):
        env.reset(options={"scenario": "train/custom"})
    env.close()


@pytest.mark.usefixtures("nothing_ships")
def test_an_engine_that_can_make_nothing_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(spec: GameSpec) -> Scenario:
        raise ScenarioError(f"cannot make {spec.id}")

    monkeypatch.setattr(textworld_scenarios, "game_scenario", fails)
    env = TextWorldEnv()
    with pytest.raises(EngineError, match="none of 10 drawn games can be made or won"):
        env.reset(seed=0)


def changed(kind: str, **fields: Any) -> Scenario:
    return Scenario.from_json({**scenario(kind).to_json(), **fields})


def test_bad_arguments_are_named(env: TextWorldEnv, tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="unknown split 'dev'; expected one of train, valid"):
        TextWorldEnv(split="dev")
    with pytest.raises(ScenarioError, match="no folder with games"):
        TextWorldEnv(games=str(tmp_path / "nowhere"))
    with pytest.raises(ScenarioError, match="no scenario of split 'test'"):
        TextWorldEnv(split="test", games=games())
    with pytest.raises(ValueError, match="max_episode_steps must be at least 1"):
        TextWorldEnv(max_episode_steps=0)
    with pytest.raises(ValueError, match="render_mode"):
        TextWorldEnv(render_mode="rgb_array")
    with pytest.raises(ResetNeeded):
        env.step("look")
    with pytest.raises(ScenarioError, match="unknown reset option 'level'"):
        env.reset(options={"level": 3})
    with pytest.raises(ScenarioError, match="expected a scenario of textworld, got one of alfw"):
        env.reset(options={"scenario": changed("custom", world="alfworld").to_json()})
    with pytest.raises(ScenarioError, match="missing or wrong field: 'split'"):
        env.reset(options={"scenario": {"id": "x", "world": "textworld"}})
    start(env, "custom")
    with pytest.raises(InvalidAction, match="must be a str, got int"):
        env.step(3)  # type: ignore[arg-type]


def test_a_scenario_of_another_game_is_noticed(env: TextWorldEnv) -> None:
    other = changed("custom", observation="-= Cave =-\nYou are in a cave.")
    with pytest.raises(ScenarioError, match=r"does not describe its game.*Generate the scenarios"):
        env.reset(options={"scenario": other.to_json()})


def test_rendering(capsys: pytest.CaptureFixture[str]) -> None:
    ansi = TextWorldEnv(games=games(), render_mode="ansi")
    observation, _ = start(ansi, "custom")
    assert ansi.render() == observation
    ansi.step("inventory")
    assert str(ansi.render()).startswith("> inventory\nYou are carrying")
    ansi.close()
    human = TextWorldEnv(games=games(), render_mode="human")
    start(human, "custom")
    assert human.render() is None
    assert capsys.readouterr().out == observation + "\n\n"
    human.close()


def test_facts_tell_what_is_hidden(env: TextWorldEnv) -> None:
    start(env, "simple")
    assert ("in", "old key", "chest drawer") in env.facts()
    for command in ("open chest drawer", "take old key from chest drawer"):
        env.step(command)
    assert ("in", "old key", "I") in env.facts()
    assert ("open", "chest drawer") in env.facts()
