"""What the 1st to the 50th step of an episode costs, against `generate` with the full history.

    python -m benchmarks.step_cost --json benchmarks/results/step_cost.json --plot out/step_cost.png
    python -m benchmarks.step_cost --world alfworld --steps 50 --episodes 8

One world takes the same harmless action over and over, so that its answers have the same length and
only the history grows. The fastest of --episodes episodes counts for each step: other programs of
the machine can make a step slower, never faster. Beside it stands what one `generate` call costs
that is given the full history at the same length (every --every-th step, best of two). The aim: a
40th step costs at most 1.2 times a 5th, both as the median of five steps around.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import (
    Aim,
    Clock,
    Report,
    add_device,
    backend_options,
    command_line,
    embedded_worlds,
    parse,
    worlds,
)  # fmt: skip
from benchmarks.stepping import engine_of, opened, prepare, start
from gym_llmworld.cli_bench import step_cost
from gym_llmworld.worlds import get_world

ACTIONS = {"webshop": "click[back to search]"}
"""What leads to an answer of the same length every time; elsewhere it is ``inventory``."""

EARLY, LATE, COST_AIM = 5, 40, 1.2
BARS = " ▁▂▃▄▅▆▇█"


def arguments() -> argparse.ArgumentParser:
    """Returns the command line."""
    parser = command_line(__doc__)
    add_device(parser)
    every = ",".join(embedded_worlds())
    parser.add_argument("--world", type=worlds, default="all", help=f"some of {every}, or all")
    parser.add_argument("--steps", type=int, default=50, help="length of the episodes")
    parser.add_argument("--episodes", type=int, default=5, help="the fastest counts")
    parser.add_argument("--every", type=int, default=10, help="steps that `generate` answers, too")
    parser.add_argument("--plot", type=Path, help="draw the curves here (needs matplotlib)")
    return parser


def around(costs: Sequence[float], step: int) -> float:
    """Returns the median cost of the five steps around a step, which counts from 1."""
    return statistics.median(costs[max(0, min(step, len(costs)) - 3) : step + 2])


def growth(costs: Sequence[float]) -> float | None:
    """Returns the cost of step 40 over that of step 5; None for shorter episodes."""
    return around(costs, LATE) / around(costs, EARLY) if len(costs) >= LATE else None


def curve(costs: Sequence[float]) -> str:
    """Draws costs as one line of bars from zero to the largest."""
    top = max(costs)
    return "".join(BARS[round(cost / top * (len(BARS) - 1))] for cost in costs)


def measure(world: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measures both sides in one world."""
    action = ACTIONS.get(world, "inventory")
    spec = get_world(world)
    costs = step_cost(
        spec.imagined_id,
        action=action,
        steps=options.steps,
        seed=0,
        options={"backend_options": backend_options(options)},
        episodes=options.episodes,
    )
    loop = loop_cost(world, action, options)
    shared = [step for step in loop if step <= len(costs)]
    last = shared[-1]
    return {
        "world": world,
        "action": action,
        "steps": len(costs),
        "seconds": costs,
        "early_ms": 1e3 * around(costs, EARLY),
        "late_ms": 1e3 * around(costs, len(costs)),
        "growth": growth(costs),
        "loop_seconds": {str(step): loop[step] for step in shared},
        "loop_growth": loop[last] / loop[shared[0]],
        "ratio_at_the_end": loop[last] / around(costs, last),
        "compared_up_to": last,
    }


def loop_cost(world: str, action: str, options: argparse.Namespace) -> dict[int, float]:
    """Measures `generate` with the history of our own episode; returns seconds by step."""
    from benchmarks.generate_loop import GenerateLoop

    costs = {}
    scripts = prepare(world, 1, 1)
    with opened(world, 1, backend_options(options)) as envs:
        loop = GenerateLoop.like(envs, options.device)
        engine_of(envs).forget()
        start(envs, scripts)
        for step in range(1, options.steps + 1):
            prompt = envs.sessions[0].prompt(action)
            assert prompt is not None
            if step == 1 or step % options.every == 0:
                clocks = [Clock(), Clock()]
                for clock in clocks:
                    clock.time(loop.answer, [prompt])
                costs[step] = min(clock.wall for clock in clocks)
            _, _, terminated, truncated, _ = envs.step([action])
            if terminated[0] or truncated[0]:
                break
    return costs


def plot(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Draws the curves of all worlds, one panel each."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(rows), 3.6), layout="constrained")
    figure.suptitle("Cost of a step against the length of the episode", fontsize="medium")
    for axes, row in zip(figure.subplots(1, len(rows), squeeze=False)[0], rows, strict=True):
        steps = range(1, len(row["seconds"]) + 1)
        axes.plot(steps, [1e3 * cost for cost in row["seconds"]], label="gym-llmworld")
        loop = row["loop_seconds"]
        axes.plot(
            [int(step) for step in loop],
            [1e3 * cost for cost in loop.values()],
            "o--",
            label="generate, full history",
        )
        axes.set_title(row["world"], fontsize="small")
        axes.set_xlabel("step")
        axes.set_ylabel("milliseconds")
        axes.set_yscale("log")
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize="x-small")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)


def main(line: Sequence[str] | None = None) -> None:
    """Measures, prints, draws and writes."""
    options = parse(arguments(), line)
    report = Report("step_cost", options)
    rows = []
    for world in options.world:
        report.say(world)
        rows.append(row := measure(world, options))
        if row["growth"] is not None:
            name = f"{world}: step {LATE} over step {EARLY}"
            report.aims.append(Aim(name, row["growth"], COST_AIM, at_most=True))
    report.figures["rows"] = rows
    report.table(
        "Cost of a step as the episode grows",
        [{**row, "curve": curve(row["seconds"])} for row in rows],
        {
            "world": "world", "steps": "steps", f"step {EARLY} ms": "early_ms:.1f",
            "last ms": "late_ms:.1f", f"step {LATE}/{EARLY}": "growth:.2f",
            "generate: growth": "loop_growth:.1f", "to step": "compared_up_to",
            "ours x generate": "ratio_at_the_end:.1f", "ours, step by step": "curve",
        },
    )  # fmt: skip
    if options.plot:
        plot(rows, options.plot)
    report.close()


if __name__ == "__main__":
    main()
