"""How close decoding and prefill come to what the machine can do at best.

    python -m benchmarks.roofline --json benchmarks/results/roofline.json
    python -m benchmarks.roofline --world all --num-envs 1,64
    python -m benchmarks.roofline --device cuda

Measures the machine (memory bandwidth at the size of the weights and far beyond the caches; matmul
rate), then plays worlds and looks at every forward pass of the model: its weights, the keys and
values that it reads and its FLOPs say how long it must take at least, the larger of bytes over
bandwidth and FLOPs over rate. Printed is what was measured, and over that least time (x):

* memory: the share of passes that bytes bound, rather than FLOPs;
* forward: the model's forward passes alone;
* decode: from the beginning of one decoding pass to that of the next, the choice of tokens and all
  Python included. The aim is 3 on a CPU, 2 on an H200. The median over passes stands beside the
  sum: other programs on the machine make single passes slow, and the sum with them.
* bare: only the matrix products of such a pass, with the model's weights, without attention,
  norms or Python: what part of the gap is theirs.

Nothing is guessed ahead here (``guesses=0``): a pass that checks guesses writes more than a token
per world, and could not be compared with one that reads its weights for each.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from benchmarks.forwards import Forward, Roofline, Weights

CPU_AIM, GPU_AIM = 3.0, 2.0


def arguments() -> argparse.ArgumentParser:
    """Returns the command line."""
    parser = command_line(__doc__)
    add_device(parser)
    parser.add_argument("--world", type=worlds, default="alfworld", help="some, or all")
    parser.add_argument("--num-envs", type=sizes, default="1,16,64")
    parser.add_argument("--steps", type=int, default=15, help="of every world")
    parser.add_argument(
        "--large-mib", type=int, default=0, help="largest working set (0: 512, on a GPU 4096)"
    )
    parser.add_argument(
        "--matmul", type=sizes, default=(), help="sizes of the products (default: by device)"
    )
    return parser


def machine_roofline(
    model: Any, options: argparse.Namespace
) -> tuple[Roofline, Weights, dict[str, Any]]:
    """Measures the machine that a command line names, for a model on it."""
    from benchmarks.forwards import Weights, measure_roofline

    cuda = options.device.startswith("cuda")
    weights = Weights.of(model)
    roofline, figures = measure_roofline(
        weights,
        model.dtype,
        options.device,
        large=(options.large_mib or (4096 if cuda else 512)) * 2**20,
        matmul_sizes=options.matmul or ((4096, 8192) if cuda else (512, 1024, 2048)),
    )
    return roofline, weights, figures


def split(
    calls: Sequence[Sequence[Forward]],
) -> tuple[list[Forward], list[Forward], list[tuple[Forward, float]]]:
    """Tells decoding passes from prefill.

    Args:
        calls: The forward passes of each call of the backend.

    Returns:
        Decoding passes, all others, and the decoding passes that another one follows, each with
        the seconds until that one began.
    """
    decode = [f for call in calls for f in call if f.width == 1]
    prefill = [f for call in calls for f in call if f.width > 1]
    followed = [
        (a, b.start - a.start)
        for call in calls
        for a, b in pairwise(call)
        if a.width == b.width == 1
    ]
    return decode, prefill, followed


def summarise(
    calls: Sequence[Sequence[Forward]],
    roofline: Roofline,
    weights: Weights,
    bare: Callable[[int], float],
) -> dict[str, Any]:
    """Compares forward passes with the roofline.

    Args:
        calls: The forward passes of each call of the backend.
        roofline: Of the machine.
        weights: Of the model.
        bare: Seconds of the bare matrix products of so many tokens.

    Returns:
        The figures of one row.
    """
    decode, prefill, followed = split(calls)
    periods = [seconds for _, seconds in followed]
    least = sum(roofline.seconds(weights, f) for f in decode)
    ratios = [seconds / roofline.seconds(weights, f) for f, seconds in followed]
    least_followed = sum(roofline.seconds(weights, f) for f, _ in followed)
    least_prefill = sum(roofline.seconds(weights, f) for f in prefill)
    by_bytes = [roofline.times(weights, f) for f in decode]
    tokens = sum(f.tokens for f in decode)
    rows = round(tokens / len(decode))
    spent, spent_prefill = (sum(f.seconds for f in part) for part in (decode, prefill))
    return {
        "decode_passes": len(decode),
        "rows_per_pass": tokens / len(decode),
        "context_per_row": sum(f.context for f in decode) / tokens,
        "bytes_per_token": sum(weights.bytes(f) for f in decode) / tokens,
        "flops_per_token": sum(weights.flops(f) for f in decode) / tokens,
        "bound_by_memory": sum(a > b for a, b in by_bytes) / len(by_bytes),
        "least_ms": 1e3 * least / len(decode),
        "forward_ms": 1e3 * spent / len(decode),
        "decode_ms": 1e3 * sum(periods) / len(periods),
        "bare_ms": 1e3 * bare(rows),
        "forward_ratio": spent / least,
        "decode_ratio": sum(periods) / least_followed,
        "decode_ratio_median": statistics.median(ratios),
        "tokens_per_second": sum(f.tokens for f, _ in followed) / sum(periods),
        "roofline_tokens_per_second": tokens / least,
        "prefill_passes": len(prefill),
        "prefill_tokens_per_second": sum(f.tokens for f in prefill) / spent_prefill,
        "prefill_roofline_tokens_per_second": sum(f.tokens for f in prefill) / least_prefill,
        "prefill_ratio": spent_prefill / least_prefill,
    }


def measure(
    world: str,
    count: int,
    options: argparse.Namespace,
    report: Report,
    known: dict[str, tuple[Roofline, Weights]],
) -> dict[str, Any]:
    """Plays so many worlds and compares their forward passes with the machine.

    Args:
        world: Its key.
        count: How many.
        options: The command line.
        report: Is told what was measured of the machine.
        known: What was measured for a world's model before; is added to.

    Returns:
        The figures of one row.
    """
    from benchmarks.forwards import ForwardLog, bare_products

    scripts = prepare(world, count, options.steps)
    calls: list[list[Forward]] = []
    with opened(world, count, {**backend_options(options), "guesses": 0}) as envs:
        engine = engine_of(envs)
        model = engine.model
        if world not in known:
            roofline, weights, figures = machine_roofline(model, options)
            known[world] = roofline, weights
            report.figures.setdefault("machine_measured", {})[world] = figures
        log = ForwardLog(engine)

        def note(step: int) -> None:
            calls.append(log.forwards())
            log.clear()

        start(envs, scripts)
        with log.watching():
            advance(envs, scripts, Played(), after=note)
        row = summarise(calls, *known[world], lambda n: bare_products(model, n, options.device))
    return {"world": world, "worlds": count, **row}


COLUMNS = {
    "world": "world", "worlds": "worlds", "rows": "rows_per_pass:.1f",
    "context": "context_per_row:.0f", "memory": "bound_by_memory:.0%", "least ms": "least_ms:.3f",
    "bare ms": "bare_ms:.3f", "forward ms": "forward_ms:.3f", "decode ms": "decode_ms:.3f",
    "forward x": "forward_ratio:.2f", "decode x": "decode_ratio:.2f",
    "median x": "decode_ratio_median:.2f", "tokens/s": "tokens_per_second:.0f",
    "at best": "roofline_tokens_per_second:.0f", "prefill x": "prefill_ratio:.2f",
}  # fmt: skip


def show(report: Report, rows: Sequence[dict[str, Any]]) -> None:
    """Prints the machine and the rows."""
    for name, figures in report.figures["machine_measured"].items():
        speeds = ", ".join(f"{v:.1f} GB/s at {k}" for k, v in figures["bandwidth_gb_per_s"].items())
        rates = ", ".join(f"{v:.0f} at {k}" for k, v in figures["matmul_gflop_per_s"].items())
        report.say(f"{name}: memory {speeds}; matmul GFLOP/s {rates} ({figures['dtype']})")
    report.table(
        "Forward passes against the machine's roofline (x: measured over the least time)",
        rows,
        COLUMNS,
    )


def main(line: Sequence[str] | None = None) -> None:
    """Measures, prints and writes."""
    options = parse(arguments(), line)
    report = Report("roofline", options)
    rows = []
    known: dict[str, tuple[Roofline, Weights]] = {}
    wanted = GPU_AIM if options.device.startswith("cuda") else CPU_AIM
    for world in options.world:
        for count in options.num_envs:
            report.say(f"{world}, {count} worlds")
            rows.append(row := measure(world, count, options, report, known))
            name = f"{world}, {count} worlds: decode over the roofline"
            report.aims.append(Aim(name, row["decode_ratio"], wanted, at_most=True))
    report.figures["rows"] = rows
    show(report, rows)
    report.close()


if __name__ == "__main__":
    main()
