"""A random-weight model of a published shape: how fast worlds would step with it.

    python -m benchmarks.shape --shape qwen2-1.5b --device cuda --json ...
    python -m benchmarks.shape --shape tiny --num-envs 1,4 --steps 3

Speed depends on a model's shape, not on what its weights say. The program builds a checkpoint of
the shape with random weights in a temporary folder, with the tokenizer of one of this package's
models (the logits keep the shape's own vocabulary), and deletes it at the end. As such a model
writes nonsense, the episodes are written by the embedded model first; then each step of each is
asked again of the big one, which writes --tokens tokens of its own: chats, caches and batches are
those of real episodes, and what is computed is the last observation and the answer. Beside it stand
the loop that calls transformers' `generate` with the full history per world, and the machine's
roofline (`benchmarks.roofline`; the aim is 2 on an H200).

qwen2-1.5b takes 3 GB of disk and of GPU memory; on a CPU it takes 6 GB and minutes.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.measure import (
    Aim,
    Clock,
    Report,
    add_device,
    backend_options,
    command_line,
    parse,
    sizes,
)  # fmt: skip
from benchmarks.roofline import CPU_AIM, GPU_AIM, machine_roofline, show, summarise
from benchmarks.stepping import Played, advance, opened, prepare, start
from gym_llmworld.checkpoints import checkpoint_style, embedded_model
from gym_llmworld.imagination import Imagination
from gym_llmworld.session import Session

if TYPE_CHECKING:
    from benchmarks.forwards import Forward, Roofline, Weights

SHAPES: dict[str, dict[str, Any]] = {
    # Qwen/Qwen2-1.5B, config.json
    "qwen2-1.5b": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
        "max_position_embeddings": 32768,
    },
    # For trying the program out.
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 4096,
        "tie_word_embeddings": True,
        "max_position_embeddings": 4096,
    },
}


def arguments() -> argparse.ArgumentParser:
    """Returns the command line."""
    parser = command_line(__doc__)
    add_device(parser)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="qwen2-1.5b")
    parser.add_argument("--world", default="alfworld", help="whose episodes and tokenizer")
    parser.add_argument("--num-envs", type=sizes, default="1,4,16,64,256")
    parser.add_argument("--steps", type=int, default=15, help="of every world")
    parser.add_argument("--tokens", type=int, default=16, help="that each answer has")
    parser.add_argument("--loop-worlds", type=int, default=4, help="of the loop, at most")
    parser.add_argument("--large-mib", type=int, default=0, help="see benchmarks.roofline")
    parser.add_argument("--matmul", type=sizes, default=(), help="see benchmarks.roofline")
    return parser


def build(shape: str, world: str, folder: Path, device: str) -> int:
    """Writes a checkpoint with random weights; returns how many parameters it has."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config

    tokenizer: Any = AutoTokenizer.from_pretrained(embedded_model(world))
    config = Qwen2Config(**SHAPES[shape], bos_token_id=None, eos_token_id=tokenizer.eos_token_id)
    torch.manual_seed(0)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    with torch.device(device):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return int(model.num_parameters())


def episodes(world: str, count: int, options: argparse.Namespace) -> list[Session]:
    """Returns episodes that the embedded model has written."""
    scripts = prepare(world, count, options.steps)
    with opened(world, count, backend_options(options)) as envs:
        start(envs, scripts)
        advance(envs, scripts, Played())
        return list(envs.sessions)


