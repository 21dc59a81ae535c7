"""Episodes and scenarios as JSON Lines: one value per line, appended and never rewritten.

A run may be killed at any byte. Every episode is handed to the kernel whole and made durable before
the next one, so that at worst the last line is cut off; readers skip it with a warning, and
`EpisodeWriter` cuts it away when it opens the file again.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import IO, Any, BinaryIO, TypeVar, cast

from gym_llmworld.core import Episode, Scenario
from gym_llmworld.errors import DataError

T = TypeVar("T")


class TruncatedLine(UserWarning):
    """The last line of a file is cut off, as a killed writer leaves it; it is skipped."""


def read_episodes(path: str | os.PathLike[str]) -> Iterator[Episode]:
    """Reads episodes lazily.

    Args:
        path: JSON Lines; gzip when the name ends with ``.gz``.

    Yields:
        Episodes in the order of the file. Extra keys of a line are ignored.

    Raises:
        DataError: A line is not an episode; names file, line and field.
        FileNotFoundError: There is no such file.
    """
    for _, episode in read_rows(path):
        yield episode


def read_rows(path: str | os.PathLike[str]) -> Iterator[tuple[dict[str, Any], Episode]]:
    """Like `read_episodes`, with each line's raw object (which may have keys of its own)."""
    return _read(Path(path), _check_episode, Episode.from_json)


def read_scenarios(path: str | os.PathLike[str]) -> list[Scenario]:
    """Reads scenarios.

    Args:
        path: JSON Lines; gzip when the name ends with ``.gz``.

    Raises:
        DataError: A line is not a scenario, or an id occurs twice; names file, line and field.
        FileNotFoundError: There is no such file.
    """
    scenarios: dict[str, Scenario] = {}
    for row, scenario in _read(Path(path), _check_scenario, Scenario.from_json):
        if scenario.id in scenarios:
            raise DataError(
                f"{path}: the scenario id {row['id']!r} occurs twice; expected unique ids, so that "
                "an id names one start. Rename or remove one of them"
            )
        scenarios[scenario.id] = scenario
    return list(scenarios.values())


def write_scenarios(path: str | os.PathLike[str], scenarios: Iterable[Scenario]) -> int:
    """Writes scenarios, all or none: a reader never sees half a file.

    Args:
        path: Replaced if it exists; gzip when the name ends with ``.gz``.
        scenarios: In the order to keep.

    Returns:
        How many.
    """
    return _write_whole(Path(path), (scenario.to_json() for scenario in scenarios))


