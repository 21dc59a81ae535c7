"""Which command an agent owes its success to: advantages per command instead of per episode.

GRPO holds one number, what an episode earned more than its group, against everything that was done
in it. An agent that found the apple and then forgot where it was wanted is told that all of it was
wrong. Here every command is judged by what came after it, and compared with the other commands that
the group gave when it was as far (step-level groups at states that several episodes pass: GiGPO,
Feng et al., arXiv 2505.10978, section 4.2; here such a state is a game and how much of its task is
done). What comes after it are rewards, and how the done share of the task changes, so that who
fails late is worth more than who fails early. That is another aim than success alone, whose maximum
it shares: only what is solved is done.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence

from gym_llmworld.core import Scenario, Step
from training.token_policy import Rollout

EPISODE, COMMAND = "episode", "command"

Milestones = Callable[[Scenario, Sequence[Step]], Sequence[float]]


def command_advantages(
    rollouts: Sequence[Rollout], group_size: int, milestones: Milestones, discount: float
) -> list[list[float]]:
    """Returns the advantage of each command of each episode.

    Args:
        rollouts: Of an update, group by group.
        group_size: Episodes that share their start.
        milestones: The done share of a task, before the first step and after each; see
            `gym_llmworld.worlds.World.milestones`.
        discount: Per step, of what comes after a command; in (0, 1].

    Returns:
        Per episode, one number per step; over an update, their root mean square is 1 unless all of
        them are 0.
    """
    found: list[list[float]] = []
    for begin in range(0, len(rollouts), group_size):
        group = rollouts[begin : begin + group_size]
        done = [_done(rollout, milestones) for rollout in group]
        after = [
            _after(rollout.steps, shares, discount)
            for rollout, shares in zip(group, done, strict=True)
        ]
        usual = defaultdict[float, list[float]](list)
        for shares, values in zip(done, after, strict=True):
            for share, value in zip(shares, values, strict=False):
                usual[share].append(value)
        mean = {share: math.fsum(values) / len(values) for share, values in usual.items()}
        found += [
            [value - mean[share] for share, value in zip(shares, values, strict=False)]
            for shares, values in zip(done, after, strict=True)
        ]
    count = sum(map(len, found))
    scale = math.sqrt(math.fsum(a * a for values in found for a in values) / max(1, count))
    return [[a / scale for a in values] if scale else values for values in found]


def _done(rollout: Rollout, milestones: Milestones) -> list[float]:
    """Returns the done share before each step of a rollout, and at its end."""
    before = rollout.start.steps
    shares = milestones(rollout.start.scenario, (*before, *rollout.steps))[len(before) :]
    # As keys: thirds and sixths differ in their last bits, by how they were added up.
    return [round(share, 6) for share in shares]


def _after(steps: Sequence[Step], done: Sequence[float], discount: float) -> list[float]:
    """Returns what comes after each command: rewards and milestones, its own among them."""
    values, value = [0.0] * len(steps), 0.0
    for i in reversed(range(len(steps))):
        value = steps[i].reward + done[i + 1] - done[i] + discount * value
        values[i] = value
    return values
