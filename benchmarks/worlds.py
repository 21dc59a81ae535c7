"""Imagined worlds at 1, 4, 16, 64 and 256, against a loop that calls transformers' `generate`.

    python -m benchmarks.worlds --json benchmarks/results/worlds.json
    python -m benchmarks.worlds --world all --num-envs 1,64 --steps 10
    python -m benchmarks.worlds --device cuda

Three ways to step the same worlds with the same weights and the same actions, greedily:

* ours: `envs.step`: one batched call, which computes what is new in each history;
* loop: per world and step one `generate` with the full history, as a for-loop over environments;
* batched: one `generate` for up to --batch worlds, full histories, padded to the longest.

All start from an empty cache. What they answer must be the same, word for word; on a CPU the
program ends with status 1 where it is not. The loop takes its worlds one after the other, so that
its speed does not depend on their number: only the first --loop-worlds of them are stepped by it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from benchmarks.measure import (
    Aim,
    Report,
    add_device,
    backend_options,
    command_line,
    parse,
    sizes,
    worlds,
)  # fmt: skip
from benchmarks.stepping import Played, advance, engine_of, opened, prepare, start


def arguments() -> argparse.ArgumentParser:
    """Returns the command line."""
    parser = command_line(__doc__)
    add_device(parser)
    parser.add_argument("--world", type=worlds, default="alfworld", help="some, or all")
    parser.add_argument("--num-envs", type=sizes, default="1,4,16,64,256")
    parser.add_argument("--steps", type=int, default=15, help="of every world")
    parser.add_argument(
        "--least-steps", type=int, default=60, help="few worlds play several episodes"
    )
    parser.add_argument("--loop-worlds", type=int, default=8, help="of the loop, at most")
    parser.add_argument("--batch", type=int, default=64, help="of the batched loop, at most")
    return parser


def measure(world: str, count: int, options: argparse.Namespace) -> dict[str, Any]:
    """Steps so many worlds in all three ways.

    Returns:
        Rates, ratios and how many observations are equal.
    """
    from benchmarks.generate_loop import GenerateLoop, play

    rounds = max(1, round(options.least_steps / (count * options.steps)))
    scripts = [prepare(world, count, options.steps, skip=n * count) for n in range(rounds)]
    ours, batched = Played(), Played()
    with opened(world, count, backend_options(options)) as envs:
        peer = GenerateLoop.like(envs, options.device)
        for part in scripts:
            engine_of(envs).forget()
            start(envs, part)
            advance(envs, part, ours)
        few = [script for part in scripts for script in part][: options.loop_worlds]
        loop = play(peer, envs.imagination, few, 1)
        if 1 < count <= options.batch:
            batched = play(peer, envs.imagination, scripts[0], count)
    cells = [(ours.texts, loop.texts), (ours.texts, batched.texts)]
    compared, equal = (sum(values) for values in zip(*(agreement(*c) for c in cells), strict=True))
    return {
        "world": world,
        "worlds": count,
        "steps": ours.steps,
        "distinct_scenarios": len({script.start.id for part in scripts for script in part}),
        "steps_per_second": ours.rate,
        "steps_per_cpu_second": ours.cpu_rate,
        "tokens_per_second": ours.tokens / ours.clock.wall,
        "cached_share": ours.stats.cached_tokens / max(1, ours.stats.prompt_tokens),
        "evictions": ours.stats.evictions,
        "cache_mib": ours.stats.cache_bytes / 2**20,
        "loop_steps": loop.steps,
        "loop_steps_per_second": loop.rate,
        "batched_steps_per_second": batched.rate if batched.steps else None,
        "ratio_to_loop": ours.rate / loop.rate,
        "ratio_to_batched": ours.rate / batched.rate if batched.steps else None,
        "cpu_ratio_to_loop": ours.cpu_rate / loop.cpu_rate,
        "compared_observations": compared,
        "equal_observations": equal,
    }


def agreement(ours: Sequence[Sequence[str]], theirs: Sequence[Sequence[str]]) -> tuple[int, int]:
    """Returns how many observations both have given, and how many of them are equal."""
    pairs = [(a, b) for x, y in zip(ours, theirs, strict=False) for a, b in zip(x, y, strict=False)]
    return len(pairs), sum(a == b for a, b in pairs)


def aims(rows: Sequence[dict[str, Any]]) -> list[Aim]:
    """Returns what 64 worlds were to reach."""
    found = []
    for world in dict.fromkeys(row["world"] for row in rows):
        by_size = {row["worlds"]: row for row in rows if row["world"] == world}
        if 64 in by_size:
            ratio = by_size[64]["ratio_to_loop"]
            found.append(Aim(f"{world}: 64 worlds over the generate loop", ratio, 10.0))
            if 1 in by_size:
                ratio = by_size[64]["steps_per_second"] / by_size[1]["steps_per_second"]
                found.append(Aim(f"{world}: 64 worlds over one", ratio, 8.0))
    return found


def main(line: Sequence[str] | None = None) -> int:
    """Measures, prints and writes; returns 1 where the sides disagree on a CPU."""
    options = parse(arguments(), line)
    report = Report("worlds", options)
    rows: list[dict[str, Any]] = []
    for world in options.world:
        for count in options.num_envs:
            report.say(f"{world}, {count} worlds")
            rows.append(measure(world, count, options))
    report.figures["rows"] = rows
    report.aims = aims(rows)
    differ = sum(row["compared_observations"] - row["equal_observations"] for row in rows)
    if differ:
        report.notes.append(f"{differ} observations differ between the sides")
    report.table(
        "Imagined worlds against transformers' generate with the full history",
        rows,
        {
            "world": "world", "worlds": "worlds", "steps/s": "steps_per_second:.1f",
            "per CPU s": "steps_per_cpu_second:.1f", "tokens/s": "tokens_per_second:.0f",
            "cached": "cached_share:.0%", "cache MiB": "cache_mib:.0f", "evicted": "evictions",
            "loop": "loop_steps_per_second:.2f", "batched": "batched_steps_per_second:.2f",
            "x loop": "ratio_to_loop:.1f", "x batched": "ratio_to_batched:.1f",
            "equal": "equal_observations", "of": "compared_observations",
        },
    )  # fmt: skip
    report.close()
    return int(bool(differ) and options.device == "cpu")


if __name__ == "__main__":
    raise SystemExit(main())
