"""What a run of reinforcement learning is told: one option of the program per field."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gym_llmworld.registration import register_worlds
from gym_llmworld.worlds import World, get_world, world_keys
from training.credit import COMMAND, EPISODE
from training.guard import OFF, ROLLBACK, STOP
from training.rollouts import imagined

_OUTPUT = Path("runs/policy")


def _option(default: Any, text: str, *choices: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": text, "choices": choices or None})


@dataclass(frozen=True)
class PolicyConfig:
    """A run of reinforcement learning; every field is an option and explained there."""

    env: str = _option("LLMWorld-ALFWorld-v0", "where to learn: LLMWorld-*-v0 or RealWorld-*-v0")
    model: str = _option(
        "", "the agent to start from: folder or hub id, see python -m training.sft --role agent"
    )
    output: Path = _option(_OUTPUT, "folder for checkpoints, log and the finished agent")  # noqa: RUF009
    world_model: str = _option("", "imagined worlds: the world model; empty: the embedded one")
    games: str = _option("", "folder of 'llmworld games'; empty: the scenarios that ship")
    split: str = _option("train", "of the games")

    updates: int = _option(30, "batches of episodes to learn from")
    groups: int = _option(8, "different starts per update")
    group_size: int = _option(8, "episodes from each of them, compared with each other")
    lanes: int = _option(0, "worlds that step together (0: one per episode of an update)")
    max_steps: int = _option(25, "step limit of an episode")
    max_tokens: int = _option(16, "longest answer of the agent, in tokens; ReAct needs some 500")
    temperature: float = _option(1.0, "of the agent's answers")
    start_episodes: Path | None = _option(  # noqa: RUF009
        None, "recorded episodes (.jsonl); some groups start in the middle of one"
    )
    middle: float = _option(0.5, "with --start-episodes: share of the groups that do")
    min_confidence: float = _option(
        0.0,
        "imagined worlds: an episode ends without reward at the first step that the world model is "
        "less sure of (MOReL's halt, arXiv 2005.05951); 0: never. Needs a calibrated model",
    )

    credit: str = _option(
        EPISODE,
        "what is held against what: episodes against their group (GRPO), or commands against those "
        "that the group gave when as much of the task was done, by success and milestones after "
        "them (worlds that count milestones: ALFWorld)",
        EPISODE, COMMAND,
    )  # fmt: skip
    discount: float = _option(1.0, "with --credit command: per step, of what comes after a command")
    refusal_penalty: float = _option(
        0.0,
        "taken from the advantage of each command that the world refused, and shared out among all "
        "others: credit for a command, where success is credit for an episode",
    )

    learning_rate: float = _option(2e-4, "of AdamW; 1e-6 is usual for billions of weights")
    decay: int = _option(
        0, "updates over which the learning rate falls to 0, in a line (0: it is constant)"
    )
    negative: float = _option(
        1.0,
        "weight of episodes that earn less than their group; less than 1 lets small agents take "
        "larger steps, 0 only repeats what went well",
    )
    minibatches: int = _option(1, "optimiser steps per update")
    batch_size: int = _option(16, "episodes per forward pass")
    epsilon: float = _option(0.2, "lower clipping bound of the probability ratio")
    epsilon_high: float = _option(0.28, "upper one (DAPO, arXiv 2503.14476)")
    beta: float = _option(0.0, "weight of the KL divergence from the start")

    guard_every: int = _option(5, "imagined worlds: check imagined successes every so many updates")
    guard_sample: int = _option(16, "imagined successes replayed in the real twin per check")
    guard_threshold: float = _option(0.5, "least share of them that has to succeed there, too")
    guard_minimum: int = _option(8, "with fewer replays a check does not end the run")
    guard_action: str = _option(
        STOP,
        "below the threshold: stop and keep the weights, roll back to those of the last check that "
        "was passed and end there, or off (no checks, no real steps at all)",
        STOP, ROLLBACK, OFF,
    )  # fmt: skip

    checkpoint_every: int = _option(1, "updates between checkpoints; a killed run loses no more")
    resume: bool = _option(True, "continue from the last complete checkpoint in --output")
    seed: int = _option(0, "of starts, answers and batches")
    threads: int = _option(0, "CPU threads (0: torch's choice)")

    def __post_init__(self) -> None:
        """Refuses runs that could not end well, before anything is loaded."""
        for name in ("updates", "groups", "max_steps", "max_tokens", "minibatches", "batch_size",
                     "checkpoint_every", "guard_every"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if not self.model:
            raise ValueError("--model is missing: the agent to start from, such as runs/agent")
        if self.group_size < 2:
            raise ValueError(
                f"group_size must be >= 2, got {self.group_size}: an episode's advantage is its "
                "reward compared with the others of its group"
            )
        if self.decay and self.decay < self.updates:
            raise ValueError(
                f"decay must be 0 or >= updates ({self.updates}), got {self.decay}: nothing would "
                "be learned once the learning rate is 0"
            )
        if self.temperature <= 0:
            raise ValueError(f"temperature must be > 0 to explore, got {self.temperature}")
        if self.episodes % (self.batch_size * self.minibatches):
            raise ValueError(
                f"groups x group_size = {self.episodes} episodes do not divide into "
                f"{self.minibatches} minibatches of whole batches of {self.batch_size}; choose a "
                "batch_size that divides them"
            )
        if not 0 <= self.min_confidence < 1:
            raise ValueError(f"min_confidence must be in [0, 1), got {self.min_confidence}")
        for name in ("middle", "negative"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if not 0 < self.discount <= 1:
            raise ValueError(f"discount must be in (0, 1], got {self.discount}")
        if self.discount != 1 and self.credit != COMMAND:
            raise ValueError(f"discount {self.discount} needs --credit {COMMAND}")
        if self.credit == COMMAND and self.world.milestones is None:
            raise ValueError(
                f"--credit {COMMAND} needs a world that counts milestones; {self.world.title} does "
                f"not, use --credit {EPISODE}"
            )
        _ = self.world

    @property
    def episodes(self) -> int:
        """Episodes per update."""
        return self.groups * self.group_size

    @property
    def imagined(self) -> bool:
        """Whether the run learns in imagined worlds."""
        return imagined(self.env)

    @property
    def guarded(self) -> bool:
        """Whether imagined successes are checked."""
        return self.imagined and self.guard_action != OFF

    @property
    def world(self) -> World:
        """The mirrored world.

        Raises:
            ValueError: There is no such environment.
        """
        register_worlds()
        worlds = [get_world(key) for key in world_keys()]
        for world in worlds:
            if self.env.replace("/", "-") in (world.imagined_id, world.real_id):
                return world
        known = ", ".join(name for w in worlds for name in (w.imagined_id, w.real_id))
        raise ValueError(f"unknown --env {self.env!r}; expected one of {known}")

    @property
    def world_options(self) -> dict[str, Any]:
        """Arguments of ``gym.make`` beside the step limit."""
        if not self.imagined:
            return self.real_options
        options = {"split": self.split}
        if self.games:
            options["scenarios"] = self.games
        if self.world_model:
            options["model"] = self.world_model
        return options

    @property
    def real_options(self) -> dict[str, Any]:
        """Arguments of ``gym.make`` for the real twin."""
        options = {"split": self.split}
        return {**options, "games": self.games} if self.games else options


def parser(prog: str, description: str | None) -> argparse.ArgumentParser:
    """Builds the command line: one option per field of `PolicyConfig`."""
    built = argparse.ArgumentParser(
        prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for field in dataclasses.fields(PolicyConfig):
        flag = "--" + field.name.replace("_", "-")
        shown = "none" if field.default in ("", None) else field.default
        text = f"{field.metadata['help']} (default: {shown})".replace("%", "%%")
        if isinstance(field.default, bool):
            built.add_argument(
                flag, action=argparse.BooleanOptionalAction, default=field.default, help=text
            )
            continue
        path = field.default is None or isinstance(field.default, Path)
        kind: Any = Path if path else type(field.default)
        choices = field.metadata["choices"]
        built.add_argument(
            flag, type=kind, default=field.default, help=text, choices=choices,
            required=field.name == "model",
            metavar=None if choices else kind.__name__.upper(),
        )  # fmt: skip
    return built
