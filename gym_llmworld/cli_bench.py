"""``llmworld bench``: how fast an imagined world steps, alone and many at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
from gymnasium.vector import AutoresetMode

from gym_llmworld.agents import Agent, derive_seeds
from gym_llmworld.env import WorldModelEnv
from gym_llmworld.vector import WorldModelVectorEnv

WARM_UP_STEPS = 2
MINIMUM_STEPS = 100
COST_EPISODES = 8


def parse_sizes(text: str) -> list[int]:
    """Reads numbers of worlds such as ``"1,16,64"``.

    Raises:
        ValueError: Something else was written.
    """
    sizes = [int(size) for size in text.split(",") if size.strip().isdecimal()]
    if len(sizes) != len(text.split(",")) or min(sizes) < 1:
        raise ValueError(f"expected numbers of worlds such as '1,16,64', got {text!r}")
    return sizes


def throughput(
    env_id: str,
    num_envs: int,
    make: Callable[[], Agent],
    *,
    steps: int,
    seed: int,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Measures ``num_envs`` worlds that step together.

    Every world takes ``steps`` steps from the start of an episode on, so that rows with different
    ``num_envs`` do the same work per world; a solved world starts another episode in the same step.
    Few worlds do so several times, for a steadier figure. Only ``envs.step`` is timed, not the
    agents.

    Returns:
        ``num_envs``, ``steps_per_second`` (of all worlds together) and ``tokens_per_second``
        (generated; None where the backend does not count them), then what they come from.
    """
    made = gym.make_vec(
        env_id, num_envs=num_envs, autoreset_mode=AutoresetMode.SAME_STEP, **options
    )
    envs = made.unwrapped
    assert isinstance(envs, WorldModelVectorEnv)
    _drive(envs, make, WARM_UP_STEPS, seed)
    tokens = envs.stats.generated_tokens
    rounds = max(1, round(MINIMUM_STEPS / (steps * num_envs)))
    seconds = sum(_drive(envs, make, steps, seed + 1 + i * num_envs) for i in range(rounds))
    tokens = envs.stats.generated_tokens - tokens
    made.close()
    taken = rounds * steps * num_envs
    return {
        "num_envs": num_envs,
        "steps_per_second": taken / seconds,
        "tokens_per_second": tokens / seconds if tokens else None,
        "steps": taken,
        "tokens": tokens or None,
        "seconds": seconds,
    }


def _drive(envs: WorldModelVectorEnv, make: Callable[[], Agent], steps: int, seed: int) -> float:
    """Plays from a reset on; returns the seconds spent in ``envs.step``."""
    observations, _ = envs.reset(seed=seed)
    agents = [make() for _ in range(envs.num_envs)]
    seeds = derive_seeds(seed, envs.num_envs)
    for agent, session, agent_seed in zip(agents, envs.sessions, seeds, strict=True):
        agent.reset(session.scenario, agent_seed)
    seconds = 0.0
    for _ in range(steps):
        actions = tuple(
            agent.act(text, {"admissible_commands": None})
            for agent, text in zip(agents, observations, strict=True)
        )
        started = time.perf_counter()
        observations, _, terminated, truncated, _ = envs.step(actions)
        seconds += time.perf_counter() - started
        for i in range(envs.num_envs):
            if terminated[i] or truncated[i]:
                agents[i].reset(envs.sessions[i].scenario, seeds[i])
    return seconds


def step_cost(
    env_id: str,
    *,
    action: str,
    steps: int,
    seed: int,
    options: Mapping[str, Any],
    episodes: int = COST_EPISODES,
) -> list[float]:
    """Measures what each step of a growing episode costs.

    The same action over and over gives answers of the same length, so that only the history grows.
    Several episodes are played, and the fastest of each step counts: other programs of the machine
    can make a step slower, never faster.

    Returns:
        Seconds of step 1 to ``steps``; fewer when all episodes ended earlier.
    """
    made = gym.make(env_id, disable_env_checker=True, max_episode_steps=steps + 1, **options)
    env = made.unwrapped
    assert isinstance(env, WorldModelEnv)
    costs = [_step_seconds(env, action, steps, seed + i) for i in range(episodes)]
    made.close()
    # An imagined episode may end early, for example in an answer that is cut off.
    longest = max(map(len, costs))
    return [min(row[i] for row in costs if len(row) > i) for i in range(longest)]


def _step_seconds(env: WorldModelEnv, action: str, steps: int, seed: int) -> list[float]:
    env.reset(seed=seed)
    costs = []
    for _ in range(steps):
        started = time.perf_counter()
        _, _, terminated, truncated, _ = env.step(action)
        costs.append(time.perf_counter() - started)
        if terminated or truncated:
            break
    return costs


def bench(
    env_id: str,
    *,
    sizes: Sequence[int],
    make: Callable[[], Agent],
    steps: int,
    cost_steps: int,
    cost_action: str,
    seed: int,
    options: Mapping[str, Any],
    model: str,
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """Runs both measurements; returns the report of ``llmworld bench``."""
    total = len(sizes) + 1
    rows = []
    for done, num_envs in enumerate(sizes):
        progress(done, total)
        rows.append(throughput(env_id, num_envs, make, steps=steps, seed=seed, options=options))
    progress(len(sizes), total)
    costs = step_cost(env_id, action=cost_action, steps=cost_steps, seed=seed, options=options)
    progress(total, total)
    return {
        "env_id": env_id,
        "model": model,
        "rows": rows,
        "step_cost": costs,
        "step_cost_action": cost_action,
        "step_cost_episodes": COST_EPISODES,
    }


def speed_up(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Returns the steps per second of the most worlds over those of one, if both were measured."""
    by_size = {row["num_envs"]: row["steps_per_second"] for row in rows}
    if 1 not in by_size or len(by_size) < 2:
        return None
    return float(by_size[max(by_size)] / by_size[1])
