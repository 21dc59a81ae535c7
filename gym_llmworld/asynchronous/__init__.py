"""`AsyncWorldModelEnv`: imagined worlds that are awaited, over one shared engine.

Servers and trainers run many episodes as asyncio tasks that do not step together, as the worlds of
a vector environment do. Here each step is a request to the dispatcher of its engine, which has one
worker thread: while that thread is in a call of the engine, requests gather, and all of them go
into the next call. Nothing waits for a clock. Real twins (`gym_llmworld.anchoring`) answer on the
same thread.

What a request leads to is decided by `Imagination.ask`, as in the other environments, and depends
on the episode and its seed alone, never on who else was in the call or who came first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
from gymnasium.error import ResetNeeded

from gym_llmworld.asynchronous.dispatcher import join
from gym_llmworld.core import Step
from gym_llmworld.env import WorldModelEnv
from gym_llmworld.imagination import Snapshot
from gym_llmworld.session import Outcome, Session

__all__ = ["AsyncWorldModelEnv", "make_async"]

MAX_BATCH = 256
"""As many conversations as `gym_llmworld.backends.hf.HFBackend` keeps by default."""

StepResult = tuple[str, float, bool, bool, dict[str, Any]]


class AsyncWorldModelEnv(WorldModelEnv):
    """A `WorldModelEnv` whose steps are awaited; environments with the same model share one engine.

    Many of them, each in its task, make one batch. An episode is the same as that of a
    `WorldModelEnv` with the same seed. A step that fails or is cancelled did not happen: the
    environment stands where it stood and may try again.

    All environments of an engine belong to one event loop. The synchronous methods work as well,
    and block it; `snapshot`, `fork`, `episode` and the other read-only ones show the episode before
    a step that is still being answered.

    Args:
        world: Key of the mirrored world.
        max_episode_steps: Truncates longer episodes, counted from their scenario's start; None for
            no limit.
        max_batch: Most requests in one call of the engine; the smallest of those who share it
            counts. Where more wait, environments take turns.
        render_mode: None, ``"ansi"`` or ``"human"``.
        **imagination: See `WorldModelEnv`.

    ``stats.model_calls`` counts the calls that this environment was part of, and ``stats.seconds``
    their duration, which they share with others.

    Raises:
        ValueError: ``max_batch`` is below 1.
    """

    def __init__(
        self,
        world: str,
        *,
        max_episode_steps: int | None = None,
        max_batch: int = MAX_BATCH,
        render_mode: str | None = None,
        **imagination: Any,
    ) -> None:
        if max_batch < 1:
            raise ValueError(f"max_batch must be at least 1, got {max_batch}")
        super().__init__(world, render_mode=render_mode, **imagination)
        self.max_episode_steps = max_episode_steps
        self._seat = join(self.imagination.backend, max_batch)

    async def reset_async(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Starts an episode, see `WorldModelEnv.reset`.

        Raises:
            AlreadyPendingCallError: A step is still being answered.
        """
        return self.reset(seed=seed, options=options)

    async def step_async(self, action: str) -> StepResult:
        """Asks what ``action`` leads to, together with whoever asks meanwhile.

        Raises:
            InvalidAction: The action is not a string.
            ResetNeeded: The episode has ended, or none was started.
            BackendError: The model could not be asked.
            AlreadyPendingCallError: The step before is still being answered.
            ClosedEnvironmentError: The environment is closed, or was while it waited.
            RuntimeError: Another event loop uses the engine.
        """
        [request] = self._requests([action])
        with self._seat.moving("step_async"):
            outcome = await self._seat.submit(self.imagination, request, self._twin)
        return self._take(outcome)

    async def what_if_async(self, actions: Sequence[str], *, anchored: bool = False) -> list[Step]:
        """Returns where each action would lead, see `WorldModelEnv.what_if`.

        The candidates of one environment and the steps of others share calls.
        """
        twin = self._twin if anchored else None
        waiting = [
            self._seat.submit(self.imagination, request, twin)
            for request in self._requests(actions)
        ]
        try:
            return [outcome.step for outcome in await asyncio.gather(*waiting)]
        finally:
            for future in waiting:  # after an error the others are of no use
                future.cancel()

    async def close_async(self) -> None:
        """Does what `close` does without blocking the event loop."""
        if self._seat.leave():
            await asyncio.get_running_loop().run_in_executor(self._seat.worker, super().close)
            self._seat.release()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """See `reset_async`."""
        with self._seat.moving("reset"):
            return super().reset(seed=seed, options=options)

    def step(self, action: str) -> StepResult:
        """Does what `step_async` does, and blocks the caller."""
        with self._seat.moving("step"):
            return self._seat.call(super().step, action)

    def what_if(self, actions: Sequence[str], *, anchored: bool = False) -> list[Step]:
        """Does what `what_if_async` does in one call, and blocks the caller."""
        return self._seat.call(super().what_if, actions, anchored=anchored)

    def restore(self, snapshot: Snapshot) -> str:
        """See `WorldModelEnv.restore`; refused while a step is being answered."""
        with self._seat.moving("restore"):
            return super().restore(snapshot)

    def undo(self, steps: int = 1) -> str:
        """See `WorldModelEnv.undo`; refused while a step is being answered."""
        with self._seat.moving("undo"):
            return super().undo(steps)

    def fork(self) -> AsyncWorldModelEnv:
        """See `WorldModelEnv.fork`; a step that is being answered stays with the original."""
        fork = super().fork()
        assert isinstance(fork, AsyncWorldModelEnv)
        return fork

    def close(self) -> None:
        """Drops the hold on the engine, see `WorldModelEnv.close`.

        Whoever waits for this environment gets a ``ClosedEnvironmentError``. Blocks while the
        engine is in a call.
        """
        if self._seat.leave():
            self._seat.worker.submit(super().close).result()
            self._seat.release()

    async def __aenter__(self) -> AsyncWorldModelEnv:
        """Returns the environment, to be closed at the end of an ``async with``."""
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Closes the environment."""
        await self.close_async()

    @property
    def _out_of_steps(self) -> bool:
        limit = self.max_episode_steps
        return limit is not None and len(self.session.steps) >= limit

    def _playable(self) -> Session:
        session = super()._playable()
        if self._out_of_steps:
            raise ResetNeeded("the episode has reached max_episode_steps; call env.reset()")
        return session

    def _take(self, outcome: Outcome) -> StepResult:
        observation, reward, terminated, truncated, info = super()._take(outcome)
        return observation, reward, terminated, truncated or self._out_of_steps, info


def make_async(
    env_id: str, *, max_episode_steps: int | None = None, **kwargs: Any
) -> AsyncWorldModelEnv:
    """Makes an imagined world as ``gym.make`` does, to be awaited.

    Args:
        env_id: Such as ``"LLMWorld-ALFWorld-v0"``.
        max_episode_steps: None for what the id is registered with, -1 for no limit.
        **kwargs: See `AsyncWorldModelEnv`.

    Raises:
        gymnasium.error.NameNotFound: Unknown id.
        ValueError: The id is not an imagined world's.
    """
    spec = gym.spec(env_id)
    if spec.entry_point != f"{WorldModelEnv.__module__}:{WorldModelEnv.__qualname__}":
        raise ValueError(
            f"make_async makes imagined worlds ('LLMWorld-...'), and {env_id!r} is none; "
            "expected for example 'LLMWorld-ALFWorld-v0'"
        )
    limit = spec.max_episode_steps if max_episode_steps is None else max_episode_steps
    arguments = {**spec.kwargs, **kwargs}
    return AsyncWorldModelEnv(max_episode_steps=None if limit == -1 else limit, **arguments)
