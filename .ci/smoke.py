"""Run by `.ci/wheel-test` against the installed wheel: the embedded world starts and answers."""

import importlib.util

import gymnasium as gym

import gym_llmworld

assert "site-packages" in (gym_llmworld.__file__ or ""), gym_llmworld.__file__
assert importlib.util.find_spec("training") is None, "the wheel must not own `training`"
env = gym.make("LLMWorld-ALFWorld-v0")
observation, info = env.reset(seed=0)
command = next(c for c in info["admissible_commands"] if c.startswith("go to"))
answer, *_ = env.step(command)
assert answer, "the embedded model wrote nothing"
print(f"{gym_llmworld.__version__}: {command!r} -> {answer!r}")
