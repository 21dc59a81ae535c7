"""A policy in training, and its episodes as the token sequences that it learns from.

All worlds of an update step together, imagined ones in one call of the world model, and the policy
answers for all of them in one call. An episode is one sequence of tokens that only grows: the very
tokens that the policy sampled, and between them what the environment said, masked. Nothing is
decoded and encoded again, so what is trained on is what was sampled.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gym_llmworld.backends.hf import HFBackend
from gym_llmworld.backends.hf_chat import ChatEncoder
from gym_llmworld.core import Completion, Episode, Message, Sampling, Scenario, Step
from gym_llmworld.errors import BackendError, CheckpointError, ContextOverflow
from gym_llmworld.playing import Game, Played, Worlds, play_games
from gym_llmworld.policy_prompt import AnswerStatus, PolicyPrompt

_FILLER = Message("user", "x")


class TurnEncoder:
    """Words the environment's turns as the tokens that stand between two answers of the policy.

    Args:
        tokenizer: Of the policy.
        name: Of the policy, for messages.

    Raises:
        CheckpointError: The chat template rewrites earlier turns, so that an episode is not one
            growing sequence.
    """

    def __init__(self, tokenizer: Any, name: str) -> None:
        self._chats = ChatEncoder(tokenizer, name)
        self._name = name
        self._answer = self._chats.encode_target(_FILLER.content)
        self._before = self.opening([_FILLER])
        if self._chats.turn_end is None:
            raise CheckpointError(
                f"the chat template of {name} ends an assistant's turn with no token of its own"
            )
        self.turn_end: int = self._chats.turn_end

    def opening(self, chat: Sequence[Message]) -> list[int]:
        """Returns the tokens of a chat, up to the header of the coming answer.

        Raises:
            CheckpointError: The template refuses it.
        """
        [ids] = self._chats.encode([chat])
        if isinstance(ids, BackendError):
            raise CheckpointError(str(ids)) from ids
        tokens: list[int] = ids.tolist()
        return tokens

    def after_answer(self, message: Message) -> list[int]:
        """Returns what follows the token that ends an answer: a turn, and the next header.

        Raises:
            CheckpointError: See the class.
        """
        whole = self.opening([_FILLER, Message("assistant", _FILLER.content), message])
        known = [*self._before, *self._answer]
        if whole[: len(known)] != known:
            raise CheckpointError(
                f"the chat template of {self._name} does not only append: it words an answer in "
                "another way once the chat goes on. Expected a template like ChatML, that leaves "
                "earlier turns as they are"
            )
        return whole[len(known) :]


@dataclass(frozen=True, slots=True)
class Start:
    """Where a group of episodes starts.

    Attributes:
        scenario: The game.
        steps: What has happened in it already; empty for its beginning.
        seed: Of the worlds, the same for the whole group, as ``reset(seed=[s] * G)``.
    """

    scenario: Scenario
    steps: tuple[Step, ...] = ()
    seed: int = 0


@dataclass
class Rollout:
    """An episode as tokens.

    Attributes:
        start: Where it began.
        limit: Most steps from there.
        prompt: Tokens before the first answer.
        completion: Everything after, the environment's turns included.
        logprobs: Of each token of ``completion`` under the policy that sampled it; 0 for the
            environment's.
        mask: 1 where the policy wrote the token, 0 where the environment did.
        statuses: How the answers ended.
        played: The episode; None while it goes on.
    """

    start: Start
    limit: int
    prompt: list[int] = field(default_factory=list)
    completion: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)
    statuses: list[AnswerStatus] = field(default_factory=list)
    played: Played | None = None

    @property
    def reward(self) -> float:
        """Sum of the environment's rewards."""
        return sum(step.reward for step in self.steps)

    @property
    def steps(self) -> tuple[Step, ...]:
        """What the policy did."""
        return self.played.episode.steps if self.played else ()

    @property
    def success(self) -> bool:
        """Whether the world said that the task is solved."""
        return self.played is not None and self.played.episode.success

    @property
    def halted(self) -> bool:
        """Whether the world gave up: no usable answer, or one that it was not sure enough of."""
        if self.played is None or self.played.stopped or not self.steps:
            return False
        return self.steps[-1].truncated and len(self.steps) < self.limit

    @property
    def episode(self) -> Episode:
        """The whole episode, the steps before its start included.

        Raises:
            ValueError: It has not ended.
        """
        if self.played is None:
            raise ValueError("the episode goes on; expected one that play() has yielded")
        return replace(self.played.episode, steps=self.start.steps + self.steps)

    def refused(self, rejection: str) -> list[bool]:
        """Tells of each command whether the world refused it; so it does with an unusable one.

        Args:
            rejection: What it says then.
        """
        return [step.observation.strip() == rejection for step in self.steps]

    def by_token(self, values: Sequence[float]) -> list[float]:
        """Gives each token of ``completion`` the value of its command; 0 where there is none.

        Args:
            values: One per step. An answer that was cut short by the context has no step.
        """
        found = []
        command, within = -1, False
        for wrote in self.mask:
            command += wrote == 1 and not within
            within = wrote == 1
            found.append(values[command] if within and command < len(values) else 0.0)
        return found

    def add(self, tokens: Sequence[int], logprobs: Sequence[float] | None = None) -> None:
        """Appends tokens of the policy, or of the environment where there are no probabilities."""
        self.completion += tokens
        self.logprobs += [0.0] * len(tokens) if logprobs is None else logprobs
        self.mask += [int(logprobs is not None)] * len(tokens)


