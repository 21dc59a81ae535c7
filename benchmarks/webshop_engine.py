"""The bundled WebShop: how fast it builds its shop and answers, and how well its customers shop.

    python -m benchmarks.webshop_engine --games 200 --json out.json

Plays held-out goals with every agent. Times are CPU seconds of this process; an agent's own time
is not counted.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.measure import Report, command_line, parse
from gym_llmworld.agents import Agent
from gym_llmworld.collection import play
from gym_llmworld.real.webshop_env import WebShopEnv
from gym_llmworld.real.webshop_generator import generated_catalogue
from gym_llmworld.real.webshop_goals import TRAIN_SHOPS, all_specs, goal_scenario
from gym_llmworld.worlds.webshop import WORLD


class Clocked:
    """An agent whose own CPU time is known.

    Args:
        agent: Acts.
    """

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self.name = agent.name
        self.seconds = 0.0

    def reset(self, scenario: Any, seed: int) -> None:
        """Starts an episode."""
        self._agent.reset(scenario, seed)

    def act(self, observation: str, info: Mapping[str, Any]) -> str:
        """Chooses an action, and adds what that took."""
        started = time.process_time()
        action = self._agent.act(observation, info)
        self.seconds += time.process_time() - started
        return action


def measure(games: int) -> dict[str, Any]:
    """Builds the shops and plays held-out goals; returns the figures."""
    started = time.process_time()
    shops = [generated_catalogue(seed) for seed in TRAIN_SHOPS]
    for shop in shops:
        assert shop.index is not None
    built = (time.process_time() - started) / len(shops)
    specs = all_specs("valid")[:: max(1, 6000 // games)][:games]
    started = time.process_time()
    scenarios = [goal_scenario(spec, shops[int(spec.shop)]) for spec in specs]
    described = (time.process_time() - started) / len(scenarios)
    env = WebShopEnv()
    agents: dict[str, dict[str, float]] = {}
    for name, make in WORLD.agents.items():
        agent = Clocked(make())
        for shop in shops:
            shop.searches.clear()
        started = time.process_time()
        episodes = [
            play(env, agent, scenario, seed=seed, max_steps=WORLD.max_episode_steps)
            for seed, scenario in enumerate(scenarios)
            if "plan" in scenario.real
        ]
        seconds = time.process_time() - started - agent.seconds
        steps = sum(len(episode.steps) for episode in episodes)
        agents[name] = {
            "episodes": len(episodes),
            "success": round(sum(episode.success for episode in episodes) / len(episodes), 3),
            "bought": round(sum(e.steps[-1].terminated for e in episodes) / len(episodes), 3),
            "steps": round(steps / len(episodes), 1),
            "steps_per_cpu_s": round(steps / seconds),
        }
    return {
        "products_per_shop": len(shops[0].products),
        "goals_per_shop": len(shops[0].goals),
        "build_cpu_s": round(built, 2),
        "describe_goal_cpu_ms": round(1000 * described, 2),
        "agents": agents,
    }


def arguments() -> argparse.ArgumentParser:
    """Returns the command line."""
    parser = command_line(__doc__)
    parser.add_argument("--games", type=int, default=200, help="held-out goals")
    return parser


def main(line: Sequence[str] | None = None) -> None:
    """Runs the benchmark, prints and writes it."""
    options = parse(arguments(), line)
    report = Report("webshop_engine", options)
    report.figures = measure(options.games)
    report.list("The bundled WebShop")
    agents = [{"agent": name, **row} for name, row in report.figures["agents"].items()]
    report.table("Its customers", agents, {key: key for key in agents[0]})
    report.close()


if __name__ == "__main__":
    main()
