"""Refinement by GRPO: against TRL's own computation, through kills, and on bad input."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from gym_llmworld.checkpoints import checkpoint_style, read_card
from gym_llmworld.core import Episode, Scenario, Step
from gym_llmworld.errors import DataError
from gym_llmworld.protocol import REASONING_REQUEST
from training.config import Config
from training.data import Conversations, read_conversations
from training.grpo import RefinedCard, build_trainer, fitting, main, refine, run
from training.grpo_config import Refinement, kept_ids
from training.grpo_trainer import PromptSampler
from training.rewards import Weighted
from training.sft import train
from training.trainer import last_checkpoint
from training.transitions import read_transitions

ROOT = Path(__file__).parents[2]
# TRL warns about its own experimental parts and torch about its own deprecations.
pytestmark = pytest.mark.filterwarnings("ignore")


def make_episode(number: int) -> Episode:
    """A room with three closed cabinets; what one holds is told by the number of the episode."""
    rng = random.Random(number)
    names = [f"cabinet {i}" for i in range(1, 4)]
    contents = {name: [f"{rng.choice(['egg', 'mug'])} {rng.randint(1, 3)}"] for name in names}
    hidden = {
        "receptacles": [
            {"name": name, "openable": True, "open": False, "contents": contents[name]}
            for name in names
        ],
        "toggles": {},
    }
    scenario = Scenario(f"train/{number}", "alfworld", "train", "put a mug.", "", None, hidden)
    steps = []
    for name in rng.choices(names, k=2):
        steps.append(Step(f"go to {name}", f"You arrive at {name}. The {name} is closed."))
        seen = f"You open the {name}. The {name} is open. In it, you see a {contents[name][0]}."
        steps.append(Step(f"open {name}", seen))
    last = steps.pop()
    steps.append(Step(last.action, last.observation, reward=1.0, terminated=True))
    return Episode(scenario, tuple(steps), "real", "test", number)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("episodes")
    train_file, heldout = folder / "train.jsonl", folder / "heldout.jsonl"
    for file, numbers in ((train_file, range(40)), (heldout, range(100, 110))):
        lines = [json.dumps(make_episode(n).to_json()) for n in numbers]
        file.write_text("\n".join(lines) + "\n")
    return train_file, heldout


@pytest.fixture(scope="module")
def base(files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small world model that is right now and then."""
    config = Config(
        data=files[:1], output=tmp_path_factory.mktemp("base"), layers=2, width=128, heads=4,
        hidden=64, merges=60, context=256, max_steps=60, batch_size=8, threads=1, seed=1,
        learning_rate=4e-3,
    )  # fmt: skip
    data = read_conversations(config.data, "engine")
    train(config, data, Conversations(), "test")
    return config.output


def tiny_run(files: tuple[Path, Path], base: Path, output: Path, **changes: Any) -> Config:
    values: dict[str, Any] = {
        "data": files[:1], "eval_data": files[1:], "output": output, "model": str(base),
        "context": 256, "max_steps": 2, "threads": 1, "learning_rate": 3e-4, "warmup_steps": 0,
        "weight_decay": 0.0,
    }  # fmt: skip
    return Config(**{**values, **changes})


SMALL = Refinement(prompts=4, group=4)


