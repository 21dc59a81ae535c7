"""Anchored episodes against the real twin itself, with a model that lies in known places."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from gym_llmworld import WorldModelEnv, WorldModelVectorEnv
from gym_llmworld.anchoring import Anchoring, Question, parse_rule
from gym_llmworld.backends import SharedBackend
from gym_llmworld.core import Completion, Message, Scenario
from gym_llmworld.errors import BackendError, EngineError, MissingDependency, ScenarioError
from gym_llmworld.real.alfworld_env import AlfworldEnv
from gym_llmworld.scenarios import ScenarioStore
from gym_llmworld.testing import check_text_env
from tests.scripted_world import MODEL

ID = "LLMWorld-ALFWorld-v0"
LIAR = "scripted:tests.test_anchoring:liar"
STORE = ScenarioStore("alfworld")
GAMES = {s.id: s for s in STORE.of_split("valid_seen")[:4]}
GAME = next(iter(GAMES.values()))
PLAN: list[str] = list(GAME.real["plan"])


def hinted(scenario: Scenario) -> dict[str, Any]:
    """Returns a scenario whose context, for the fake model, is its own id."""
    return {**scenario.to_json(), "hidden": {"context": scenario.id}}


def liar(chat: Sequence[Message]) -> Completion:
    """Answers truthfully, except to ``look`` and ``inventory``; is unsure of ``look`` alone."""
    actions = [message.content for message in chat if message.role == "user"]
    if actions[-1] in ("look", "inventory"):
        sure = actions[-1] == "inventory"
        return Completion("A unicorn 1.", "stop", (math.log(0.9 if sure else 0.3),))
    twin = AlfworldEnv()
    observation, _ = twin.reset(options={"scenario": GAMES[chat[0].content].to_json()})
    won = False
    for action in actions:
        if won:
            break
        observation, _, won, _, _ = twin.step(action)
    marker = " [SUCCESS]" if won else ""
    return Completion(observation + marker, "stop", (math.log(0.9),))


def modest(chat: Sequence[Message]) -> str:
    """Answers as `liar` does, but never claims success."""
    return liar(chat).text.removesuffix(" [SUCCESS]")


def make(anchor: Any, model: str = MODEL, **kwargs: Any) -> WorldModelEnv:
    env = gym.make(ID, model=model, anchor=anchor, split="valid_seen", **kwargs).unwrapped
    assert isinstance(env, WorldModelEnv)
    return env


def begin(anchor: Any, model: str = MODEL, **kwargs: Any) -> WorldModelEnv:
    env = make(anchor, model, **kwargs)
    env.reset(seed=3, options={"scenario": hinted(GAME)})
    return env


def truth(actions: Sequence[str], scenario: Scenario = GAME) -> list[Any]:
    """Plays actions in the real world; returns what each step returned."""
    twin = AlfworldEnv()
    twin.reset(seed=0, options={"scenario": scenario.to_json()})
    return [twin.step(action) for action in actions]


def sources(env: WorldModelEnv, actions: Sequence[str]) -> list[str]:
    return [env.step(action)[4]["llmworld"]["source"] for action in actions]


@pytest.fixture
def real_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Notes every reset and step of real twins; engines die on ``"crash"``."""
    calls: list[str] = []
    reset, step = AlfworldEnv.reset, AlfworldEnv.step

    def noted_reset(self: AlfworldEnv, **kwargs: Any) -> Any:
        calls.append("reset")
        return reset(self, **kwargs)

    def noted_step(self: AlfworldEnv, action: str) -> Any:
        calls.append(action)
        if action == "crash":
            raise EngineError("the engine died")
        return step(self, action)

    monkeypatch.setattr(AlfworldEnv, "reset", noted_reset)
    monkeypatch.setattr(AlfworldEnv, "step", noted_step)
    return calls


