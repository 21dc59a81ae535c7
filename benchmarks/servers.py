"""Served worlds: this package's client against the loop that peers use, same server, same model.

    python -m benchmarks.servers --world alfworld --json out.json          # starts a vLLM server
    python -m benchmarks.servers --url http://127.0.0.1:8000/v1 --pid 123  # one that already runs

Three ways to step N worlds by one action each:

* ``peers``: world after world, a new connection and a blocking request with the whole history;
* ``threads``: the same request from N threads at once;
* ``ours``: ``envs.step``: one call, requests side by side over kept connections.

They take turns step by step, so that other work on the machine slows all of them alike, and each
has its own part of the server's prefix cache (vLLM's ``cache_salt``), which starts empty. Beside
the wall clock stand the CPU seconds of this process and the server together, which a shared machine
distorts much less. Linux only: it reads ``/proc``.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gymnasium as gym
import httpx

import gym_llmworld  # noqa: F401 - registers the environments
from benchmarks.measure import Aim, Clock, Report, command_line, parse, sizes
from benchmarks.stepping import endless
from gym_llmworld.backends.openai_server import OpenAIBackend
from gym_llmworld.checkpoints import checkpoint_style, embedded_model
from gym_llmworld.cli_serve import plan
from gym_llmworld.core import Message, Scenario, Step
from gym_llmworld.protocol import Protocol
from gym_llmworld.scenarios import ScenarioStore
from gym_llmworld.vector import WorldModelVectorEnv
from gym_llmworld.worlds import get_world

PATIENCE_SECONDS = 1800.0


def family(pid: int) -> list[int]:
    """Returns a process and all that descend from it."""
    parents = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(file.parent.name)] = int(file.read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for member in found:
        found += [child for child, parent in parents.items() if parent == member]
    return found


class PeerWorlds:
    """Worlds as peers step them: the client of each world sends its whole history.

    Args:
        url: Of the server.
        model: Its name there.
        protocol: Words the chats, as ours does.
        starts: Where the worlds start.
        salt: Part of the prefix cache.
        threads: How many requests at once.
    """

    def __init__(
        self,
        url: str,
        model: str,
        protocol: Protocol,
        starts: Sequence[Scenario],
        *,
        salt: str,
        threads: int,
    ) -> None:
        self._url, self._model, self._salt = f"{url}/chat/completions", model, salt
        self._protocol, self._starts = protocol, starts
        self._steps: list[tuple[Step, ...]] = [()] * len(starts)
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def step(self, actions: Sequence[str]) -> list[str]:
        """Steps every world; returns their observations."""
        run = self._pool.map if self._pool else map
        texts = list(run(self._ask, range(len(actions)), actions))
        for i, (action, text) in enumerate(zip(actions, texts, strict=True)):
            self._steps[i] += (Step(action, text),)
        return texts

    def _ask(self, world: int, action: str) -> str:
        chat: Sequence[Message] = self._protocol.encode(
            self._starts[world], self._steps[world], action
        )
        payload = {
            "model": self._model,
            "messages": [{"role": m.role, "content": m.content} for m in chat],
            "temperature": 0.0,
            "max_tokens": 256,
            "cache_salt": self._salt,
        }
        response = httpx.post(self._url, json=payload, timeout=600.0)
        response.raise_for_status()
        return str(response.json()["choices"][0]["message"]["content"])


def compare(
    world_key: str, url: str, style: str, starts: Sequence[Scenario], steps: int, pids: list[int]
) -> dict[str, Any]:
    """Steps the same worlds in all three ways, with the actions of their known solutions.

    Returns:
        The figures of one number of worlds.
    """
    world, count = get_world(world_key), len(starts)
    client = OpenAIBackend(url)
    model = client.served_model
    client.close()
    protocol = world.protocol(style)
    envs = gym.make_vec(
        world.imagined_id,
        num_envs=count,
        model=url,
        prompt_style=style,
        autoreset_mode="Disabled",
        backend_options={"concurrency": count, "timeout": 600.0},
    ).unwrapped
    assert isinstance(envs, WorldModelVectorEnv)
    envs.reset(seed=0, options={"scenario": [start.id for start in starts]})
    ways: dict[str, Callable[[Sequence[str]], Sequence[str]]] = {"ours": lambda a: envs.step(a)[0]}
    for name, threads in (("peers", 1), ("threads", count)):
        peers = PeerWorlds(
            url, model, protocol, starts, salt=f"{name}-{count}-{os.getpid()}", threads=threads
        )
        ways[name] = peers.step
    clocks = {name: Clock(pids) for name in ways}
    said: dict[str, list[Sequence[str]]] = {name: [] for name in ways}
    scripts = [endless(start.real["plan"], steps) for start in starts]
    for actions in zip(*scripts, strict=True):
        for name, step in ways.items():
            said[name].append(clocks[name].time(step, actions))
    envs.close()
    taken = count * steps
    rows = {
        name: {
            "observations_per_second": taken / clock.wall,
            "observations_per_cpu_second": taken / clock.cpu,
            "wall_seconds": clock.wall,
            "cpu_seconds": clock.cpu,
        }
        for name, clock in clocks.items()
    }
    return {
        "worlds": count,
        "steps": taken,
        "equal_observations": sum(
            a == b.removesuffix(" [SUCCESS]")
            for ours, theirs in zip(said["ours"], said["peers"], strict=True)
            for a, b in zip(ours, theirs, strict=True)
        ),
        **rows,
        "ratio_to_peers": clocks["peers"].wall / clocks["ours"].wall,
        "ratio_to_threads": clocks["threads"].wall / clocks["ours"].wall,
        "cpu_ratio_to_peers": clocks["peers"].cpu / clocks["ours"].cpu,
        "cpu_ratio_to_threads": clocks["threads"].cpu / clocks["ours"].cpu,
    }


@contextlib.contextmanager
def serving(world_key: str) -> Iterator[tuple[str, int]]:
    """Starts the server that `llmworld serve` would; yields its URL and process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    launch = plan(world_key, server="vllm", port=port)
    process = subprocess.Popen(
        launch.command,
        env={**launch.environment, **os.environ},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}/v1"
    try:
        started = time.monotonic()
        while process.poll() is None and time.monotonic() - started < PATIENCE_SECONDS:
            with contextlib.suppress(httpx.TransportError):
                httpx.get(f"{url}/models", timeout=60.0)
                break
            time.sleep(1.0)
        yield url, process.pid
    finally:
        process.terminate()
        process.wait(timeout=60)


