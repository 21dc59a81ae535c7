"""Collection: what is played, by whom, and what survives when something dies."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gymnasium
import pytest

from gym_llmworld.agents import Agent, RandomAgent, ScriptedAgent
from gym_llmworld.collection import (
    CollectionReport,
    Plan,
    collect,
    parse_mixture,
    play,
    resolve,
)
from gym_llmworld.core import Episode, Scenario
from gym_llmworld.episodes import EpisodeWriter, read_episodes, read_rows
from gym_llmworld.errors import DataError, EngineError, ScenarioError

MOVES = ("left", "right", "wait")


class Corridor(gymnasium.Env[str, str]):
    """Five fields in a row; the goal is at the right end.

    Args:
        deadly: File that names how often the command "die" may still kill the process.
        patience: Seconds that a step takes.
    """

    def __init__(self, deadly: str | None = None, patience: float = 0.0) -> None:
        self._deadly = deadly
        self._patience = patience
        self._field = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        assert options is not None
        if options["scenario"]["real"].get("broken"):
            raise ScenarioError("this corridor is closed")
        self._field = options["scenario"]["real"]["start"]
        return f"You are at {self._field}.", self._info()

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        time.sleep(self._patience)
        if action == "die":
            self._maybe_die()
        self._field = min(4, max(0, self._field + {"left": -1, "right": 1}.get(action, 0)))
        won = self._field == 4
        return f"You are at {self._field}.", float(won), won, False, self._info()

    def _info(self) -> dict[str, Any]:
        return {"admissible_commands": list(MOVES), "llmworld": {"source": "real"}}

    def _maybe_die(self) -> None:
        with Path(str(self._deadly)).open("r+", encoding="ascii") as counter:
            # Two workers may ask at once; without the lock both of them would die of one count.
            fcntl.flock(counter, fcntl.LOCK_EX)
            left = int(counter.read())
            if left > 0:
                counter.seek(0)
                counter.write(str(left - 1))
                counter.truncate()
                counter.flush()
                os.kill(os.getpid(), signal.SIGKILL)


def right() -> ScriptedAgent:
    return ScriptedAgent(["right"] * 9, name="right")


def drunk() -> RandomAgent:
    return RandomAgent(MOVES, name="drunk")


def suicidal() -> ScriptedAgent:
    return ScriptedAgent(["right", "die"], then="right", name="suicidal")


POLICIES: dict[str, str | Callable[[], Agent]] = {
    "right": right,
    "drunk": drunk,
    "suicidal": suicidal,
}


def scenarios(count: int = 4, **real: Any) -> list[Scenario]:
    return [
        Scenario(f"c{n}", "corridor", "train", "go right.", "...", real={"start": n % 4, **real})
        for n in range(count)
    ]


def run(out: Path, mixture: Mapping[str, float], **options: Any) -> CollectionReport:
    settings: dict[str, Any] = {"episodes": 12, "seed": 3, "max_steps": 30, "workers": 0, **options}
    starts = settings.pop("scenarios", scenarios())
    return collect(Corridor, mixture, starts, policies=POLICIES, out=out, **settings)


def jobs_in(out: Path) -> list[int]:
    return [row["job"] for row, _ in read_rows(out)]


def test_mixture_is_read() -> None:
    assert parse_mixture("expert:1, noisy:2.5,tour") == {"expert": 1, "noisy": 2.5, "tour": 1}
    assert parse_mixture("llm:scripted:a:b,llm:runs/agent:2,llm:http://host:80/v1") == {
        "llm:scripted:a:b": 1,
        "llm:runs/agent": 2,
        "llm:http://host:80/v1": 1,
    }


@pytest.mark.parametrize("text", ["", "a:0", "a:-1", "a:x", "a:1,a:2", "a,,b", "a:inf", "a:nan"])
def test_unreadable_mixture_is_explained(text: str) -> None:
    with pytest.raises(ValueError, match=r"policy mixture .* as in 'expert:1,noisy:3'"):
        parse_mixture(text)


def test_entry_points_are_resolved() -> None:
    assert resolve("gym_llmworld.agents:ScriptedAgent") is ScriptedAgent
    with pytest.raises(ValueError, match="module:attribute"):
        resolve("gym_llmworld.agents")
    with pytest.raises(ValueError, match="has no 'Nobody'"):
        resolve("gym_llmworld.agents:Nobody")


def plan(count: int, mixture: Mapping[str, float], **options: int) -> Plan:
    ids = tuple(f"c{number}" for number in range(count))
    return Plan(ids, mixture, seed=5, max_steps=9, **options)


def test_plan_visits_every_scenario_before_any_again() -> None:
    jobs = [plan(7, {"a": 1}).job(index) for index in range(21)]
    passes = [[job.scenario for job in jobs[begin : begin + 7]] for begin in (0, 7, 14)]

    assert all(sorted(one) == list(range(7)) for one in passes)
    assert passes[0] != passes[1]
    assert len({job.seed for job in jobs}) == 21
    assert jobs[13] == plan(7, {"a": 1}).job(13)


def test_plan_repeats_a_scenario_in_a_row() -> None:
    once = [plan(7, {"a": 1}).job(index).scenario for index in range(14)]
    thrice = [plan(7, {"a": 1}, repeats=3).job(index).scenario for index in range(42)]

    assert thrice[::3] == thrice[1::3] == thrice[2::3] == once


def test_plan_mixes_policies_by_weight() -> None:
    mixed = plan(10, {"a": 1, "b": 3})
    drawn = Counter(mixed.job(index).policy for index in range(2000))

    assert drawn["b"] / 2000 == pytest.approx(0.75, abs=0.03)  # three standard errors


def test_play_ends_at_success_and_cuts_off_at_the_limit() -> None:
    won = play(Corridor(), right(), scenarios()[1], seed=0, max_steps=9)
    cut = play(Corridor(), right(), scenarios()[0], seed=0, max_steps=2)

    assert won.success
    assert [step.terminated for step in won.steps] == [False, False, True]
    assert (len(cut.steps), cut.steps[-1].truncated, cut.success) == (2, True, False)
    assert (won.source, won.agent, won.seed) == ("real", "right", 0)


class _Dying(Corridor):
    """Its engine stops answering: it shows the last page again, and says why in its info."""

    def __init__(self, answers: int) -> None:
        super().__init__()
        self._answers = answers

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        observation, reward, won, _, info = super().step("wait" if self._answers < 1 else action)
        if self._answers < 1:
            info["llmworld"]["error"] = "no answer in 5 s"
            return observation, 0.0, False, True, info
        self._answers -= 1
        return observation, reward, won, False, info


def test_an_engine_that_fails_leaves_what_it_answered() -> None:
    episode = play(_Dying(2), right(), scenarios()[0], seed=0, max_steps=9)
    whole = play(Corridor(), right(), scenarios()[0], seed=0, max_steps=9)
    assert [s.observation for s in episode.steps] == [s.observation for s in whole.steps[:2]]
    assert [s.truncated for s in episode.steps] == [False, True]
    assert play(_Dying(0), right(), scenarios()[0], seed=0, max_steps=9).steps == ()


def test_collection_is_what_its_arguments_say(tmp_path: Path) -> None:
    first, second, other = tmp_path / "a.jsonl", tmp_path / "b.jsonl", tmp_path / "c.jsonl"
    seen: list[tuple[int, int, bool]] = []

    report = run(
        first,
        {"drunk": 1, "right": 1},
        progress=lambda done, total, episode: seen.append((done, total, episode is None)),
    )
    run(second, {"drunk": 1, "right": 1})
    run(other, {"drunk": 1, "right": 1}, seed=4)

    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes() != other.read_bytes()
    assert [done for done, _, _ in seen] == list(range(1, 13))
    assert sum(duplicate for _, _, duplicate in seen) == report.total.duplicates
    assert report.total.episodes == len(jobs_in(first)) == 12 - report.total.duplicates
    assert report.total.steps == sum(len(e.steps) for e in read_episodes(first))
    assert report.by_policy["right"].success_rate == 1.0


def test_identical_episodes_are_kept_once(tmp_path: Path) -> None:
    report = run(tmp_path / "e.jsonl", {"right": 1})

    assert (report.total.episodes, report.total.duplicates) == (4, 8)
    assert jobs_in(tmp_path / "e.jsonl") == [0, 1, 2, 3]


def test_resuming_plays_what_is_missing(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    run(whole, {"drunk": 1}, episodes=12)

    run(parts, {"drunk": 1}, episodes=5)
    report = run(parts, {"drunk": 1}, episodes=12)
    again = run(parts, {"drunk": 1}, episodes=12)

    assert parts.read_bytes() == whole.read_bytes()
    assert report.resumed == len([job for job in jobs_in(parts) if job < 5])
    assert again.resumed == again.total.episodes == len(jobs_in(parts))


def test_another_plan_in_the_same_file_is_refused(tmp_path: Path) -> None:
    run(tmp_path / "e.jsonl", {"drunk": 1})

    with pytest.raises(DataError, match="holds episodes of plan"):
        run(tmp_path / "e.jsonl", {"drunk": 1}, seed=4)


def test_a_file_of_other_origin_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "e.jsonl"
    with EpisodeWriter(out) as writer:
        writer.write(play(Corridor(), right(), scenarios()[0], seed=0, max_steps=9))

    with pytest.raises(DataError, match="holds episodes of plan None"):
        run(out, {"drunk": 1})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixture": {}}, "mixture is empty"),
        ({"mixture": {"pilot": 1.0}}, "unknown policies pilot; expected some of right, drunk"),
        ({"scenarios": []}, "no scenarios"),
        ({"episodes": 0}, "episodes=0"),
        ({"workers": -1}, "workers=-1"),
        ({"max_steps": 0}, "max_steps=0"),
        ({"repeats": 0}, "repeats=0"),
    ],
)
def test_bad_arguments_are_explained(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "e.jsonl", **{"mixture": {"right": 1.0}, **changes})

    assert not (tmp_path / "e.jsonl").exists()


def test_environments_by_name(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"policies": POLICIES, "episodes": 4, "max_steps": 9, "workers": 0}
    gymnasium.register("Corridor-v0", entry_point="tests.test_collection:Corridor")

    for number, env in enumerate(["tests.test_collection:Corridor", "Corridor-v0"]):
        out = tmp_path / f"{number}.jsonl"
        report = collect(env, {"right": 1}, scenarios(), out=out, **settings)
        assert report.total.successes == 4
    gymnasium.registry.pop("Corridor-v0")


def test_workers_play_what_one_process_plays(tmp_path: Path) -> None:
    alone, crew = tmp_path / "alone.jsonl", tmp_path / "crew.jsonl"

    run(alone, {"drunk": 1, "right": 1})
    report = run(crew, {"drunk": 1, "right": 1}, workers=2)

    assert {e.actions for e in read_episodes(crew)} == {e.actions for e in read_episodes(alone)}
    assert report.restarts == 0


def test_job_of_a_killed_worker_is_played_again(tmp_path: Path) -> None:
    counter, out = tmp_path / "deaths", tmp_path / "e.jsonl"
    counter.write_text("1")

    report = run(out, {"suicidal": 1}, episodes=4, workers=2, env_kwargs={"deadly": str(counter)})

    assert sorted(jobs_in(out)) == [0, 1, 2, 3]
    assert report.restarts == 1
    assert counter.read_text() == "0"


def test_job_that_kills_twice_is_named_and_the_rest_kept(tmp_path: Path) -> None:
    counter, out = tmp_path / "deaths", tmp_path / "e.jsonl"
    counter.write_text("2")
    mixture = {"suicidal": 1.0}
    options: dict[str, Any] = {"episodes": 4, "env_kwargs": {"deadly": str(counter)}}

    with pytest.raises(EngineError, match=r"policy 'suicidal', scenario 'c\d'.*exit code -9") as e:
        run(out, mixture, workers=1, **options)
    assert "run again" in str(e.value)
    kept = jobs_in(out)
    run(out, mixture, workers=1, **options)

    assert len(kept) < 4
    assert sorted(jobs_in(out)) == [0, 1, 2, 3]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_environments_own_error_is_passed_on(tmp_path: Path, workers: int) -> None:
    starts = [*scenarios(2), *scenarios(1, broken=True)]

    with pytest.raises(ScenarioError, match="this corridor is closed"):
        run(tmp_path / "e.jsonl", {"drunk": 1}, scenarios=starts, workers=workers)

    assert len(jobs_in(tmp_path / "e.jsonl")) < 3


SLOW_RUN = """
import sys
from pathlib import Path
from tests.test_collection import run