def write_episodes(path: str | os.PathLike[str], episodes: Iterable[Episode]) -> int:
    """Writes episodes, all or none: a reader never sees half a file.

    For episodes that can be made again; those that are played are kept by `EpisodeWriter`.

    Args:
        path: Replaced if it exists, its folder made if need be; gzip when the name ends with
            ``.gz``.
        episodes: In the order to keep.

    Returns:
        How many.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    return _write_whole(target, (episode.to_json() for episode in episodes))


def _write_whole(target: Path, rows: Iterable[dict[str, Any]]) -> int:
    draft = target.with_name(f".{target.name}.{os.getpid()}.part")
    count = 0
    try:
        with draft.open("wb") as raw, _compressed(raw, target) as file:
            for row in rows:
                file.write(_line(row))
                count += 1
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
    return count


def _compressed(raw: BinaryIO, target: Path) -> AbstractContextManager[IO[bytes]]:
    if target.suffix != ".gz":
        return nullcontext(raw)
    # Without a time stamp and a name, the same scenarios give the same bytes.
    return cast("IO[bytes]", gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0))


class EpisodeWriter:
    """Appends episodes to a file, durably.

    A cut-off last line, left by a killed writer, is cut away on opening; its bytes are kept in
    ``<path>.truncated``. The file is locked against a second writer.

    Args:
        path: Created if missing. Not ``.gz``: a compressed file cannot be appended to safely.
        durable: Make each episode survive a power failure (``fsync``), not only a killed process.

    Raises:
        ValueError: ``path`` ends with ``.gz``.
        DataError: Another process is writing to the file.
    """

    def __init__(self, path: str | os.PathLike[str], *, durable: bool = True) -> None:
        self.path = Path(path)
        if self.path.suffix == ".gz":
            raise ValueError(
                f"cannot append episodes to {self.path}: a gzip file that is cut off loses more "
                f"than its last line. Write {self.path.with_suffix('')} and compress it afterwards"
            )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._durable = durable
        self._written = 0
        self._fd: int | None = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._lock()
            self._end = self._recover()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> EpisodeWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def write(self, episode: Episode, extra: Mapping[str, Any] | None = None) -> None:
        """Appends one episode.

        Args:
            episode: What happened.
            extra: Further JSON-able keys of the line, for example the job that produced it.

        Raises:
            OSError: The disk is full, or another input/output error. What was written before stays
                intact: the half-written line is taken back.
            ValueError: A reward is not finite, or the writer is closed.
        """
        if self._fd is None:
            raise ValueError(f"the writer of {self.path} is closed")
        line = _line({**(extra or {}), **episode.to_json()})
        try:
            self._append(self._fd, line)
        except OSError as error:
            os.ftruncate(self._fd, self._end)
            raise OSError(
                error.errno,
                f"cannot append an episode of {len(line)} bytes after {self._written} written by "
                f"this run ({os.strerror(error.errno or 0)}). The episodes before it are intact; "
                "make room and run again to resume",
                str(self.path),
            ) from error
        self._end += len(line)
        self._written += 1

    def close(self) -> None:
        """Closes the file and lets other writers in; calling it twice is fine."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _append(self, fd: int, line: bytes) -> None:
        os.lseek(fd, self._end, os.SEEK_SET)
        # One write per episode: a kill between two writes could leave half a line without need.
        # A short count means that the disk is (nearly) full; the next write says which error it is.
        done = os.write(fd, line)
        while done < len(line):
            done += os.write(fd, line[done:])
        if self._durable:
            os.fsync(fd)

    def _lock(self) -> None:
        assert self._fd is not None
        if sys.platform == "win32":  # has no advisory locks
            return
        import fcntl

        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(
                f"{self.path} is being written by another process; expected one writer per file. "
                "Wait for it to end, or choose another file"
            ) from error

    def _recover(self) -> int:
        """Cuts off an incomplete last line and returns where the next line starts."""
        assert self._fd is not None
        start, tail = _last_line(self._fd)
        if not tail:
            return start
        if _parses(tail):
            os.lseek(self._fd, 0, os.SEEK_END)
            os.write(self._fd, b"\n")
            return start + len(tail) + 1
        with open(f"{self.path}.truncated", "ab") as file:
            file.write(tail + b"\n")
        os.ftruncate(self._fd, start)
        return start


def _last_line(fd: int) -> tuple[int, bytes]:
    """Returns where the bytes after the last newline start, and those bytes."""
    end = os.lseek(fd, 0, os.SEEK_END)
    tail, position = b"", end
    while position > 0:
        size = min(1 << 16, position)
        position -= size
        os.lseek(fd, position, os.SEEK_SET)
        block = os.read(fd, size)
        newline = block.rfind(b"\n")
        if newline >= 0:
            return position + newline + 1, block[newline + 1 :] + tail
        tail = block + tail
    return 0, tail


