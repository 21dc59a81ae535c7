"""Learned LLM world models as Gymnasium environments.

Importing this package registers its environments and loads nothing heavy:

    import gymnasium as gym
    import gym_llmworld

    env = gym.make("LLMWorld-ALFWorld-v0")
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from gym_llmworld.core import Completion, Episode, Message, Sampling, Scenario, Step
from gym_llmworld.env import WorldModelEnv
from gym_llmworld.errors import WorldModelError
from gym_llmworld.imagination import Snapshot
from gym_llmworld.protocol import ParseStatus, Protocol
from gym_llmworld.registration import register_worlds
from gym_llmworld.vector import WorldModelVectorEnv
from gym_llmworld.worlds import World, get_world

try:
    __version__ = version("gym-llmworld")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0"

__all__ = [
    "Completion",
    "Episode",
    "Message",
    "ParseStatus",
    "Protocol",
    "Sampling",
    "Scenario",
    "Snapshot",
    "Step",
    "World",
    "WorldModelEnv",
    "WorldModelError",
    "WorldModelVectorEnv",
    "get_world",
    "register_worlds",
]

register_worlds()