def test_anchored_at_every_step_it_is_the_real_world() -> None:
    script = ["look", "", "x" * 300, "a\x00b", "dance", *PLAN]
    env = begin("every:1")
    for action, real in zip(script, truth(script), strict=True):
        got = env.step(action)
        assert got[:4] == real[:4]
        ours, theirs = dict(got[4]), dict(real[4])
        assert ours.pop("llmworld")["source"] == theirs.pop("llmworld")["source"] == "real"
        assert ours == theirs
    assert got[2]
    assert env.episode.success
    assert env.episode.source == "anchored"
    assert env.stats.model_calls == 0
    assert (env.stats.anchor_real_steps, env.stats.anchor_replayed_steps) == (len(script), 0)


@pytest.mark.parametrize(
    "env_id",
    [
        "LLMWorld-TextWorld-v0",
        "LLMWorld-WebShop-v0",
        pytest.param("LLMWorld-SciWorld-v0", marks=pytest.mark.slow),
    ],
)
def test_other_worlds_anchored_at_every_step(env_id: str) -> None:
    env = gym.make(env_id, model=MODEL, anchor="every:1").unwrapped
    assert isinstance(env, WorldModelEnv)
    real = gym.make(env_id.replace("LLMWorld", "RealWorld")).unwrapped
    env.reset(seed=1)
    scenario = env.session.scenario
    real.reset(seed=1, options={"scenario": scenario.to_json()})
    for action in ["look", "dance", "inventory", *scenario.real.get("plan", ())][:20]:
        got, expected = env.step(action), real.step(action)
        assert got[:4] == expected[:4]
        assert got[4]["score"] == expected[4]["score"]
        assert got[4]["admissible_commands"] == expected[4]["admissible_commands"]
        if got[2]:
            break
    real.close()
    env.close()


def test_anchored_steps_are_right_and_the_others_wrong(real_calls: list[str]) -> None:
    script = PLAN[:1] + ["look"] * 6
    expected = [step[0] for step in truth(script)]
    env = begin("every:3")
    del real_calls[:]
    for number, (action, real) in enumerate(zip(script, expected, strict=True), start=1):
        observation, *_, info = env.step(action)
        assert (observation == real) is (number in (3, 6))
        assert info["llmworld"]["source"] == ("real" if number in (3, 6) else "model")
        assert info["llmworld"]["anchor"]["rule"] == ("every:3" if number in (3, 6) else None)
        assert info["llmworld"]["anchor"]["real_steps"] == number // 3
    # Step 3 costs steps 1 and 2 first, step 6 only 4 and 5.
    assert real_calls == ["reset", *script[:6]]
    assert (env.stats.anchor_real_steps, env.stats.anchor_replayed_steps) == (2, 4)
    assert env.stats.requests == 5
    # The model saw the real observations, in their place.
    assert env.session.steps[5].observation == expected[5]


def test_the_twin_is_asked_lazily(real_calls: list[str]) -> None:
    env = begin("examine")
    del real_calls[:]
    sources(env, ["look", "inventory", "look"])
    assert real_calls == []
    env.step("Examine shelf 1")
    assert real_calls == ["reset", "look", "inventory", "look", "Examine shelf 1"]


def test_only_searches_of_a_web_shop_are_real() -> None:
    env = gym.make("LLMWorld-WebShop-v0", model=MODEL, anchor="search[").unwrapped
    assert isinstance(env, WorldModelEnv)
    env.reset(seed=2)
    real = gym.make("RealWorld-WebShop-v0").unwrapped
    real.reset(options={"scenario": env.session.scenario.to_json()})
    found, *_, info = env.step("search[shoes]")
    page, _, _, _, told = real.step("search[shoes]")
    assert found == page
    assert info["admissible_commands"] == told["admissible_commands"]
    assert sources(env, ["click[next >]", "click[< prev]", "search[hats]"]) == [
        "model",
        "model",
        "real",
    ]
    assert (env.stats.anchor_real_steps, env.stats.anchor_replayed_steps) == (2, 2)
    env.close()