class TokenPolicy:
    """A model in memory that acts in many episodes at once and keeps every token.

    Args:
        model: A transformers causal language model; put into evaluation mode while it acts.
        tokenizer: With a chat template.
        prompt: How it is asked, and how its answers are read.
        max_tokens: Longest answer; a longer one is no action.
        temperature: Of its answers; 0 is greedy.
        name: What episodes call it.

    Raises:
        CheckpointError: The chat template cannot serve, see `TurnEncoder`.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        prompt: PolicyPrompt,
        *,
        max_tokens: int,
        temperature: float = 1.0,
        name: str = "policy",
    ) -> None:
        self.name = name
        self.prompt = prompt
        self.sampling = Sampling(temperature=temperature, max_tokens=max_tokens)
        self.turns = TurnEncoder(tokenizer, name)
        self.backend = HFBackend.from_model(model, tokenizer, name=name)

    def play(
        self, worlds: Worlds, starts: Sequence[Start], seeds: Sequence[int], max_steps: int
    ) -> Iterator[tuple[int, Rollout]]:
        """Plays an episode from each start, all of them with the weights of this moment.

        Args:
            worlds: Where. As many lanes as starts play all episodes at once; with fewer, a lane
                whose episode has ended takes the next one.
            starts: One per episode.
            seeds: Of the policy's answers, one per episode.
            max_steps: Most steps of an episode, those before its start included.

        Yields:
            Index and episode, in the order in which they end.

        Raises:
            CheckpointError: A start does not fit into the policy's context.
            DataError: A start cannot be reached in the real world.
            BackendError: The world model could not be asked.
            EngineError: The real engine failed.
        """
        limits = [max_steps - len(start.steps) for start in starts]
        agents = [TokenAgent(self, *which) for which in zip(starts, limits, strict=True)]
        games = [
            StartedGame(start.scenario, seed, limit, start)
            for start, seed, limit in zip(starts, seeds, limits, strict=True)
        ]
        self.backend.forget()
        with _evaluation(self.backend.model):
            made = iter(agents)
            for index, played in play_games(worlds, made.__next__, games, name=self.name):
                agents[index].rollout.played = played
                yield index, agents[index].rollout

    def act(self, agents: Sequence[TokenAgent], observations: Sequence[str]) -> list[str]:
        """Chooses the next command of each agent in one call of the model.

        Raises:
            CheckpointError: An episode's first prompt fills the context already.
        """
        for agent, observation in zip(agents, observations, strict=True):
            agent.observe(observation)
        prompts = [agent.rollout.prompt + agent.rollout.completion for agent in agents]
        samplings = [replace(self.sampling, seed=agent.step_seed()) for agent in agents]
        results = self.backend.continue_tokens(prompts, samplings)
        for agent, result in zip(agents, results, strict=True):
            agent.take(result)
        return [agent.action for agent in agents]


class TokenAgent:
    """One episode of a `TokenPolicy`, as an `gym_llmworld.agents.Agent`.

    Attributes:
        policy: Shared with other agents, which are asked together.
        rollout: The episode so far.
        action: The last command; empty where the answer held none, which every world refuses.
        stopped: Why the agent cannot go on; None while it can.
    """

    def __init__(self, policy: TokenPolicy, start: Start, limit: int) -> None:
        self.name = policy.name
        self.policy = policy
        self.rollout = Rollout(start, limit)
        self.action = ""
        self.stopped: str | None = None
        self._seed = 0

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Starts the episode; every answer is sampled with a seed of its own."""
        self._seed = seed

    def act(self, observation: str, info: Mapping[str, Any]) -> str:
        """Chooses the next command; see `TokenPolicy.act`."""
        return self.policy.act([self], [observation])[0]

    def observe(self, observation: str) -> None:
        """Takes in what the last command led to."""
        prompt, rollout = self.policy.prompt, self.rollout
        start = rollout.start
        if not rollout.prompt:
            rollout.prompt = self.policy.turns.opening(prompt.encode(start.scenario, start.steps))
            return
        message = prompt.encode(start.scenario, [Step(self.action, observation)])[-1]
        rollout.add(self.policy.turns.after_answer(message))

    def step_seed(self) -> int:
        """Returns the sampling seed of the next answer."""
        steps = len(self.rollout.statuses)
        return int(np.random.SeedSequence([self._seed, steps]).generate_state(1)[0])

    def take(self, result: tuple[tuple[int, ...], Completion] | BackendError) -> None:
        """Appends an answer and reads it.

        Raises:
            CheckpointError: There was no room for a single answer.
        """
        self.action = ""
        if isinstance(result, ContextOverflow):
            if not self.rollout.completion:
                raise CheckpointError(f"the first observation leaves no room to act: {result}")
            self.stopped = str(result)
            return
        if isinstance(result, BackendError):
            raise result
        tokens, completion = result
        turn_end = self.policy.turns.turn_end
        if completion.finish_reason == "stop":
            self.rollout.add([*tokens, turn_end], completion.logprobs)
        else:
            self.rollout.add(tokens, completion.logprobs)
            self.rollout.add([turn_end])
        parsed = self.policy.prompt.parse(completion.text, completion.finish_reason)
        self.rollout.statuses.append(parsed.status)
        self.action = parsed.action


@dataclass(frozen=True, slots=True)
class StartedGame(Game):
    """A game that may begin in the middle."""

    start: Start


@contextlib.contextmanager
def _evaluation(model: Any) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
