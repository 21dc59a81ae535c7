"""Gymnasium ids of all worlds: ``LLMWorld-<World>-v0`` and the twin ``RealWorld-<World>-v0``.

Entry points are strings and arguments are JSON, so nothing heavy is imported before ``gym.make``.
"""

from __future__ import annotations

import gymnasium as gym

from gym_llmworld.worlds import get_world, world_keys


def register_worlds() -> None:
    """Registers each world as ``LLMWorld-X-v0`` and ``LLMWorld/X-v0``, its twin as ``RealWorld``.

    Calling it again changes nothing.
    """
    for key in world_keys():
        world = get_world(key)
        for separator in "-/":
            imagined = f"LLMWorld{separator}{world.title}-v0"
            if imagined in gym.registry:
                continue
            gym.register(
                imagined,
                entry_point="gym_llmworld.env:WorldModelEnv",
                vector_entry_point="gym_llmworld.vector:WorldModelVectorEnv",
                kwargs={"world": key},
                max_episode_steps=world.max_episode_steps,
            )
            gym.register(
                f"RealWorld{separator}{world.title}-v0",
                entry_point=world.real_entry_point,
                max_episode_steps=world.max_episode_steps,
            )