def test_undo_replays_from_a_reset_only_when_it_must(real_calls: list[str]) -> None:
    env = begin("inventory")
    sources(env, ["look", "help", "inventory"])
    env.undo(2)
    del real_calls[:]
    env.step("look")
    env.step("inventory")
    assert real_calls == ["reset", "look", "look", "inventory"]
    assert (env.stats.anchor_real_steps, env.stats.anchor_replayed_steps) == (2, 4)
    env.step("look")
    env.undo()  # the twin never took that step: it still stands where the episode is
    del real_calls[:]
    env.step("inventory")
    assert real_calls == ["inventory"]


def test_a_fork_has_a_twin_of_its_own(real_calls: list[str]) -> None:
    env = begin("inventory")
    sources(env, ["look", "inventory"])
    fork = env.fork()
    del real_calls[:]
    fork.step("inventory")
    assert real_calls == ["reset", "look", "inventory", "inventory"]
    fork.close()
    env.step("inventory")
    assert real_calls[4:] == ["inventory"]


def test_fork_undo_and_restore_equal_a_fresh_replay() -> None:
    script = ["look", "inventory", *PLAN[:2], "look", "inventory"]
    anchor = ["every:2", "inventory", "random:0.3"]

    def play(env: WorldModelEnv, actions: Sequence[str]) -> list[Any]:
        return [env.step(action) for action in actions]

    fresh = begin(anchor, LIAR)
    expected = play(fresh, script)
    env = begin(anchor, LIAR)
    assert play(env, script[:3]) == expected[:3]
    fork, twin = env.fork(), copy.deepcopy(env)
    here = pickle.loads(pickle.dumps(env.snapshot()))
    assert play(env, script[3:]) == expected[3:]
    play(env.fork(), [])
    assert play(fork, script[3:]) == expected[3:]
    assert play(twin, ["look", "look"])[0][4]["llmworld"]["source"] == "real"
    env.restore(here)
    assert play(env, script[3:]) == expected[3:]
    other = make(anchor, LIAR)
    other.reset(options={"start": here})
    other.restore(here)
    assert play(other, script[3:]) == expected[3:]
    # Taken back, steps no longer count, and neither does what they had revealed.
    env = begin("inventory", LIAR)
    env.step("look")
    assert env.step("inventory")[4]["llmworld"]["anchor"]["diverged"] == 1
    env.undo()
    anchor_info = env.step("examine shelf 1")[4]["llmworld"]["anchor"]
    assert anchor_info == {"rule": None, "real_steps": 0}


def test_budget_per_episode() -> None:
    env = begin("every:1", anchor_budget=2)
    assert sources(env, ["look"] * 4) == ["real", "real", "model", "model"]
    env.undo(3)
    assert sources(env, ["look"] * 2) == ["real", "model"]
    env.reset(seed=3, options={"scenario": hinted(GAME)})
    assert sources(env, ["look"] * 3) == ["real", "real", "model"]
    assert sources(begin("every:1", anchor_budget=0), ["look"]) == ["model"]


def test_several_rules() -> None:
    env = begin(["inventory", "every:4"])
    got = [env.step(action)[4] for action in ["look", "inventory", "look", "look"]]
    assert [i["llmworld"]["anchor"]["rule"] for i in got] == [None, "inventory", None, "every:4"]


def test_random_is_a_matter_of_the_seed_alone() -> None:
    env = make("random:0.4")
    drawn = []
    for seed in (0, 1, 0):
        env.reset(seed=seed, options={"scenario": GAME.id})
        drawn.append(sources(env, ["look"] * 25))
    assert drawn[0] == drawn[2] != drawn[1]
    rule = parse_rule("random:0.4")
    share = np.mean([rule.fires(Question("look", 1, seed)) for seed in range(4000)])
    assert abs(share - 0.4) < 0.03  # four standard deviations
    # Anchoring draws nothing from the episode's generator: where it does not answer, the model's
    # sampling seeds are those of an episode without anchoring.
    plain = gym.make(ID, model=MODEL).unwrapped
    plain.reset(seed=0, options={"scenario": GAME.id})
    for _ in range(25):
        plain.step("look")
    assert plain.np_random.bit_generator.state == env.np_random.bit_generator.state