def _parses(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def episode_key(episode: Episode) -> str:
    """Returns a key that two episodes share when they start alike and act alike."""
    played = json.dumps([episode.scenario.world, episode.scenario.id, *episode.actions])
    return hashlib.sha256(played.encode()).hexdigest()


def split_by_scenario(
    episodes: Iterable[Episode], fractions: Mapping[str, float], seed: int
) -> dict[str, list[Episode]]:
    """Splits episodes by the scenario they start from, never within one.

    Two episodes of one game show the same rooms; in different parts they would leak the answers.

    Args:
        episodes: In any order; the split does not depend on it.
        fractions: Name of the part -> its share of the scenarios; they sum to 1.
        seed: Another seed, another split.

    Returns:
        The parts, each in the given order.

    Raises:
        ValueError: The fractions are not shares of a whole.
    """
    total = math.fsum(fractions.values())
    if not math.isclose(total, 1.0, abs_tol=1e-6) or min(fractions.values(), default=0.0) < 0:
        raise ValueError(
            f"fractions must be >= 0 and sum to 1, got {dict(fractions)} (sum {total:g})"
        )
    kept = list(episodes)
    ids = sorted({e.scenario.id for e in kept}, key=lambda i: _shuffle_key(seed, i))
    part_of: dict[str, str] = {}
    begin, share = 0, 0.0
    for name, fraction in fractions.items():
        share += fraction
        end = round(share * len(ids))
        part_of.update(dict.fromkeys(ids[begin:end], name))
        begin = end
    return {name: [e for e in kept if part_of[e.scenario.id] == name] for name in fractions}


def _shuffle_key(seed: int, scenario_id: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{scenario_id}".encode()).digest()


def _read(
    path: Path, check: Callable[[Any, _Place], None], build: Callable[[dict[str, Any]], T]
) -> Iterator[tuple[dict[str, Any], T]]:
    with _opened(path) as file:
        number = 0
        for number, line, is_last in _numbered(file, path):
            place = _Place(path, number)
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                if is_last and not line.endswith(b"\n"):
                    _warn_truncated(path, number, len(line))
                    return
                raise DataError(
                    f"{path}, line {number}: not JSON ({error}); expected one JSON object per "
                    f"line, got {line[:60]!r}. Remove the line, or restore the file"
                ) from error
            check(row, place)
            yield row, build(row)


def _opened(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return cast("IO[bytes]", gzip.open(path, "rb"))
    return path.open("rb")


def _numbered(file: IO[bytes], path: Path) -> Iterator[tuple[int, bytes, bool]]:
    """Yields line number, line and whether it is the last, one line behind the reader."""
    number, held = 0, b""
    try:
        for line in file:
            if held:
                yield number, held, False
            number, held = number + 1, line
    except EOFError:
        _warn_truncated(path, number + 1, 0)
    except gzip.BadGzipFile as error:
        raise DataError(
            f"{path}: not a gzip file ({error}); expected gzip because of its name. Rename it "
            "without .gz, or compress it again"
        ) from error
    if held:
        yield number, held, True


def _warn_truncated(path: Path, number: int, length: int) -> None:
    warnings.warn(
        f"{path}, line {number}: cut off after {length} bytes, as by a killed writer; skipped",
        TruncatedLine,
        stacklevel=4,
    )


_MISSING = object()


class _Place:
    """Where a value stands, for error messages."""

    def __init__(self, path: Path, line: int) -> None:
        self._path, self._line = path, line

    def fail(self, field: str, expected: str, actual: object) -> DataError:
        """Builds the error for a field."""
        shown = "nothing" if actual is _MISSING else repr(actual)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        return DataError(
            f"{self._path}, line {self._line}, field {field!r}: expected {expected}, got {shown}. "
            "Write the file with EpisodeWriter or write_scenarios, or correct the line"
        )


def _check_fields(
    row: Any, fields: Mapping[str, type | tuple[type, ...]], prefix: str, place: _Place
) -> None:
    if not isinstance(row, dict):
        raise place.fail(prefix.rstrip(".") or "line", "an object", row)
    for name, kinds in fields.items():
        value = row.get(name, _MISSING)
        wanted = kinds if isinstance(kinds, tuple) else (kinds,)
        if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
            raise place.fail(prefix + name, _kind_names(wanted), value)


def _kind_names(kinds: Sequence[type]) -> str:
    names = {str: "a string", dict: "an object", list: "a list", bool: "true or false"}
    return " or ".join(names.get(kind, "a number") for kind in kinds if kind is not int)


_SCENARIO_FIELDS = {
    "id": str,
    "world": str,
    "split": str,
    "instruction": str,
    "observation": str,
}
_STEP_FIELDS: dict[str, type | tuple[type, ...]] = {
    "action": str,
    "observation": str,
    "reward": (int, float),
    "terminated": bool,
    "truncated": bool,
}
_EPISODE_FIELDS = {"scenario": dict, "steps": list, "source": str, "agent": str}


def _check_scenario(row: Any, place: _Place, prefix: str = "") -> None:
    _check_fields(row, _SCENARIO_FIELDS, prefix, place)
    for name in ("hidden", "real"):
        if not isinstance(row.get(name) or {}, dict):
            raise place.fail(prefix + name, "an object", row[name])
    admissible = row.get("admissible")
    if admissible is not None and not (
        isinstance(admissible, list) and all(isinstance(c, str) for c in admissible)
    ):
        raise place.fail(prefix + "admissible", "a list of strings or null", admissible)


def _check_episode(row: Any, place: _Place) -> None:
    _check_fields(row, _EPISODE_FIELDS, "", place)
    _check_scenario(row["scenario"], place, "scenario.")
    for index, step in enumerate(row["steps"]):
        _check_fields(step, _STEP_FIELDS, f"steps[{index}].", place)
        if not math.isfinite(step["reward"]):
            raise place.fail(f"steps[{index}].reward", "a finite number", step["reward"])
    if not isinstance(row.get("seed", 0), int):
        raise place.fail("seed", "a whole number", row["seed"])
