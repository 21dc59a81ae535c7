"""Where the time of a step goes: the model's forward passes, the backend around them, Python.

    python -m benchmarks.overhead --json benchmarks/results/overhead.json
    python -m benchmarks.overhead --world all --num-envs 64 --top 25

Plays worlds three times: once to measure how much of `envs.step` is spent inside the model's
forward pass, in the rest of the backend (encoding chats, finding their keys and values, choosing
tokens) and outside of the backend (sessions, protocol, spaces, infos); once under cProfile, for
the functions that take most time themselves; and once under torch's profiler, for the operators.
Profilers slow down what they look at, so only the first run's shares are to be quoted. The aim is
at most 10 % outside of the forward pass at 64 worlds.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
from collections.abc import Sequence
from pathlib import Path
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

PYTHON_AIM = 0.10


def arguments() -> argparse.ArgumentParser:
    """Returns the command line."""
    parser = command_line(__doc__)
    add_device(parser)
    parser.add_argument("--world", type=worlds, default="alfworld", help="some, or all")
    parser.add_argument("--num-envs", type=sizes, default="64")
    parser.add_argument("--steps", type=int, default=15, help="of every world")
    parser.add_argument("--top", type=int, default=15, help="lines of each list")
    return parser


def measure(world: str, count: int, options: argparse.Namespace) -> dict[str, Any]:
    """Plays so many worlds, plain and under both profilers.

    Returns:
        Shares of the wall clock, and both lists.
    """
    from torch.profiler import ProfilerActivity, profile

    from benchmarks.forwards import ForwardLog

    scripts = prepare(world, count, options.steps)
    played, profiled = Played(), Played()
    with opened(world, count, backend_options(options)) as envs:
        engine = engine_of(envs)
        log = ForwardLog(engine)
        start(envs, scripts)
        backend = envs.stats.seconds
        with log.watching():
            advance(envs, scripts, played)
        backend = envs.stats.seconds - backend
        profiler = cProfile.Profile()
        engine.forget()
        start(envs, scripts)
        with profiler:
            advance(envs, scripts, profiled)
        activities = [ProfilerActivity.CPU]
        if options.device.startswith("cuda"):
            activities.append(ProfilerActivity.CUDA)
        short = prepare(world, count, min(4, options.steps))
        engine.forget()
        start(envs, short)
        with profile(activities=activities) as traced:
            advance(envs, short, Played())
    wall = played.clock.wall
    return {
        "world": world,
        "worlds": count,
        "steps": played.steps,
        "steps_per_second": played.rate,
        "ms_per_step": 1e3 * wall / played.steps,
        "forward_share": log.seconds / wall,
        "backend_share": (backend - log.seconds) / wall,
        "rest_share": 1.0 - backend / wall,
        "outside_forward_share": 1.0 - log.seconds / wall,
        "functions": functions(profiler, options.top),
        "operators": operators(traced, options.top),
    }


def functions(profiler: cProfile.Profile, top: int) -> list[dict[str, Any]]:
    """Returns the functions that took most time themselves, with their share of all of it."""
    stats: dict[tuple[str, int, str], tuple[Any, ...]] = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    total = sum(entry[2] for entry in stats.values())
    largest = sorted(stats.items(), key=lambda item: item[1][2], reverse=True)[:top]
    return [
        {
            "function": f"{place(file)}:{name}" if file != "~" else name,
            "calls": entry[1],
            "share": entry[2] / total,
        }
        for (file, _, name), entry in largest
    ]


def place(file: str) -> str:
    """Returns a source file without what only this machine calls so."""
    parts = Path(file).parts
    for root in ("site-packages", "gym_llmworld", "benchmarks"):
        if root in parts:
            first = parts.index(root) + (root == "site-packages")
            return "/".join(parts[first:])
    return Path(file).name


def operators(traced: Any, top: int) -> list[dict[str, Any]]:
    """Returns torch's operators by their own CPU time, on a GPU by their time there."""
    events = list(traced.key_averages())
    device = any(event.self_device_time_total for event in events)

    def own(event: Any) -> float:
        return float(event.self_device_time_total if device else event.self_cpu_time_total)

    total = sum(map(own, events)) or 1.0
    largest = sorted(events, key=own, reverse=True)[:top]
    return [{"operator": e.key, "calls": e.count, "share": own(e) / total} for e in largest]


def main(line: Sequence[str] | None = None) -> None:
    """Measures, prints and writes."""
    options = parse(arguments(), line)
    report = Report("overhead", options)
    rows = []
    for world in options.world:
        for count in options.num_envs:
            report.say(f"{world}, {count} worlds")
            rows.append(row := measure(world, count, options))
            if count >= 64:
                name = f"{world}, {count} worlds: share outside of the model's forward pass"
                share = row["outside_forward_share"]
                report.aims.append(Aim(name, share, PYTHON_AIM, at_most=True))
    report.figures["rows"] = rows
    report.table(
        "Where the time of a step goes",
        rows,
        {
            "world": "world", "worlds": "worlds", "steps/s": "steps_per_second:.1f",
            "ms/step": "ms_per_step:.2f", "forward": "forward_share:.1%",
            "rest of the backend": "backend_share:.1%", "outside of it": "rest_share:.1%",
        },
    )  # fmt: skip
    for row in rows:
        title = f"{row['world']}, {row['worlds']} worlds"
        columns = {"function": "function", "calls": "calls", "own time": "share:.1%"}
        report.table(f"{title}: functions (cProfile)", row["functions"], columns)
        columns = {"operator": "operator", "calls": "calls", "own time": "share:.1%"}
        report.table(f"{title}: operators (torch.profiler)", row["operators"], columns)
    report.close()


if __name__ == "__main__":
    main()
