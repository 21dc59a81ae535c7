"""Episode and scenario files, also after kills, full disks and broken lines."""

from __future__ import annotations

import errno
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gym_llmworld.core import Episode, Scenario, Step
from gym_llmworld.episodes import (
    EpisodeWriter,
    TruncatedLine,
    episode_key,
    read_episodes,
    read_rows,
    read_scenarios,
    split_by_scenario,
    write_episodes,
    write_scenarios,
)
from gym_llmworld.errors import DataError


def scenario(number: int = 0) -> Scenario:
    return Scenario(
        f"train/game-{number}",
        "toy",
        "train",
        "put a caf\u00e9 in cabinet.",
        "You see\na line separator \u2028 and a snowman \u2603.",
        admissible=("look", "wait"),
        hidden={"receptacles": [{"name": "cabinet 1", "contents": ["mug 1"]}]},
        real={"seed": number},
    )


def episode(number: int = 0, actions: tuple[str, ...] = ("look", "take mug 1")) -> Episode:
    steps = [Step(action, f"Done: {action}.") for action in actions[:-1]]
    steps.append(Step(actions[-1], "You win.", 1.0, terminated=True))
    return Episode(scenario(number), tuple(steps), "real", "expert", seed=number)


def write(path: Path, *episodes: Episode) -> None:
    with EpisodeWriter(path, durable=False) as writer:
        for one in episodes:
            writer.write(one)


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "new" / "episodes.jsonl"
    written = [episode(number) for number in range(3)]

    write(path, *written)

    assert list(read_episodes(path)) == written
    assert path.read_bytes().count(b"\n") == 3


def test_appends_and_keeps_extra_keys(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    write(path, episode(0))
    with EpisodeWriter(path) as writer:
        writer.write(episode(1), {"job": 7})

    rows = [row for row, _ in read_rows(path)]

    assert [row.get("job") for row in rows] == [None, 7]
    assert [e.seed for e in read_episodes(path)] == [0, 1]


def test_compressed_files_are_read_but_not_appended_to(tmp_path: Path) -> None:
    plain, packed = tmp_path / "e.jsonl", tmp_path / "e.jsonl.gz"
    write(plain, episode(0), episode(1))
    packed.write_bytes(gzip.compress(plain.read_bytes()))

    assert list(read_episodes(packed)) == list(read_episodes(plain))
    with pytest.raises(ValueError, match="compress it afterwards"):
        EpisodeWriter(packed)


def test_cut_off_gzip_file_yields_what_is_whole(tmp_path: Path) -> None:
    plain, packed = tmp_path / "e.jsonl", tmp_path / "e.jsonl.gz"
    write(plain, *(episode(n, (str(random.Random(n).random()), "x")) for n in range(2000)))
    packed.write_bytes(gzip.compress(plain.read_bytes())[:-2000])

    with pytest.warns(TruncatedLine):
        kept = list(read_episodes(packed))

    assert 0 < len(kept) < 2000
    assert kept == list(read_episodes(plain))[: len(kept)]


def test_not_a_gzip_file_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl.gz"
    path.write_bytes(b"{}\n")

    with pytest.raises(DataError, match="not a gzip file"):
        list(read_episodes(path))


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_scenarios_round_trip_to_equal_bytes(tmp_path: Path, suffix: str) -> None:
    first, second = tmp_path / f"a.jsonl{suffix}", tmp_path / f"b.jsonl{suffix}"
    written = [scenario(number) for number in range(3)]

    assert write_scenarios(first, written) == 3
    write_scenarios(second, iter(written))

    assert read_scenarios(first) == written
    assert first.read_bytes() == second.read_bytes()
    assert sorted(tmp_path.iterdir()) == [first, second]


def test_failed_write_leaves_the_old_scenarios(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    write_scenarios(path, [scenario(0)])

    with pytest.raises(TypeError):
        write_scenarios(path, [scenario(1), Scenario("b", "toy", "t", "", "", real={"x": {1}})])

    assert read_scenarios(path) == [scenario(0)]
    assert list(tmp_path.iterdir()) == [path]


def test_two_scenarios_with_one_id_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    write_scenarios(path, [scenario(0), scenario(0)])

    with pytest.raises(DataError, match=r"'train/game-0' occurs twice"):
        read_scenarios(path)


def test_cut_off_last_line_is_skipped_with_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    write(path, episode(0), episode(1))
    path.write_bytes(path.read_bytes()[:-40])

    with pytest.warns(TruncatedLine, match=r"e\.jsonl, line 2: cut off"):
        kept = list(read_episodes(path))

    assert kept == [episode(0)]


@pytest.mark.parametrize("kept_bytes", [1, 100, -2])
def test_writer_cuts_off_an_incomplete_line_and_keeps_its_bytes(
    tmp_path: Path, kept_bytes: int
) -> None:
    path = tmp_path / "e.jsonl"
    write(path, episode(0))
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:kept_bytes])

    write(path, episode(1))

    assert list(read_episodes(path)) == [episode(0), episode(1)]
    assert Path(f"{path}.truncated").read_bytes() == whole[:kept_bytes] + b"\n"


