"""Single transitions: what refinement by reinforcement learning is asked, and scored by."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gym_llmworld.backends.hf_chat import ChatEncoder
from gym_llmworld.core import Chat, Episode, Message
from gym_llmworld.episodes import read_episodes
from gym_llmworld.errors import DataError
from gym_llmworld.objectstate import predicted_state, read_state
from gym_llmworld.protocol import REASONING_REQUEST
from gym_llmworld.worlds import get_world
from training.data import PromptStyles

# Answers may get so much longer than the longest true observation.
_SPARE_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Transition:
    """An action, what the world answered, and the conversation that asks for it.

    Attributes:
        id: Changes when any of the texts does.
        world: Key of the world.
        scenario: Where the episode started.
        prompt: As `gym_llmworld.protocol.Protocol.encode` words it.
        truth: What a perfect world model writes, see `gym_llmworld.protocol.Protocol.lesson`.
        previous: The observation before the action, as the chat words it.
        state: The object state before the action, as JSON; empty in worlds without object states.
    """

    id: str
    world: str
    scenario: str
    prompt: Chat
    truth: str
    previous: str
    state: str

    def row(self, reasoning: bool = False) -> dict[str, Any]:
        """Returns the columns that TRL and `training.rewards` read.

        Args:
            reasoning: Asks for a reasoning span before the prediction.
        """
        messages = [{"role": m.role, "content": m.content} for m in self.prompt]
        if reasoning:
            messages[-1]["content"] += REASONING_REQUEST
        columns = ("id", "world", "truth", "previous", "state")
        return {"prompt": messages, **{name: getattr(self, name) for name in columns}}


def cut(episode: Episode, style: str) -> Iterator[Transition]:
    """Yields the transitions of an episode whose actions may enter a chat.

    Args:
        episode: Of any world.
        style: Prompt style of that world.

    Raises:
        CheckpointError: The world has no such style.
        DataError: An observation cannot be a label.
    """
    scenario = episode.scenario
    protocol = get_world(scenario.world).protocol(style)
    state = read_state(scenario.observation)
    for i, step in enumerate(episode.steps):
        # A world may also answer without any state, when an action means nothing to it.
        after = None if state is None else predicted_state(state, step.observation)
        if protocol.admit(step.action) is not None:
            # Both in the words of the style, as the model that is refined reads and writes them.
            prompt, truth = protocol.lesson(scenario, episode.steps[:i], step)
            before = state.text if state is not None and after is not None else ""
            previous = prompt[-2].content if len(prompt) > 2 else scenario.observation
            name = _digest(prompt, truth)
            yield Transition(name, scenario.world, scenario.id, prompt, truth, previous, before)
        state = after or state


def _digest(prompt: Sequence[Message], truth: str) -> str:
    text = json.dumps([[(m.role, m.content) for m in prompt], truth])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_transitions(files: Sequence[Path], style: str) -> list[Transition]:
    """Reads the transitions of episode files, each different one once, in their order.

    Args:
        files: ``.jsonl`` / ``.jsonl.gz``.
        style: See `training.data.PromptStyles`; of several styles of a world, the first.

    Raises:
        DataError: A file holds no episodes, or there is no transition in any of them.
    """
    styles = PromptStyles.parse(style)
    found: dict[str, Transition] = {}
    for file in files:
        if file.suffix == ".json":
            raise DataError(
                f"{file}: expected episodes (.jsonl, .jsonl.gz); Word2World's training files do "
                "not say which world they are of"
            )
        for episode in read_episodes(file):
            worded = styles.of(episode.scenario.world).partition("+")[0]
            found.update((one.id, one) for one in cut(episode, worded))
    if not found:
        names = ", ".join(map(str, files))
        raise DataError(f"no transition in {names or 'no files at all'}; see `llmworld collect`")
    return list(found.values())


def longest_answer(transitions: Sequence[Transition], encoder: ChatEncoder) -> int:
    """Returns how many tokens an answer may take: those of the longest truth, and some to spare.

    What runs on beyond that is wrong in any case, and all samples of a batch would wait for it.
    """
    longest = max((len(encoder.encode_target(one.truth)) for one in transitions), default=0)
    return longest + _SPARE_TOKENS
