"""The easy filter: by hand, with a scripted model, through kills, and as a program."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

pytest.importorskip("trl")

from gym_llmworld.backends.base import BackendStats
from gym_llmworld.backends.hf import HFBackend, stop_tokens
from gym_llmworld.backends.hf_chat import ChatEncoder
from gym_llmworld.core import Completion, Message, Sampling
from gym_llmworld.errors import BackendError, ContextOverflow, DataError
from tests.training.test_grpo import base, files  # noqa: F401 - fixtures
from training.data import read_conversations
from training.difficulty import (
    Filter,
    by_backend,
    by_groups,
    decide,
    in_tenth,
    judge,
    main,
    split,
)
from training.grpo_config import kept_ids
from training.rewards import Weighted
from training.transitions import Transition, longest_answer, read_transitions

pytestmark = pytest.mark.filterwarnings("ignore")


class Scripted:
    """Answers each transition with its truth in so many of ten samples."""

    name, stats = "scripted", BackendStats()
    max_context: int | None = None

    def __init__(self, right: dict[str, int], dies_after: int = 10**9) -> None:
        self.right, self.dies_after = right, dies_after
        self.asked: list[str] = []
        self.seeds: set[int] = set()

    def generate(
        self, chats: Sequence[Sequence[Message]], samplings: Sequence[Sampling]
    ) -> list[Completion | BackendError]:
        answers: list[Completion | BackendError] = []
        for i, (chat, sampling) in enumerate(zip(chats, samplings, strict=True)):
            self.seeds.add(sampling.seed)
            action = chat[-1].content
            if i % 10 == 0:
                self.asked.append(action)
                if len(self.asked) > self.dies_after:
                    raise KeyboardInterrupt
            if action == "too long":
                answers.append(ContextOverflow("full"))
            elif action == "endless":
                answers.append(Completion("truth of endless", "length"))
            else:
                right = i % 10 < self.right[action]
                answers.append(Completion(f"truth of {action}" if right else "?", "stop"))
        return answers

    def close(self) -> None:
        pass


def transition(action: str, world: str = "alfworld") -> Transition:
    chat = (Message("system", "x"), Message("user", action))
    return Transition(action, world, f"train/{action}", chat, f"truth of {action}", "", "")


EXACT = Filter((Weighted("exact"),))
RIGHT = {"never": 0, "once": 1, "half": 5, "always": 10}
SOME = [transition(action) for action in (*RIGHT, "too long", "endless")]


def test_one_right_sample_makes_a_transition_easy(tmp_path: Path) -> None:
    """Mean > 0, strictly: with >= everything would be easy (RWML's own numbers fit > only)."""
    backend = Scripted(RIGHT)
    assert list(judge(SOME, by_backend(backend), EXACT, tmp_path, batch=4)) == [
        (0, 6),
        (4, 6),
        (6, 6),
    ]
    assert len(backend.seeds) == 60
    found = decide(SOME, Filter((Weighted("exact"),), keep_easy=0.0), tmp_path)
    assert (found.n, found.easy, found.kept, found.unscored) == (6, 3, 3, 0)
    assert found.removed_share == 0.5
    assert kept_ids(tmp_path / "transitions.jsonl") == {"never", "too long", "endless"}
    counts = [row["n"] for row in found.histogram]
    assert counts == [3, 1, 0, 0, 0, 1, 0, 0, 0, 1]
    assert "3 of 6 transitions are easy (50.0%); 3 are kept, 50.0% left out" in str(found)
    assert json.loads((tmp_path / "summary.json").read_text())["removed"] == 0.5
    stricter = Filter((Weighted("exact"),), easy_above=0.5, keep_easy=0.0)
    assert decide(SOME, stricter, tmp_path).easy == 1


def test_easy_ones_are_kept_now_and_then_and_always_the_same() -> None:
    chosen = Filter(keep_easy=0.1)
    names = [str(i) for i in range(4000)]
    kept = [name for name in names if chosen.keeps(name, easy=True)]
    assert 300 < len(kept) < 500
    assert kept == [name for name in names if chosen.keeps(name, easy=True)]
    assert kept != [name for name in names if Filter(seed=1).keeps(name, easy=True)]
    assert all(chosen.keeps(name, easy=False) for name in names[:50])
    assert not Filter().is_easy(None)
    assert not Filter().is_easy(0.0)


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    first, second = Scripted(RIGHT, dies_after=3), Scripted(RIGHT)
    with pytest.raises(KeyboardInterrupt):
        list(judge(SOME, by_backend(first), EXACT, tmp_path, batch=1))
    file = tmp_path / "samples.jsonl"
    # What a kill in the middle of a write leaves.
    file.write_text(file.read_text() + '{"id": "alw')
    with pytest.raises(DataError, match="3 of 6 transitions are not judged yet"):
        decide(SOME, EXACT, tmp_path)
    list(judge(SOME, by_backend(second), EXACT, tmp_path, batch=2))
    assert second.asked == ["always", "too long", "endless"]
    undisturbed = tmp_path / "other"
    undisturbed.mkdir()
    list(judge(SOME, by_backend(Scripted(RIGHT)), EXACT, undisturbed))
    assert file.read_bytes() == (undisturbed / "samples.jsonl").read_bytes()
    file.write_text("no json\n")
    with pytest.raises(DataError, match="is damaged"):
        decide(SOME, EXACT, tmp_path)


def test_the_filter_model_never_sees_what_it_judges(files: tuple[Path, Path]) -> None:  # noqa: F811
    data = read_conversations(files[:1], "engine")
    tenth, rest = split(data, read_transitions(files[:1], "engine"), seed=0)
    learned = {item.scenario for item in tenth.items}
    judged = {one.scenario for one in rest}
    assert learned
    assert not learned & judged
    # Equal episodes are judged once.
    assert len(learned | judged) > 30
    share = sum(in_tenth(str(i), 0) for i in range(5000)) / 5000
    assert 0.08 < share < 0.12
    with pytest.raises(DataError, match="expected some of both"):
        split(tenth, rest[:0], seed=0)


def test_shared_prompts_predict_as_single_requests(files: tuple[Path, Path], base: Path) -> None:  # noqa: F811
    some = read_transitions(files[1:], "engine")[:12]
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(base)
    encoder = ChatEncoder(tokenizer, "base")
    stops = stop_tokens(model, tokenizer, encoder.turn_end)
    shared = by_groups(model, encoder, stops, longest_answer(some, encoder))
    # Cold enough to be greedy: the two draw from different random numbers.
    cold = Filter(samples=3, temperature=1e-4)
    assert shared(some, cold) == by_backend(HFBackend(str(base), threads=1))(some, cold)
    warm = Filter(samples=8, temperature=1.5)
    assert len(set(shared(some[:1], warm))) > 1
    assert shared(some[3:5], warm) == shared(some[3:5], warm)


@pytest.mark.parametrize("given", [True, False])
def test_program(
    files: tuple[Path, Path],  # noqa: F811
    base: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    given: bool,
) -> None:
    model = [f"--filter-model={base}"] if given else [f"--model={base}", "--max-steps=2"]
    arguments = [
        f"--data={files[0]}", f"--output={tmp_path}", "--reward=exact", "--samples=3",
        "--threads=1", "--context=256", "--keep-easy=0", "--easy-above=0.9",
        *model,
    ]  # fmt: skip
    split_up = [part for argument in arguments for part in argument.split("=", 1)]
    assert main(split_up) == 0
    shown = capsys.readouterr().out
    assert "transitions are easy" in shown
    rows = [json.loads(line) for line in (tmp_path / "transitions.jsonl").open()]
    judged = read_transitions(files[:1], "engine")
    assert len(rows) == len(judged) if given else len(rows) < len(judged)
    assert all(row["easy"] == (row["mean"] > 0.9) and row["kept"] != row["easy"] for row in rows)
    assert {row["easy"] for row in rows} == {True, False}
    assert main([*split_up, "--tau", "0.3"]) == 2
    assert "holds samples with tau 0.1, now it is 0.3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "x.jsonl"], "a filter model from scratch needs --max-steps"),
        (["--samples", "0"], "expected samples >= 1"),
        (["--keep-easy", "2"], "keep-easy in 0 to 1"),
        (["--reward", "bleu"], "unknown reward"),
        (["--filter-model", "x", "--data", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_bad_options_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main([*arguments, f"--output={tmp_path}"]) == 2
    assert message in capsys.readouterr().err