def test_writer_completes_a_line_that_lacks_its_newline_only(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    write(path, episode(0))
    path.write_bytes(path.read_bytes()[:-1])

    write(path, episode(1))

    assert list(read_episodes(path)) == [episode(0), episode(1)]
    assert not Path(f"{path}.truncated").exists()


def test_second_writer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    with EpisodeWriter(path), pytest.raises(DataError, match="being written by another process"):
        EpisodeWriter(path)

    write(path, episode(0))
    assert len(list(read_episodes(path))) == 1


def broken_line(change: str) -> bytes:
    row = episode(0).to_json()
    if change == "no JSON":
        return b"{not json}\n"
    if change == "no object":
        return b"[1]\n"
    if change == "no steps":
        del row["steps"]
    if change == "wrong reward":
        row["steps"][1]["reward"] = "much"
    if change == "reward is a truth value":
        row["steps"][1]["reward"] = True
    if change == "infinite reward":
        row["steps"][1]["reward"] = float("inf")
    if change == "no scenario id":
        del row["scenario"]["id"]
    if change == "wrong commands":
        row["scenario"]["admissible"] = "look"
    if change == "wrong seed":
        row["seed"] = "x"
    if change == "wrong hidden":
        row["scenario"]["hidden"] = [1]
    return json.dumps(row).encode() + b"\n"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("no JSON", r"not JSON .*one JSON object per line"),
        ("no object", r"field 'line': expected an object, got \[1\]"),
        ("no steps", r"field 'steps': expected a list, got nothing"),
        ("wrong reward", r"field 'steps\[1\].reward': expected a number, got 'much'"),
        ("reward is a truth value", r"field 'steps\[1\].reward': expected a number, got True"),
        ("infinite reward", r"field 'steps\[1\].reward': expected a finite number, got inf"),
        ("no scenario id", r"field 'scenario.id': expected a string, got nothing"),
        ("wrong commands", r"field 'scenario.admissible': expected a list of strings or null"),
        ("wrong seed", r"field 'seed': expected a whole number, got 'x'"),
        ("wrong hidden", r"field 'scenario.hidden': expected an object, got \[1\]"),
    ],
)
def test_broken_line_in_the_middle_names_file_line_and_field(
    tmp_path: Path, change: str, message: str
) -> None:
    path = tmp_path / "e.jsonl"
    write(path, episode(0), episode(1))
    first, last = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + broken_line(change) + last)

    with pytest.raises(DataError, match=rf"e\.jsonl, line 2.*{message}"):
        list(read_episodes(path))


def test_broken_scenario_names_its_field(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    path.write_text(json.dumps({**scenario().to_json(), "split": 3}) + "\n")

    with pytest.raises(
        DataError, match=r"s\.jsonl, line 1, field 'split': expected a string, got 3"
    ):
        read_scenarios(path)


def test_infinite_reward_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    bad = Episode(scenario(), (Step("look", "x", float("nan")),), "real", "a")
    with EpisodeWriter(path) as writer, pytest.raises(ValueError, match="JSON compliant"):
        writer.write(bad)

    assert path.read_bytes() == b""


def test_closed_writer_says_so(tmp_path: Path) -> None:
    writer = EpisodeWriter(tmp_path / "e.jsonl")
    writer.close()
    writer.close()

    with pytest.raises(ValueError, match="is closed"):
        writer.write(episode())


# A size limit stops a write in the middle of a line, as a full disk does.
FULL_DISK = """
import resource, sys
from tests.test_episodes import episode
from gym_llmworld.episodes import EpisodeWriter

writer = EpisodeWriter(sys.argv[1])
writer.write(episode(0))
writer.write(episode(1))
limit = writer.path.stat().st_size + 50
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    writer.write(episode(2))
except OSError as error:
    print(error.errno, error, sep="|")
resource.setrlimit(resource.RLIMIT_FSIZE, (limit + 5000, limit + 5000))
"""


def test_full_disk_leaves_a_valid_file_and_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    result = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, check=False
    )
    number, _, message = result.stdout.partition("|")

    assert int(number) == errno.EFBIG, result.stderr
    assert "The episodes before it are intact; make room and run again" in message
    assert str(path) in message
    assert list(read_episodes(path)) == [episode(0), episode(1)]


