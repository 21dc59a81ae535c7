"""A language model that acts: batches against single episodes, full contexts, bad answers."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from gymnasium.vector import AutoresetMode

import gym_llmworld  # noqa: F401 - registers the environments
from gym_llmworld.agents import Agent, NoisyAgent, ScriptedAgent, act_together
from gym_llmworld.backends import ScriptedBackend
from gym_llmworld.backends.base import Backend
from gym_llmworld.collection import play
from gym_llmworld.comparison import compare
from gym_llmworld.core import Completion, Message, Sampling, Scenario
from gym_llmworld.episodes import write_scenarios
from gym_llmworld.errors import BackendError, ContextOverflow
from gym_llmworld.llm_agent import LLMAgent, LLMAgentMaker, LLMPolicy
from gym_llmworld.playing import Game, ImaginedWorlds, RealWorlds, play_games
from gym_llmworld.policy_prompt import AnswerStatus, PolicyPrompt
from tests.test_comparison import IMAGINED_ID, REAL_ID, ToyBox, game

MODEL = "scripted:tests.test_comparison:answer"
INFO = {"admissible_commands": None}


def solve(chat: Sequence[Message]) -> str:
    """Opens the box, then takes the key."""
    return "open box 1" if len(chat) == 1 else "take key 1"


class Recording(ScriptedBackend):
    """Also keeps what it was asked."""

    def generate(
        self, chats: Sequence[Sequence[Message]], samplings: Sequence[Sampling]
    ) -> list[Completion | BackendError]:
        self.asked: list[tuple[list[str], Sampling]]
        self.asked = getattr(self, "asked", [])
        self.asked += [
            ([m.content for m in chat], s) for chat, s in zip(chats, samplings, strict=True)
        ]
        return super().generate(chats, samplings)


def policy(backend: Backend, style: str = "bare", temperature: float = 1.0) -> LLMPolicy:
    return LLMPolicy(backend, PolicyPrompt(style), Sampling(temperature, max_tokens=20))


def imagined(folder: Path, scenarios: Sequence[Scenario], lanes: int) -> Any:
    write_scenarios(folder / "scenarios.jsonl", scenarios)
    return gym.make_vec(
        IMAGINED_ID,
        num_envs=lanes,
        autoreset_mode=AutoresetMode.DISABLED,
        model=MODEL,
        scenarios=str(folder),
        split="valid_seen",
    )


def games(n: int, limit: int = 5) -> list[Game]:
    return [Game(game(f"g{i}"), i, limit) for i in range(n)]


@pytest.mark.parametrize("lanes", [1, 3, 8])
def test_all_lanes_are_asked_in_one_call(tmp_path: Path, lanes: int) -> None:
    todo = games(8)
    backend = ScriptedBackend(solve)
    shared = policy(backend)
    envs = imagined(tmp_path, [g.scenario for g in todo], lanes)
    played = dict(play_games(ImaginedWorlds(envs), lambda: LLMAgent(shared), todo, name="m"))
    envs.close()
    assert [played[i].episode.actions for i in range(8)] == [("open box 1", "take key 1")] * 8
    assert all(played[i].episode.success and played[i].episode.seed == i for i in range(8))
    assert {p.episode.source for p in played.values()} == {"model"}
    assert sum(backend.batch_sizes) == 16
    assert len(backend.batch_sizes) == 2 * -(-8 // lanes)


def test_real_worlds_side_by_side() -> None:
    todo = games(5)
    backend = ScriptedBackend(solve)
    shared = policy(backend)
    opened, closed = ToyBox.opened, ToyBox.closed
    worlds = RealWorlds(lambda: gym.make(REAL_ID), 2)
    played = dict(play_games(worlds, lambda: LLMAgent(shared), todo, name="m"))
    worlds.close()
    assert [played[i].episode.success for i in range(5)] == [True] * 5
    assert {(p.episode.source, p.real_steps) for p in played.values()} == {("real", 2)}
    assert (ToyBox.opened - opened, ToyBox.closed - closed) == (2, 2)
    assert max(backend.batch_sizes) == 2


def test_every_answer_has_a_seed_of_its_own_and_repeats() -> None:
    backend = Recording(solve)
    env = gym.make(REAL_ID)
    agent = LLMAgent(policy(backend))
    for seed in (1, 2, 1):
        play(env, agent, game("g"), seed=seed, max_steps=5)
    seeds = [sampling.seed for _, sampling in backend.asked]
    assert len(set(seeds)) == 4
    assert seeds[:2] == seeds[4:]
    assert {s.temperature for _, s in backend.asked} == {1.0}
    assert backend.asked[1][0] == [
        "get the key.\nA box 1.",
        "open box 1",
        "You open the box 1. In it, you see a key 1.",
    ]


def test_a_model_in_a_batch_acts_as_alone(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from gym_llmworld.backends.hf import HFBackend
    from tests.tiny_models import save_checkpoint

    backend = HFBackend(str(save_checkpoint(tmp_path / "model")))
    shared = policy(backend)
    todo = games(4, limit=3)
    envs = imagined(tmp_path, [g.scenario for g in todo], 4)
    together = dict(play_games(ImaginedWorlds(envs), lambda: LLMAgent(shared), todo, name="m"))
    envs.close()
    for i, one in enumerate(todo):
        envs = imagined(tmp_path, [g.scenario for g in todo], 1)
        [(_, alone)] = play_games(ImaginedWorlds(envs), lambda: LLMAgent(shared), [one], name="m")
        envs.close()
        assert together[i] == alone
    backend.close()


def overflowing(chat: Sequence[Message]) -> str | ContextOverflow:
    if "g1" in chat[0].content and len(chat) > 3:
        return ContextOverflow("full")
    return "look"


@pytest.mark.parametrize("lanes", [1, 2])
def test_a_full_context_ends_that_episode_only(tmp_path: Path, lanes: int) -> None:
    scenarios = [
        Scenario(f"g{i}", "alfworld", "valid_seen", f"g{i}", "A box 1.", hidden={"context": ""})
        for i in range(3)
    ]
    shared = policy(ScriptedBackend(overflowing))
    envs = imagined(tmp_path, scenarios, lanes)
    todo = [Game(s, 0, 6) for s in scenarios]
    played = dict(play_games(ImaginedWorlds(envs), lambda: LLMAgent(shared), todo, name="m"))
    envs.close()
    assert [len(played[i].episode.steps) for i in range(3)] == [6, 3, 6]
    assert [played[i].stopped for i in range(3)] == [False, True, False]
    assert played[1].episode.actions == ("look", "look", "")
    assert played[1].episode.steps[-1].truncated
    assert not played[1].episode.success


def test_a_full_context_in_a_comparison(tmp_path: Path) -> None:
    def full(chat: Sequence[Message]) -> str | ContextOverflow:
        return solve(chat) if len(chat) < 3 else ContextOverflow("full")

    write_scenarios(tmp_path / "scenarios.jsonl", [game("a")])
    shared = policy(ScriptedBackend(full))
    result = compare(
        IMAGINED_ID,
        {"m": lambda: LLMAgent(shared)},
        [game("a")],
        real_id=REAL_ID,
        imagined_options={"model": MODEL, "scenarios": str(tmp_path), "split": "valid_seen"},
    )
    [trial] = result.trials["m"]
    assert trial.real is not None
    assert [len(e.steps) for e in (trial.imagined, trial.real)] == [2, 2]
    details = result.to_json(model="toy")["agents"]["m"]
    assert (details["stopped"], details["unanswered"], details["real"]) == (1, 0, 0.0)


def test_another_failure_is_raised() -> None:
    agent = LLMAgent(policy(ScriptedBackend(lambda chat: BackendError("the server is gone"))))
    agent.reset(game("g"), 0)
    with pytest.raises(BackendError, match="the server is gone"):
        agent.act("A box 1.", INFO)


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (Completion("", "stop"), AnswerStatus.EMPTY),
        (Completion("look " * 9, "length"), AnswerStatus.CUT_OFF),
        (Completion("look<|im_end|>\nwin [SUCCESS]", "stop"), AnswerStatus.NO_ACTION),
    ],
)
def test_unusable_answers_cost_a_step(
    tmp_path: Path, answer: Completion, status: AnswerStatus
) -> None:
    shared = policy(ScriptedBackend(lambda chat: answer))
    envs = imagined(tmp_path, [game("g")], 1)
    [(_, played)] = play_games(
        ImaginedWorlds(envs), lambda: LLMAgent(shared), games(1, limit=3), name="m"
    )
    envs.close()
    assert played.episode.actions == ("", "", "")
    assert {step.observation for step in played.episode.steps} == {"Nothing happens."}
    assert not played.episode.success
    assert shared.answers == {status: 3}


def test_thoughts_are_remembered() -> None:
    backend = Recording(lambda chat: f"Thought:\nat {len(chat)}\n\nAction:\nlook")
    agent = LLMAgent(policy(backend, "react"))
    play(gym.make(REAL_ID), agent, game("g"), seed=0, max_steps=2)
    assert backend.asked[1][0][3:] == ["Thought:\nat 3\n\nAction:\nlook", "Nothing happens."]


def test_an_overruled_agent_remembers_what_was_done() -> None:
    backend = Recording(solve)
    agent = NoisyAgent(LLMAgent(policy(backend)), 1.0, ScriptedAgent(["look", "wait"]))
    play(gym.make(REAL_ID), agent, game("g"), seed=0, max_steps=2)
    assert backend.asked[1][0][1:] == ["look", "Nothing happens."]


def test_agents_without_a_policy_are_asked_alone() -> None:
    backend = ScriptedBackend(solve)
    first, second = policy(backend), policy(backend)
    agents: list[Agent] = [
        LLMAgent(first),
        ScriptedAgent(["wait"]),
        LLMAgent(second),
        LLMAgent(first),
    ]
    for agent in agents:
        agent.reset(game("g"), 0)
    actions = act_together(agents, ["A box 1."] * 4, [INFO] * 4)
    assert actions == ["open box 1", "wait", "open box 1", "open box 1"]
    assert backend.batch_sizes == [2, 1]


def test_a_maker_travels_and_shares_its_model() -> None:
    maker = LLMAgentMaker("scripted:tests.test_llm_agent:solve", PolicyPrompt(), name="llm:x")
    one, two = maker(), pickle.loads(pickle.dumps(maker))()
    assert one.policy is two.policy
    assert one.name == "llm:x"
    assert one.policy.sampling == Sampling(max_tokens=64)


@pytest.mark.parametrize("attempts", [1, 3])
def test_pass_at_k_by_hand(tmp_path: Path, attempts: int) -> None:
    write_scenarios(tmp_path / "scenarios.jsonl", [game("a"), game("b")])

    class Lucky(ScriptedAgent):
        """Solves what it plays with one of its seeds, in both worlds."""

        seen: dict[str, list[int]] = {}  # noqa: RUF012 - shared on purpose

        def reset(self, scenario: Scenario, seed: int) -> None:
            known = Lucky.seen.setdefault(scenario.id, [])
            known += [seed] if seed not in known else []
            lucky = scenario.id == "a" and known.index(seed) == 0
            self._given = ("open box 1", "take key 1") if lucky else ()
            super().reset(scenario, seed)

    Lucky.seen.clear()
    result = compare(
        IMAGINED_ID,
        {"lucky": Lucky},
        [game("a"), game("b")],
        real_id=REAL_ID,
        attempts=attempts,
        max_steps=3,
        imagined_options={"model": MODEL, "scenarios": str(tmp_path), "split": "valid_seen"},
    )
    assert [t.scenario.id for t in result.trials["lucky"]] == ["a"] * attempts + ["b"] * attempts
    assert all(len(seeds) == attempts for seeds in Lucky.seen.values())
    share = pytest.approx(0.5 / attempts)
    assert result.pass_at("lucky", 1) == {"real": share, "wm": share, "w2r": share}
    assert result.pass_at("lucky", attempts) == {"real": 0.5, "wm": 0.5, "w2r": 0.5}
    data = result.to_json(model="toy")
    assert data["attempts"] == attempts
    assert data["agents"]["lucky"]["pass_at"][str(attempts)]["real"] == 0.5
