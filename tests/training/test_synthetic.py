"""Synthetic data: imagined successes survive kills, arms are alike, the whole program once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")

from gym_llmworld.agents import ScriptedAgent
from gym_llmworld.core import Message, Scenario
from gym_llmworld.episodes import read_episodes, write_scenarios
from gym_llmworld.errors import BackendError, DataError
from gym_llmworld.worlds import get_world
from tests.training.test_agent_sft import make_agent_episode, write
from tests.training.test_sft import SIZES
from training.config import Config
from training.data import Conversation, Conversations
from training.series import Point
from training.success import Exam
from training.synthetic import ARMS, Collection, arms, by_arm, imagine, main

pytestmark = pytest.mark.filterwarnings("ignore")

CALLS = {"left": 10_000}


def world(chat: Sequence[Message]) -> str | BackendError:
    """Solves at the second action where the scenario is even; breaks when told to."""
    CALLS["left"] -= 1
    if CALLS["left"] < 0:
        return BackendError("killed")
    number = int(chat[0].content)
    won = number % 2 == 0 and len(chat) >= 4
    return f"Step {len(chat) // 2} of {number}." + (" [SUCCESS]" if won else "")


def games(count: int) -> list[Scenario]:
    return [
        Scenario(f"train/{i}", "alfworld", "train", "t", "See. t", hidden={"context": str(i)})
        for i in range(count)
    ]


def collection(folder: Path, count: int) -> Collection:
    file = folder / "games" / "train" / "scenarios.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_scenarios(file, games(count))
    options = {"model": "scripted:tests.training.test_synthetic:world", "split": "train"}
    return Collection(
        "LLMWorld-ALFWorld-v0",
        {**options, "scenarios": str(folder / "games")},
        lambda: ScriptedAgent(["look"], then="inventory"),
        "looker",
        games(count),
        max_steps=4,
        lanes=4,
    )


def test_successes_in_the_order_of_the_games(tmp_path: Path) -> None:
    file, cost = imagine(collection(tmp_path, 100), 40, tmp_path)
    found = list(read_episodes(file))
    assert [e.scenario.id for e in found] == [f"train/{i}" for i in range(0, 80, 2)]
    assert all(e.success and e.source == "model" and e.agent == "looker" for e in found)
    # Two rounds of games, although the second would not have had to be finished.
    assert cost == {"episodes": 100, "steps": 50 * 2 + 50 * 4, "claimed": 0.5}


def test_a_killed_collection_plays_only_what_is_missing(tmp_path: Path) -> None:
    CALLS["left"] = 150
    try:
        with pytest.raises(BackendError, match="killed"):
            imagine(collection(tmp_path / "a", 100), 40, tmp_path / "a")
    finally:
        CALLS["left"] = 10_000
    before = len(list(read_episodes(tmp_path / "a" / "played.jsonl")))
    assert 0 < before < 100
    resumed, _ = imagine(collection(tmp_path / "a", 100), 40, tmp_path / "a")
    spent = 10_000 - CALLS["left"]
    assert spent < 300
    whole, _ = imagine(collection(tmp_path / "b", 100), 40, tmp_path / "b")
    assert resumed.read_bytes() == whole.read_bytes()


def test_too_few_successes_are_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"8 different .* 10 games gave 5; pass --games"):
        imagine(collection(tmp_path, 10), 8, tmp_path)


def test_the_same_episode_again_is_no_further_success(tmp_path: Path) -> None:
    once = collection(tmp_path, 10)
    twice = Collection(**{**vars(once), "scenarios": tuple(once.scenarios) * 2})
    _, cost = imagine(twice, 5, tmp_path / "some")
    assert cost["claimed"] == 0.5
    with pytest.raises(DataError, match="20 games gave 5"):
        imagine(twice, 6, tmp_path / "more")


def test_episodes_of_another_collector_are_refused(tmp_path: Path) -> None:
    imagine(collection(tmp_path, 10), 2, tmp_path)
    other = Collection(**{**vars(collection(tmp_path, 10)), "name": "other"})
    with pytest.raises(DataError, match="of other games or of another collector"):
        imagine(other, 2, tmp_path)


def conversations(kind: str, count: int) -> Conversations:
    chat = (Message("user", kind), Message("assistant", "look"))
    return Conversations(
        tuple(Conversation(chat, "alfworld", f"{kind}{i}", 0) for i in range(count))
    )


def points(seeds: Sequence[int] = (0,)) -> list[Point]:
    config = Config(role="agent", max_steps=2)
    real, imagined = conversations("real", 20), conversations("imagined", 12)
    exam = Exam(get_world("alfworld"), (), 3)
    return arms(config, real, imagined, 8, seeds, exam, Conversations())


def test_arms_hold_what_they_say() -> None:
    found = points((3, 4))
    assert [p.about["arm"] for p in found] == [*ARMS, *ARMS]
    assert [p.config.seed for p in found] == [3] * 4 + [4] * 4
    for point in found:
        kinds = [item.chat[0].content for item in point.data.items]
        assert kinds.count("real") == point.about["real_episodes"]
        assert kinds.count("imagined") == point.about["imagined_episodes"]
    sizes = {p.about["arm"]: len(p.data.items) for p in found}
    assert sizes == {"real": 8, "imagined": 8, "half": 8, "both": 16}
    starts = [{item.scenario for item in p.data.items} for p in found]
    assert starts[0] | starts[1] == starts[3]
    assert starts[2] < starts[3]
    assert starts[0] != starts[4]


def test_success_over_seeds_by_hand() -> None:
    def row(arm: str, hits: int) -> dict[str, Any]:
        success = {"value": hits / 4, "hits": hits, "n": 4, "steps": 3.0}
        return {"arm": arm, "success": {"valid_seen": success, "all": success}}

    found = by_arm([row("real", 2), row("imagined", 1), row("real", 4)])
    assert list(found) == ["valid_seen", "all"]
    assert found["all"]["real"] == {
        "mean": 0.75, "std": pytest.approx(0.3535533), "min": 0.5, "max": 1.0,
        "values": [0.5, 1.0], "n": 4,
    }  # fmt: skip
    assert found["all"]["imagined"]["std"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-steps", "2"], "a series needs --data"),
        (["--data", "x.jsonl:2", "--max-steps", "2"], "files have no weights here"),
        (["--data", "x.jsonl"], "pass --max-steps N"),
        (["--data", "x.jsonl", "--max-steps", "2", "--episodes", "0"], "must be >= 1"),
        (["--data", "x.jsonl", "--max-steps", "2", "--attempts", "0"], "must be >= 1"),
    ],
)
def test_mistakes_end_with_a_message(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_the_whole_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("alfworld")
    data = write(tmp_path / "real.jsonl", [make_agent_episode(n) for n in range(8)])
    output = tmp_path / "out"
    command = [
        "--data",
        str(data),
        "--eval-data",
        str(data),
        "--output",
        str(output),
        "--episodes",
        "4",
        *SIZES,
    ]
    command += ["--max-steps", "2", "--batch-size", "2", "--exam-games", "1"]
    command += ["--episode-steps", "20", "--context", "1024"]
    assert main(command) == 0
    results = json.loads((output / "results.json").read_text())
    assert results["seeds"] == [0]
    assert [row["arm"] for row in results["rows"]] == list(ARMS)
    assert results["rows"][0]["success"]["all"]["n"] == 2
    assert results["rows"][0]["em"]["alfworld"]["n"] == 32
    assert results["imagined"]["episodes"] >= 4
    assert (output / "plot.png").stat().st_size > 0
    capsys.readouterr()
    assert main(command) == 0
    assert "4 of 4 points are finished already" in capsys.readouterr().out
