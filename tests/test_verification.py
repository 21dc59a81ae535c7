"""Looking before irreversible actions: a toy shop by hand, and the real ALFWorld engine."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from gymnasium.error import InvalidAction, ResetNeeded

from gym_llmworld.backends import ScriptedBackend
from gym_llmworld.backends.scripted import Script
from gym_llmworld.cli_verify import (
    IRREVERSIBLE,
    Check,
    Pair,
    Played,
    parse_budgets,
    sign_test,
    study,
    summary,
    verification_table,
    verify,
)
from gym_llmworld.contract import world_info
from gym_llmworld.core import Completion, Message, Sampling, Scenario
from gym_llmworld.errors import BackendError, ContextOverflow
from gym_llmworld.imagination import Imagination
from gym_llmworld.scenarios import ScenarioStore
from gym_llmworld.spaces import FreeText
from gym_llmworld.verification import REFUSAL, Verification, VerifiedEnv
from gym_llmworld.worlds import get_world

MODEL = "scripted:tests.test_verification:predict"
STORE = ScenarioStore("alfworld")
SCENARIO = STORE.of_split("valid_seen")[0]


class Shop(gym.Env[str, str]):
    """Two goods; ``buy`` ends the episode, and solves the task only on page b."""

    observation_space, action_space = FreeText(1000), FreeText(100)

    def __init__(self) -> None:
        self.scenario = SCENARIO
        self.page, self.taken = "", 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.page, self.taken = "front", 0
        return SCENARIO.observation, self._info(False)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.taken += 1
        if action.strip().lower().startswith("click[buy now]"):
            won = self.page == "b"
            return "Thank you.", float(won), True, False, self._info(won)
        if action in ("open a", "open b"):
            self.page = action[-1]
        return f"Page {self.page}.", 0.0, False, False, self._info(False)

    def _info(self, won: bool) -> dict[str, Any]:
        return world_info(admissible=["buy"], won=won, llmworld={"source": "real"})


def predict(chat: Sequence[Message]) -> str:
    """Knows the shop: what is bought is what was opened last."""
    opened = [m.content for m in chat if m.role == "user" and m.content.startswith("open")]
    return "Thank you." + (" [SUCCESS]" if opened and opened[-1] == "open b" else "")


def imagination(script: Script = predict) -> Imagination:
    world = get_world("alfworld")
    return Imagination(
        world, world.protocol("engine"), ScriptedBackend(script), STORE, "train", Sampling()
    )


def shop(script: Script = predict, **options: Any) -> VerifiedEnv:
    return VerifiedEnv(Shop(), imagination(script), "click[buy now]", **options)


def real(env: VerifiedEnv) -> Shop:
    assert isinstance(env.unwrapped, Shop)
    return env.unwrapped


def test_a_purchase_that_would_fail_is_withheld_and_the_agent_told() -> None:
    env = shop()
    env.reset(seed=0)
    env.step("open a")
    text, reward, terminated, truncated, info = env.step(" Click[Buy Now] ")
    assert text == f"{REFUSAL}\nPage a."
    assert (reward, terminated, truncated) == (0.0, False, False)
    assert real(env).taken == 1
    assert info["verification"] == {
        "checks": 1, "passed": 0, "refused": 1, "unknown": 0, "unchecked": 0, "verdict": "failure"
    }  # fmt: skip
    assert info["admissible_commands"] == ["buy"]
    assert env.step("open b")[4]["verification"]["verdict"] is None
    text, reward, terminated, _, info = env.step("click[buy now]")
    assert (text, reward, terminated) == ("Thank you.", 1.0, True)
    assert info["verification"]["verdict"] == "success"
    assert env.counts == Verification(checks=2, passed=1, refused=1)


def test_the_model_is_shown_the_real_episode_and_nothing_else() -> None:
    chats: list[tuple[Message, ...]] = []

    def script(chat: Sequence[Message]) -> str:
        chats.append(tuple(chat))
        return "No."

    env = shop(script)
    env.reset()
    for action in ("open a", "click[buy now]", "open b", "click[buy now]"):
        env.step(action)
    assert [(m.role, m.content) for m in chats[1][1:]] == [
        ("user", "open a"),
        ("assistant", "Page a."),
        ("user", "open b"),
        ("assistant", "Page b."),
        ("user", "click[buy now]"),
    ]


def test_without_checks_left_it_is_the_plain_environment() -> None:
    env, plain = shop(max_checks=0), Shop()
    assert env.reset(seed=1)[0] == plain.reset(seed=1)[0]
    for action in ("open a", "click[buy now]"):
        found, expected = env.step(action), plain.step(action)
        assert found[:4] == expected[:4]
    assert env.counts == Verification(unchecked=1)


def test_checks_are_limited_per_episode() -> None:
    env = shop(max_checks=2)
    for _ in range(2):
        env.reset()
        env.step("open a")
        ended = [env.step("click[buy now]")[2] for _ in range(3)]
        assert ended == [False, False, True]
        assert env.counts == Verification(checks=2, refused=2, unchecked=1)
    env.reset()
    assert env.counts == Verification()


class Broken(ScriptedBackend):
    def generate(self, chats: Any, samplings: Any) -> list[Completion | BackendError]:
        raise BackendError("the server is down")


@pytest.mark.parametrize(
    "answer",
    [
        Completion("Thank you. [SUCCESS]", "length"),
        "",
        " [SUCCESS]",
        "x" * 100_000,
        "\x00\ud800" * 5000,
        ContextOverflow("too long"),
        BackendError("lost"),
    ],
)
def test_a_model_without_a_usable_answer_lets_the_action_pass(answer: Any) -> None:
    env = shop(lambda chat: answer)
    env.reset()
    env.step("open b")
    assert env.step("click[buy now]")[1] == 1.0
    assert env.counts == Verification(checks=1, unknown=1)


def test_a_backend_that_is_down_lets_the_action_pass() -> None:
    env = shop()
    env.imagination.backend = Broken(predict)
    env.reset()
    env.step("open b")
    assert env.step("click[buy now]")[1] == 1.0
    assert env.counts == Verification(checks=1, unknown=1)


def test_finished_nonsense_is_a_refusal_and_ends_with_the_budget() -> None:
    env = shop(lambda chat: "<|im_start|>}{ [SUCCESS] ???", refusal="")
    env.reset()
    env.step("open b")
    assert [env.step("click[buy now]")[0] for _ in range(3)] == ["Page b.", "Page b.", "Thank you."]


def test_an_action_that_may_not_enter_a_chat_is_passed_on_and_counted() -> None:
    env = shop()
    env.reset()
    assert env.step("click[buy now]" + "x" * 1000)[2]
    assert env.counts == Verification(checks=1, unknown=1)


@pytest.mark.parametrize(
    ("irreversible", "matching", "others"),
    [
        (
            "click[buy now]",
            ["click[buy now]", " CLICK[Buy Now]"],
            ["click[b]", "c", "x click[buy now]"],
        ),
        (re.compile(r"^(focus|eat) "), ["focus on a", "eat b"], ["look", "defocus on"]),
    ],
)
def test_which_actions_are_checked(
    irreversible: str | re.Pattern[str], matching: list[str], others: list[str]
) -> None:
    env = VerifiedEnv(Shop(), imagination(), irreversible)
    assert [env.matches(action) for action in matching] == [True] * len(matching)
    assert [env.matches(action) for action in others] == [False] * len(others)


def test_wrong_use_is_explained() -> None:
    with pytest.raises(ValueError, match="irreversible is empty"):
        VerifiedEnv(Shop(), imagination(), " ")
    with pytest.raises(ValueError, match="max_checks must be >= 0, got -1"):
        shop(max_checks=-1)
    env = shop()
    with pytest.raises(ResetNeeded):
        env.step("look")
    env.reset()
    with pytest.raises(InvalidAction, match="must be a str, got int"):
        env.step(3)  # type: ignore[arg-type]
    real(env).scenario = "no scenario"  # type: ignore[assignment]
    with pytest.raises(TypeError, match=r"Shop\.scenario is str"):
        env.reset()


def test_a_copy_goes_its_own_way() -> None:
    env = shop()
    env.reset()
    env.step("open a")
    fork = copy.deepcopy(env)
    env.step("click[buy now]")
    assert fork.counts == Verification()
    fork.step("open b")
    assert fork.step("click[buy now]")[1] == 1.0
    assert env.step("click[buy now]")[0].endswith("Page a.")


class Shopper:
    """Opens a, or b in every other game, and buys; refused, it opens the other one."""

    def __init__(self, name: str = "shopper", first: str = "seed") -> None:
        self.name, self._first = name, first

    def reset(self, scenario: Scenario, seed: int) -> None:
        page = "ab"[seed % 2] if self._first == "seed" else self._first
        other = "b" if page == "a" else "a"
        self._plan = [f"open {page}", "click[buy now]", f"open {other}", "click[buy now]"]

    def act(self, observation: str, info: Mapping[str, Any]) -> str:
        return self._plan.pop(0)


def test_the_experiment_by_hand() -> None:
    agents = {"good": lambda: Shopper(first="b"), "bad": lambda: Shopper(first="a")}
    seen: list[tuple[int, int]] = []
    results = study(
        shop(refusal=""),
        agents,
        STORE.of_split("valid_seen")[:3],
        budgets=(1,),
        seed=0,
        max_turns=10,
        progress=lambda d, n: seen.append((d, n)),
    )
    assert seen[-1] == (12, 12)
    good, bad = (summary(results[name][1]) for name in ("good", "bad"))
    assert (good["success_without"], good["success_with"], good["gained"]) == (1.0, 1.0, 0)
    assert good["first_checks"] == {"right pass": 3}
    assert (bad["success_without"], bad["success_with"], bad["gained"]) == (0.0, 1.0, 3)
    assert bad["first_checks"] == {"right refusal": 3}
    assert (bad["turns_without"], bad["turns_with"], bad["p"]) == (2.0, 4.0, 0.25)
    assert bad["counts"] == {"checks": 3, "passed": 0, "refused": 3, "unknown": 0, "unchecked": 3}


def test_withheld_actions_cost_turns() -> None:
    agents = {"bad": lambda: Shopper(first="a")}
    results = study(shop(), agents, [SCENARIO], budgets=(1,), seed=0, max_turns=3)
    [pair] = results["bad"][1]
    assert (len(pair.checked.actions), pair.checked.success) == (3, False)


@pytest.mark.parametrize(
    ("verdict", "solved", "expected"),
    [
        ("success", True, "right pass"),
        ("success", False, "wrong pass"),
        ("failure", True, "wrong refusal"),
        ("failure", False, "right refusal"),
        ("unknown", True, "unknown"),
        (None, True, None),
    ],
)
def test_first_checks_are_held_against_the_world(
    verdict: Any, solved: bool, expected: str | None
) -> None:
    def played(check: Check, *actions: str) -> Played:
        return Played(actions, solved, float(solved), Verification(), check)

    without = played(Check(2, None, solved), "open a", "buy")
    same = played(Check(2, verdict, False), "open a", "buy", "open b")
    other = played(Check(2, verdict, False), "open b", "buy")
    assert Pair("s", 0, without, same).first_check == expected
    assert Pair("s", 0, without, other).first_check is None


def test_sign_test_by_hand() -> None:
    assert sign_test(0, 0) == 1.0
    assert sign_test(5, 0) == pytest.approx(2 / 2**5)
    assert sign_test(3, 1) == pytest.approx(2 * (1 + 4) / 2**4)
    assert sign_test(2, 2) == 1.0


def test_budgets_are_read_or_explained() -> None:
    assert parse_budgets("2, 10,2") == (2, 10)
    for text in ("", "0", "a", "1,-2", "1.5"):
        with pytest.raises(ValueError, match="whole numbers of at least 1"):
            parse_budgets(text)


def test_the_table_shows_actions_as_they_are() -> None:
    table = verification_table({"irreversible": "click[buy now]", "model": "m", "agents": {}})
    assert str(table.title) == "Before 'click[buy now]': m simulates"


def last_move(chat: Sequence[Message]) -> str:
    """Predicts success for every third turn."""
    return "You do it." + (" [SUCCESS]" if len(chat) // 2 % 3 == 0 else "")


def test_the_command_plays_the_real_engine(tmp_path: Path) -> None:
    file = tmp_path / "verify.json"
    verify(
        "LLMWorld-ALFWorld-v0",
        model="scripted:tests.test_verification:last_move",
        prompt_style="engine",
        irreversible="move ",
        checks="2",
        agents="expert",
        episodes=3,
        seed=1,
        max_steps=30,
        json_file=file,
    )
    data = json.loads(file.read_text(encoding="utf-8"))
    row = data["agents"]["expert"]["2"]
    assert (data["n"], row["n"], row["success_without"]) == (3, 3, 1.0)
    assert row["counts"]["checks"] >= 3
    assert len(data["games"]) == 3
    with pytest.raises(ValueError, match="--irreversible"):
        verify("LLMWorld-ALFWorld-v0", model=MODEL, prompt_style="engine")


def test_the_embedded_model_lets_the_expert_win(tmp_path: Path) -> None:
    plan = list(SCENARIO.real["plan"])
    env = VerifiedEnv(
        gym.make("RealWorld-ALFWorld-v0", disable_env_checker=True),
        Imagination.open("alfworld"),
        re.compile("^" + re.escape(plan[-1]) + "$"),
    )
    env.reset(options={"scenario": SCENARIO.to_json()})
    results = [env.step(action) for action in plan]
    assert results[-1][1] == 1.0
    assert env.counts == Verification(checks=1, passed=1)
    env.reset(options={"scenario": SCENARIO.to_json()})
    assert env.step(plan[-1])[0].startswith(REFUSAL)
    env.close()


def test_a_customer_of_the_real_shop_sees_the_same_page_again() -> None:
    pytest.importorskip("bm25s")
    [scenario] = ScenarioStore("webshop").of_split("test")[:1]
    world = get_world("webshop")
    model = Imagination.open(
        "webshop",
        model="scripted:tests.test_verification:predict",
        prompt_style="nocatalog",
        split="test",
    )
    env = VerifiedEnv(
        gym.make(world.real_id, disable_env_checker=True),
        model,
        IRREVERSIBLE["webshop"],
        refusal="",
    )
    agent = world.agents["expert"]()
    agent.reset(scenario, 0)
    observation, info = env.reset(options={"scenario": scenario.to_json()})
    while not env.matches(action := agent.act(observation, info)):
        observation, *_, info = env.step(action)
    assert [env.step(action)[0] for _ in range(2)] == [observation] * 2
    assert env.step(action)[1] == 1.0
    assert env.counts == Verification(checks=2, refused=2, unchecked=1)
    env.close()
