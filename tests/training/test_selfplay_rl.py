"""RL of self-play: advantages, loss, what is learned from, what survives a kill; the comparison."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("trl")
pytest.importorskip("torchrl")
pytest.importorskip("matplotlib")

import torch

from gym_llmworld.errors import DataError
from training import selfplay, selfplay_comparison
from training.selfplay_arms import ARMS, points
from training.selfplay_data import Arena, Setting
from training.selfplay_policy import Codec, PolicyPlayer, Transcript, is_complete, load_policy
from training.selfplay_rl import RL, Learner, Rollout, advantages, ppo_loss, reinforce, selected
from training.selfplay_rows import TRAIN_FILE, VALIDATION_FILE, read_rows

ROOT = Path(__file__).parents[2]
SIZES = ["--layers=2", "--width=32", "--episodes=24", "--batch-size=8", "--max-tokens=40"]
PLAIN = Setting("frozenlake", "4x4-firm", max_tokens=12)
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that has seen the format a few times."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("selfplay") / "base"
    command = ["base", "--world", "frozenlake", "--boards", "4x4-firm", "--output", str(folder)]
    sizes = [*SIZES, "--hidden=32", "--context=512", "--epochs=1"]
    assert selfplay.main([*command, *sizes, "--learning-rate=3e-3"]) == 0
    return folder


def policy(base: Path) -> tuple[Any, Codec]:
    return load_policy(base)


# --- advantages and loss -------------------------------------------------------------------------


def test_advantages_of_the_paper_are_return_minus_value() -> None:
    values = torch.tensor([0.2, -0.5, 0.9])
    advantage, target = advantages(values, 2.0, RL())
    assert torch.allclose(advantage, 2.0 - values)
    assert torch.allclose(target, torch.full((3,), 2.0))


def test_generalised_advantages_by_hand() -> None:
    gamma, lam, values = 0.9, 0.8, [0.2, -0.5, 0.9, 0.1]
    rewards, expected, last = [0.0, 0.0, 0.0, 1.5], [0.0] * 4, 0.0
    for t in reversed(range(4)):
        after = values[t + 1] if t < 3 else 0.0
        last = rewards[t] + gamma * after - values[t] + gamma * lam * last
        expected[t] = last
    how = RL(gamma=gamma, lam=lam)
    advantage, target = advantages(torch.tensor(values), 1.5, how)
    assert torch.allclose(advantage, torch.tensor(expected), atol=1e-6)
    assert torch.allclose(target, torch.tensor(expected) + torch.tensor(values), atol=1e-6)


@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_the_loss_clips_higher_above_than_below(kind: Any) -> None:
    from tensordict import TensorDict

    torch.manual_seed(0)
    how = RL(advantage=kind, entropy=0.01, value_weight=0.3)
    logits, actions = torch.randn(6, 5), torch.tensor([0, 1, 2, 3, 4, 0])
    logprobs = logits.log_softmax(-1)
    chosen = logprobs.gather(-1, actions[:, None])[:, 0]
    ratios = torch.tensor([1.5, 1.25, 0.7, 0.5, 1.0, 1.31])
    gain = torch.tensor([1.0, 1.0, 1.0, -1.0, 2.0, -1.0])
    values, targets = torch.randn(6), torch.randn(6)
    report = ppo_loss(how)(
        TensorDict(
            {
                "token_logits": logits, "action": actions, "advantage": gain[:, None],
                "action_log_prob": chosen - ratios.log(), "value": values[:, None],
                "value_target": targets[:, None],
            },
            batch_size=[6],
        )
    )  # fmt: skip
    clipped = ratios.clamp(0.8, 1.28)
    assert report["loss_objective"].item() == pytest.approx(
        -torch.minimum(ratios * gain, clipped * gain).mean().item(), rel=1e-5
    )
    entropy = -(logprobs.exp() * logprobs).sum(-1).mean()
    assert report["loss_entropy"].item() == pytest.approx(-0.01 * entropy.item(), rel=1e-5)
    if kind == "ppo":
        expected = 0.3 * torch.nn.functional.smooth_l1_loss(values, targets)
        assert report["loss_critic"].item() == pytest.approx(expected.item(), rel=1e-5)
    else:
        assert "loss_critic" not in report


class ByIdentity:
    def __init__(self, games: list[Any]) -> None:
        self.known = {id(g): Transcript([1], [True]) for g in games}

    def __getitem__(self, wanted: Any) -> Transcript:
        return self.known[id(wanted)]


def game(reward: float) -> Any:
    return SimpleNamespace(reward=reward)


def test_the_most_varied_groups_are_learned_from() -> None:
    rewards = [[0, 0, 0, 0], [0, 1, 0, 1], [1, 1, 1, 1], [0, 0, 0, 1]]
    games = [game(float(reward)) for group in rewards for reward in group]
    player: Any = SimpleNamespace(transcripts=ByIdentity(games))
    kept = selected(games, player, RL(groups=4, group_size=4, keep=0.25))
    assert [r.reward for r in kept] == [0, 1, 0, 1]
    assert [r.standing for r in kept] == [-1, 1, -1, 1]
    kept = selected(games, player, RL(groups=4, group_size=4, keep=1.0))
    assert [r.reward for r in kept] == [0, 1, 0, 1, 0, 0, 0, 1]
    assert selected(games[:4], player, RL(groups=1, group_size=4)) == []


@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_what_is_rewarded_becomes_likelier_and_nothing_else_is_looked_at(
    base: Path, kind: Any
) -> None:
    model, _ = policy(base)
    how = RL(advantage=kind, learning_rate=1e-3, value_learning_rate=1e-2, batch_size=4)
    learner = Learner(model, how)
    told = [False] * 6
    good = Transcript([1, 20, 21, 22, 23, 24, 30, 31, 25, 26], [*told, True, True, False, False])
    bad = Transcript([1, 20, 21, 22, 23, 24, 40, 41, 25, 26], [*told, True, True, False, False])

    def likely(transcript: Transcript) -> list[float]:
        logits = model(torch.tensor([transcript.ids])).logits[0].log_softmax(-1)
        return [float(logits[t - 1, transcript.ids[t]]) for t in range(1, len(transcript.ids))]

    before = likely(good), likely(bad)
    for step in range(10):
        report = learner.learn([Rollout(good, 1.0, 1.0), Rollout(bad, 0.0, -1.0)], step)
    after = likely(good), likely(bad)
    assert sum(after[0][5:7]) > sum(before[0][5:7]) + 0.1
    assert sum(after[1][5:7]) < sum(before[1][5:7]) - 0.1
    assert set(report) == {"grad_norm", "entropy", "clipped", "kl"}


def test_the_gradient_is_that_of_written_tokens(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the environment says after the last answer changes nothing."""
    gradients = []
    for tail in ([25, 26], [50, 51]):
        model, _ = policy(base)
        learner = Learner(model, RL(batch_size=4))
        monkeypatch.setattr(learner.optimizer, "step", lambda: None)
        monkeypatch.setattr(learner.optimizer, "zero_grad", lambda **_: None)
        written = [False, False, True, True, False, False]
        rollouts = [
            Rollout(Transcript([1, 20, a, a + 1, *tail], written), reward, reward)
            for a, reward in ((30, 1.0), (40, 0.0))
        ]
        learner.learn(rollouts, 0)
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_what_went_worse_than_expected_weighs_less(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = Rollout(Transcript([1, 20, 30, 31], [False, False, True, True]), 1.0, 1.0)
    bad = Rollout(Transcript([1, 20, 40, 41], [False, False, True, True]), 0.0, -1.0)

    def gradient(rollouts: list[Rollout], **changes: Any) -> torch.Tensor:
        model, _ = policy(base)
        how = RL(batch_size=4, advantage="grpo", entropy=0.0, **changes)
        learner = Learner(model, how)
        monkeypatch.setattr(learner.optimizer, "step", lambda: None)
        monkeypatch.setattr(learner.optimizer, "zero_grad", lambda **_: None)
        monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.zeros(()))
        learner.learn(rollouts, 0)
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    alone = gradient([good])
    assert torch.allclose(gradient([good, bad], negative=0.0), alone, atol=1e-7)
    # A step is a mean over tokens: half of them are of each.
    worse = 2 * gradient([good, bad]) - alone
    halved = gradient([good, bad], negative=0.5)
    assert torch.allclose(halved, (alone + worse / 2) / 2, atol=1e-6)
    assert worse.abs().max() > 1e-4


