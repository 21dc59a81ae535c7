"""The seam between the package and whatever writes the next observation.

A backend is stateless to its caller: each request carries the whole conversation. What it keeps for
speed (key/value prefixes) never changes what it answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from gym_llmworld.core import Completion, Message, Sampling
from gym_llmworld.errors import BackendError


@dataclass(frozen=True, slots=True)
class BackendStats:
    """What an engine has done since it was loaded, for all who share it.

    Attributes:
        calls: Batched calls.
        requests: Conversations in those calls.
        prompt_tokens: Tokens of their prompts.
        cached_tokens: Those of them that were not computed again.
        generated_tokens: Tokens written, end-of-turn tokens included.
        forwards: Forward passes of the model.
        evictions: Conversations whose keys and values made room for others.
        cache_bytes: Memory that keys and values take up now.
        guessed_tokens: Tokens guessed ahead and checked together.
        confirmed_tokens: Those of them that the model wrote.
    """

    calls: int = 0
    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    forwards: int = 0
    evictions: int = 0
    cache_bytes: int = 0
    guessed_tokens: int = 0
    confirmed_tokens: int = 0


@runtime_checkable
class Backend(Protocol):
    """Answers conversations."""

    name: str
    max_context: int | None

    def generate(
        self, chats: Sequence[Sequence[Message]], samplings: Sequence[Sampling]
    ) -> list[Completion | BackendError]:
        """Completes each chat, which ends with a user message.

        Args:
            chats: ``B`` conversations.
            samplings: ``B`` sampling settings, one per chat.

        Returns:
            ``B`` results in the order of the chats. A chat that cannot be answered (too long for
            the context, say) has its error *in its place*, so that one world cannot fail the
            others.

        Raises:
            BackendError: Nothing could be answered at all.
        """
        ...

    def close(self) -> None:
        """Releases what the backend holds; calling it twice is fine."""
        ...


@runtime_checkable
class Engine(Backend, Protocol):
    """A backend that can be shared: it says what it has done."""

    @property
    def stats(self) -> BackendStats:
        """What was done since loading."""
        ...


@runtime_checkable
class Scorer(Protocol):
    """Tells how probable a given completion is."""

    def score(
        self, chats: Sequence[Sequence[Message]], targets: Sequence[str]
    ) -> list[tuple[float, ...] | BackendError]:
        """Scores one target per chat under the untempered model (teacher forcing).

        Args:
            chats: ``B`` conversations that end with a user message.
            targets: ``B`` texts that the model might have written.

        Returns:
            For each chat the natural log-probability of every token of its target, the end-of-turn
            token included, or its error in its place.
        """
        ...


@runtime_checkable
class Confirmer(Protocol):
    """Tells whether greedy decoding would write a given text, in one forward pass."""

    def confirm(
        self, chats: Sequence[Sequence[Message]], targets: Sequence[str], max_tokens: int
    ) -> list[Completion | None]:
        """Compares the most probable token with the target's, at each of its positions.

        Up to its first other token, greedy decoding sees just the prefixes of the target: so equal
        everywhere means that `Backend.generate` at temperature 0 would write the target.

        Args:
            chats: ``B`` conversations that end with a user message.
            targets: ``B`` texts that the model might write.
            max_tokens: Longer targets are not confirmed, as they would be cut off.

        Returns:
            For each chat what `Backend.generate` would return; None where that is something else.
        """
        ...


def check_batch(chats: Sequence[Sequence[Message]], others: Sequence[object], name: str) -> None:
    """Refuses a batch that no backend can answer.

    Args:
        chats: Conversations.
        others: What belongs to each of them.
        name: What that is called.

    Raises:
        ValueError: Not one of ``others`` per chat, or a chat that does not end with a user message.
    """
    if len(chats) != len(others):
        raise ValueError(f"{len(chats)} chats need as many {name}, got {len(others)}")
    for chat in chats:
        if not chat or chat[-1].role != "user":
            last = chat[-1].role if chat else "nothing"
            raise ValueError(f"a chat must end with a user message, this one ends with {last}")
