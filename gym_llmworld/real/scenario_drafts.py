"""Writes many scenarios to one file: in several processes, and going on after an interruption."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from gym_llmworld.core import Scenario
from gym_llmworld.episodes import TruncatedLine, read_scenarios, write_scenarios
from gym_llmworld.errors import EngineError, ScenarioError

SCENARIOS_FILE = "scenarios.jsonl"
Progress = Callable[[int, int], None]
S = TypeVar("S")

_MIN_FAILURES = 20


def write_made_scenarios(
    target: Path,
    specs: Iterator[S],
    n: int,
    *,
    make: Callable[[S], Scenario | None],
    name: Callable[[S], str],
    kept: Callable[[S], bool] | None = None,
    generator: int | None = None,
    max_failure_share: float = 0.5,
    workers: int = 1,
    progress: Progress | None = None,
) -> Path:
    """Makes the first ``n`` possible scenarios of a stream and writes them, in its order.

    What an interrupted call left in ``<target>.part``, or another one in ``target``, is kept: of
    other specs, behind the scenarios of this call.

    Args:
        target: JSON Lines; appears complete or not at all.
        specs: What to make scenarios of, without end.
        n: How many.
        make: Returns None when a spec is not possible. Picklable when ``workers`` > 1.
        name: Id of a spec's scenario.
        kept: Tells whether what ``make`` left beside the scenario is still there; where it is not,
            a spec is made again.
        generator: Version of the generator that ``make`` runs, as in ``Scenario.real``.
        max_failure_share: So many of the specs may be impossible, or 20 where that is more.
        workers: Processes.
        progress: Called with how many are done and ``n``.

    Returns:
        ``target``.

    Raises:
        ValueError: ``n`` or ``workers`` is less than 1.
        ScenarioError: Another generator version made what is there, or the specs are used up.
        EngineError: Too many of the specs are not possible.
    """
    if n < 1 or workers < 1:
        raise ValueError(f"n and workers must be at least 1, got n={n}, workers={workers}")
    draft = target.with_name(f"{target.name}.part")
    target.parent.mkdir(parents=True, exist_ok=True)
    files = [file for file in (target, draft) if file.is_file()]
    done = {s.id: s for file in files for s in _read_draft(file, generator)}

    def missing(spec: S) -> bool:
        return name(spec) not in done or not (kept is None or kept(spec))

    possible = _possible(specs, n, make, missing, max_failure_share, workers)
    written: list[Scenario] = []
    with draft.open("a", encoding="utf-8") as file:
        _end_line(draft)
        for spec, made in possible:
            scenario = made or done[name(spec)]
            if scenario.id not in done:
                file.write(json.dumps(scenario.to_json(), ensure_ascii=False) + "\n")
                file.flush()
            written.append(scenario)
            if progress is not None:
                progress(len(written), n)
    ours = {scenario.id for scenario in written}
    # Another seed, or a larger n before: what was made is not thrown away.
    write_scenarios(target, [*written, *(s for s in done.values() if s.id not in ours)])
    draft.unlink()
    return target


def in_random_order(seeds: Sequence[int], rng: random.Random) -> Iterator[int]:
    """Yields all seeds of a split once; a long split is not shuffled as a whole."""
    seen = set[int]()
    while len(seen) < len(seeds):
        seed = rng.choice(seeds)
        if seed not in seen:
            seen.add(seed)
            yield seed


def read_made_scenarios(games: str | os.PathLike[str], split: str) -> list[Scenario]:
    """Reads the scenarios of a split from a folder made by ``llmworld games``.

    Raises:
        ScenarioError: There is no such folder.
    """
    listed = Path(games) / split / SCENARIOS_FILE
    if not listed.is_file():
        raise ScenarioError(f"{games} has no {split}/{SCENARIOS_FILE}; make it with llmworld games")
    return read_scenarios(listed)


def _possible(
    specs: Iterator[S],
    n: int,
    make: Callable[[S], Scenario | None],
    missing: Callable[[S], bool],
    max_failure_share: float,
    workers: int,
) -> Iterator[tuple[S, Scenario | None]]:
    """Yields ``n`` possible specs, each with its scenario if that was missing."""
    found = failures = 0
    with _mapper(workers) as run:
        while found < n:
            batch = list(itertools.islice(specs, min(n - found, 16 * workers)))
            if not batch:
                raise ScenarioError(
                    f"there are only {found} different games, not {n}; ask for fewer"
                )
            wanted = [missing(spec) for spec in batch]
            made = iter(run(make, list(itertools.compress(batch, wanted))))
            for spec, is_missing in zip(batch, wanted, strict=True):
                scenario = next(made) if is_missing else None
                if scenario is not None or not is_missing:
                    found += 1
                    yield spec, scenario
                    continue
                failures += 1
                if failures > max(_MIN_FAILURES, max_failure_share * (found + failures)):
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


def _read_draft(path: Path, generator: int | None) -> list[Scenario]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncatedLine)
        scenarios = read_scenarios(path)
    others = {s.real.get("generator") for s in scenarios} - {generator}
    if generator is not None and others:
        raise ScenarioError(
            f"{path} holds games of generator version {others.pop()}; this is version "
            f"{generator}. Choose another folder, or remove that one"
        )
    return scenarios


def _end_line(path: Path) -> None:
    """Cuts away what an interrupted write left of a line."""
    content = path.read_bytes()
    os.truncate(path, content.rfind(b"\n") + 1)
