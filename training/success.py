"""What an agent is trained for: the share of real games that it solves."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gym_llmworld.backends import load_backend
from gym_llmworld.checkpoints import agent_style
from gym_llmworld.core import Episode, Scenario
from gym_llmworld.llm_agent import LLMAgent, LLMPolicy
from gym_llmworld.metrics import Rate
from gym_llmworld.playing import Game, play_games
from gym_llmworld.policy_prompt import PolicyPrompt
from gym_llmworld.scenarios import ScenarioStore
from gym_llmworld.worlds import World
from training.rollouts import real_worlds

ALL = "all"


@dataclass(frozen=True)
class Exam:
    """Held-out games in the real engine; an agent plays each of them once, greedily.

    Attributes:
        world: Which world.
        scenarios: The games.
        max_steps: Step limit of each.
        lanes: Engines side by side.
    """

    world: World
    scenarios: tuple[Scenario, ...]
    max_steps: int
    lanes: int = 8

    @classmethod
    def of(cls, world: World, games: str | None, each: int, max_steps: int, lanes: int = 8) -> Exam:
        """Takes the first games of every held-out split.

        Args:
            world: Which world.
            games: Folder of scenarios; None for those that ship.
            each: How many of each split but the first; 0 for all.
            max_steps: Step limit.
            lanes: Engines side by side.

        Raises:
            ScenarioError: There are no such scenarios.
        """
        store = ScenarioStore(world.key, games)
        splits = [split for split in store.splits() if split != world.splits[0]]
        chosen = [s for split in splits for s in store.of_split(split)[: each or None]]
        return cls(world, tuple(chosen), max_steps, lanes)

    def settings(self) -> dict[str, Any]:
        """Returns what a result depends on, as JSON."""
        names = "\n".join(scenario.id for scenario in self.scenarios)
        digest = hashlib.sha256(names.encode()).hexdigest()[:16]
        return {"games": len(self.scenarios), "digest": digest, "max_steps": self.max_steps}

    def take(self, agent: Path | str) -> dict[str, Any]:
        """Lets a checkpoint play.

        Args:
            agent: Its folder.

        Returns:
            Split, and ``"all"`` -> ``value`` (None without games), ``hits``, ``n`` and ``steps``
            (mean length of the episodes).

        Raises:
            CheckpointError: It is no agent.
            EngineError: The real engine failed.
        """
        prompt = PolicyPrompt(agent_style(str(agent)), self.world.key)
        games = [Game(scenario, 0, self.max_steps) for scenario in self.scenarios]
        with (
            closing(load_backend(str(agent))) as backend,
            closing(real_worlds(self.world.real_id, self.lanes, self.max_steps)) as worlds,
        ):
            policy = LLMPolicy(backend, prompt)
            played = play_games(worlds, lambda: LLMAgent(policy), games, name="exam")
            episodes = [one.episode for _, one in played]
        return summary(episodes)


def summary(episodes: Sequence[Episode]) -> dict[str, Any]:
    """Returns success by split; see `Exam.take`."""
    splits = sorted({episode.scenario.split for episode in episodes})
    groups = {s: [e for e in episodes if e.scenario.split == s] for s in splits}
    return {split: _row(group) for split, group in {**groups, ALL: list(episodes)}.items()}


def _row(episodes: Sequence[Episode]) -> dict[str, Any]:
    rate = Rate.of(episode.success for episode in episodes)
    steps = sum(len(episode.steps) for episode in episodes)
    return {
        **rate.to_json(),
        "steps": round(steps / rate.n, 2) if rate.n else None,
    }


def success_text(success: Mapping[str, Mapping[str, Any]]) -> str:
    """Shows what `summary` returned in a line."""
    return "real success " + ", ".join(
        f"{split} {row['value']:.3f} (n={row['n']})" for split, row in success.items() if row["n"]
    )
