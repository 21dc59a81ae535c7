"""A language model that plays: any backend, many episodes in one call.

`LLMPolicy` is the model, `LLMAgent` one episode of it. Agents of one policy are asked together
(`gym_llmworld.agents.act_together`), so that 32 worlds cost one batched call per step.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gym_llmworld.backends import load_backend
from gym_llmworld.backends.base import Backend
from gym_llmworld.core import Completion, Message, Sampling, Scenario, Step
from gym_llmworld.errors import BackendError, ContextOverflow
from gym_llmworld.policy_prompt import BARE, REACT, REMINDED, AnswerStatus, PolicyPrompt

MAX_TOKENS = {BARE: 64, REMINDED: 64, REACT: 512}
"""Style -> upper bound of an answer in tokens, by default."""


class LLMPolicy:
    """A model that acts in many episodes at once.

    Args:
        backend: Runs the model; closed by whoever opened it.
        prompt: How it is asked, and how its answers are read.
        sampling: Of every answer; the seed is replaced by one per episode and step. None for greedy
            answers of the style's default length.

    Attributes:
        answers: How often its answers ended how, since the policy was made.
    """

    def __init__(
        self, backend: Backend, prompt: PolicyPrompt, sampling: Sampling | None = None
    ) -> None:
        self.backend = backend
        self.prompt = prompt
        self.sampling = sampling or Sampling(max_tokens=MAX_TOKENS[prompt.style])
        self.answers: Counter[AnswerStatus] = Counter()

    def act(self, agents: Sequence[LLMAgent], observations: Sequence[str]) -> list[str]:
        """Chooses the next command of each agent with at most one call of the backend.

        Raises:
            BackendError: The model could not be asked. A full context is no error: that agent has
                `LLMAgent.stopped`.
        """
        for agent, observation in zip(agents, observations, strict=True):
            agent.observe(observation)
        asked = [agent for agent in agents if agent.stopped is None]
        if asked:
            chats = [agent.chat() for agent in asked]
            samplings = [replace(self.sampling, seed=agent.step_seed()) for agent in asked]
            results = self.backend.generate(chats, samplings)
            for agent, result in zip(asked, results, strict=True):
                agent.take(result)
        return [agent.action for agent in agents]


class LLMAgent:
    """One episode of a policy, as an `gym_llmworld.agents.Agent`.

    The model sees the whole episode; nothing is left out when its context is full: the agent stops.
    An answer without a usable action is sent as an empty command, which every world refuses.

    Args:
        policy: The model.
        name: What episodes call it.

    Attributes:
        policy: The model, shared with other agents.
        stopped: Why the agent cannot go on; None while it can.
        action: The last command.
        said: The model's answer at each step, word for word.
    """

    def __init__(self, policy: LLMPolicy, *, name: str = "llm") -> None:
        self.name = name
        self.policy = policy
        self.stopped: str | None = None
        self.action = ""
        self.said: list[str] = []
        self._scenario: Scenario | None = None
        self._seed = 0
        self._steps: list[Step] = []

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Starts an episode; every answer is sampled with a seed of its own, drawn from ``seed``.

        Same policy, observations and seed: same commands.
        """
        self._scenario, self._seed = scenario, seed
        self._steps, self.said = [], []
        self.stopped, self.action = None, ""

    def act(self, observation: str, info: Mapping[str, Any]) -> str:
        """Chooses the next command.

        Raises:
            BackendError: The model could not be asked.
        """
        return self.policy.act([self], [observation])[0]

    def overruled(self, action: str) -> None:
        """Remembers what was done in place of the last command."""
        self.action = action
        if self.said:
            self.said[-1] = self.policy.prompt.say(action)

    def observe(self, observation: str) -> None:
        """Takes in what the last command led to."""
        if len(self.said) > len(self._steps):
            self._steps.append(Step(self.action, observation))

    def chat(self) -> tuple[Message, ...]:
        """Returns the chat that asks for the next command."""
        assert self._scenario is not None, "call reset() before act()"
        return self.policy.prompt.encode(self._scenario, self._steps, self.said)

    def step_seed(self) -> int:
        """Returns the sampling seed of the next answer."""
        sequence = np.random.SeedSequence([self._seed, len(self._steps)])
        return int(sequence.generate_state(1)[0])

    def take(self, result: Completion | BackendError) -> None:
        """Reads what the model answered.

        Raises:
            BackendError: It could not, for another reason than a full context.
        """
        self.action = ""
        if isinstance(result, ContextOverflow):
            self.stopped = str(result)
            return
        if isinstance(result, BackendError):
            raise result
        parsed = self.policy.prompt.parse(result.text, result.finish_reason)
        self.policy.answers[parsed.status] += 1
        self.said.append(result.text)
        self.action = parsed.action


@dataclass(frozen=True)
class LLMAgentMaker:
    """Makes agents of one model; can be pickled. A process loads the model once.

    Attributes:
        model: Folder, hub id, server URL or script, see `gym_llmworld.backends.load_backend`.
        prompt: How it is asked.
        temperature: Of its answers; 0 is greedy.
        name: What episodes call the agents.
    """

    model: str
    prompt: PolicyPrompt
    temperature: float = 0.0
    name: str = "llm"

    def __call__(self) -> LLMAgent:
        """Returns a fresh agent.

        Raises:
            CheckpointError: The model cannot serve.
            MissingDependency: Its backend needs an extra that is not installed.
        """
        return LLMAgent(_policy(self), name=self.name)


@functools.cache
def _policy(maker: LLMAgentMaker) -> LLMPolicy:
    sampling = Sampling(temperature=maker.temperature, max_tokens=MAX_TOKENS[maker.prompt.style])
    return LLMPolicy(load_backend(maker.model), maker.prompt, sampling)
