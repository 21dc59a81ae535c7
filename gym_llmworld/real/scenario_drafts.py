"""Writes many scenarios to one file: in several processes, and going on after an interruption."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from gym_llmworld.core import Scenario
from gym_llmworld.episodes import TruncatedLine, read_scenarios, write_scenarios
from gym_llmworld.errors import EngineError

Progress = Callable[[int, int], None]
S = TypeVar("S")

_MAX_FAILURE_SHARE = 0.5
_MIN_FAILURES = 20


def write_made_scenarios(
    target: Path,
    specs: Iterator[S],
    n: int,
    *,
    make: Callable[[S], Scenario | None],
    name: Callable[[S], str],
    workers: int = 1,
    progress: Progress | None = None,
) -> Path:
    """Makes the first ``n`` possible scenarios of a stream and writes them, in its order.

    What an interrupted call left in ``<target>.part``, or a shorter one in ``target``, is kept.

    Args:
        target: JSON Lines; appears complete or not at all.
        specs: What to make scenarios of, without end.
        n: How many.
        make: Returns None when a spec is not possible. Picklable when ``workers`` > 1.
        name: Id of a spec's scenario.
        workers: Processes.
        progress: Called with how many are done and ``n``.

    Returns:
        ``target``.

    Raises:
        EngineError: More than half of the specs are not possible.
    """
    draft = target.with_name(f"{target.name}.part")
    target.parent.mkdir(parents=True, exist_ok=True)
    done = {s.id: s for file in (target, draft) if file.is_file() for s in _read_draft(file)}
    written: list[Scenario] = []
    with draft.open("a", encoding="utf-8") as file:
        _end_line(draft)
        for scenario in _possible(specs, n, done, make, name, workers):
            if scenario.id not in done:
                file.write(json.dumps(scenario.to_json(), ensure_ascii=False) + "\n")
                file.flush()
            written.append(scenario)
            if progress is not None:
                progress(len(written), n)
    write_scenarios(target, written)
    draft.unlink()
    return target


def _possible(
    specs: Iterator[S],
    n: int,
    done: dict[str, Scenario],
    make: Callable[[S], Scenario | None],
    name: Callable[[S], str],
    workers: int,
) -> Iterator[Scenario]:
    found = failures = 0
    with _mapper(workers) as run:
        while found < n:
            batch = list(itertools.islice(specs, min(n - found, 16 * workers)))
            made = run(make, [spec for spec in batch if name(spec) not in done])
            fresh = iter(made)
            for spec in batch:
                scenario = done.get(name(spec)) or next(fresh)
                if scenario is not None:
                    found += 1
                    yield scenario
                    continue
                failures += 1
                if failures > max(_MIN_FAILURES, _MAX_FAILURE_SHARE * (found + failures)):
                    raise EngineError(
                        f"{failures} of {found + failures} games cannot be made or solved; "
                        "expected next to none. Is this a supported version of the engine?"
                    )


@contextmanager
def _mapper(
    workers: int,
) -> Iterator[Callable[[Callable[[S], Scenario | None], list[S]], Iterable[Scenario | None]]]:
    """``map`` in this process or in several."""
    if workers <= 1:
        yield map
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        try:
            yield pool.map
        finally:
            pool.shutdown(cancel_futures=True)


def _read_draft(path: Path) -> list[Scenario]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncatedLine)
        return read_scenarios(path)


def _end_line(path: Path) -> None:
    """Cuts away what an interrupted write left of a line."""
    content = path.read_bytes()
    os.truncate(path, content.rfind(b"\n") + 1)