def arguments() -> argparse.ArgumentParser:
    """Returns the command line."""
    parser = command_line(__doc__)
    parser.add_argument("--world", default="alfworld", help="whose embedded model is served")
    parser.add_argument("--url", help="a vLLM server of it that already runs")
    parser.add_argument("--pid", type=int, help="its process")
    parser.add_argument("--num-envs", type=sizes, default="1,8,64")
    parser.add_argument("--steps", type=int, default=4, help="of every world")
    return parser


def main(line: Sequence[str] | None = None) -> None:
    """Reads the command line, measures, prints and writes."""
    options = parse(arguments(), line)
    report = Report("servers", options)
    style = checkpoint_style(embedded_model(options.world), options.world)
    store = ScenarioStore(options.world)
    pool = [s for split in store.splits() for s in store.of_split(split) if s.real.get("plan")]
    server = (
        contextlib.nullcontext((options.url, options.pid))
        if options.url
        else serving(options.world)
    )
    rows = []
    with server as (url, pid):
        pids = family(pid) if pid else []
        compare(options.world, url, style, pool[-1:], 1, pids)  # warm-up
        for size in options.num_envs:
            # Other games for every size, whose beginnings the server has not seen yet.
            starts, pool = pool[:size], pool[size:]
            rows.append(compare(options.world, url, style, starts, options.steps, pids))
            report.say(f"{size} worlds: {rows[-1]['ratio_to_threads']:.1f} times the threads")
    report.figures["rows"] = rows
    for row in rows:
        if row["worlds"] == 64:
            ratio = row["ratio_to_threads"]
            report.aims.append(Aim("64 worlds over the peers' concurrent loop", ratio, 3.0))
    ways = ("ours", "peers", "threads")
    report.table(
        "Observations per second through the same vLLM server",
        [
            {**row, **{name: row[name]["observations_per_second"] for name in ways}}
            for row in rows
        ],
        {
            "worlds": "worlds", **{name: f"{name}:.1f" for name in ways},
            "x peers": "ratio_to_peers:.1f", "x threads": "ratio_to_threads:.1f",
            "CPU: x peers": "cpu_ratio_to_peers:.1f", "CPU: x threads": "cpu_ratio_to_threads:.1f",
            "equal": "equal_observations", "of": "steps",
        },
    )  # fmt: skip
    report.close()


if __name__ == "__main__":
    main()