def test_confidence_asks_the_model_first() -> None:
    env = begin("confidence<0.8", LIAR)
    script = ["look", "inventory", PLAN[0], ""]
    real = [step[0] for step in truth(script)]
    got = [env.step(action) for action in script]
    info = [step[4]["llmworld"] for step in got]
    assert [i["source"] for i in info] == ["real", "model", "model", "rule"]
    assert [i["confidence"] for i in info] == [None, 0.9, 0.9, None]
    assert [step[0] == text for step, text in zip(got, real, strict=True)] == [
        True,
        False,  # it lied, and was sure
        True,
        True,
    ]
    assert (env.stats.requests, env.stats.anchor_real_steps) == (3, 1)


def test_confidence_that_nobody_knows() -> None:
    env = begin("confidence<0.8")
    with pytest.raises(BackendError, match="reports no log-probabilities"):
        env.step("look")
    assert env.session.steps == ()
    # An unusable answer needs no number to be doubted.
    assert env.step("blank")[4]["llmworld"]["source"] == "real"


def test_disagreement_about_what_came_before() -> None:
    env = begin("every:4", LIAR)
    script = [PLAN[0], "look", "inventory", "look", PLAN[0], "look"]
    notes = [env.step(action)[4]["llmworld"]["anchor"].get("diverged") for action in script]
    assert notes == [None, None, None, 2, 2, 2]
    faithful = begin("every:3", LIAR)
    assert "diverged" not in [faithful.step(a)[4] for a in PLAN[:3]][2]["llmworld"]["anchor"]


def test_another_beginning_is_step_zero() -> None:
    env = make("every:1")
    # Only what the twin shows can tell; ScienceWorld and others refuse such a scenario outright.
    env.reset(options={"scenario": GAME.id})
    twin = env._twin
    assert twin is not None
    env.step("look")
    twin._opening = "Elsewhere."
    assert env.step("look")[4]["llmworld"]["anchor"]["diverged"] == 0


def test_reality_that_ended_unnoticed_ends_the_episode() -> None:
    env = begin("inventory")  # the fake never notices success
    for action in PLAN:
        assert env.step(action)[2:4] == (False, False)
    env.step("look")
    observation, reward, terminated, truncated, info = env.step("inventory")
    [*_, ending] = truth(PLAN)
    assert (observation, reward, terminated, truncated) == ending[:4]
    assert (reward, terminated, info["won"]) == (1.0, True, True)
    assert env.session.steps[-1].action == "inventory"
    # The first answer of the fake was wrong already.
    assert info["llmworld"]["anchor"]["diverged"] == 1
    assert env.stats.anchor_replayed_steps == len(PLAN)


def test_a_missed_success_is_a_divergence() -> None:
    env = begin("inventory", "scripted:tests.test_anchoring:modest")
    for action in PLAN:
        assert not env.step(action)[2]
    info = env.step("inventory")[4]
    # Word for word the same until the end, which the model did not notice.
    assert info["llmworld"]["anchor"]["diverged"] == len(PLAN)


def test_a_twin_that_fails_truncates(real_calls: list[str]) -> None:
    env = begin("every:2")
    env.step("crash")
    observation, reward, terminated, truncated, info = env.step("look")
    assert (observation, reward, terminated, truncated) == ("", 0.0, False, True)
    assert (info["llmworld"]["status"], info["llmworld"]["source"]) == ("twin_failed", "real")
    assert info["llmworld"]["anchor"]["error"] == "EngineError: the engine died"
    assert info["admissible_commands"] is None
    # The next episode has a new engine.
    env.reset(seed=0, options={"scenario": GAME.id})
    assert sources(env, ["look", "look"]) == ["model", "real"]


