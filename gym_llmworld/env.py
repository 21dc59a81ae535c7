"""`WorldModelEnv`: one imagined world as a Gymnasium environment."""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded

from gym_llmworld.contract import MAX_ACTION_LENGTH, frame, require_text
from gym_llmworld.core import Episode, Step
from gym_llmworld.imagination import Imagination, Snapshot, Stats
from gym_llmworld.session import Outcome, Session
from gym_llmworld.spaces import FreeText


def check_render_mode(mode: str | None) -> str | None:
    """Returns the mode.

    Raises:
        ValueError: Text worlds do not have this mode.
    """
    modes = (None, *WorldModelEnv.metadata["render_modes"])
    if mode not in modes:
        raise ValueError(f"render_mode must be one of {modes}, got {mode!r}")
    return mode


def draw_seed(rng: np.random.Generator) -> int:
    """Draws the sampling seed of a step, so that a fork or a replay samples the same."""
    return int(rng.integers(2**31))


def peek_seed(rng: np.random.Generator) -> int:
    """Returns the seed that `draw_seed` draws next, and leaves the generator as it is."""
    state = rng.bit_generator.state
    seed = draw_seed(rng)
    rng.bit_generator.state = state
    return seed


class WorldModelEnv(gym.Env[str, str]):
    """A language model plays the mirrored environment.

    Every argument is JSON-able; environments of one process with the same model share one engine.

    Args:
        world: Key of the mirrored world.
        render_mode: None, ``"ansi"`` or ``"human"``.
        **imagination: ``model``, ``backend``, ``backend_options``, ``prompt_style``, ``scenarios``,
            ``split``, ``temperature``, ``top_p``, ``max_tokens``, ``anchor``, ``anchor_budget``,
            ``anchor_options``: see `gym_llmworld.imagination.Imagination.open`.

    ``reset(options=...)`` understands ``{"scenario": id or dict}``, ``{"split": name}`` and
    ``{"start": snapshot}``. A step is ``terminated`` when the model ended its turn with the success
    marker (reward 1.0), or wrote an ending that the world knows, such as a lost game (reward 0.0);
    ``truncated`` when its answer cannot be used (see ``info["llmworld"]["status"]``, a
    `gym_llmworld.protocol.ParseStatus`).

    With ``anchor``, rules say which steps the real twin answers instead (`gym_llmworld.anchoring`).
    Such a step has the twin's observation, reward, flags and info; ``info["llmworld"]`` says
    ``"source": "real"``, and under ``"anchor"`` which ``rule`` fired, how many ``real_steps`` the
    episode has and, once it is known, the first step that the model had answered otherwise than
    the twin (``diverged``; 0: they began differently). A twin that fails truncates the episode,
    with status ``"twin_failed"`` and the ``error``.

    Raises:
        ScenarioError: Unknown world, scenarios or split.
        CheckpointError: The model cannot serve as a world model.
        MissingDependency: The backend, or the twin, needs an extra that is not installed.
        ValueError: An anchor rule makes no sense.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - Gymnasium declares it so
        "render_modes": ["ansi", "human"],
        "render_fps": 4,
    }

    def __init__(self, world: str, *, render_mode: str | None = None, **imagination: Any) -> None:
        self.render_mode = check_render_mode(render_mode)
        self.imagination = Imagination.open(world, **imagination)
        self.observation_space = FreeText(self.imagination.world.max_observation_chars)
        self.action_space = FreeText(MAX_ACTION_LENGTH)
        [self._twin] = self.imagination.twins(1)
        self._session: Session | None = None
        self._closed = False

    @property
    def session(self) -> Session:
        """The episode so far.

        Raises:
            ResetNeeded: ``reset`` was not called yet.
        """
        if self._session is None:
            raise ResetNeeded("call env.reset() before anything else")
        return self._session

    @property
    def stats(self) -> Stats:
        """What was spent on model and twin; not in ``info``, which has to replay exactly."""
        return self.imagination.stats

    @property
    def episode(self) -> Episode:
        """The episode so far, as data; its source is ``"anchored"`` if the real twin helped."""
        session = self.session
        return Episode(session.scenario, session.steps, session.source, agent="")

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Starts an episode; see the class for ``options``."""
        super().reset(seed=seed)
        self._session = self.imagination.begin(self.np_random, options)
        if self.render_mode == "human":
            self._show()
        return self._session.observation, self.imagination.first_info(self._session)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Asks the model, or the real twin, what ``action`` leads to.

        Raises:
            InvalidAction: The action is not a string.
            ResetNeeded: The episode has ended, or none was started.
            BackendError: The model could not be asked; the environment stands where it stood.
        """
        [outcome] = self.imagination.ask(self._requests([action]), [self._twin])
        return self._take(outcome)

    def what_if(self, actions: Sequence[str], *, anchored: bool = False) -> list[Step]:
        """Returns where each action would lead, in one batched call; the episode does not move.

        ``what_if([a])[0]`` is the step that ``step(a)`` would take next, or that it would take if
        the model answered.

        Args:
            actions: Candidates.
            anchored: Let the real twin answer where it would answer ``step``. That replays the
                episode for every such candidate; by default the twin is not asked.
        """
        requests = self._requests(actions)
        twins = [self._twin if anchored else None] * len(requests)
        return [outcome.step for outcome in self.imagination.ask(requests, twins)]

    def fork(self) -> WorldModelEnv:
        """Returns an independent copy at the same point, sharing the model's engine.

        ``copy.deepcopy(env)`` does the same through a whole stack of wrappers.
        """
        return copy.deepcopy(self)

    def snapshot(self) -> Snapshot:
        """Returns the present state as a picklable value."""
        state = copy.deepcopy(self.np_random.bit_generator.state)
        session = self.session
        return Snapshot(session.scenario, session.steps, state, session.anchors)

    def restore(self, snapshot: Snapshot) -> str:
        """Goes back to a snapshot, random generator included; returns the observation there."""
        self._session = self.imagination.session(
            snapshot.scenario, snapshot.steps, snapshot.anchors
        )
        self.np_random.bit_generator.state = copy.deepcopy(dict(snapshot.rng))
        return self._session.observation

    def undo(self, steps: int = 1) -> str:
        """Takes the last steps back; returns the observation before them.

        Raises:
            ValueError: The episode has fewer steps.
        """
        taken = self.session.steps
        if not 0 <= steps <= len(taken):
            raise ValueError(f"cannot undo {steps} steps of an episode with {len(taken)}")
        self._session = self.session.rewind(len(taken) - steps)
        return self._session.observation

    def render(self) -> str | None:
        """Returns the last action and observation in mode ``"ansi"``, else None."""
        return self._frame() if self.render_mode == "ansi" else None

    def close(self) -> None:
        """Drops this environment's hold on the engine; others keep theirs. Ends its twin."""
        if not self._closed:
            self._closed = True
            self.imagination.backend.close()
            if self._twin is not None:
                self._twin.close()

    def _playable(self) -> Session:
        session = self.session
        if session.done:
            raise ResetNeeded("the episode has ended; call env.reset()")
        return session

    def _requests(self, actions: Sequence[str]) -> list[tuple[Session, str, int]]:
        session = self._playable()
        seed = peek_seed(self.np_random)
        return [(session, require_text(action), seed) for action in actions]

    def _take(self, outcome: Outcome) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Moves to where a step led, which uses up its seed."""
        draw_seed(self.np_random)
        self._session = outcome.session
        if self.render_mode == "human":
            self._show()
        step = outcome.step
        info = self.imagination.step_info(outcome)
        return step.observation, step.reward, step.terminated, step.truncated, info

    def _frame(self) -> str:
        steps = self.session.steps
        return frame(steps[-1].action if steps else None, self.session.observation)

    def _show(self) -> None:
        sys.stdout.write(self._frame() + "\n\n")
