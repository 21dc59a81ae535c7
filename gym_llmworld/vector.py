"""`WorldModelVectorEnv`: N imagined worlds, one batched model call per step."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from gym_llmworld.anchoring import Twin
from gym_llmworld.contract import MAX_ACTION_LENGTH, frame, require_text
from gym_llmworld.core import Episode, Step
from gym_llmworld.env import WorldModelEnv, check_render_mode, draw_seed
from gym_llmworld.imagination import Imagination, Snapshot, Stats
from gym_llmworld.session import Outcome, Session
from gym_llmworld.spaces import FreeText

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]


@dataclass
class _Lane:
    """One of the N worlds."""

    rng: np.random.Generator
    seed: int
    twin: Twin | None
    session: Session | None = None
    terminated: bool = False
    truncated: bool = False

    @property
    def done(self) -> bool:
        return self.terminated or self.truncated


class WorldModelVectorEnv(VectorEnv[tuple[str, ...], tuple[str, ...], npt.NDArray[Any]]):
    """N worlds that step together: the worlds still running share one call of the backend.

    A world behaves as a `gym_llmworld.env.WorldModelEnv` with the same seed does, also across
    automatic resets (``reset(seed=s)`` seeds world ``i`` with ``s + i``; a list seeds each one, so
    ``seed=[7] * 8`` gives eight worlds the same start).

    Args:
        world: Key of the mirrored world.
        num_envs: ``N``.
        max_episode_steps: Truncates longer episodes; None for no limit.
        autoreset_mode: ``NEXT_STEP``, ``SAME_STEP`` or ``DISABLED`` (enum or its value). A world
            that is only being reset costs no model call. In mode ``DISABLED`` a finished world
            stays as it is, with reward 0 and its flags up, until ``reset(options={"reset_mask":
            mask})``.
        render_mode: None, ``"ansi"`` or ``"human"``.
        **imagination: See `gym_llmworld.imagination.Imagination.open`. With ``anchor``, every world
            has a real twin of its own, opened when it is first needed (ScienceWorld's share one
            JVM: 16 of them take 0.4 GB).

    ``reset(options=...)`` understands what the scalar environment does, for all worlds alike;
    ``"scenario"`` and ``"start"`` may also be lists of length N. Actions and observations are
    tuples of N strings, infos are Gymnasium's dict of arrays.
    """

    metadata: dict[str, Any] = WorldModelEnv.metadata
    _PER_WORLD: ClassVar[tuple[str, ...]] = ("scenario", "start")

    def __init__(
        self,
        world: str,
        *,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        **imagination: Any,
    ) -> None:
        self.closed = True  # until there is something to close: Gymnasium closes on deletion, too
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        self.num_envs = num_envs
        self.render_mode = check_render_mode(render_mode)
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {**WorldModelEnv.metadata, "autoreset_mode": self.autoreset_mode}
        self.max_episode_steps = max_episode_steps
        self.imagination = Imagination.open(world, **imagination)
        self.single_observation_space = FreeText(self.imagination.world.max_observation_chars)
        self.single_action_space = FreeText(MAX_ACTION_LENGTH)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        twins = self.imagination.twins(num_envs)
        self._lanes = [_Lane(*seeding.np_random(), twin) for twin in twins]
        self.closed = False

    @property
    def stats(self) -> Stats:
        """What was spent on the model and the twins by all worlds together."""
        return self.imagination.stats

    @property
    def sessions(self) -> tuple[Session, ...]:
        """The episode of each world so far.

        Raises:
            ResetNeeded: ``reset`` was not called yet.
        """
        return tuple(self._session(lane) for lane in self._lanes)

    @property
    def episodes(self) -> tuple[Episode, ...]:
        """The episode of each world so far, as data, see `WorldModelEnv.episode`."""
        return tuple(Episode(s.scenario, s.steps, s.source, agent="") for s in self.sessions)

    @property  # type: ignore[misc]
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """The random generator of each world."""
        return tuple(lane.rng for lane in self._lanes)

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # type: ignore[override]
        """The seed of each world."""
        return tuple(lane.seed for lane in self._lanes)

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[tuple[str, ...], dict[str, Any]]:
        """Starts an episode in every world, or in those of ``options["reset_mask"]``.

        Raises:
            ValueError: Seeds, mask or per-world options of the wrong length or type.
            ScenarioError: Unknown option, scenario or split.
        """
        options = dict(options or {})
        mask = self._mask(options.pop("reset_mask", None))
        seeds = self._seeds(seed)
        infos: dict[str, Any] = {}
        for i in np.flatnonzero(mask).tolist():
            lane = self._lanes[i]
            if seeds[i] is not None:
                lane.rng, lane.seed = seeding.np_random(seeds[i])
            infos = self._add_info(infos, self._begin(lane, self._own_options(options, i)), i)
        self._show(np.flatnonzero(mask).tolist())
        return self._observations(), infos

    def step(
        self, actions: Sequence[str]
    ) -> tuple[
        tuple[str, ...], npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], dict[str, Any]
    ]:
        """Steps every world; one that is reset or stays finished ignores its action.

        Raises:
            ValueError: Not exactly N actions.
            InvalidAction: An action is not a string.
            ResetNeeded: A world was never reset.
            BackendError: The model could not be asked.
        """
        if len(actions) != self.num_envs:
            raise ValueError(f"expected {self.num_envs} actions, got {len(actions)}")
        playing = [i for i, lane in enumerate(self._lanes) if not lane.done]
        requests = [
            (
                self._session(self._lanes[i]),
                require_text(actions[i]),
                draw_seed(self._lanes[i].rng),
            )
            for i in playing
        ]
        twins = [self._lanes[i].twin for i in playing]
        outcomes = dict(zip(playing, self.imagination.ask(requests, twins), strict=True))
        rewards = np.zeros(self.num_envs, dtype=np.float64)
        infos: dict[str, Any] = {}
        for i, lane in enumerate(self._lanes):
            if i in outcomes:
                infos = self._apply(lane, outcomes[i], rewards, infos, i)
            elif self.autoreset_mode is AutoresetMode.NEXT_STEP:
                infos = self._add_info(infos, self._begin(lane, None), i)
        terminated = np.array([lane.terminated for lane in self._lanes])
        truncated = np.array([lane.truncated for lane in self._lanes])
        if self.autoreset_mode is AutoresetMode.SAME_STEP:
            infos = self._reset_finished(infos)
        self._show(range(self.num_envs))
        return self._observations(), rewards, terminated, truncated, infos

    def what_if(
        self, actions: Sequence[Sequence[str]], *, anchored: bool = False
    ) -> list[list[Step]]:
        """Returns where each of world ``i``'s candidate ``actions[i]`` would lead; no world moves.

        All candidates of all worlds go into one batched call.

        Args:
            actions: N lists.
            anchored: Let the real twins answer, see `WorldModelEnv.what_if`.

        Raises:
            ValueError: Not exactly N lists, or candidates for a finished world.
        """
        if len(actions) != self.num_envs:
            raise ValueError(f"expected {self.num_envs} lists of actions, got {len(actions)}")
        requests, twins = [], []
        for lane, candidates in zip(self._lanes, actions, strict=True):
            if candidates and lane.done:
                raise ValueError("what_if on a finished world; give it an empty list")
            seed = draw_seed(copy.deepcopy(lane.rng))
            requests += [(self._session(lane), require_text(a), seed) for a in candidates]
            twins += [lane.twin if anchored else None] * len(candidates)
        outcomes = iter(self.imagination.ask(requests, twins))
        return [[next(outcomes).step for _ in candidates] for candidates in actions]

    def snapshot(self) -> tuple[Snapshot, ...]:
        """Returns the state of each world; ``reset(options={"start": snapshots})`` starts there."""
        return tuple(
            Snapshot(s.scenario, s.steps, copy.deepcopy(lane.rng.bit_generator.state), s.anchors)
            for lane, s in zip(self._lanes, self.sessions, strict=True)
        )

    def fork(self) -> WorldModelVectorEnv:
        """Returns an independent copy of all worlds, sharing the model's engine."""
        return copy.deepcopy(self)

    def render(self) -> tuple[str, ...] | None:
        """Returns each world's last action and observation in mode ``"ansi"``."""
        if self.render_mode != "ansi":
            return None
        return tuple(self._frame(i) for i in range(self.num_envs))

    def close_extras(self, **kwargs: Any) -> None:
        """Drops this environment's hold on the engine; others keep theirs. Ends the twins."""
        self.imagination.backend.close()
        for lane in self._lanes:
            if lane.twin is not None:
                lane.twin.close()

    def _session(self, lane: _Lane) -> Session:
        if lane.session is None:
            raise ResetNeeded("call envs.reset() before anything else")
        return lane.session

    def _begin(self, lane: _Lane, options: Mapping[str, Any] | None) -> dict[str, Any]:
        lane.session = self.imagination.begin(lane.rng, options)
        lane.terminated = lane.truncated = False
        return self.imagination.first_info(lane.session)

    def _apply(
        self, lane: _Lane, outcome: Outcome, rewards: FloatArray, infos: dict[str, Any], i: int
    ) -> dict[str, Any]:
        lane.session = outcome.session
        lane.terminated = outcome.step.terminated
        limit = self.max_episode_steps
        out_of_steps = limit is not None and len(outcome.session.steps) >= limit
        lane.truncated = outcome.step.truncated or out_of_steps
        rewards[i] = outcome.step.reward
        info = self.imagination.step_info(outcome)
        if lane.done and self.autoreset_mode is AutoresetMode.SAME_STEP:
            return self._add_info(
                infos, {"final_obs": outcome.step.observation, "final_info": info}, i
            )
        return self._add_info(infos, info, i)

    def _reset_finished(self, infos: dict[str, Any]) -> dict[str, Any]:
        for i, lane in enumerate(self._lanes):
            if lane.done:
                infos = self._add_info(infos, self._begin(lane, None), i)
        return infos

    def _observations(self) -> tuple[str, ...]:
        return tuple(session.observation for session in self.sessions)

    def _own_options(self, options: Mapping[str, Any], i: int) -> dict[str, Any]:
        own = dict(options)
        for key in self._PER_WORLD:
            value = own.get(key)
            if isinstance(value, list | tuple):
                if len(value) != self.num_envs:
                    raise ValueError(
                        f"option {key!r} as a list needs {self.num_envs} entries, got {len(value)}"
                    )
                own[key] = value[i]
        return own

    def _seeds(self, seed: int | Sequence[int | None] | None) -> Sequence[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, int | np.integer):
            return [int(seed) + i for i in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise ValueError(f"expected {self.num_envs} seeds, got {len(seed)}")
        return seed

    def _mask(self, mask: Any) -> BoolArray:
        if mask is None:
            return np.ones(self.num_envs, dtype=np.bool_)
        good = isinstance(mask, np.ndarray) and mask.dtype == np.bool_
        if not good or mask.shape != (self.num_envs,) or not mask.any():
            raise ValueError(
                f"option 'reset_mask' must be a boolean array of shape ({self.num_envs},) with at "
                f"least one True, got {mask!r}"
            )
        checked: BoolArray = mask
        return checked

    def _frame(self, i: int) -> str:
        session = self.sessions[i]
        return frame(session.steps[-1].action if session.steps else None, session.observation)

    def _show(self, indices: Sequence[int]) -> None:
        if self.render_mode == "human":
            for i in indices:
                sys.stdout.write(f"[{i}] {self._frame(i)}\n\n")