def test_a_server_that_gives_up_is_a_twin_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(self: AlfworldEnv, action: str) -> Any:
        info = {"llmworld": {"source": "real", "error": "no answer from the server"}}
        return "the page before", 0.0, False, True, info

    env = begin("every:1")
    monkeypatch.setattr(AlfworldEnv, "step", stop)
    observation, _, terminated, truncated, info = env.step("look")
    assert (observation, terminated, truncated) == ("", False, True)
    assert info["llmworld"]["status"] == "twin_failed"
    assert info["llmworld"]["anchor"]["error"] == "EngineError: no answer from the server"


def test_a_scenario_that_the_twin_cannot_play_truncates() -> None:
    env = make("every:1")
    env.reset(options={"scenario": {**GAME.to_json(), "real": {}}})
    assert env.step("look")[3]


def test_a_missing_engine_shows_at_make_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(scenario: Scenario) -> None:
        raise MissingDependency("alfworld", "alfworld")

    monkeypatch.setattr("gym_llmworld.real.alfworld_env.load_game", refuse)
    with pytest.raises(MissingDependency, match=r"pip install 'gym-llmworld\[alfworld\]'"):
        make("every:5")
    with pytest.raises(MissingDependency):
        gym.make_vec(ID, num_envs=2, model=MODEL, anchor="every:5")
    gym.make(ID, model=MODEL)


def test_an_environment_that_cannot_be_made_gives_its_engine_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(scenario: Scenario) -> None:
        raise MissingDependency("alfworld", "alfworld")

    closed: list[SharedBackend] = []
    monkeypatch.setattr("gym_llmworld.real.alfworld_env.load_game", refuse)
    monkeypatch.setattr(SharedBackend, "close", lambda shared: closed.append(shared))
    for attempt in (1, 2):
        with pytest.raises(MissingDependency):
            gym.make_vec(ID, num_envs=2, model=MODEL, anchor="every:5")
        assert len(closed) == attempt


