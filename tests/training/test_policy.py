"""Reinforcement learning end to end: a scripted world that rewards, one that lies, and kills."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

pytest.importorskip("trl")

from transformers import AutoModelForCausalLM
from trl import GRPOTrainer

import gym_llmworld  # noqa: F401 - registers the ids
from gym_llmworld.core import Episode, Message, Step
from gym_llmworld.errors import DataError
from gym_llmworld.policy_prompt import PolicyPrompt
from gym_llmworld.scenarios import ScenarioStore
from tests.tiny_models import tiny_model, tiny_tokenizer
from training import policy
from training.guard import OFF, ROLLBACK, STOP
from training.policy_config import PolicyConfig
from training.policy_trainer import Progress, StartSampler, compact, summary
from training.token_policy import Rollout, Start, TurnEncoder

ROOT = Path(__file__).parents[2]
SCENARIOS = ScenarioStore("alfworld").of_split("train")
# TRL and transformers warn about their own deprecations.
pytestmark = pytest.mark.filterwarnings("ignore")


def likes_e(chat: Sequence[Message]) -> str:
    """Calls every action with an e in it a success."""
    return "Well done. [SUCCESS]" if "e" in chat[-1].content else "Nothing happens."


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny agent that says one of four words, each about as often."""
    folder = tmp_path_factory.mktemp("agent")
    tokenizer = tiny_tokenizer()
    model: Any = tiny_model("llama", len(tokenizer)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    prompt = PolicyPrompt("bare")
    random = Random(0)
    for _ in range(50):
        scenario = random.choice(SCENARIOS)
        ids = TurnEncoder(tokenizer, "tiny").opening(prompt.opening(scenario))
        for word in ("look", "go", "use", "take"):
            answer = [*tokenizer(word)["input_ids"], tokenizer.eos_token_id]
            labels = torch.tensor([[-100] * len(ids) + answer])
            model(input_ids=torch.tensor([ids + answer]), labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    card = {"format": 1, "role": "agent", "agent_style": "bare", "world": "alfworld"}
    (folder / "llmworld.json").write_text(json.dumps(card))
    return folder


def config(agent: Path, output: Path, **changes: Any) -> PolicyConfig:
    base = PolicyConfig(
        model=str(agent), output=output, world_model=f"scripted:{__name__}:likes_e",
        updates=2, groups=2, group_size=8, batch_size=8, max_steps=2, max_tokens=6,
        learning_rate=1e-3, guard_action=OFF, threads=1,
    )  # fmt: skip
    return replace(base, **changes)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    return dict(model.named_parameters())


def same(a: Path, b: Path) -> bool:
    first, second = weights(a), weights(b)
    return all(torch.equal(first[name], second[name]) for name in first)


def rows(folder: Path) -> list[dict[str, Any]]:
    """The log without what a clock says."""
    lines = (folder / policy.LOG_FILE).read_text().splitlines()
    clocks = ("seconds", "rollout_seconds")
    return [{k: v for k, v in json.loads(line).items() if k not in clocks} for line in lines]


def test_it_learns_what_is_rewarded(agent: Path, tmp_path: Path) -> None:
    settings = config(agent, tmp_path, updates=8, learning_rate=3e-3, max_steps=1)
    learned = policy.run(settings)
    success = [row["success"] for row in learned.rows]
    assert success[0] < 0.7
    assert min(success[-2:]) > success[0] + 0.2
    last = learned.rows[-1]
    assert last["update"] == last["updates"] == 8
    assert last["episodes"] == 8 * 16
    assert last["real_steps"] == last["guard_steps"] == 0
    assert last["imagined_steps"] == pytest.approx(sum(r["length"] * 16 for r in learned.rows))
    assert {"entropy", "loss", "grad_norm", "reward_std", "unusable", "refused"} <= last.keys()
    card = json.loads((tmp_path / "llmworld.json").read_text())
    assert (card["role"], card["agent_style"], card["base"]) == ("agent", "bare", str(agent))
    assert not same(agent, tmp_path)


@pytest.mark.parametrize("decay", [0, 5])
def test_a_run_that_goes_on_is_the_run_that_was_never_stopped(
    decay: int, agent: Path, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    learned = policy.run(config(agent, whole, updates=4, minibatches=2, decay=decay))
    # An update's row has the learning rate of its last optimiser step.
    falls = [0.9, 0.7, 0.5, 0.3] if decay else [1.0] * 4
    rates = [row["learning_rate"] for row in learned.rows]
    assert rates == pytest.approx([1e-3 * share for share in falls])
    policy.run(config(agent, parts, updates=2, minibatches=2, decay=decay))
    # What a kill leaves behind: a line of an update that no checkpoint has, and half a line.
    with (parts / policy.LOG_FILE).open("a") as file:
        file.write('{"update": 3, "success": 1.0}\n{"update": 4, "suc')
    policy.run(config(agent, parts, updates=4, minibatches=2, decay=decay))
    assert rows(parts) == rows(whole)
    assert same(parts, whole)
    again = policy.run(config(agent, parts, updates=4, minibatches=2, decay=decay))
    assert len(again.rows) == 4
    assert same(parts, whole)


def test_other_settings_are_not_mixed_in(agent: Path, tmp_path: Path) -> None:
    policy.run(config(agent, tmp_path, updates=1))
    with pytest.raises(DataError, match=r"learning_rate 0\.001, now"):
        policy.run(config(agent, tmp_path, updates=2, learning_rate=0.5))


class TestGuard:
    """A world model that claims success for nothing."""

    def lying(self, agent: Path, output: Path, action: str) -> PolicyConfig:
        pytest.importorskip("alfworld")
        return config(
            agent, output, updates=6, guard_action=action, guard_every=2, guard_sample=4,
            guard_minimum=1, learning_rate=5e-3,
        )  # fmt: skip

    def test_it_ends_the_run(self, agent: Path, tmp_path: Path) -> None:
        learned = policy.run(self.lying(agent, tmp_path, STOP))
        assert learned.refused
        assert [row["update"] for row in learned.rows] == [1, 2]
        guard = learned.rows[-1]["guard"]
        assert guard["n"] > 0
        assert guard["confirmed"] == 0
        assert not guard["trusted"]
        assert learned.progress.guard_steps == guard["steps"] > 0
        assert learned.progress.real_steps == 0
        assert not same(agent, tmp_path)
        again = policy.run(self.lying(agent, tmp_path, STOP))
        assert again.refused
        assert len(again.rows) == 2

    def test_it_falls_back_to_what_was_trusted(self, agent: Path, tmp_path: Path) -> None:
        learned = policy.run(self.lying(agent, tmp_path, ROLLBACK))
        assert learned.refused
        assert learned.progress.good_update == 0
        assert same(agent, tmp_path)
        assert json.loads((tmp_path / "llmworld.json").read_text())["refused_by_guard"]


def test_real_steps_are_counted_as_such(agent: Path, tmp_path: Path) -> None:
    pytest.importorskip("alfworld")
    settings = config(agent, tmp_path, env="RealWorld-ALFWorld-v0", world_model="", updates=1)
    learned = policy.run(settings)
    assert learned.progress.real_steps == 2 * 16
    assert learned.progress.imagined_steps == learned.progress.world_tokens == 0


@pytest.mark.slow
def test_kill_minus_nine(agent: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    policy.run(config(agent, whole, updates=6))
    command = [
        sys.executable, "-m", "training.policy", "--model", str(agent), "--output", str(killed),
        "--world-model", f"scripted:{__name__}:likes_e", "--updates", "6", "--groups", "2",
        "--group-size", "8", "--batch-size", "8", "--max-steps", "2", "--max-tokens", "6",
        "--learning-rate", "1e-3", "--guard-action", "off", "--threads", "1",
    ]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    while not list(killed.glob("checkpoint-2/progress.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"finished: {killed}" in finished.stdout
    assert rows(killed) == rows(whole)
    assert same(killed, whole)


def test_starts_follow_from_seed_and_update() -> None:
    scenarios = SCENARIOS
    steps = tuple(Step(f"go to desk {i}", "There.", 0.0, False, False) for i in range(6))
    recorded = [Episode(scenarios[3], steps, "real", "x")]
    sampler = StartSampler(scenarios, recorded, 0.5, 40, 4, seed=1)
    starts = sampler.draw(7)
    assert starts == StartSampler(scenarios, recorded, 0.5, 40, 4, seed=1).draw(7)
    assert starts != sampler.draw(8)
    middle = [start for start in starts if start.steps]
    assert 8 < len(middle) < 32
    # With a limit of 4 steps, an episode starts at most three steps in.
    assert {len(start.steps) for start in middle} == {1, 2, 3}
    beginnings = [start.scenario.id for start in starts if not start.steps]
    assert len(set(beginnings)) == len(beginnings)
    assert all(not s.steps for s in StartSampler(scenarios, (), 0.5, 4, 4, seed=1).draw(1))


def test_a_summary_of_nothing_done_is_no_error() -> None:
    idle = Rollout(Start(SCENARIOS[0]), 5)
    assert summary([idle], "Nothing happens.")["success"] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": ""}, "--model is missing"),
        ({"group_size": 1}, "compared with the others of its group"),
        ({"batch_size": 5}, "do not divide"),
        ({"temperature": 0.0}, "to explore"),
        ({"env": "CartPole-v1"}, "unknown --env 'CartPole-v1'"),
        ({"min_confidence": 1.0}, r"min_confidence must be in \[0, 1\)"),
        ({"updates": 0}, "updates must be >= 1"),
        ({"credit": "command", "discount": 1.5}, r"discount must be in \(0, 1\], got 1.5"),
        ({"discount": 0.9}, "needs --credit command"),
        (
            {"credit": "command", "env": "LLMWorld-TextWorld-v0"},
            "TextWorld does not, use --credit episode",
        ),
        ({"updates": 9, "decay": 8}, r"decay must be 0 or >= updates \(9\), got 8"),
    ],
)
def test_runs_that_cannot_end_well_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(PolicyConfig(model="x"), **changes)


def test_the_program_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert policy.main(["--model", str(tmp_path / "no/such/agent"), "--output", str(tmp_path)]) == 2
    assert "error:" in capsys.readouterr().err


def test_what_has_no_gradient_is_left_out_and_changes_nothing(agent: Path, tmp_path: Path) -> None:
    settings = config(agent, tmp_path, max_steps=2)
    tmp_path.mkdir(exist_ok=True)
    arena = policy.arena_of(settings)
    trainer = policy.build_trainer(settings, arena, None, Progress(), tmp_path / "log")
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    batch = trainer._generate_and_score_completions([{"prompt": "start"} for _ in range(16)])
    arena.close()
    batch["advantages"][:9] = 0
    found = []
    for compute in (GRPOTrainer._compute_loss, type(trainer)._compute_loss):
        trainer.model.zero_grad()
        loss = compute(trainer, trainer.model, batch)
        loss.backward()
        found.append([loss.detach(), *(w.grad.clone() for w in trainer.model.parameters())])
    assert found[0][1].abs().max() > 0
    for stock, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, stock, atol=1e-6, rtol=1e-4)
    small = compact(batch, drop=True)
    assert len(small["completion_ids"]) == 7
    assert small["completion_ids"].shape[1] <= batch["completion_ids"].shape[1]
    nothing = {**batch, "advantages": torch.zeros(16)}
    assert len(compact(nothing, drop=True)["completion_ids"]) == 16
    assert trainer._compute_loss(trainer.model, nothing) == 0


def _first_batch(
    settings: PolicyConfig, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Any, dict[str, Any], list[Rollout]]:
    """Plays an update without learning from it."""
    folder.mkdir(parents=True, exist_ok=True)
    arena = policy.arena_of(settings)
    trainer = policy.build_trainer(settings, arena, None, Progress(), folder / "log")
    trainer.current_gradient_accumulation_steps = 1
    played: list[Rollout] = []
    play = trainer.play

    def noted() -> list[Rollout]:
        played.extend(play())
        return played

    monkeypatch.setattr(trainer, "play", noted)
    batch = trainer._generate_and_score_completions([{"prompt": "start"} for _ in range(16)])
    arena.close()
    return trainer, batch, played


def test_a_refusal_is_held_against_its_command(
    agent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(agent, tmp_path, refusal_penalty=0.5, max_steps=4)
    trainer, batch, played = _first_batch(settings, tmp_path, monkeypatch)
    assert {rollout.success for rollout in played} == {True, False}
    vain = torch.zeros(batch["completion_ids"].shape)
    for row, rollout in enumerate(played):
        tokens = torch.tensor(rollout.mask, dtype=torch.float32)
        if rollout.success:
            # `likes_e` refuses everything but what ends the episode.
            text = "".join(map(str, rollout.mask)).rstrip("0")
            tokens[len(text) - len(text.rpartition("0")[2]) :] = 0.0
        vain[row, : len(tokens)] = tokens
    share = vain.sum() / sum(sum(rollout.mask) for rollout in played)
    assert 0 < share < 1
    found = trainer.in_vain(batch)
    torch.testing.assert_close(found, vain - share)
    ours = trainer._compute_loss(trainer.model, batch)
    by_token = batch["advantages"][:, None] - 0.5 * (vain - share)
    stock = GRPOTrainer._compute_loss(trainer, trainer.model, {**batch, "advantages": by_token})
    torch.testing.assert_close(ours, stock, atol=1e-6, rtol=1e-4)


def test_success_is_credited_to_commands(
    agent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(agent, tmp_path, credit="command", discount=0.5, max_steps=4, negative=0.5)
    trainer, batch, played = _first_batch(settings, tmp_path, monkeypatch)
    assert {rollout.success for rollout in played} == {True, False}
    by_token = torch.zeros(batch["completion_ids"].shape)
    # `likes_e` shows no milestone: all commands of a group are compared, the solving one is worth
    # its reward and the last share of the task, the one before it half of that.
    values = [
        [
            2 * 0.5 ** (len(rollout.steps) - 1 - i) * rollout.success
            for i in range(len(rollout.steps))
        ]
        for rollout in played
    ]
    advantages = []
    for group in (values[:8], values[8:]):
        mean = sum(map(sum, group)) / sum(map(len, group))
        advantages += [[value - mean for value in row] for row in group]
    square = sum(a * a for row in advantages for a in row) / sum(map(len, advantages))
    for row, (rollout, own) in enumerate(zip(played, advantages, strict=True)):
        starts = [
            i for i, m in enumerate(rollout.mask) if m and (i == 0 or not rollout.mask[i - 1])
        ]
        for i, wrote in enumerate(rollout.mask):
            command = sum(start <= i for start in starts) - 1
            value = own[command] / square**0.5
            by_token[row, i] = wrote * value * (1 if value > 0 else 0.5)
    ours = trainer._compute_loss(trainer.model, batch)
    stock = GRPOTrainer._compute_loss(trainer, trainer.model, {**batch, "advantages": by_token})
    torch.testing.assert_close(ours, stock, atol=1e-6, rtol=1e-4)
    # The mean over what one draws is what GRPO would have shown: no episode's own number is used.
    assert not torch.allclose(ours, GRPOTrainer._compute_loss(trainer, trainer.model, batch))