if __name__ == "__main__":
    run(Path(sys.argv[1]), {"drunk": 1}, episodes=40, workers=1, env_kwargs={"patience": 0.005})
"""


def test_killed_run_is_resumed_without_loss_or_double(tmp_path: Path) -> None:
    program, out, whole = tmp_path / "program.py", tmp_path / "e.jsonl", tmp_path / "whole.jsonl"
    program.write_text(SLOW_RUN)
    path = os.pathsep.join(sys.path)
    process = subprocess.Popen(
        [sys.executable, str(program), str(out)], env={**os.environ, "PYTHONPATH": path}
    )
    deadline = time.monotonic() + 200
    while not out.exists() or out.read_bytes().count(b"\n") < 5:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    report = run(out, {"drunk": 1}, episodes=40)
    run(whole, {"drunk": 1}, episodes=40)

    jobs = jobs_in(out)
    assert 5 <= report.resumed < 40
    assert len(jobs) == len(set(jobs))
    assert {e.actions for e in read_episodes(out)} == {e.actions for e in read_episodes(whole)}


def test_progress_counts_resumed_jobs(tmp_path: Path) -> None:
    seen: list[int] = []

    def note(done: int, total: int, episode: Episode | None) -> None:
        seen.append(done)

    run(tmp_path / "e.jsonl", {"drunk": 1}, episodes=4)
    kept = len(jobs_in(tmp_path / "e.jsonl"))
    run(tmp_path / "e.jsonl", {"drunk": 1}, episodes=8, progress=note)

    assert seen == list(range(kept + 1, 9))


@pytest.mark.parametrize("workers", [0, 1])
def test_real_alfworld_is_collected(tmp_path: Path, workers: int) -> None:
    pytest.importorskip("fast_downward")
    from gym_llmworld.real.alfworld_scenarios import load_games, write_games
    from gym_llmworld.worlds import get_world

    world = get_world("alfworld")
    write_games(tmp_path, "valid_seen", 3, scenarios_only=True)
    games = load_games(tmp_path, "valid_seen")
    out = tmp_path / "e.jsonl"

    report = collect(
        world.real_id,
        {"expert": 1, "tour": 1},
        games,
        policies=world.agents,
        episodes=6,
        out=out,
        workers=workers,
        max_steps=20,
    )

    tour = report.by_policy["tour"]
    assert report.by_policy["expert"].success_rate == 1.0
    assert tour.steps == 20 * tour.episodes
    assert all(e.source == "real" and e.scenario in games for e in read_episodes(out))