@pytest.mark.parametrize(
    ("anchor", "message"),
    [
        ("evry:5", "unknown anchor rule 'evry:5'; expected 'every:K', 'random:P'"),
        ("confidence>0.5", "unknown anchor rule"),
        ("every:0", "expected a whole number of steps, at least 1, got '0'"),
        ("every:2.5", "expected a whole number"),
        ("every:", "expected a whole number"),
        ("random:1.2", r"expected a probability in \[0, 1\], got '1.2'"),
        ("confidence<0", r"expected a probability in \(0, 1\]"),
        ("confidence<nan", r"expected a probability in \(0, 1\]"),
        ("", "must be 'every:K'"),
        ([], "at least one rule"),
    ],
)
def test_rules_that_make_no_sense(anchor: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(anchor)


def test_a_budget_needs_a_rule() -> None:
    with pytest.raises(ValueError, match="need a rule"):
        gym.make(ID, model=MODEL, anchor_budget=3)
    with pytest.raises(ValueError, match="at least 0"):
        make("every:1", anchor_budget=-1)
    with pytest.raises(ScenarioError, match="no/such/games"):
        make("every:1", anchor_options={"games": "no/such/games", "split": "valid_seen"})


@pytest.mark.parametrize(
    ("rule", "fires", "silent"),
    [
        ("search[", "Search[red shoes]", "click[search]"),
        ("open ", "  open drawer 1", "reopen drawer 1"),
        ("search[a,b", "search[a,b]", "search[a]"),
    ],
)
def test_action_rules(rule: str, fires: str, silent: str) -> None:
    anchoring = Anchoring.parse(rule)
    assert anchoring.first(Question(fires, 1, 0)) == rule
    assert anchoring.first(Question(silent, 1, 0)) is None


def test_a_blank_in_front_of_a_rule_does_not_disarm_it() -> None:
    assert Anchoring.parse(" search[").first(Question("search[hat]", 1, 0)) == "search["


def test_what_if_costs_no_real_step_unless_asked(real_calls: list[str]) -> None:
    env = begin("every:2")
    env.step("look")
    del real_calls[:]
    imagined = env.what_if(["inventory", "look"])
    assert real_calls == []
    anchored = env.what_if(["inventory", "look"], anchored=True)
    assert real_calls == ["reset", "look", "inventory", "reset", "look", "look"]
    assert len(env.session.steps) == 1
    step = env.step("look")
    assert step[0] == anchored[1].observation != imagined[1].observation


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_equals_gymnasiums_own_vector_of_anchored_envs(mode: AutoresetMode) -> None:
    options: dict[str, Any] = {
        "model": MODEL,
        "anchor": ["inventory", "random:0.3"],
        "anchor_budget": 3,
        "max_episode_steps": 4,
    }
    ours = gym.make_vec(ID, num_envs=3, autoreset_mode=mode, **options)
    theirs = gym.make_vec(
        ID,
        num_envs=3,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": mode},
        **options,
    )
    assert ours.reset(seed=5)[0] == theirs.reset(seed=5)[0]
    script = [
        ("look", "inventory", "win"),
        ("inventory", "look", "look"),
        ("look", "win", "inventory"),
        ("inventory", "inventory", "blank"),
        ("look", "look", "look"),
        ("look", "inventory", "look"),
    ]
    real = 0
    for actions in script:
        mine, other = ours.step(actions), theirs.step(actions)
        assert mine[0] == other[0]
        for a, b in zip(mine[1:4], other[1:4], strict=True):
            np.testing.assert_array_equal(a, b)
        np.testing.assert_equal(mine[4], other[4])
        for infos in (mine[4], mine[4].get("final_info", {})):
            real += sum(infos.get("llmworld", {}).get("source", np.array([])) == "real")
    assert isinstance(ours, WorldModelVectorEnv)
    assert ours.stats.anchor_real_steps == real > 0
    singles = [env.unwrapped.stats for env in theirs.envs]  # type: ignore[attr-defined]
    for name in ("anchor_real_steps", "anchor_replayed_steps", "steps", "requests"):
        assert getattr(ours.stats, name) == sum(getattr(stats, name) for stats in singles)
    ours.close()
    theirs.close()


def test_vector_fork_start_and_what_if() -> None:
    envs = gym.make_vec(ID, num_envs=2, model=MODEL, anchor="every:2")
    assert isinstance(envs, WorldModelVectorEnv)
    envs.reset(seed=0)
    envs.step(["look", "look"])
    fork, starts = envs.fork(), envs.snapshot()
    [[anchored], []] = envs.what_if([["inventory"], []], anchored=True)
    [[imagined], []] = envs.what_if([["inventory"], []])
    assert anchored != imagined
    expected = envs.step(["inventory"] * 2)
    assert expected[0][0] == anchored.observation
    assert fork.step(["inventory"] * 2)[0] == expected[0]
    assert {episode.source for episode in envs.episodes} == {"anchored"}
    envs.reset(options={"start": list(starts)})
    assert envs.step(["inventory"] * 2)[0] == expected[0]
    envs.reset(options={"start": fork.snapshot()})
    assert [s.anchors[0].step for s in envs.sessions] == [2, 2]


@pytest.mark.parametrize("anchor", ["every:1", ["look", "random:0.5"]])
def test_the_contract_of_text_worlds(anchor: Any) -> None:
    env = gym.make(ID, model=MODEL, anchor=anchor, anchor_budget=3)
    check_env(env.unwrapped)
    check_text_env(env)


def test_anchored_ids_are_json() -> None:
    env = gym.make(ID, model=MODEL, anchor=["look", "every:2"], anchor_budget=3)
    assert env.spec is not None
    again = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    again.reset(seed=0)
    assert again.step("look")[4]["llmworld"]["source"] == "real"
