"""What the headline experiment makes of its rows, hand-computed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")
pytest.importorskip("matplotlib")

from training import policy_experiment
from training.policy_results import (
    GREEDY,
    IMAGINED,
    REAL,
    SAMPLED,
    SFT,
    publish,
    row_file,
    rows_of,
    summarise,
)

# Matplotlib and TRL warn about their own deprecations.
pytestmark = pytest.mark.filterwarnings("ignore")


def success(seen: float, unseen: float) -> dict[str, Any]:
    values = {"valid_seen": seen, "valid_unseen": unseen, "all": (seen + unseen) / 2}
    return {split: {"value": value, "n": 60} for split, value in values.items()}


def row(arm: str, seed: int, update: int, value: float, greedy: float | None = None) -> Any:
    facts = {"arm": arm, "seed": seed, "update": update, SAMPLED: success(value, value)}
    return facts if greedy is None else {**facts, GREEDY: success(greedy, greedy)}


ROWS = [
    row(SFT, 0, 0, 0.2, 0.3),
    row(SFT, 1, 0, 0.4, 0.5),
    row(IMAGINED, 0, 10, 0.3),
    row(IMAGINED, 1, 10, 0.5),
    row(IMAGINED, 0, 20, 0.9, 0.9),
    row(REAL, 0, 10, 0.4),
    row(REAL, 1, 10, 0.6),
]


def test_gains_are_counted_from_the_same_seeds_start() -> None:
    summary = summarise(ROWS, SAMPLED)
    first, last = summary[IMAGINED]
    assert first["mean"] == pytest.approx(0.4)
    assert first["gain"]["mean"] == pytest.approx(0.1)
    assert first["gain"]["values"] == pytest.approx([0.1, 0.1])
    assert (last["x"], last["seeds"]) == (20, [0])
    assert last["gain"]["mean"] == pytest.approx(0.7)
    assert first["splits"]["valid_unseen"]["mean"] == pytest.approx(0.4)


def test_what_is_kept_compares_the_same_updates_and_seeds() -> None:
    # At update 20 only one arm of one seed has arrived.
    kept = summarise(ROWS, SAMPLED)["kept"]
    assert kept["update"] == 10
    assert (kept["imagined_gain"], kept["real_gain"]) == pytest.approx((0.1, 0.2))
    assert kept["ratio"] == pytest.approx(0.5)
    assert "kept" not in summarise(ROWS, GREEDY)


def test_rows_are_published_as_far_as_they_go(tmp_path: Path) -> None:
    results = tmp_path / "results" / "policy.json"
    assert publish(tmp_path, results, [0, 1], "make it") == []
    assert not results.exists()
    for count in (1, len(ROWS)):
        for one in ROWS[:count]:
            folder = tmp_path / f"{one['arm']}-seed{one['seed']}"
            folder.mkdir(exist_ok=True)
            row_file(folder, one["update"]).write_text(json.dumps(one))
        rows = publish(tmp_path, results, [0, 1], "make it")
        written = json.loads(results.read_text())
        assert written["rows"] == rows == rows_of(tmp_path)
        assert (written["command"], written["seeds"]) == ("make it", [0, 1])
        assert results.with_suffix(".png").exists() == (count > 1)
    assert {json.dumps(r) for r in rows} == {json.dumps(r) for r in ROWS}


def test_options_become_settings(tmp_path: Path) -> None:
    options = policy_experiment.parser().parse_args(
        ["--output", str(tmp_path), "--updates", "20", "--evaluate-every", "8"]
    )
    settings = policy_experiment.settings_of(options, "command")
    assert settings.marks == [8, 16, 20]
    assert len(settings.exam.scenarios) == 120
    assert {s.split for s in settings.exam.scenarios} == {"valid_seen", "valid_unseen"}
    assert settings.sft.role == "agent"


def test_the_teacher_reads_text_only_and_strays() -> None:
    from gym_llmworld.scenarios import ScenarioStore

    scenario = ScenarioStore("alfworld").of_split("train")[0]
    agent = policy_experiment.teacher()
    agent.reset(scenario, 0)
    assert agent.act(scenario.observation, {"admissible_commands": None})
    assert agent.name == policy_experiment.TEACHER


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_what_was_killed_does_not_go_on(tmp_path: Path) -> None:
    script = tmp_path / "pool.py"
    script.write_text(
        "import multiprocessing, os, time\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "from training.policy_experiment import end_with_the_parent\n"
        "if __name__ == '__main__':\n"
        "    spawn = multiprocessing.get_context('spawn')\n"
        "    with ProcessPoolExecutor(1, spawn, initializer=end_with_the_parent) as pool:\n"
        "        print(pool.submit(os.getpid).result(), flush=True)\n"
        "        pool.submit(time.sleep, 600).result()\n"
    )
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    process = subprocess.Popen(
        [sys.executable, str(script)], cwd=root, env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    os.kill(child, 0)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and _lives(child):
        time.sleep(0.1)
    assert not _lives(child)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie that nobody has collected yet is no longer at work.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
