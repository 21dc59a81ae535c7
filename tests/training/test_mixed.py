"""Training on several files and worlds: shares, order, resuming, evaluation, and what is served."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

pytest.importorskip("trl")

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import gym_llmworld  # noqa: F401
from gym_llmworld.core import Episode, Step
from gym_llmworld.scenarios import ScenarioStore
from gym_llmworld.worlds import get_world
from training.config import Config
from training.data import PromptStyles, Source, read_conversations, shares
from training.exact_match import tokenize, turn_match
from training.sampling import EpisodeSampler
from training.sft import main, run
from training.trainer import ObservationTrainer, Rhythm, last_checkpoint

WORLDS = ("alfworld", "scienceworld", "textworld")
# TRL warns about its own experimental parts and torch about its own deprecations.
pytestmark = pytest.mark.filterwarnings("ignore")


def make_episodes(world: str, n: int, seed: int, turns: int = 3) -> list[Episode]:
    """Episodes that no engine played: shipped starts, and answers that follow from the action."""
    rng = random.Random(f"{world}/{seed}")
    pool = ScenarioStore(world).of_split(get_world(world).splits[0])
    episodes = []
    for i in range(n):
        steps = [
            Step(f"open box {k}", f"The box {k} of {world} is open.")
            for k in rng.choices(range(1, 4), k=turns)
        ]
        steps[-1] = replace(steps[-1], reward=1.0, terminated=True)
        scenario = replace(pool[i % len(pool)], id=f"{world}-{seed}-{i}")
        episodes.append(Episode(scenario, tuple(steps), "real", "test", seed))
    return episodes


def write(file: Path, episodes: list[Episode]) -> Path:
    file.write_text("".join(json.dumps(episode.to_json()) + "\n" for episode in episodes))
    return file


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """World -> its training file; beside each lies ``<world>.test.jsonl``."""
    folder = tmp_path_factory.mktemp("worlds")
    for i, world in enumerate(WORLDS):
        write(folder / f"{world}.jsonl", make_episodes(world, 8 + 4 * i, seed=0))
        write(folder / f"{world}.test.jsonl", make_episodes(world, 2 + i, seed=1, turns=2 + i))
    return {world: folder / f"{world}.jsonl" for world in WORLDS}


def tiny(data: list[str | Path], heldout: list[Path], output: Path, **changes: Any) -> Config:
    values: dict[str, Any] = {
        "data": tuple(map(Path, data)),
        "eval_data": tuple(heldout),
        "output": output,
        "layers": 2,
        "width": 128,
        "heads": 4,
        "hidden": 64,
        "context": 6000,
        "max_steps": 2,
        "batch_size": 2,
        "threads": 1,
    }
    return Config(**{**values, **changes})


def heldout_files(files: dict[str, Path]) -> list[Path]:
    return [file.with_suffix(".test.jsonl") for file in files.values()]


# --- files and weights -------------------------------------------------------------------------


def test_a_number_behind_the_last_colon_is_a_weight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run:1").touch()
    cases = {
        "a.jsonl": Source(Path("a.jsonl")),
        "a.jsonl:2": Source(Path("a.jsonl"), 2.0),
        "a.jsonl:.5": Source(Path("a.jsonl"), 0.5),
        "x:y/a.jsonl": Source(Path("x:y/a.jsonl")),
        "x:1/a.jsonl:3": Source(Path("x:1/a.jsonl"), 3.0),
        "12:30:a.jsonl": Source(Path("12:30:a.jsonl")),
        "run:1": Source(Path("run:1")),
        "run:1:2": Source(Path("run:1"), 2.0),
        ":3": Source(Path(":3")),
    }
    assert {text: Source.parse(text) for text in cases} == cases
    for text in ("a.jsonl:0", "a.jsonl:-1", "a.jsonl:nan", "a.jsonl:inf"):
        with pytest.raises(ValueError, match="expected a weight > 0"):
            Source.parse(text)


def test_shares_are_weights_over_their_sum() -> None:
    a, b = Source(Path("a"), 3.0), Source(Path("b"))
    assert shares([a, b]) == (0.75, 0.25)
    assert shares([b, b]) is None


def test_prompt_styles_per_world() -> None:
    styles = PromptStyles.parse("engine, textworld=nomap")
    assert (styles.of("alfworld"), styles.of("textworld")) == ("engine", "nomap")
    assert styles.for_card(["alfworld"]) == "engine"
    assert styles.for_card(["textworld"]) == "nomap"
    both = {"alfworld": "engine", "textworld": "nomap"}
    assert styles.for_card(["alfworld", "textworld"]) == both
    for text in ("engine,nomap", "textwrld=nomap", ""):
        with pytest.raises(ValueError, match="expected STYLE"):
            PromptStyles.parse(text)


def test_each_world_is_worded_in_its_style(files: dict[str, Path]) -> None:
    data = read_conversations(list(files.values()), "engine,textworld=nomap")
    assert data.worlds == data.groups == tuple(sorted(WORLDS))
    for world, file in files.items():
        style = "nomap" if world == "textworld" else "engine"
        alone = read_conversations([file], style)
        assert data.of_group(world).chats == alone.chats


# --- sampling ----------------------------------------------------------------------------------


def test_every_pass_has_the_wanted_shares_and_nothing_repeats_too_early() -> None:
    rng = random.Random(0)
    kinds = [0] * 70 + [1] * 20 + [2] * 10
    rng.shuffle(kinds)
    lengths = [rng.randint(5, 500) for _ in kinds]
    sampler = EpisodeSampler(lengths, kinds, [0.25, 0.25, 0.5], batch=4, seed=3)
    seen: Counter[int] = Counter()
    for epoch in range(9):
        sampler.set_epoch(epoch)
        order = list(sampler)
        assert Counter(kinds[i] for i in order) == {0: 25, 1: 25, 2: 50}
        assert sorted(order) == sorted(sampler.drawn(epoch))
        seen.update(order)
        for kind in range(3):
            times = [seen[i] for i, k in enumerate(kinds) if k == kind]
            assert max(times) - min(times) <= 1
    longest_first = [max(lengths[i] for i in order[b : b + 4]) for b in range(0, len(order), 4)]
    in_batch = [
        max(lengths[i] for i in order[b : b + 4]) - min(lengths[i] for i in order[b : b + 4])
        for b in range(0, len(order), 4)
    ]
    assert sum(in_batch) / len(in_batch) < 0.25 * max(longest_first), "lengths are not grouped"


def test_without_shares_every_episode_comes_once_per_pass() -> None:
    sampler = EpisodeSampler(range(1, 31), [0] * 10 + [1] * 20, None, batch=4, seed=0)
    orders = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
        assert sorted(orders[-1]) == list(range(30))
    assert orders[0] != orders[1] != orders[2]
    again = EpisodeSampler(range(1, 31), [0] * 30, None, batch=4, seed=0)
    again.set_epoch(2)
    assert list(again) == orders[2]
    other = EpisodeSampler(range(1, 31), [0] * 30, None, batch=4, seed=1)
    assert list(other) != orders[0]


def test_a_file_without_a_share_is_an_error() -> None:
    with pytest.raises(ValueError, match="file 2 of the training data has 1 usable"):
        EpisodeSampler([5] * 9, [0] * 8 + [1], [0.99, 0.01], batch=2, seed=0)
    with pytest.raises(ValueError, match="has 0 usable"):
        EpisodeSampler([5] * 9, [0] * 9, [0.5, 0.5], batch=2, seed=0)


# --- a run -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def three_worlds(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("mixed")
    data: list[str | Path] = [f"{file}:{i + 1}" for i, file in enumerate(files.values())]
    trained = run(tiny(data, heldout_files(files), output))
    assert trained.steps == 2
    return output


def test_the_card_names_all_worlds_and_their_scores(three_worlds: Path) -> None:
    card = json.loads((three_worlds / "llmworld.json").read_text())
    assert card["world"] is None
    assert card["worlds"] == sorted(WORLDS)
    assert card["prompt_style"] == "engine"
    assert set(card["exact_match"]["worlds"]) == set(WORLDS)
    text = (three_worlds / "README.md").read_text()
    assert "alfworld.jsonl: 17% of the sampled episodes" in text
    assert "| n scienceworld | exact match scienceworld |" in text


def test_held_out_episodes_are_scored_per_world(three_worlds: Path, files: dict[str, Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(three_worlds)
    tokenizer = AutoTokenizer.from_pretrained(three_worlds)
    card = json.loads((three_worlds / "llmworld.json").read_text())["exact_match"]
    every = []
    for world, file in files.items():
        chats = read_conversations([file.with_suffix(".test.jsonl")], "engine").chats
        every += [tokenize(tokenizer, chat) for chat in chats]
        alone = turn_match(model, every[-len(chats) :])
        assert card["worlds"][world] == alone.as_row()
    whole = turn_match(model, every).as_row()
    assert {k: v for k, v in card.items() if k != "worlds"} == whole
    log = [json.loads(line) for line in (three_worlds / "training.jsonl").read_text().splitlines()]
    on_the_way = next(row for row in log if "em_all" in row)
    assert {w: row["turns"] for w, row in on_the_way["worlds"].items()} == {
        world: row["turns"] for world, row in card["worlds"].items()
    }


@pytest.mark.parametrize("world", WORLDS)
def test_a_model_of_several_worlds_serves_each_of_them(three_worlds: Path, world: str) -> None:
    env = gym.make(get_world(world).imagined_id, model=str(three_worlds), max_tokens=4)
    observation, info = env.reset(seed=0)
    assert observation
    *_, info = env.step("open box 1")
    # Two steps of training: no sense, but the model was asked, and answered.
    assert info["llmworld"]["source"] == "model"
    assert info["llmworld"]["status"] in ("ok", "cut_off", "empty")
    env.close()


class Interrupted(Exception):
    """Stands for a kill."""


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters())


def test_a_run_continues_in_a_later_pass_as_if_nothing_had_happened(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 12 episodes a pass in batches of 4: the second step of the second pass is cut off.
    short = write(tmp_path / "short.jsonl", make_episodes("alfworld", 4, seed=2, turns=1))
    data: list[str | Path] = [f"{files['alfworld']}:1", f"{short}:2"]
    changes = {"max_steps": 6, "batch_size": 4, "checkpoint_minutes": 0.0}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(tiny(data, [], whole, **changes))

    stock = Rhythm.on_step_end

    def fail(self: Rhythm, args: Any, state: Any, *rest: Any, **kwargs: Any) -> None:
        if state.global_step == 5:
            raise Interrupted
        stock(self, args, state, *rest, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(Rhythm, "on_step_end", fail)
        with pytest.raises(Interrupted):
            run(tiny(data, [], broken, **changes))
    found = last_checkpoint(broken)
    assert found is not None
    assert found[0].name == "checkpoint-4"
    run(tiny(data, [], broken, **changes))

    expected = weights(whole)
    for name, weight in weights(broken).items():
        torch.testing.assert_close(weight, expected[name], atol=1e-6, rtol=0)


def test_a_finished_run_is_not_trained_further(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny([files["alfworld"]], [], tmp_path)
    first = run(config)
    before = weights(tmp_path)
    monkeypatch.setattr(ObservationTrainer, "train", None)
    second = run(config)
    assert (first.steps, second.steps) == (2, 2)
    for name, weight in weights(tmp_path).items():
        assert torch.equal(weight, before[name])


def test_bad_weights_and_styles_end_with_a_message(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(files["alfworld"])
    assert main(["--data", f"{file}:0", "--output", str(tmp_path)]) == 2
    assert "expected a weight > 0" in capsys.readouterr().err
    assert main(["--data", file, "--prompt-style", "moon=engine"]) == 2
    assert "unknown world 'moon'" in capsys.readouterr().err