def test_no_space_left_is_reported_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "e.jsonl"
    with EpisodeWriter(path) as writer:
        writer.write(episode(0))

        def half_then_full(fd: int, data: bytes) -> int:
            monkeypatch.setattr(os, "write", full)
            return original(fd, data[: len(data) // 2])

        def full(fd: int, data: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        original = os.write
        monkeypatch.setattr(os, "write", half_then_full)
        with pytest.raises(OSError, match="No space left on device") as caught:
            writer.write(episode(1))
        monkeypatch.setattr(os, "write", original)
        writer.write(episode(2))

    assert caught.value.errno == errno.ENOSPC
    assert list(read_episodes(path)) == [episode(0), episode(2)]


ENDLESS = """
import sys
from tests.test_episodes import episode
from gym_llmworld.episodes import EpisodeWriter

with EpisodeWriter(sys.argv[1], durable=False) as writer:
    number = 0
    while True:
        writer.write(episode(number, ("x" * 100_000, "y")), {"job": number})
        number += 1
"""


def test_killed_writer_loses_no_finished_episode(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    for attempt in range(3):
        process = subprocess.Popen([sys.executable, "-c", ENDLESS, str(path)])
        before = path.stat().st_size if path.exists() else 0
        deadline = time.monotonic() + 120
        while not path.exists() or path.stat().st_size < before + 500_000:
            assert time.monotonic() < deadline
            time.sleep(0.01 + 0.003 * attempt)
        process.send_signal(signal.SIGKILL)
        process.wait()

    write(path, episode(999))

    jobs = [row.get("job") for row, _ in read_rows(path)]
    assert jobs[-1] is None
    # Three runs, each from 0 on without a gap.
    starts = [index for index, job in enumerate(jobs) if job == 0]
    assert len(starts) == 3
    for begin, end in zip(starts, [*starts[1:], len(jobs) - 1], strict=True):
        assert jobs[begin:end] == list(range(end - begin))


def test_episode_key_is_scenario_and_actions() -> None:
    same = Episode(scenario(0), episode(0).steps, "model", "other", 9)

    assert episode_key(episode(0)) == episode_key(same)
    assert episode_key(episode(0)) != episode_key(episode(1))
    assert episode_key(episode(0, ("a", "b"))) != episode_key(episode(0, ("ab",)))


def test_split_keeps_games_together_and_their_shares() -> None:
    episodes = [episode(game, (str(turn), "x")) for game in range(50) for turn in range(3)]

    parts = split_by_scenario(episodes, {"train": 0.8, "valid": 0.1, "test": 0.1}, seed=0)
    games = {name: {e.scenario.id for e in part} for name, part in parts.items()}

    assert {name: len(ids) for name, ids in games.items()} == {"train": 40, "valid": 5, "test": 5}
    assert not games["train"] & games["valid"]
    assert not games["train"] & games["test"]
    kept = [episode_key(e) for part in parts.values() for e in part]
    assert sorted(kept) == sorted(map(episode_key, episodes))


def test_split_depends_on_the_seed_only() -> None:
    episodes = [episode(game) for game in range(30)]
    backwards = episodes[::-1]
    halves = {"a": 0.5, "b": 0.5}

    first = split_by_scenario(episodes, halves, seed=1)

    assert split_by_scenario(backwards, halves, seed=1)["a"] == first["a"][::-1]
    assert split_by_scenario(episodes, halves, seed=2)["a"] != first["a"]


@pytest.mark.parametrize("fractions", [{"a": 0.5}, {"a": 1.5, "b": -0.5}, {}])
def test_split_refuses_what_is_no_whole(fractions: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="sum to 1"):
        split_by_scenario([episode()], fractions, seed=0)


def test_write_episodes_is_all_or_nothing(tmp_path: Path) -> None:
    target = tmp_path / "new" / "made.jsonl"
    episodes = [episode(number) for number in range(3)]
    assert write_episodes(target, episodes) == 3
    assert list(read_episodes(target)) == episodes

    def broken() -> Iterator[Episode]:
        yield episodes[0]
        raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        write_episodes(target, broken())
    assert list(read_episodes(target)) == episodes
    assert [file.name for file in target.parent.iterdir()] == ["made.jsonl"]
