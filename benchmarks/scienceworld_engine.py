"""ScienceWorld's engine: this package's twin against scienceworld's own, same games and commands.

    python -m benchmarks.scienceworld_engine --games 10 --episodes 300 --json out.json

Plays the engine's own solutions in both and compares what they say, up to the order of lists that
the stock engine leaves open. Times are CPU seconds of this process and of the JVM together, which
other work on the machine does not change much. Then it plays many episodes in the twin alone, one
of each task in turn, and adds up the resident memory of this process and of the JVM. Linux only:
it reads ``/proc``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.measure import Clock, Report, command_line, parse, resident_mib
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
        memory.append(resident_mib() + resident_mib(current_jvm().process_id))
    return memory


def measure(count: int, steps: int, episodes: int = 0) -> dict[str, Any]:
    """Plays so many games in both; returns the figures."""
    from scienceworld import ScienceWorldEnv as Package

    tasks = [task for task in VARIATIONS if not task.startswith(_RANDOM_TASKS)]
    games = [Game(task, 1) for task in tasks[:count]]
    env, package = ScienceWorldEnv(), Package()
    ours = [current_jvm().process_id]
    theirs = [package._gateway.java_process.pid]
    clocks = {name: Clock(ours) for name in ("step", "reset", "list commands")}
    stock = {name: Clock(theirs) for name in ("step", "reset")}
    described = Clock(ours)
    scenarios = [described.time(game_scenario, game) for game in games]
    plans = [scenario.real["plan"][:steps] for scenario in scenarios]
    agreed = turns = 0
    # The first pass warms the compilers of both JVMs up and is not counted.
    for counted in (False, True):
        a = clocks if counted else {name: Clock(ours) for name in clocks}
        b = stock if counted else {name: Clock(theirs) for name in stock}
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
    memory = memory_of_episodes(env, episodes, steps)
    env.close()
    figures: dict[str, Any] = {
        "games": len(games),
        "steps": clocks["step"].calls,
        "stock_steps_per_cpu_s": round(1 / stock["step"].cpu_per_call, 1),
        "steps_per_cpu_s": round(1 / clocks["step"].cpu_per_call, 1),
        "ratio": round(stock["step"].cpu_per_call / clocks["step"].cpu_per_call, 1),
        "stock_reset_cpu_s": round(stock["reset"].cpu_per_call, 3),
        "reset_cpu_s": round(clocks["reset"].cpu_per_call, 3),
        "list_commands_cpu_s": round(clocks["list commands"].cpu_per_call, 3),
        "describe_and_prove_cpu_s": round(described.cpu_per_call, 3),
        "observations_agree": f"{agreed}/{turns}",
    }
    if memory:
        figures["episodes"] = len(memory)
        figures["rss_mib_at_the_end"] = round(memory[-1])
        figures["largest_rss_mib"] = round(max(memory))
    return figures


def arguments() -> argparse.ArgumentParser:
    """Returns the command line."""
    parser = command_line(__doc__)
    parser.add_argument("--games", type=int, default=10, help="one per task, in alphabetical order")
    parser.add_argument("--steps", type=int, default=40, help="at most, per game")
    parser.add_argument("--episodes", type=int, default=0, help="then play so many, for memory")
    return parser


def main(line: Sequence[str] | None = None) -> None:
    """Runs the comparison, prints and writes it."""
    options = parse(arguments(), line)
    report = Report("scienceworld_engine", options)
    report.figures = measure(options.games, options.steps, options.episodes)
    report.list("ScienceWorld: the package's own environment and our twin")
    report.close()


if __name__ == "__main__":
    main()
