"""ScienceWorld's engine: this package's twin against scienceworld's own, same games and commands.

    python benchmarks/scienceworld_engine.py --games 10 --episodes 300 --json out.json

Plays the engine's own solutions in both and compares what they say, up to the order of lists that
the stock engine leaves open. Times are CPU seconds of this process and of the JVM together, which
other work on the machine does not change much. Then it plays many episodes in the twin alone, one
of each task in turn, and adds up the resident memory of this process and of the JVM. Linux only:
it reads ``/proc``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gym_llmworld.real.scienceworld_engine import VARIATIONS, Game
from gym_llmworld.real.scienceworld_env import ScienceWorldEnv
from gym_llmworld.real.scienceworld_jvm import current_jvm
from gym_llmworld.real.scienceworld_scenarios import game_scenario, scenario_id
from gym_llmworld.worlds.scienceworld import canonical

# What the engine itself answers differently from run to run is no measure of agreement.
_RANDOM_TASKS = ("grow-", "mendelian-", "use-thermometer")

# A walk through the house, from wherever a game begins; what is not there is refused.
_PLACES = ("hallway", "kitchen", "bathroom", "outside", "foundry", "greenhouse", "workshop")
_TOUR = (
    *("look around", "inventory", "open door to hallway", "go to hallway", "look around"),
    *(
        command
        for place in _PLACES
        for command in (f"open door to {place}", f"go to {place}", "look around", "wait1")
    ),
    *("open cupboard", "look in cupboard", "pick up thermometer", "inventory", "wait"),
)


def jvm_seconds(process_id: int) -> float:
    """Returns the CPU seconds that a process has used."""
    fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mib(process_id: int) -> float:
    """Returns the resident memory of a process."""
    status = Path(f"/proc/{process_id}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


class Clock:
    """Adds up the CPU seconds of this process and of a JVM.

    Args:
        process_id: Of the JVM.
    """

    def __init__(self, process_id: int) -> None:
        self._process_id = process_id
        self.seconds = 0.0
        self.calls = 0

    def time(self, function: Callable[..., Any], *arguments: Any, calls: int = 1) -> Any:
        """Calls a function and adds what it took, as so many calls."""
        started = time.process_time() + jvm_seconds(self._process_id)
        result = function(*arguments)
        self.seconds += time.process_time() + jvm_seconds(self._process_id) - started
        self.calls += calls
        return result

    @property
    def per_call(self) -> float:
        """CPU seconds of a call."""
        return self.seconds / self.calls


def walk(step: Callable[[str], Any], commands: Sequence[str]) -> list[Any]:
    """Returns what each command led to."""
    return [step(command) for command in commands]


def memory_of_episodes(env: ScienceWorldEnv, count: int, steps: int) -> list[float]:
    """Plays so many episodes; returns the memory of both processes after each, in MiB."""
    memory = []
    for i in range(count):
        task = list(VARIATIONS)[i % len(VARIATIONS)]
        game = Game(task, i // len(VARIATIONS) % VARIATIONS[task])
        env.reset(options={"scenario": scenario_id(game)})
        for command in _TOUR[:steps]:
            if env.step(command)[2]:
                break
        memory.append(resident_mib(os.getpid()) + resident_mib(current_jvm().process_id))
    return memory


def main() -> None:
    """Runs the comparison and prints it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--games", type=int, default=10, help="one per task, in alphabetical order")
    parser.add_argument("--steps", type=int, default=40, help="at most, per game")
    parser.add_argument("--episodes", type=int, default=0, help="then play so many, for memory")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    from scienceworld import ScienceWorldEnv as Package

    tasks = [task for task in VARIATIONS if not task.startswith(_RANDOM_TASKS)]
    games = [Game(task, 1) for task in tasks[: options.games]]
    env, package = ScienceWorldEnv(), Package()
    ours = current_jvm().process_id
    theirs = package._gateway.java_process.pid
    clocks = {name: Clock(ours) for name in ("step", "reset", "list commands")}
    stock = {name: Clock(theirs) for name in ("step", "reset")}
    described = Clock(ours)
    scenarios = [described.time(game_scenario, game) for game in games]
    plans = [scenario.real["plan"][: options.steps] for scenario in scenarios]
    agreed = turns = 0
    # The first pass warms the compilers of both JVMs up and is not counted.
    for counted in (False, True):
        if not counted:
            spare, spare_stock = {n: Clock(ours) for n in clocks}, {n: Clock(theirs) for n in stock}
        a, b = (clocks, stock) if counted else (spare, spare_stock)
        for game, plan in zip(games, plans, strict=True):
            start = {"scenario": scenario_id(game)}
            a["reset"].time(lambda start=start: env.reset(options=start))
            a["list commands"].time(env.play.admissible)
            said = a["step"].time(walk, env.step, plan, calls=len(plan))
            package.load(game.task, game.variation)
            b["reset"].time(package.reset)
            expected = b["step"].time(walk, package.step, plan, calls=len(plan))
            if counted:
                turns += len(plan)
                agreed += sum(
                    canonical(x[0]) == canonical(y[0]) for x, y in zip(said, expected, strict=True)
                )
    package.close()
    memory = memory_of_episodes(env, options.episodes, options.steps)
    env.close()
    figures = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "games": len(games),
        "steps": clocks["step"].calls,
        "stock_steps_per_cpu_s": round(1 / stock["step"].per_call, 1),
        "steps_per_cpu_s": round(1 / clocks["step"].per_call, 1),
        "ratio": round(stock["step"].per_call / clocks["step"].per_call, 1),
        "stock_reset_cpu_s": round(stock["reset"].per_call, 3),
        "reset_cpu_s": round(clocks["reset"].per_call, 3),
        "list_commands_cpu_s": round(clocks["list commands"].per_call, 3),
        "describe_and_prove_cpu_s": round(described.per_call, 3),
        "observations_agree": f"{agreed}/{turns}",
    }
    if memory:
        figures["episodes"] = len(memory)
        figures["rss_mib_at_the_end"] = round(memory[-1])
        figures["largest_rss_mib"] = round(max(memory))
    for name, value in figures.items():
        print(f"{name:28} {value}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