def test_the_gradient_does_not_depend_on_how_much_fits_into_memory(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradients, reports = [], []
    for size in (1, 2, 8):
        model, _ = policy(base)
        learner = Learner(model, RL(batch_size=8, micro_batch_size=size))
        monkeypatch.setattr(learner.optimizer, "step", lambda: None)
        monkeypatch.setattr(learner.optimizer, "zero_grad", lambda **_: None)
        rollouts = [
            Rollout(Transcript([1, *range(20, 24 + n), 9], [False] * 3 + [True] * (n + 3)), n, 0.0)
            for n in range(5)
        ]
        reports.append(learner.learn(rollouts, 0))
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for other in (1, 2):
        for a, b in zip(gradients[0], gradients[other], strict=True):
            assert torch.allclose(a, b, atol=1e-6)
        assert reports[0] == pytest.approx(reports[other], abs=1e-4)


def test_settings_that_could_not_end_well_are_refused() -> None:
    for wrong in ({"updates": 0}, {"group_size": 1}, {"keep": 0.0}, {"advantage": "best"},
                  {"negative": -1.0}):  # fmt: skip
        with pytest.raises(ValueError, match="must be"):
            RL(**wrong)


# --- runs ----------------------------------------------------------------------------------------


def test_a_run_that_was_interrupted_ends_as_one_that_was_not(base: Path, tmp_path: Path) -> None:
    how = RL(updates=4, groups=2, group_size=4, keep=1.0, learning_rate=1e-3, checkpoint_every=2)

    def nothing(update: int, player: PolicyPlayer) -> None:
        return None

    def power_cut(update: int, player: PolicyPlayer) -> None:
        if update == 3:
            raise KeyboardInterrupt

    def run(folder: Path, measure: Any) -> tuple[Any, list[dict[str, Any]]]:
        model, codec = policy(base)
        return model, reinforce(model, codec, Arena(PLAIN), how, folder, measure)

    whole, log = run(tmp_path / "whole", nothing)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", power_cut)
    # Half a checkpoint does not count.
    (tmp_path / "cut" / "checkpoint-3").mkdir()
    again, resumed = run(tmp_path / "cut", nothing)
    timeless = [[{k: v for k, v in line.items() if k != "seconds"} for line in x]
                for x in (log, resumed)]  # fmt: skip
    assert timeless[0] == timeless[1]
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_all_stages_run_one_after_the_other(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = ["--world=frozenlake", "--board=4x4-firm", "--max-tokens=40"]
    data, tuned, done = (tmp_path / name for name in ("data", "sft", "rl"))
    play = ["play", *world, "--episodes=30", f"--output={data}"]
    assert selfplay.main([*play, "--model=random"]) == 0
    files = sorted(data.iterdir())
    assert [file.name for file in files] == ["run.json", "wm_train.parquet", "wm_val.parquet"]
    times = [file.stat().st_mtime_ns for file in files]
    assert selfplay.main([*play, "--model=random"]) == 0  # nothing is played again
    assert [file.stat().st_mtime_ns for file in files] == times
    assert selfplay.main([*play, "--model=random", "--seed=1"]) == 2
    assert "holds a run with seed 0, now it is 1" in capsys.readouterr().err
    sft = ["sft", f"--data={data}", "--epochs=1", "--learning-rate=1e-3"]
    assert selfplay.main([*sft, f"--model={base}", f"--output={tuned}"]) == 0
    hidden = tmp_path / "hidden"
    assert selfplay.main([*sft, "--no-states", f"--model={base}", f"--output={hidden}"]) == 0
    differ = [
        not torch.equal(a, b)
        for a, b in zip(policy(tuned)[0].parameters(), policy(hidden)[0].parameters(), strict=True)
    ]
    assert any(differ)
    rl = ["rl", *world, "--updates=1", "--groups=2", "--group-size=2", "--levels=2", "--samples=2"]
    assert selfplay.main([*rl, f"--model={tuned}", f"--output={done}"]) == 0
    assert is_complete(done)
    lines = [json.loads(line) for line in (done / "rl.jsonl").read_text().splitlines()]
    assert [line["update"] for line in lines] == [0, 1]
    assert {"pass@1", "pass@2"} <= set(lines[1]["validation"])
    capsys.readouterr()
    assert selfplay.main(["perplexity", f"--model={done}", f"--data={data}"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"state", "observation", "prediction"}
    evaluation = ["evaluate", *world, f"--model={done}", "--levels=2", "--samples=2"]
    assert selfplay.main(evaluation) == 0
    assert json.loads(capsys.readouterr().out)["levels"] == 2


def test_bad_input_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = ["evaluate", "--world=sokoban", "--board=4x4", f"--model={tmp_path}"]
    assert selfplay.main(wrong) == 2
    nothing = ["perplexity", f"--model={tmp_path}", f"--data={tmp_path}"]
    assert selfplay.main(nothing) == 2
    assert "error: " in capsys.readouterr().err


def test_random_play_differs_from_episode_to_episode(tmp_path: Path) -> None:
    arguments = ["play", "--world=frozenlake", "--board=4x4-firm", "--model=random"]
    assert selfplay.main([*arguments, "--episodes=24", f"--output={tmp_path}"]) == 0
    rows = [row for file in (TRAIN_FILE, VALIDATION_FILE) for row in read_rows(tmp_path / file)]
    first = [row.response.partition("<answer>")[2] for row in rows if len(row.prompt) == 2]
    assert len(first) >= 24
    assert len(set(first)) > 12  # three moves of four: 64 ways


@pytest.mark.slow
def test_self_play_survives_being_killed(tmp_path: Path) -> None:
    arguments = ["play", "--world=frozenlake", "--board=4x4-firm", "--max-tokens=40"]
    arguments += ["--episodes=1500", "--model=random", f"--output={tmp_path}"]
    command = [sys.executable, "-m", "training.selfplay", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ)
    part = tmp_path / "parts" / "0.json"
    while not part.is_file():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "wm_val.parquet").exists()
    assert selfplay.main(arguments) == 0
    whole = tmp_path / "whole"
    assert selfplay.main([*arguments[:-1], f"--output={whole}"]) == 0
    for name in ("wm_train.parquet", "wm_val.parquet"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()


# --- the comparison ------------------------------------------------------------------------------


def test_points_of_a_comparison() -> None:
    listed = points(
        ["frozenlake:4x4-firm", "sudoku"], ["frozenlake:4x4-firm:6x6-firm"], ["vanilla", "spa"],
        [0, 1],
    )  # fmt: skip
    assert [(p.world, p.board, p.sft_board, p.arm, p.seed) for p in listed[:5]] == [
        ("frozenlake", "4x4-firm", "4x4-firm", "vanilla", 0),
        ("frozenlake", "4x4-firm", "4x4-firm", "spa", 0),
        ("frozenlake", "4x4-firm", "4x4-firm", "vanilla", 1),
        ("frozenlake", "4x4-firm", "4x4-firm", "spa", 1),
        ("sudoku", "4x4", "4x4", "vanilla", 0),
    ]
    assert [(p.board, p.sft_board, p.arm) for p in listed[8:11]] == [
        ("6x6-firm", "6x6-firm", "state"),
        ("6x6-firm", "6x6-firm", "spa"),
        ("6x6-firm", "4x4-firm", "easy-to-hard"),
    ]
    assert listed[0].boards == ("4x4-firm",)
    assert {point.start for point in listed[8:11]} == {"frozenlake-4x4-firm+6x6-firm-seed0"}
    assert listed[8].task == "frozenlake 4x4-firm to 6x6-firm"
    assert len({point.name for point in listed}) == len(listed)
    assert all(point.what == ARMS["spa"] for point in listed if point.arm == "easy-to-hard")


@pytest.mark.parametrize(
    ("worlds", "transfers", "arms", "message"),
    [
        (["chess"], [], ["spa"], "expected WORLD"),
        (["sokoban:4x4"], [], ["spa"], "has no board"),
        (["sokoban"], [], ["best"], "unknown arm 'best'"),
        (["frozenlake"], ["frozenlake:4x4"], ["spa"], "expected WORLD:SMALL:LARGE"),
    ],
)
def test_bad_comparisons_are_refused(worlds: Any, transfers: Any, arms: Any, message: str) -> None:
    with pytest.raises((ValueError, DataError), match=message):
        points(worlds, transfers, arms, [0])


@pytest.mark.slow
def test_a_comparison_writes_rows_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--output", str(tmp_path), "--worlds", "frozenlake:4x4-firm", "--layers=2"]
    command += ["--width=32", "--base-episodes=40", "--base-epochs=1", "--episodes=60"]
    command += ["--sft-epochs=1", "--updates=1", "--groups=2", "--levels=2", "--samples=2"]
    assert selfplay_comparison.main([*command, "--arms", "vanilla", "random-play"]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert [row["arm"] for row in results["rows"]] == ["vanilla", "random-play"]
    assert results["seeds"] == [0]
    row = results["rows"][1]
    assert [point["update"] for point in row["curve"]] == [0, 1]
    assert set(row["perplexity"]) == {"before", "after"}
    measured = results["base_perplexity"]["frozenlake-4x4-firm-seed0-4x4-firm"]
    assert set(measured) == {"on", "off"}
    summary = results["summary"]["frozenlake 4x4-firm"]["vanilla"]["after"]["pass@1"]
    assert summary["values"] == [results["rows"][0]["curve"][-1]["pass@1"]]
    assert (tmp_path / "plot.png").stat().st_size > 1000
    first = (tmp_path / "points" / row["point"] / "row.json").stat().st_mtime_ns
    more = [*command, "--arms", "vanilla", "random-play", "--seeds", "0"]
    assert selfplay_comparison.main(more) == 0
    assert (tmp_path / "points" / row["point"] / "row.json").stat().st_mtime_ns == first
    assert selfplay_comparison.main([*command, "--updates=2"]) == 2
    assert "holds a run with rl" in capsys.readouterr().err


def test_a_point_knows_its_settings() -> None:
    options = selfplay_comparison.parser().parse_args(["--output", "x", "--updates", "7"])
    scale = selfplay_comparison._scale(options)
    assert scale.rl == dataclasses.replace(scale.rl, updates=7)
    assert scale.model is None
