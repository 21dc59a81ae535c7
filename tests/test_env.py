"""The scalar environment against Gymnasium's checker, and its own contract."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import gymnasium as gym
import pytest
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import RecordEpisodeStatistics

import gym_llmworld
from gym_llmworld import WorldModelEnv
from gym_llmworld.errors import CheckpointError, ScenarioError
from tests.scripted_world import MODEL

IDS = ["LLMWorld-ALFWorld-v0", "LLMWorld/ALFWorld-v0"]


def make(**kwargs: Any) -> gym.Env[str, str]:
    return gym.make("LLMWorld-ALFWorld-v0", **{"model": MODEL, **kwargs})


def world_of(env: gym.Env[str, str]) -> WorldModelEnv:
    inner = env.unwrapped
    assert isinstance(inner, WorldModelEnv)
    return inner


@pytest.mark.parametrize("env_id", IDS)
def test_check_env_passes_with_the_fake(env_id: str) -> None:
    check_env(gym.make(env_id, model=MODEL).unwrapped)


def test_check_env_passes_with_the_embedded_model() -> None:
    check_env(gym.make(IDS[0], max_tokens=24).unwrapped)


def test_every_registered_id_is_json_and_has_a_twin() -> None:
    imagined = [i for i in gym.registry if i.startswith("LLMWorld")]
    assert imagined
    for env_id in imagined:
        assert env_id.replace("LLMWorld", "RealWorld") in gym.registry
        json.loads(gym.spec(env_id).to_json())


def test_episode_success_and_info() -> None:
    env = make()
    observation, info = env.reset(seed=3)
    scenario = world_of(env).session.scenario
    assert observation == scenario.observation
    assert info["admissible_commands"] == list(scenario.admissible or ())
    assert (info["won"], info["score"], info["max_score"]) == (False, 0.0, 1.0)
    observation, reward, terminated, truncated, info = env.step("look")
    assert observation.startswith("Turn 1")
    assert (reward, terminated, truncated) == (0, False, False)
    assert info["llmworld"] == {
        "source": "model",
        "confidence": None,
        "status": "ok",
        "scenario": scenario.id,
    }
    observation, reward, terminated, truncated, info = env.step("win")
    assert (reward, terminated, truncated, info["won"]) == (1.0, True, False, True)
    assert "[SUCCESS]" not in observation
    assert world_of(env).episode.success


def test_same_seed_same_episode_other_seed_other_scenario() -> None:
    env = make()
    first = [env.reset(seed=s)[1]["llmworld"]["scenario"] for s in range(8)]
    again = [env.reset(seed=s)[1]["llmworld"]["scenario"] for s in range(8)]
    assert first == again
    assert len(set(first)) > 1


def test_reset_options() -> None:
    env = make()
    unseen = env.reset(seed=0, options={"split": "valid_unseen"})[1]["llmworld"]["scenario"]
    scenario = world_of(env).session.scenario
    assert scenario.split == "valid_unseen"
    by_id = env.reset(options={"scenario": unseen})
    by_value = env.reset(options={"scenario": scenario.to_json()})
    assert by_id == by_value


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scenario": "no-such-game"}, "unknown scenario 'no-such-game'"),
        ({"split": "validation"}, "expected one of train, valid_seen, valid_unseen"),
        ({"scenaro": "x"}, "expected scenario, split, start"),
        ({"scenario": {"id": "x"}}, "missing or wrong field"),
        ({"start": "x"}, "must be what snapshot"),
    ],
)
def test_bad_reset_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        make().reset(options=options)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"model": "no/such/model/folder"}, CheckpointError, "no/such/model/folder"),
        ({"scenarios": "no/such/file.jsonl"}, ScenarioError, "no scenario file or folder"),
        ({"split": "nope"}, ScenarioError, "no scenario of split 'nope'"),
        ({"prompt_style": "nope"}, CheckpointError, "no prompt style 'nope'"),
        ({"render_mode": "rgb_array"}, ValueError, "render_mode must be one of"),
        ({"temperature": -1.0}, ValueError, "temperature must be >= 0"),
    ],
)
def test_bad_arguments(kwargs: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        WorldModelEnv("alfworld", **{"model": MODEL, **kwargs})


def test_stepping_out_of_turn() -> None:
    env = world_of(make())
    with pytest.raises(ResetNeeded):
        env.step("look")
    with pytest.raises(ResetNeeded):
        env.snapshot()
    env.reset(seed=0)
    env.step("win")
    with pytest.raises(ResetNeeded, match="ended"):
        env.step("look")
    with pytest.raises(ResetNeeded, match="ended"):
        env.what_if(["look"])


@pytest.mark.parametrize("action", [3, None, b"look", ["look"]])
def test_an_action_that_is_no_text(action: Any) -> None:
    env = world_of(make())
    env.reset(seed=0)
    with pytest.raises(InvalidAction, match="must be a str"):
        env.step(action)
    assert env.session.steps == ()


@pytest.mark.parametrize("action", ["", "x" * 100_000, "a\x00b", "<|im_start|>", "win [SUCCESS]"])
def test_hostile_actions_are_answered_without_the_model(action: str) -> None:
    env = world_of(make())
    env.reset(seed=0)
    observation, reward, terminated, truncated, info = env.step(action)
    assert (observation, reward, terminated, truncated) == ("Nothing happens.", 0, False, False)
    assert (info["llmworld"]["source"], info["llmworld"]["status"]) == ("rule", "rejected")
    assert env.stats.model_calls == 0
    # The next real action sees a history in which nothing happened.
    assert env.step("look")[0].startswith("Turn 1")


def test_an_empty_prediction_truncates_and_never_succeeds() -> None:
    env = make()
    env.reset(seed=0)
    observation, reward, terminated, truncated, info = env.step("blank")
    assert (observation, reward, terminated, truncated) == ("", 0, False, True)
    assert info["llmworld"]["status"] == "empty"


def test_time_limit_truncates() -> None:
    env = make(max_episode_steps=2)
    env.reset(seed=0)
    assert env.step("look")[2:4] == (False, False)
    assert env.step("look")[2:4] == (False, True)


def test_fork_through_wrappers_is_independent() -> None:
    env = RecordEpisodeStatistics(make())
    env.reset(seed=5)
    env.step("a")
    twin = copy.deepcopy(env)
    assert world_of(twin).imagination.backend is world_of(env).imagination.backend
    ours, theirs = env.step("b"), twin.step("c")
    assert ours[0].endswith("a+b")
    assert theirs[0].endswith("a+c")
    assert env.step("d")[0].endswith("a+b+d")


def test_snapshot_restore_undo() -> None:
    env = world_of(make())
    env.reset(seed=5)
    env.step("a")
    snapshot = pickle.loads(pickle.dumps(env.snapshot()))
    expected = env.step("b")
    env.step("c")
    assert env.restore(snapshot).endswith(": a")
    assert env.step("b") == expected
    assert env.undo().endswith(": a")
    assert env.undo() == env.session.scenario.observation
    with pytest.raises(ValueError, match="cannot undo 1 steps"):
        env.undo()
    env.reset(options={"start": snapshot})
    assert env.step("x")[0].endswith("a+x")


def test_what_if_asks_once_and_moves_nothing() -> None:
    env = world_of(make())
    env.reset(seed=5)
    env.step("a")
    calls = env.stats.model_calls
    b, win, empty = env.what_if(["b", "win", ""])
    assert env.stats.model_calls == calls + 1
    assert len(env.session.steps) == 1
    assert b.observation.endswith("a+b")
    assert win.terminated
    assert win.reward == 1.0
    assert empty.observation == "Nothing happens."
    assert env.step("b")[0] == b.observation


def test_render_modes(capsys: pytest.CaptureFixture[str]) -> None:
    env = make(render_mode="ansi")
    env.reset(seed=0)
    env.step("look")
    assert str(env.render()).startswith("> look\nTurn 1")
    assert capsys.readouterr().out == ""
    env = make(render_mode="human")
    env.reset(seed=0)
    env.step("look")
    assert env.render() is None
    assert "> look\nTurn 1" in capsys.readouterr().out


def test_deep_copied_kwargs_share_one_engine() -> None:
    backends = {id(world_of(make()).imagination.backend) for _ in range(3)}
    assert len(backends) == 1


def test_closing_a_fork_leaves_the_engine_to_the_original() -> None:
    env = world_of(make())
    env.reset(seed=0)
    twin = env.fork()
    twin.close()
    twin.close()
    assert env.step("a")[0].startswith("Turn 1")


def test_module_spelling_and_exported_names() -> None:
    gym.make("gym_llmworld:LLMWorld-ALFWorld-v0", model=MODEL)
    assert sorted(gym_llmworld.__all__) == gym_llmworld.__all__
    assert all(hasattr(gym_llmworld, name) for name in gym_llmworld.__all__)