def started(config: Config, refinement: Refinement = SMALL, **options: Any) -> Any:
    model = AutoModelForCausalLM.from_pretrained(config.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(config.model)
    data = read_conversations(config.data, "engine")
    transitions = read_transitions(config.data, "engine")
    card = RefinedCard(config, "test", data, 1, config.output / "log", refinement=refinement)
    return build_trainer(
        config, refinement, model, tokenizer, transitions, card, Conversations(), **options
    )


# --- transitions -------------------------------------------------------------------------------


def test_transitions_are_what_the_protocol_says(files: tuple[Path, Path]) -> None:
    transitions = read_transitions(files[:1], "engine")
    chats = read_conversations(files[:1], "engine").chats
    expected = {(chat[:end], chat[end].content) for chat in chats for end in range(2, len(chat), 2)}
    assert {(one.prompt, one.truth) for one in transitions} == expected
    assert len({one.id for one in transitions}) == len(transitions)
    first = transitions[1]
    assert first.previous == first.prompt[2].content
    assert first.state == ""
    assert sum(one.truth.endswith(" [SUCCESS]") for one in transitions) > 10
    row = first.row(reasoning=True)
    assert row["prompt"][-1]["content"] == first.prompt[-1].content + REASONING_REQUEST
    assert row["prompt"][:-1] == first.row()["prompt"][:-1]
    with pytest.raises(DataError, match="expected episodes"):
        read_transitions([Path("train.json")], "engine")


def test_prompts_come_in_groups_and_in_a_new_order_every_pass() -> None:
    sampler = PromptSampler(7, batch=3, group=2, repeats=2, seed=0)
    passes = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        passes.append(list(sampler))
    assert passes[0] == passes[2] != passes[1]
    assert len(passes[0]) == len(sampler) == 24
    one = passes[0]
    assert one[:6] == one[6:12]
    assert one[0] == one[1]
    assert len({*one}) == 6
    with pytest.raises(DataError, match="a step has 8 different transitions, the data only 7"):
        PromptSampler(7, batch=8, group=2, repeats=1, seed=0)


# --- the computation ---------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_loss_and_gradients_equal_the_stock_trainers(
    files: tuple[Path, Path], base: Path, tmp_path: Path, beta: float
) -> None:
    refinement = Refinement((Weighted("changed"),), prompts=4, group=4, beta=beta, temperature=0.8)
    ours = started(tiny_run(files, base, tmp_path / "a"), refinement)
    stock = started(tiny_run(files, base, tmp_path / "b"), refinement, share=False)
    assert ours.rollouts is not None
    assert stock.rollouts is None
    rows = [ours.train_dataset[i // 4] for i in range(40)]
    inputs = ours._generate_and_score_completions(rows)
    assert inputs["advantages"].abs().max() > 0.5
    # A penalty on divergence from the start is 0 at the start: move on by a little.
    for trainer in (ours, stock):
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in trainer.model.parameters():
                weight += 0.01 * torch.randn(weight.shape, generator=generator)
        trainer.model.train()
        trainer.model.zero_grad()
        trainer.current_gradient_accumulation_steps = 1
    losses = [trainer._compute_loss(trainer.model, inputs) for trainer in (ours, stock)]
    torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-4)
    for loss in losses:
        loss.backward()
    pairs = zip(ours.model.parameters(), stock.model.parameters(), strict=True)
    for mine, theirs in pairs:
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-5, rtol=1e-3)


