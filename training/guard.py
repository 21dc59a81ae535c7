"""The guard: imagined successes are believed only as long as reality confirms them.

A policy that learns in a world model finds what the model gets wrong, and a success that only the
model believes in pays as much as a real one. So a sample of the imagined successes is replayed in
the real twin every few updates. Its precision, the real successes among them, says whether the
rewards still mean anything. (The measure is W2R of Word2World, arXiv 2512.18832, section 4, given
imagined success.)
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gym_llmworld.agents import ScriptedAgent
from gym_llmworld.core import Episode
from gym_llmworld.errors import EngineError, ScenarioError
from gym_llmworld.playing import Game, RealWorlds, play_games

STOP, ROLLBACK, OFF = "stop", "rollback", "off"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What reality says about imagined successes.

    Attributes:
        n: Imagined successes that were replayed.
        confirmed: Those that succeed in reality, too.
        steps: Real steps that took.
        errors: Replays that the engine failed in; not in ``n``.
        trusted: Whether training may go on.
    """

    n: int
    confirmed: int
    steps: int
    errors: int
    trusted: bool

    @property
    def precision(self) -> float | None:
        """Real successes / imagined successes; None where there were none."""
        return self.confirmed / self.n if self.n else None

    def as_row(self) -> dict[str, Any]:
        """Returns what logs say of it."""
        return {**dataclasses.asdict(self), "precision": self.precision}


class Guard:
    """Replays imagined successes in the real twin.

    Args:
        worlds: The twin; one lane is enough.
        sample: Most episodes per check.
        threshold: Least precision to go on.
        least: With fewer replays than this a low precision is no reason to stop.
        seed: Of the samples.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self, worlds: RealWorlds, *, sample: int, threshold: float, least: int, seed: int
    ) -> None:
        if not 0 <= threshold <= 1:
            raise ValueError(f"the guard's threshold is a share in [0, 1], got {threshold}")
        if sample < 1 or not 1 <= least <= sample:
            raise ValueError(
                "the guard needs a sample of at least 1 episode and a minimum between 1 and the "
                f"sample, got sample {sample}, minimum {least}"
            )
        self._worlds = worlds
        self._sample, self._threshold, self._least = sample, threshold, least
        self._seed = seed

    def check(self, successes: Sequence[Episode], update: int) -> Verdict:
        """Replays a sample.

        Args:
            successes: Imagined episodes that ended with success, from their scenario's beginning.
            update: Decides, with the seed, which of them are replayed.
        """
        chosen = self.choose(successes, update)
        confirmed = steps = errors = 0
        for episode in chosen:
            replay = self._replay(episode)
            if replay is None:
                errors += 1
                continue
            confirmed += replay.success
            steps += len(replay.steps)
        n = len(chosen) - errors
        trusted = n < self._least or confirmed >= self._threshold * n
        return Verdict(n, confirmed, steps, errors, trusted)

    def choose(self, successes: Sequence[Episode], update: int) -> list[Episode]:
        """Returns a random sample, of the size of a check at most."""
        draw = random.Random(f"{self._seed} {update}")
        return draw.sample(list(successes), min(self._sample, len(successes)))

    def close(self) -> None:
        """Ends the engine."""
        self._worlds.close()

    def _replay(self, episode: Episode) -> Episode | None:
        game = Game(episode.scenario, episode.seed, len(episode.steps))
        script = ScriptedAgent(episode.actions)
        try:
            [(_, played)] = play_games(self._worlds, lambda: script, [game], name=episode.agent)
        except (EngineError, ScenarioError):
            self._worlds.close()
            return None
        return played.episode
