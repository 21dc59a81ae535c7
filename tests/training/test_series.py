"""Scaling curves and the comparison of one model with many: which runs, what is made of them."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")
pytest.importorskip("matplotlib")

from gym_llmworld.core import Message
from gym_llmworld.errors import DataError
from training import mixture, scaling, series
from training.config import Config
from training.data import Conversation, Conversations
from training.mixture import SAME_STEPS, SAME_TOTAL, SINGLE, comparison, mixture_points
from training.sampling import EpisodeSampler
from training.scaling import Shape, curve, scaling_points
from training.trainer import last_checkpoint

ROOT = Path(__file__).parents[2]
SIZES = ["--layers=2", "--width=64", "--heads=4", "--hidden=64", "--context=256", "--threads=1"]
SIZES += ["--no-recall-init"]
# TRL warns about its own experimental parts and torch about its own deprecations.
pytestmark = pytest.mark.filterwarnings("ignore")


def conversations(world: str, n: int, seed: int = 0) -> Conversations:
    items = []
    for i in range(n):
        name = f"box {random.Random(f'{world}/{seed}/{i}').randint(1, 3)}"
        chat = (
            Message("system", f"{world} {seed}/{i}"),
            Message("user", f"open {name}"),
            Message("assistant", f"The {name} of {world} is open."),
        )
        items.append(Conversation(chat, world, f"{world}-{seed}-{i}", 0))
    return Conversations(tuple(items))


def joined(*parts: Conversations) -> Conversations:
    return Conversations(tuple(item for part in parts for item in part.items))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Word2World files, which no engine wrote: two worlds, to learn from and held out."""
    folder = tmp_path_factory.mktemp("series")
    made: dict[str, list[str]] = {"--data": [], "--eval-data": []}
    for option, seed, n in (("--data", 0, 30), ("--eval-data", 1, 4)):
        (folder / option).mkdir()
        for world in ("moon", "sea"):
            rows = [
                {"messages": [{"role": m.role, "content": m.content} for m in chat]}
                for chat in conversations(world, n, seed).chats
            ]
            file = folder / option / f"{world}.json"
            file.write_text(json.dumps(rows))
            made[option].append(str(file))
    return made


def options(files: dict[str, list[str]], output: Path, *more: str) -> list[str]:
    data = [part for option, names in files.items() for part in (option, *names)]
    return [*data, *SIZES, "--output", str(output), "--batch-size=4", *more]


# --- which runs --------------------------------------------------------------------------------


def test_samples_of_a_seed_are_nested() -> None:
    data = conversations("moon", 50)
    small, large = data.sample(10, seed=1), data.sample(30, seed=1)
    assert len(small.items) == 10
    assert set(small.chats) < set(large.chats) < set(data.chats)
    assert set(data.sample(10, seed=2).chats) != set(small.chats)
    assert data.sample(50, seed=5) == data
    with pytest.raises(DataError, match="51 episodes were asked for, the files have 50"):
        data.sample(51, seed=0)


def test_a_run_of_both_curves_is_run_once(tmp_path: Path) -> None:
    config = Config(output=tmp_path, layers=4, width=192, heads=4, hidden=384, max_steps=7)
    shapes = [Shape.parse("2x128"), Shape.parse("4x192"), Shape.parse("2x128")]
    data, test = conversations("moon", 40), conversations("moon", 5, 1)
    points = scaling_points(config, data, test, [40, 10, 10], shapes, [0, 1])
    assert [(p.about["episodes"], p.about["shape"], p.config.seed) for p in points] == [
        (size, shape, seed)
        for seed in (0, 1)
        for size, shape in ((10, "4x192"), (40, "4x192"), (40, "2x128"))
    ]
    assert points[1].about["curves"] == ["episodes", "parameters"]
    assert len({point.config.output for point in points}) == len(points)
    assert {point.config.max_steps for point in points} == {7}
    assert (points[2].config.width, points[2].config.hidden) == (128, 256)


def test_shapes_that_cannot_be_built_are_refused() -> None:
    assert Shape.parse("6x384") == Shape(6, 384, 6, 768)
    assert Shape.parse("2x64").heads == 4
    for text in ("6", "6x", "0x64", "2x72", "6x400", "6x384x2"):
        with pytest.raises(ValueError, match="expected"):
            Shape.parse(text)


def test_both_readings_of_equal_steps(tmp_path: Path) -> None:
    config = Config(output=tmp_path, max_steps=6, batch_size=3)
    data = joined(conversations("moon", 40), conversations("sea", 9), conversations("sun", 20))
    test = joined(*(conversations(world, 3, 1) for world in ("moon", "sea", "sun")))
    points = mixture_points(config, data, test, 0, [4])
    assert [(p.about["model"], p.about["world"], p.config.max_steps) for p in points] == [
        (SINGLE, "moon", 6),
        (SINGLE, "sea", 6),
        (SINGLE, "sun", 6),
        (SAME_STEPS, None, 6),
        (SAME_TOTAL, None, 18),
    ]
    assert [p.heldout.groups for p in points[:3]] == [("moon",), ("sea",), ("sun",)]
    mixed = points[-1]
    sampler = EpisodeSampler(
        [3] * 69, [item.source for item in mixed.data.items], mixed.mix, batch=3, seed=4
    )
    assert sampler.quotas == [23, 23, 23]
    sample = mixture_points(config, data, test, 9, [4])
    assert [len(point.data.items) for point in sample] == [9, 9, 9, 27, 27]
    with pytest.raises(DataError, match="two or more worlds"):
        mixture_points(config, conversations("moon", 3), test, 0, [0])


# --- what is made of them ----------------------------------------------------------------------


