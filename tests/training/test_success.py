"""Success in the real engine: an agent that knows the plans solves every game."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

pytest.importorskip("trl")

from gym_llmworld.core import Episode, Message, Scenario, Step
from gym_llmworld.policy_prompt import react
from gym_llmworld.scenarios import ScenarioStore
from gym_llmworld.worlds import get_world
from training.success import Exam, success_text, summary

pytestmark = pytest.mark.filterwarnings("ignore")

WORLD = get_world("alfworld")


def planner(chat: Sequence[Message]) -> str:
    """Acts in style react; solves the games of seen rooms by their plan."""
    store = ScenarioStore("alfworld")
    [plan] = [
        scenario.real["plan"]
        for scenario in store.of_split("valid_seen") + store.of_split("valid_unseen")
        if scenario.observation == chat[2].content
    ]
    seen = chat[2].content in {s.observation for s in store.of_split("valid_seen")}
    return react("the plan says so", str([*plan, "look"][len(chat) // 2 - 1]) if seen else "look")


def test_plans_solve_the_games_of_their_rooms() -> None:
    pytest.importorskip("alfworld")
    exam = Exam.of(WORLD, None, 2, 15, lanes=3)
    found = exam.take("scripted:tests.training.test_success:planner")
    plans = [len(s.real["plan"]) for s in exam.scenarios if s.split == "valid_seen"]
    assert found == {
        "valid_seen": {"value": 1.0, "hits": 2, "n": 2, "steps": sum(plans) / 2},
        "valid_unseen": {"value": 0.0, "hits": 0, "n": 2, "steps": 15.0},
        "all": {"value": 0.5, "hits": 2, "n": 4, "steps": (sum(plans) / 2 + 15) / 2},
    }


def test_an_exam_takes_games_of_every_held_out_split() -> None:
    exam = Exam.of(WORLD, None, 3, 20)
    assert [s.split for s in exam.scenarios] == ["valid_seen"] * 3 + ["valid_unseen"] * 3
    settings = exam.settings()
    assert (settings["games"], settings["max_steps"]) == (6, 20)
    fewer = Exam(WORLD, exam.scenarios[:5], 20).settings()
    assert fewer["digest"] != settings["digest"]
    assert len(Exam.of(WORLD, None, 0, 20).scenarios) == 120


def test_summary_by_hand() -> None:
    def episode(split: str, length: int, solved: bool) -> Episode:
        steps = [Step("look", "x")] * (length - 1) + [Step("look", "x", float(solved), solved)]
        return Episode(Scenario("s", "alfworld", split, "t", "t"), tuple(steps), "real", "a")

    found = summary([episode("b", 3, True), episode("a", 2, False), episode("b", 4, False)])
    assert found == {
        "a": {"value": 0.0, "hits": 0, "n": 1, "steps": 2.0},
        "b": {"value": 0.5, "hits": 1, "n": 2, "steps": 3.5},
        "all": {"value": 1 / 3, "hits": 1, "n": 3, "steps": 3.0},
    }
    assert success_text(found) == "real success a 0.000 (n=1), b 0.500 (n=2), all 0.333 (n=3)"
    assert summary([]) == {"all": {"value": None, "hits": 0, "n": 0, "steps": None}}
