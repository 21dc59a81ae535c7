"""Imagined steps against real ones, per CPU second: the stock engines, ours, and the world models.

    python -m benchmarks.real_worlds --json benchmarks/results/real_worlds.json
    python -m benchmarks.real_worlds --world alfworld,textworld --num-envs 1,64 --steps 10

For every world that ships a model:

* stock: the engine as its package steps it, with admissible commands where ALFWorld's own wrapper
  asks for them (ALFWorld: TextWorld's PDDL engine; ScienceWorld: the package's environment;
  TextWorld: `textworld.start`). The original WebShop needs a Lucene index and a search server that
  cannot be installed with pip, so that it has no such row.
* real: the twin of this package, ``RealWorld-<World>-v0``;
* imagined: ``LLMWorld-<World>-v0`` at each of --num-envs.

Counted are the CPU seconds of this process and, for ScienceWorld, of its JVM: other work on the
machine changes those little. Resets are not timed; what a first imagined step has to read is. Real
and imagined worlds take the same actions from the same starts; those of the first two stock engines
come from their own programs, `benchmarks.alfworld_engine` and `benchmarks.scienceworld_engine`.
Aims: more imagined steps than the stock ALFWorld engine, three times as many as ScienceWorld's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym

from benchmarks import alfworld_engine, scienceworld_engine
from benchmarks.measure import (
    Aim,
    Clock,
    Report,
    add_device,
    backend_options,
    command_line,
    embedded_worlds,
    parse,
    sizes,
    worlds,
)  # fmt: skip
from benchmarks.stepping import Script, play, prepare
from gym_llmworld.worlds import get_world


def arguments() -> argparse.ArgumentParser:
    """Returns the command line."""
    parser = command_line(__doc__)
    add_device(parser)
    every = ",".join(embedded_worlds())
    parser.add_argument("--world", type=worlds, default="all", help=f"some of {every}, or all")
    parser.add_argument("--num-envs", type=sizes, default="1,16,64")
    parser.add_argument("--steps", type=int, default=8, help="of every world")
    parser.add_argument(
        "--least-steps", type=int, default=40, help="few worlds play several episodes"
    )
    parser.add_argument("--games", type=int, default=4, help="of the real engines")
    return parser


def real(world: str, scripts: Sequence[Script]) -> Clock:
    """Steps the twin of this package through the scripts, up to their ends."""
    env = gym.make(get_world(world).real_id, disable_env_checker=True, max_episode_steps=-1)
    pids: tuple[int, ...] = ()
    if world == "scienceworld":
        from gym_llmworld.real.scienceworld_jvm import current_jvm

        pids = (current_jvm().process_id,)
    spare, clock = Clock(pids), Clock(pids)
    # The first episode warms compilers and caches up.
    for number, script in enumerate([scripts[0], *scripts]):
        _walk(env.unwrapped, script, clock if number else spare)
    env.close()
    return clock


def _walk(env: Any, script: Script, clock: Clock) -> None:
    env.reset(options={"scenario": script.start.id})
    done = 0
    with clock.running(calls=0):
        for action in script.actions:
            _, _, terminated, truncated, _ = env.step(action)
            done += 1
            if terminated or truncated:
                break
    clock.calls += done


def stock_alfworld(scripts: Sequence[Script]) -> float:
    """Returns steps per CPU second of TextWorld's PDDL engine, as ALFWorld sets it up."""
    steps = len(scripts[0].actions)
    figures = alfworld_engine.measure(len(scripts), steps, 0)
    return float(figures["stock_steps_per_cpu_s"])


def stock_scienceworld(scripts: Sequence[Script]) -> float:
    """Returns steps per CPU second of the package's environment."""
    figures = scienceworld_engine.measure(len(scripts), len(scripts[0].actions))
    return float(figures["stock_steps_per_cpu_s"])


def stock_textworld(scripts: Sequence[Script]) -> float:
    """Returns steps per CPU second of `textworld.start` with admissible commands."""
    import textworld

    from gym_llmworld.real.textworld_scenarios import scenario_story

    clock = Clock()
    infos = textworld.EnvInfos(admissible_commands=True, score=True, won=True, lost=True)
    for script in scripts:
        env = textworld.start(str(scenario_story(script.start)), infos)
        env.reset()
        for action in script.actions:
            _, _, done = clock.time(env.step, action)
            if done:
                break
        env.close()
    return 1 / clock.cpu_per_call


STOCK: Mapping[str, Callable[[Sequence[Script]], float]] = {
    "alfworld": stock_alfworld,
    "scienceworld": stock_scienceworld,
    "textworld": stock_textworld,
}
AIMS = {"alfworld": 1.0, "scienceworld": 3.0}
"""How many times the stock engine's steps an imagined world was to take."""


def measure(world: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measures one world on all sides."""
    scripts = prepare(world, options.games, options.steps)
    clock = real(world, scripts)
    stock = STOCK[world](scripts) if world in STOCK else None
    imagined = {}
    for count in options.num_envs:
        rounds = max(1, round(options.least_steps / (count * options.steps)))
        played = play(world, count, options.steps, backend_options(options), rounds)
        imagined[str(count)] = {
            "steps": played.steps,
            "steps_per_second": played.rate,
            "steps_per_cpu_second": played.cpu_rate,
            "tokens_per_step": played.tokens / played.steps,
            "ratio_to_stock": None if stock is None else played.cpu_rate / stock,
            "ratio_to_real": played.cpu_rate * clock.cpu_per_call,
        }
    return {
        "world": world,
        "stock_steps_per_cpu_second": stock,
        "real_steps_per_cpu_second": 1 / clock.cpu_per_call,
        "imagined": imagined,
    }


def main(line: Sequence[str] | None = None) -> None:
    """Measures, prints and writes."""
    options = parse(arguments(), line)
    report = Report("real_worlds", options)
    rows = []
    most = max(options.num_envs)
    for world in options.world:
        report.say(world)
        rows.append(row := measure(world, options))
        if world in AIMS:
            ratio = row["imagined"][str(most)]["ratio_to_stock"]
            name = f"{world}: imagined steps per CPU second over the stock engine's, {most} worlds"
            report.aims.append(Aim(name, ratio, AIMS[world]))
    report.figures["rows"] = rows
    cells = [
        {
            **row,
            "tokens": row["imagined"][str(most)]["tokens_per_step"],
            "best_to_stock": row["imagined"][str(most)]["ratio_to_stock"],
            "best_to_real": row["imagined"][str(most)]["ratio_to_real"],
            **{f"at_{n}": cell["steps_per_cpu_second"] for n, cell in row["imagined"].items()},
        }
        for row in rows
    ]
    report.table(
        "Steps per CPU second",
        cells,
        {
            "world": "world", "stock engine": "stock_steps_per_cpu_second:.1f",
            "our twin": "real_steps_per_cpu_second:.1f",
            **{f"imagined, {n}": f"at_{n}:.1f" for n in options.num_envs},
            "tokens/step": "tokens:.1f", f"{most} x stock": "best_to_stock:.2f",
            f"{most} x twin": "best_to_real:.3f",
        },
    )  # fmt: skip
    report.close()


if __name__ == "__main__":
    main()
