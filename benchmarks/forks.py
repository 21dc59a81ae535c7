"""What 64 forks of a 30-step episode cost, against 64 worlds that replay it.

    python -m benchmarks.forks --json benchmarks/results/forks.json
    python -m benchmarks.forks --world webshop --steps 10 --forks 16

Both sides bring --forks worlds to the same point, step 30 of one episode, and then take one step in
all of them with one batched call. One side steps a single world there, takes its `snapshot` and
starts all worlds from it (`envs.reset(options={"start": snapshot})`); the other steps all worlds
from the beginning. `env.fork()` of a single environment is timed, too. Each side runs in a process
of its own, so that its memory is its own. Memory of keys and values is what the backend reports;
resident memory is that of the process, over what it was before the episode.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import gymnasium as gym

from benchmarks.measure import (
    Clock,
    Report,
    add_device,
    backend_options,
    command_line,
    parse,
    resident_mib,
    set_threads,
    worlds,
)  # fmt: skip
from benchmarks.stepping import Played, advance, engine_of, opened, prepare, start
from gym_llmworld.env import WorldModelEnv
from gym_llmworld.vector import WorldModelVectorEnv
from gym_llmworld.worlds import get_world

TRIES = 10


def arguments() -> argparse.ArgumentParser:
    """Returns the command line."""
    parser = command_line(__doc__)
    add_device(parser)
    parser.add_argument("--world", type=worlds, default="alfworld", help="some, or all")
    parser.add_argument("--forks", type=int, default=64)
    parser.add_argument("--steps", type=int, default=30, help="of the episode before the forks")
    return parser


def forked(world: str, options: argparse.Namespace) -> dict[str, Any]:
    """Plays one world, forks it and steps the forks."""
    set_threads(options.threads)
    copying, starting = Clock(), Clock()
    with opened(world, options.forks, backend_options(options), warm=False) as envs:
        env = _single(world, options)
        before = _memory(envs)
        number, trunk = _episode(env, world, options.steps)
        alone = _memory(envs)
        copies = copying.time(lambda: [env.fork() for _ in range(options.forks)])
        starting.time(lambda: envs.reset(seed=0, options={"start": env.snapshot()}))
        after = _memory(envs)
        for copy in (*copies, env):
            copy.close()
        return {
            "script": number,
            "seconds_to_the_point": trunk.wall + starting.wall,
            "ms_per_fork": 1e3 * copying.wall / options.forks,
            "ms_per_start": 1e3 * starting.wall / options.forks,
            "fork_cache_mib": after["cache_mib"] - alone["cache_mib"],
            "fork_resident_mib": after["resident_mib"] - alone["resident_mib"],
            **_first_step(envs, before),
        }


def _episode(env: WorldModelEnv, world: str, steps: int) -> tuple[int, Clock]:
    """Plays the first scenario that lasts so long; returns its number and what it took.

    Raises:
        SystemExit: There is none.
    """
    for number in range(TRIES):
        [script] = prepare(world, 1, steps, skip=number)
        clock = Clock()
        env.reset(seed=0, options={"scenario": script.start.id})
        for action in script.actions:
            _, _, terminated, truncated, _ = clock.time(env.step, action)
            if terminated or truncated:
                break
        else:
            return number, clock
    raise SystemExit(f"{world}: none of {TRIES} episodes lasts {steps} steps; use fewer --steps")


def replayed(world: str, options: argparse.Namespace, number: int) -> dict[str, Any]:
    """Steps all worlds from the beginning of the scenario of this number."""
    set_threads(options.threads)
    scripts = prepare(world, 1, options.steps, skip=number) * options.forks
    with opened(world, options.forks, backend_options(options), warm=False) as envs:
        _single(world, options).close()
        before = _memory(envs)
        start(envs, scripts)
        played = Played()
        advance(envs, scripts, played)
        return {"seconds_to_the_point": played.clock.wall, **_first_step(envs, before)}


def _single(world: str, options: argparse.Namespace) -> WorldModelEnv:
    """Opens one world that shares the engine, and warms it up with that."""
    env = gym.make(
        get_world(world).imagined_id,
        disable_env_checker=True,
        max_episode_steps=-1,
        backend_options=backend_options(options),
    ).unwrapped
    assert isinstance(env, WorldModelEnv)
    [script] = prepare(world, 1, 2, skip=1)
    env.reset(options={"scenario": script.start.id})
    for action in script.actions:
        env.step(action)
    backend: Any = env.imagination.backend
    backend.engine.forget()
    return env


def _first_step(envs: WorldModelVectorEnv, before: dict[str, float]) -> dict[str, Any]:
    """Steps all worlds once, with as many different actions as the episode has had."""
    seen = list(dict.fromkeys(step.action for step in envs.sessions[0].steps))
    clock = Clock()
    cached, prompts = envs.stats.cached_tokens, envs.stats.prompt_tokens
    texts = clock.time(envs.step, [seen[i % len(seen)] for i in range(envs.num_envs)])[0]
    after = _memory(envs)
    return {
        "first_step_seconds": clock.wall,
        "first_step_cached_share": (envs.stats.cached_tokens - cached)
        / (envs.stats.prompt_tokens - prompts),
        "cache_mib": after["cache_mib"],
        "resident_mib": after["resident_mib"] - before["resident_mib"],
        "texts": list(texts),
    }


def _memory(envs: WorldModelVectorEnv) -> dict[str, float]:
    stats = engine_of(envs).stats
    return {"cache_mib": stats.cache_bytes / 2**20, "resident_mib": resident_mib()}


def _apart(side: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Runs a side in a process that shares nothing with this one."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(side, *arguments).result()


def measure(world: str, options: argparse.Namespace) -> dict[str, Any]:
    """Runs both sides, one after the other.

    Raises:
        RuntimeError: The forks answer otherwise than the worlds that replayed the episode.
    """
    ours = _apart(forked, world, options)
    theirs = _apart(replayed, world, options, ours.pop("script"))
    equal = sum(a == b for a, b in zip(ours.pop("texts"), theirs.pop("texts"), strict=True))
    if equal != options.forks and options.device == "cpu":
        raise RuntimeError(f"{world}: {options.forks - equal} forks answer otherwise than replays")
    first, second = (
        side["seconds_to_the_point"] + side["first_step_seconds"] for side in (ours, theirs)
    )
    return {
        "world": world,
        "forks": options.forks,
        "steps": options.steps,
        "forked": ours,
        "replayed": theirs,
        "equal_observations": equal,
        "ratio": second / first,
    }


def main(line: Sequence[str] | None = None) -> None:
    """Measures, prints and writes."""
    options = parse(arguments(), line)
    report = Report("forks", options)
    rows = []
    for world in options.world:
        report.say(world)
        rows.append(measure(world, options))
    report.figures["rows"] = rows
    report.table(
        f"{options.forks} worlds at step {options.steps} of one episode",
        [
            {"world": row["world"], "side": side, "equal": row["equal_observations"], **row[side]}
            for row in rows
            for side in ("forked", "replayed")
        ],
        {
            "world": "world", "side": "side", "to get there s": "seconds_to_the_point:.2f",
            "ms per env.fork()": "ms_per_fork:.2f", "ms per start": "ms_per_start:.3f",
            "forks' cache MiB": "fork_cache_mib:.1f", "forks' RSS MiB": "fork_resident_mib:.1f",
            "first step s": "first_step_seconds:.2f", "cached": "first_step_cached_share:.0%",
            "cache MiB": "cache_mib:.0f", "RSS MiB": "resident_mib:.0f", "equal": "equal",
        },
    )  # fmt: skip
    for row in rows:
        report.notes.append(
            f"{row['world']}: forked worlds had taken their first step {row['ratio']:.1f} times as "
            "fast as those that replay"
        )
    report.close()


if __name__ == "__main__":
    main()