def measure(
    model: Path,
    count: int,
    options: argparse.Namespace,
    report: Report,
    known: dict[str, tuple[Roofline, Weights]],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Asks the big model for every step of so many episodes.

    Args:
        model: Its checkpoint.
        count: How many episodes.
        options: The command line.
        report: Is told what was measured of the machine.
        known: What was measured for the shape before; is added to.

    Returns:
        Rates, and the comparison with the roofline.
    """
    from benchmarks.forwards import ForwardLog, bare_products

    sessions = episodes(options.world, count, options)
    imagination = Imagination.open(
        options.world,
        model=str(model),
        prompt_style=checkpoint_style(embedded_model(options.world), options.world),
        backend_options={**backend_options(options), "guesses": 0},
        max_tokens=options.tokens,
    )
    backend: Any = imagination.backend
    engine = backend.engine
    if options.shape not in known:
        roofline, weights, figures = machine_roofline(engine.model, options)
        known[options.shape] = roofline, weights
        report.figures["machine_measured"] = {options.shape: figures}
    log, clock = ForwardLog(engine), Clock()
    watched: list[list[Forward]] = []
    for i in range(options.steps):
        part = [s for s in sessions if len(s.steps) > i]
        requests = [(s.rewind(i), s.steps[i].action, 0) for s in part]
        clock.time(imagination.ask, requests, calls=len(requests))
    # Again for the roofline: on a GPU, watching waits for every pass.
    engine.forget()
    stats = imagination.stats
    with log.watching():
        for i in range(options.steps):
            part = [s for s in sessions if len(s.steps) > i]
            imagination.ask([(s.rewind(i), s.steps[i].action, 0) for s in part])
            watched.append(log.forwards())
            log.clear()
    against = summarise(
        watched, *known[options.shape], lambda n: bare_products(engine.model, n, options.device)
    )
    loop = _loop(model, engine.stops, sessions[: options.loop_worlds], options)
    rates = {
        "worlds": count,
        "steps": clock.calls,
        "steps_per_second": clock.calls / clock.wall,
        "tokens_per_second": stats.generated_tokens / 2 / clock.wall,
        "cached_share": stats.cached_tokens / stats.prompt_tokens,
        "cache_mib": engine.stats.cache_bytes / 2**20,
        "evictions": engine.stats.evictions,
        "loop_steps_per_second": loop.calls / loop.wall,
        "ratio_to_loop": (clock.calls / clock.wall) / (loop.calls / loop.wall),
    }
    backend.close()
    return rates, {"world": options.shape, "worlds": count, **against}


def _loop(
    model: Path, stops: Sequence[int], sessions: Sequence[Session], options: argparse.Namespace
) -> Clock:
    from benchmarks.generate_loop import GenerateLoop

    loop = GenerateLoop(str(model), options.device, stops, options.tokens)
    clock = Clock()
    for session in sessions:
        for i, step in enumerate(session.steps):
            prompt = session.rewind(i).prompt(step.action)
            assert prompt is not None
            clock.time(loop.answer, [prompt])
    return clock


def main(line: Sequence[str] | None = None) -> None:
    """Builds the model, measures, prints and writes."""
    options = parse(arguments(), line)
    report = Report("shape", options)
    rows, against = [], []
    known: dict[str, tuple[Roofline, Weights]] = {}
    wanted = GPU_AIM if options.device.startswith("cuda") else CPU_AIM
    with tempfile.TemporaryDirectory(prefix="llmworld-shape-") as folder:
        report.say(f"building {options.shape}")
        model = Path(folder)
        report.figures["parameters"] = build(options.shape, options.world, model, options.device)
        for count in options.num_envs:
            report.say(f"{count} worlds")
            rates, row = measure(model, count, options, report, known)
            rows.append(rates)
            against.append(row)
            name = f"{options.shape}, {count} worlds: decode over the roofline"
            report.aims.append(Aim(name, row["decode_ratio"], wanted, at_most=True))
    report.figures |= {"rows": rows, "roofline": against}
    report.notes.append("random weights: the figures say how fast, not how well")
    report.table(
        f"Worlds with a random {options.shape}, {options.tokens} tokens per step",
        rows,
        {
            "worlds": "worlds", "steps/s": "steps_per_second:.1f",
            "tokens/s": "tokens_per_second:.0f", "cached": "cached_share:.0%",
            "cache MiB": "cache_mib:.0f", "evicted": "evictions",
            "generate loop steps/s": "loop_steps_per_second:.2f", "x loop": "ratio_to_loop:.1f",
        },
    )  # fmt: skip
    show(report, against)
    report.close()


if __name__ == "__main__":
    main()