def row(**values: Any) -> dict[str, Any]:
    em = {w: {"value": v, "n": 10, "hits": 0} for w, v in values.pop("em").items()}
    return {"em": em, **values}


def test_curves_by_hand() -> None:
    common = {"curves": ["episodes"], "shape": "2x64", "parameters": 5}
    rows = [
        row(episodes=30, seed=0, em={"moon": 0.5}, **common),
        row(episodes=10, seed=0, em={"moon": 0.2}, **common),
        row(episodes=10, seed=1, em={"moon": 0.4}, **common),
    ]
    ten, thirty = curve(rows, "episodes")["moon"]
    assert (ten["x"], ten["mean"], ten["values"]) == (10, pytest.approx(0.3), [0.2, 0.4])
    assert ten["std"] == pytest.approx(0.02**0.5)
    assert (thirty["x"], thirty["mean"], thirty["std"]) == (30, 0.5, None)
    assert curve(rows, "parameters") == {}


def test_comparison_by_hand() -> None:
    rows = []
    for seed, gain in ((0, 0.1), (1, 0.3)):
        rows += [
            row(model=SINGLE, seed=seed, em={"moon": 0.4}),
            row(model=SINGLE, seed=seed, em={"sea": 0.6}),
            row(model=SAME_STEPS, seed=seed, em={"moon": 0.3, "sea": 0.6}),
            row(model=SAME_TOTAL, seed=seed, em={"moon": 0.4 + gain, "sea": 0.6}),
        ]
    for some in (rows[:3], rows[:1]):
        assert comparison(some) == {}
    one, both = comparison(rows[:6]), comparison(rows)
    assert one["moon"][SINGLE]["values"] == [0.4]
    assert both["moon"]["n"] == 10
    assert both["moon"][f"{SAME_TOTAL}_difference"]["mean"] == pytest.approx(0.2)
    assert both["mean of worlds"][SINGLE]["mean"] == pytest.approx(0.5)
    assert both["mean of worlds"][f"{SAME_STEPS}_difference"]["mean"] == pytest.approx(-0.05)


# --- the programs ------------------------------------------------------------------------------


def test_scaling_from_the_command_line(
    files: dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    command = options(files, tmp_path, "--episodes", "10", "30", "--max-steps", "2")
    assert scaling.main(command) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results) == {"command", "seeds", "curves", "rows"}
    assert [(r["episodes"], r["steps"], r["em"]["sea"]["n"]) for r in results["rows"]] == [
        (10, 2, 4),
        (30, 2, 4),
    ]
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob("points/*/checkpoint-*"))
    assert "[2/2]" in capsys.readouterr().out

    # Nothing is left to do, and then: one point more.
    monkeypatch.setattr(series, "train", None)
    assert scaling.main(command) == 0
    assert json.loads((tmp_path / "results.json").read_text())["rows"] == results["rows"]
    assert scaling.main([*command, "--learning-rate", "0.1"]) == 2
    assert "holds a run with learning_rate 0.0008, now it is 0.1" in capsys.readouterr().err


def test_mixture_from_the_command_line(
    files: dict[str, list[str]], tmp_path: Path, capsys: Any
) -> None:
    assert mixture.main(options(files, tmp_path, "--max-steps", "1", "--episodes", "12")) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert [(r["model"], r["world"], r["steps"]) for r in results["rows"]] == [
        (SINGLE, "moon", 1),
        (SINGLE, "sea", 1),
        (SAME_STEPS, None, 1),
        (SAME_TOTAL, None, 2),
    ]
    assert set(results["comparison"]) == {"moon", "sea", "mean of worlds"}
    assert (tmp_path / "plot.png").is_file()
    assert "difference" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "pass --max-steps N"),
        (["--max-steps", "1", "--seeds", "1", "1"], "given twice"),
        (["--max-steps", "1", "--episodes", "99"], "99 episodes were asked for"),
    ],
)
def test_mistakes_end_with_a_message(
    files: dict[str, list[str]], tmp_path: Path, more: list[str], message: str, capsys: Any
) -> None:
    for program in (scaling.main, mixture.main):
        assert program(options(files, tmp_path, *more)) == 2
        assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("points/*/checkpoint-*"))


def test_weights_have_no_place_in_the_comparison(
    files: dict[str, list[str]], tmp_path: Path, capsys: Any
) -> None:
    weighted = {**files, "--data": [f"{file}:2" for file in files["--data"]]}
    assert mixture.main(options(weighted, tmp_path, "--max-steps", "1")) == 2
    assert "leave the weights" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_series_goes_on_where_it_was(files: dict[str, list[str]], tmp_path: Path) -> None:
    def command(output: Path) -> list[str]:
        more = ["--episodes", "10", "30", "--max-steps", "12", "--checkpoint-minutes", "0"]
        return [sys.executable, "-m", "training.scaling", *options(files, output, *more)]

    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen(command(killed), cwd=ROOT)
    second = killed / "points" / "30-episodes-2x64-seed0"
    deadline = time.monotonic() + 200
    while last_checkpoint(second) is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert last_checkpoint(second) is not None
    assert not (second / "row.json").exists(), "killed too late for this test"
    first = killed / "points" / "10-episodes-2x64-seed0" / "row.json"
    before = first.stat().st_mtime_ns

    for output in (killed, whole):
        subprocess.run(command(output), cwd=ROOT, check=True)
    assert first.stat().st_mtime_ns == before
    assert "continuing from" in (second / "output.log").read_text()
    one, other = (
        json.loads((output / "results.json").read_text())["rows"] for output in (killed, whole)
    )
    for a, b in zip(one, other, strict=True):
        assert {**a, "minutes": None} == {**b, "minutes": None}