def test_the_stock_trainers_own_generation_is_scored_as_well(
    files: tuple[Path, Path], base: Path, tmp_path: Path
) -> None:
    refinement = Refinement(prompts=8, group=4, temperature=0.2)
    trainer = started(tiny_run(files, base, tmp_path), refinement, share=False)
    rows = [trainer.train_dataset[i // 4] for i in range(32)]
    trainer.model.train()
    trainer._generate_and_score_completions(rows)
    # About half of this model's predictions are right, and only finished ones count.
    assert trainer._metrics["train"]["reward"][0] > 0.2
    assert trainer._metrics["train"]["completions/clipped_ratio"][0] < 0.5


def test_equal_rewards_have_no_advantage_and_no_gradient(
    files: tuple[Path, Path], base: Path, tmp_path: Path
) -> None:
    trainer = started(tiny_run(files, base, tmp_path))
    # 0.1 has no exact mean of 4 in floating point, not even of equal ones.
    trainer.reward_funcs[0] = lambda completions, **columns: [0.1 + 1 / 3] * len(completions)
    rows = [trainer.train_dataset[i // 4] for i in range(16)]
    inputs = trainer._generate_and_score_completions(rows)
    assert not inputs["advantages"].any()
    trainer.model.zero_grad()
    trainer.current_gradient_accumulation_steps = 1
    trainer._compute_loss(trainer.model, inputs).backward()
    assert all(w.grad is not None and not w.grad.any() for w in trainer.model.parameters())


def test_samples_none_of_whose_rewards_exist_move_nothing(
    files: tuple[Path, Path], base: Path, tmp_path: Path
) -> None:
    trainer = started(tiny_run(files, base, tmp_path))
    trainer.reward_funcs[0] = lambda completions, **columns: [None] * len(completions)
    inputs = trainer._generate_and_score_completions([trainer.train_dataset[0]] * 4)
    assert not inputs["advantages"].any()

    def broken(completions: Any, **columns: Any) -> list[float]:
        raise KeyError("a bug")

    trainer.reward_funcs[0] = broken
    with pytest.raises(KeyError, match="a bug"):
        trainer._generate_and_score_completions([trainer.train_dataset[0]] * 4)


def test_refinement_raises_the_reward(files: tuple[Path, Path], base: Path, tmp_path: Path) -> None:
    config = tiny_run(files, base, tmp_path, max_steps=40, eval_data=(), learning_rate=1e-3)
    run(config, Refinement(prompts=8, group=8), "test")
    rows = [json.loads(line) for line in (tmp_path / "training.jsonl").read_text().splitlines()]
    rewards = [row["rewards/exact/mean"] for row in rows]
    before, after = sum(rewards[:8]) / 8, sum(rewards[-8:]) / 8
    assert after > before + 0.1, rewards
    assert rows[0]["entropy"] > 0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--lora-rank=4"], "1 x exact"),
        (["--reward", "changed:1", "format:0.1", "--accumulate=2", "--beta=0.01"], "0.1 x format"),
        (["--reward", "exact", "--reasoning"], "with a reasoning span"),
    ],
)
def test_program(
    files: tuple[Path, Path], base: Path, tmp_path: Path, options: list[str], text: str
) -> None:
    arguments = [
        f"--model={base}", f"--data={files[0]}", f"--eval-data={files[1]}", f"--output={tmp_path}",
        "--max-steps=2", "--prompts=4", "--group=4", "--threads=1", "--context=256", *options,
    ]  # fmt: skip
    assert main([a for part in arguments for a in part.split("=", 1)]) == 0
    card = read_card(str(tmp_path))
    assert card["base"] == str(base)
    assert card["exact_match"]["turns"] == 40
    style = "engine/think" if "--reasoning" in options else "engine"
    assert checkpoint_style(str(tmp_path), "alfworld") == style
    readme = (tmp_path / "README.md").read_text()
    assert text in readme
    assert "training/grpo.py" in readme
    assert "training/sft.py" not in readme
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert len(AutoTokenizer.from_pretrained(tmp_path)) == model.config.vocab_size
    assert last_checkpoint(tmp_path) is not None


# --- kills -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_run_ends_as_an_undisturbed_one(
    files: tuple[Path, Path], base: Path, tmp_path: Path
) -> None:
    arguments = [
        sys.executable, "-m", "training.grpo", f"--model={base}", f"--data={files[0]}",
        "--max-steps=30", "--prompts=8", "--group=4", "--threads=1", "--checkpoint-minutes=0",
        "--context=256", "--learning-rate=3e-4",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    first = subprocess.Popen([*arguments, f"--output={killed}"], cwd=ROOT, env=environment)
    deadline = time.monotonic() + 200
    # In the second pass over the 150 or so transitions.
    while not any(int(f.name.split("-")[1]) >= 21 for f in killed.glob("checkpoint-*")):
        assert time.monotonic() < deadline
        assert first.poll() is None
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    for output in (killed, whole):
        subprocess.run([*arguments, f"--output={output}"], cwd=ROOT, env=environment, check=True)
    steps = [json.loads(line)["step"] for line in (killed / "training.jsonl").open()]
    assert steps[-1] == 30
    a, b = (load_file(folder / "model.safetensors") for folder in (killed, whole))
    for name, weight in a.items():
        torch.testing.assert_close(weight, b[name], atol=1e-6, rtol=0)


def test_a_finished_run_is_not_trained_again(
    files: tuple[Path, Path], base: Path, tmp_path: Path
) -> None:
    config = tiny_run(files, base, tmp_path)
    first = run(config, SMALL, "test")
    again = run(config, SMALL, "test")
    assert (first.scores, first.steps) == (again.scores, again.steps)


# --- bad input ---------------------------------------------------------------------------------


def test_the_easy_filter_chooses(files: tuple[Path, Path], base: Path, tmp_path: Path) -> None:
    transitions = read_transitions(files[:1], "engine")
    keep = tmp_path / "transitions.jsonl"
    rows = [{"id": one.id, "kept": i % 3 == 0} for i, one in enumerate(transitions)]
    keep.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    tokenizer = AutoTokenizer.from_pretrained(base)
    config = tiny_run(files, base, tmp_path)
    chosen, longest = fitting(transitions, tokenizer, config, Refinement(keep=keep))
    assert [one.id for one in chosen] == [row["id"] for row in rows if row["kept"]]
    assert longest > 16
    with pytest.raises(DataError, match="none fits"):
        fitting(transitions, tokenizer, tiny_run(files, base, tmp_path, context=20), SMALL)
    keep.write_text('{"id": 1}\n')
    with pytest.raises(DataError, match=r"transitions.jsonl, line 1: expected"):
        kept_ids(keep)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to refine in a model from scratch"),
        (["--model=BASE", "--reward", "bleu"], "unknown reward 'bleu'"),
        (["--model=BASE", "--group=1"], "expected group >= 2"),
        (["--model=BASE", "--temperature=0"], "expected temperature, tau and clip > 0"),
        (["--model=BASE"], "no episode with at least one step in no files at all"),
        (["--model=BASE", "--data", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--model=BASE", "--data", "DATA", "--accumulate=3"], "cannot be divided"),
        (["--model=BASE", "--data", "DATA:2"], "has a weight; transitions of all files"),
        (["--model=BASE", "--data", "DATA", "--prompts=1000"], "a step has 1000 different"),
    ],
)
def test_bad_options_are_refused(
    arguments: list[str],
    message: str,
    files: tuple[Path, Path],
    base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    told = [a.replace("BASE", str(base)).replace("DATA", str(files[0])) for a in arguments]
    assert main([*told, f"--output={tmp_path}", "--max-steps=1"]) == 2
    assert message in capsys.readouterr().err


def test_an_agent_is_not_refined(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "llmworld.json").write_text('{"role": "agent"}')
    assert main(["--model", str(tmp_path), "--data", "x.jsonl"]) == 2
    assert "is an agent; expected a world model" in capsys.readouterr().err


def test_an_embedder_of_ones_own(files: tuple[Path, Path], base: Path, tmp_path: Path) -> None:
    import numpy as np

    class Letters:
        def encode(self, texts: Any) -> Any:
            return np.array([[t.count(c) for c in "abcdefghij "] for t in texts], dtype=float) + 0.1

    config = tiny_run(files, base, tmp_path, eval_data=())
    data = read_conversations(config.data, "engine")
    transitions = read_transitions(config.data, "engine")
    refinement = Refinement((Weighted("embedding"), Weighted("exact", 2)), prompts=4, group=4)
    done = refine(config, refinement, data, transitions, Conversations(), "x", embedder=Letters())
    assert (done.steps, done.scores) == (2, None)
    assert "tau 0.2" in (tmp_path / "README.md").read_text()
