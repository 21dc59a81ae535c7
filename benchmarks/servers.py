"""Served worlds: this package's client against the loop that peers use, same server, same model.

    python benchmarks/servers.py --world alfworld --json out.json          # starts a vLLM server
    python benchmarks/servers.py --url http://127.0.0.1:8000/v1 --pid 123  # one that already runs

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
import json
import os
import platform
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import httpx

import gym_llmworld  # noqa: F401 - registers the environments
from gym_llmworld.backends.openai_server import OpenAIBackend
from gym_llmworld.checkpoints import checkpoint_style, embedded_model
from gym_llmworld.cli_serve import plan
from gym_llmworld.core import Message, Scenario, Step
from gym_llmworld.protocol import Protocol
from gym_llmworld.scenarios import ScenarioStore
from gym_llmworld.vector import WorldModelVectorEnv
from gym_llmworld.worlds import get_world

PATIENCE_SECONDS = 1800.0


@dataclass
class Clock:
    """Wall and CPU seconds of one way of stepping.

    Attributes:
        pids: Processes whose CPU seconds count.
        wall: Seconds so far.
        cpu: CPU seconds so far.
        texts: What the worlds answered, step by step.
    """

    pids: Sequence[int]
    wall: float = 0.0
    cpu: float = 0.0
    texts: list[tuple[str, ...]] = field(default_factory=list)

    def step(self, act: Callable[[], Sequence[str]]) -> None:
        """Measures one step of all worlds."""
        wall, cpu = time.perf_counter(), self._cpu()
        texts = act()
        self.wall += time.perf_counter() - wall
        self.cpu += self._cpu() - cpu
        self.texts.append(tuple(texts))

    def _cpu(self) -> float:
        return time.process_time() + sum(map(cpu_seconds, self.pids))


def cpu_seconds(pid: int) -> float:
    """Returns the CPU seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


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
    plans = [start.real["plan"] for start in starts]
    for i in range(steps):
        # Never to the end: a solved world would no longer be asked.
        actions = [moves[i % max(1, len(moves) - 1)] for moves in plans]
        for name, step in ways.items():
            clocks[name].step(lambda step=step, actions=actions: step(actions))  # type: ignore[misc]
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
            for ours, theirs in zip(clocks["ours"].texts, clocks["peers"].texts, strict=True)
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


def main() -> None:
    """Reads the command line, measures, prints and writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--world", default="alfworld", help="whose embedded model is served")
    parser.add_argument("--url", help="a vLLM server of it that already runs")
    parser.add_argument("--pid", type=int, help="its process")
    parser.add_argument("--num-envs", default="1,8,64")
    parser.add_argument("--steps", type=int, default=4, help="of every world")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
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
        for size in map(int, options.num_envs.split(",")):
            # Other games for every size, whose beginnings the server has not seen yet.
            starts, pool = pool[:size], pool[size:]
            rows.append(compare(options.world, url, style, starts, options.steps, pids))
            print(describe(rows[-1]), flush=True)
    if options.json:
        report = {"world": options.world, "rows": rows, "machine": machine()}
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def describe(row: dict[str, Any]) -> str:
    """Returns one line of the table."""
    speeds = ", ".join(
        f"{name} {row[name]['observations_per_second']:.1f}/s"
        f" ({row[name]['observations_per_cpu_second']:.1f} per CPU second)"
        for name in ("peers", "threads", "ours")
    )
    return (
        f"{row['worlds']:>3} worlds: {speeds}; ours x{row['ratio_to_peers']:.1f} of peers and "
        f"x{row['ratio_to_threads']:.1f} of threads (per CPU second x"
        f"{row['cpu_ratio_to_peers']:.1f} and x{row['cpu_ratio_to_threads']:.1f}); "
        f"{row['equal_observations']} of {row['steps']} observations equal"
    )


def machine() -> dict[str, Any]:
    """Returns what the figures depend on; a load above the cores says that it was shared."""
    return {
        "processors": os.cpu_count(),
        "load": os.getloadavg(),
        "platform": platform.platform(),
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    main()
