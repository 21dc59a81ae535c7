"""ALFWorld's engine: this package's against TextWorld's, same games, same commands, one run.

    python -m benchmarks.alfworld_engine --games 6 --steps 60 --json out.json

Both answer won and the admissible commands at every step, and must agree on every word. Times are
CPU seconds of this process, which other work on the machine does not change much.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.measure import Report, command_line, parse
from gym_llmworld.real.alfworld_engine import LoadedGame, Play
from gym_llmworld.real.alfworld_games import build_game
from gym_llmworld.real.alfworld_scenarios import game_scenario
from gym_llmworld.real.alfworld_tasks import sample_specs


def stock_engine() -> Any:
    """Returns TextWorld's engine as ALFWorld sets it up."""
    import textworld
    from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
    from textworld.envs.pddl import PddlEnv

    return AlfredDemangler(PddlEnv(textworld.EnvInfos(won=True, admissible_commands=True)))


def timed(function: Any, *arguments: Any) -> tuple[Any, float]:
    """Returns what a call returns, and its CPU seconds."""
    started = time.process_time()
    result = function(*arguments)
    return result, time.process_time() - started


def random_command(rng: random.Random, admissible: list[str]) -> str:
    """Draws a command; half of the draws from what is not a mere walk."""
    doing = [command for command in admissible if not command.startswith("go to")]
    return rng.choice(doing if rng.random() < 0.5 else admissible)


def compare(stock: Any, data: dict[str, Any], steps: int, seed: int) -> dict[str, list[float]]:
    """Plays one game in both engines; returns CPU seconds by engine and phase.

    Raises:
        AssertionError: The engines disagree.
    """
    rng = random.Random(seed)
    _, stock_load = timed(stock.load, data)
    state, stock_reset = timed(stock.reset)
    game, load = timed(LoadedGame, data)
    play, reset = timed(Play, game)
    _, again = timed(Play, game)
    ours, theirs = [], []
    assert play.turn.observation == state.feedback
    for _ in range(steps):
        command = random_command(rng, state["admissible_commands"])
        (state, _, done), seconds = timed(stock.step, command)
        theirs.append(seconds)
        turn, seconds = timed(play.step, command)
        ours.append(seconds)
        assert (turn.observation, turn.won) == (state.feedback, done), command
        assert turn.admissible == tuple(state["admissible_commands"]), command
    return {
        "stock_load": [stock_load],
        "stock_reset": [stock_reset],
        "stock_step": theirs,
        "load": [load],
        "first_reset": [reset],
        "reset": [again],
        "step": ours,
    }


def measure(games: int, steps: int, seed: int) -> dict[str, Any]:
    """Plays so many games in both engines; returns the figures."""
    specs = sample_specs("train", games, seed)
    stock = stock_engine()
    times: dict[str, list[float]] = {}
    for number, spec in enumerate(specs):
        data = build_game(spec).game_data()
        for phase, seconds in compare(stock, data, steps, number).items():
            times.setdefault(phase, []).extend(seconds)
    fresh = sample_specs("train", games, seed + 1)
    generated = [timed(game_scenario, spec)[1] for spec in fresh]
    stock_rate = len(times["stock_step"]) / sum(times["stock_step"])
    rate = len(times["step"]) / sum(times["step"])
    return {
        "games": games,
        "steps": len(times["step"]),
        "stock_steps_per_cpu_s": round(stock_rate, 1),
        "steps_per_cpu_s": round(rate, 1),
        "ratio": round(rate / stock_rate, 1),
        **{
            f"{phase}_cpu_s": round(statistics.mean(times[phase]), 4)
            for phase in ("stock_load", "stock_reset", "load", "first_reset", "reset")
        },
        "generate_and_prove_cpu_s": round(statistics.mean(generated), 4),
    }


def arguments() -> argparse.ArgumentParser:
    """Returns the command line."""
    parser = command_line(__doc__)
    parser.add_argument("--games", type=int, default=6, help="one of each task type per six")
    parser.add_argument("--steps", type=int, default=60, help="per game")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def main(line: Sequence[str] | None = None) -> None:
    """Runs the comparison, prints and writes it."""
    options = parse(arguments(), line)
    report = Report("alfworld_engine", options)
    report.figures = measure(options.games, options.steps, options.seed)
    report.list("ALFWorld's engine, stock and ours")
    report.close()


if __name__ == "__main__":
    main()
