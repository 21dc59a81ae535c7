"""The worlds that a policy in training plays in, imagined or real, and what is spent in them.

Imagined worlds step in one call of the world model, real ones side by side in this process. In both
an episode may start in the middle of another: imagined worlds are forked there, real ones walk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from gym_llmworld.env import WorldModelEnv
from gym_llmworld.errors import BackendError, DataError
from gym_llmworld.imagination import Snapshot
from gym_llmworld.playing import Answer, Game, ImaginedWorlds, RealWorlds, Worlds
from gym_llmworld.protocol import ParseStatus
from training.token_policy import Rollout, Start, StartedGame, TokenPolicy


class _ImaginedStarts(ImaginedWorlds):
    """Imagined worlds whose episodes may begin in the middle: forks of one state.

    Args:
        envs: The worlds.
        min_confidence: An episode ends without reward at a step that the model is less sure of.
    """

    def __init__(self, envs: VectorEnv[Any, Any, Any], min_confidence: float) -> None:
        super().__init__(envs)
        self.envs = envs
        self._min_confidence = min_confidence
        # A vector environment wants every lane begun, also those that no episode will need.
        envs.reset(seed=0)

    def step(self, actions: Mapping[int, str]) -> dict[int, Answer]:
        """Steps all lanes; see `ImaginedWorlds.step`.

        Raises:
            BackendError: The model does not say how sure it is, and a minimum is asked for.
        """
        everything = tuple(actions.get(i, "") for i in range(self.lanes))
        observations, rewards, terminated, truncated, infos = self.envs.step(everything)
        answers = {}
        for i in actions:
            facts = (observations[i], float(rewards[i]), bool(terminated[i]), bool(truncated[i]))
            answers[i] = Answer(*facts, real=infos["llmworld"]["source"][i] == "real")
            if self._doubtful(infos["llmworld"], i):
                answers[i] = replace(answers[i], reward=0.0, terminated=False, truncated=True)
        return answers

    def _doubtful(self, info: Mapping[str, Any], i: int) -> bool:
        # What the world refuses by rule was never imagined.
        if not self._min_confidence or info["status"][i] != ParseStatus.OK.value:
            return False
        confidence = info["confidence"][i]
        if confidence is None:
            raise BackendError(
                "--min-confidence needs a world model whose backend reports log-probabilities; "
                "this one does not say how sure it is"
            )
        return float(confidence) < self._min_confidence

    def start(self, games: Mapping[int, Game]) -> dict[int, str]:
        """Resets some lanes to a state of an episode."""
        starts = {i: _start_of(game) for i, game in games.items()}
        seeds = [starts[i].seed if i in starts else None for i in range(self.lanes)]
        states = [
            Snapshot(starts[i].scenario, starts[i].steps, {}) if i in starts else None
            for i in range(self.lanes)
        ]
        mask = np.array([state is not None for state in states])
        observations, _ = self.envs.reset(
            # Every vector environment takes one seed per world; the base class is typed for one.
            seed=seeds,  # type: ignore[arg-type]
            options={"reset_mask": mask, "start": states},
        )
        return {i: observations[i] for i in games}


class _RealStarts(RealWorlds):
    """Real worlds whose episodes may begin in the middle: the steps before are taken again.

    Attributes:
        replayed: Steps that were taken to come to where episodes begin.
    """

    def __init__(self, make: Callable[[], gym.Env[str, str]], lanes: int) -> None:
        super().__init__(make, lanes)
        self.replayed = 0

    def start(self, games: Mapping[int, Game]) -> dict[int, str]:
        """Resets some lanes and takes the steps before each start.

        Raises:
            DataError: They do not lead there.
        """
        shown = super().start({i: _seeded(game) for i, game in games.items()})
        for i, game in games.items():
            for step in _start_of(game).steps:
                answer = self.step({i: step.action})[i]
                self.replayed += 1
                shown[i] = answer.observation
                if answer.observation != step.observation or answer.terminated:
                    raise DataError(
                        f"a recorded episode of {game.scenario.id} does not replay in the real "
                        f"world: after {step.action!r} it says {step.observation!r:.120}, the "
                        f"engine {answer.observation!r:.120}; pass real episodes to start from"
                    )
        return shown


def _start_of(game: Game) -> Start:
    return game.start if isinstance(game, StartedGame) else Start(game.scenario, (), game.seed)


def _seeded(game: Game) -> Game:
    """Returns a game with the seed of its world, where the policy has another."""
    return Game(game.scenario, _start_of(game).seed, game.limit)


@dataclass
class Arena:
    """The worlds of a run, imagined or real, and what was spent in them.

    Attributes:
        worlds: To play in.
        real_steps: Steps of a real engine, those taken again to reach a start included.
        imagined_steps: Steps that the world model answered.
    """

    worlds: Worlds
    real_steps: int = 0
    imagined_steps: int = 0

    @classmethod
    def open(
        cls,
        env_id: str,
        lanes: int,
        max_steps: int,
        options: Mapping[str, Any] | None = None,
        min_confidence: float = 0.0,
    ) -> Arena:
        """Makes the worlds.

        Args:
            env_id: ``LLMWorld-*`` or ``RealWorld-*``; real ones are engines side by side in this
                process.
            lanes: How many worlds step together.
            max_steps: Step limit of an episode.
            options: Further arguments of ``gym.make`` or ``gym.make_vec``.
            min_confidence: Of imagined worlds: an episode ends, without reward, at the first step
                that the model is less sure of; 0 for never. (MOReL's halt in unknown states,
                Kidambi et al., arXiv 2005.05951, section 3.)

        Raises:
            MissingDependency: The real engine is not installed.
            CheckpointError: The world model cannot serve.
        """
        if imagined(env_id):
            envs = gym.make_vec(
                env_id,
                num_envs=lanes,
                autoreset_mode=AutoresetMode.DISABLED,
                max_episode_steps=max_steps,
                **(options or {}),
            )
            return cls(_ImaginedStarts(envs, min_confidence))

        return cls(real_worlds(env_id, lanes, max_steps, options))

    @property
    def world_tokens(self) -> int:
        """Tokens that the world model wrote."""
        if isinstance(self.worlds, _ImaginedStarts):
            return int(self.worlds.envs.unwrapped.stats.generated_tokens)  # type: ignore[attr-defined]
        return 0

    def play(
        self, policy: TokenPolicy, starts: Sequence[Start], seeds: Sequence[int], max_steps: int
    ) -> Iterator[tuple[int, Rollout]]:
        """Plays as `TokenPolicy.play` does, and counts."""
        replayed = self._replayed
        for index, rollout in policy.play(self.worlds, starts, seeds, max_steps):
            assert rollout.played is not None
            self.real_steps += rollout.played.real_steps
            self.imagined_steps += len(rollout.steps) - rollout.played.real_steps
            yield index, rollout
        self.real_steps += self._replayed - replayed

    def close(self) -> None:
        """Frees world model or engines."""
        if isinstance(self.worlds, _ImaginedStarts):
            self.worlds.envs.close()
        elif isinstance(self.worlds, RealWorlds):
            self.worlds.close()

    @property
    def _replayed(self) -> int:
        return self.worlds.replayed if isinstance(self.worlds, _RealStarts) else 0


def real_worlds(
    env_id: str, lanes: int, max_steps: int, options: Mapping[str, Any] | None = None
) -> RealWorlds:
    """Returns real worlds side by side, one engine each, started when they are needed.

    Args:
        env_id: ``RealWorld-*``.
        lanes: How many.
        max_steps: Step limit of an episode.
        options: Further arguments of ``gym.make``.
    """

    def make() -> gym.Env[str, str]:
        return gym.make(
            env_id, disable_env_checker=True, max_episode_steps=max_steps, **(options or {})
        )

    return _RealStarts(make, lanes)


def imagined(env_id: str) -> bool:
    """Whether an id is one of an imagined world."""
    return gym.spec(env_id).entry_point == f"{WorldModelEnv.__module__}:{WorldModelEnv.__name__}"
