"""The seam between the package and whatever writes the next observation.

A backend is stateless to its caller: each request carries the whole conversation. What it keeps for
speed (key/value prefixes) never changes what it answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from gym_llmworld.core import Completion, Message, Sampling
from gym_llmworld.errors import BackendError


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
            ``B`` results in the order of the chats. A chat that cannot be answered (too long for the
            context, say) has its error *in its place*, so that one world cannot fail the others.

        Raises:
            BackendError: Nothing could be answered at all.
        """
        ...

    def close(self) -> None:
        """Releases what the backend holds; calling it twice is fine."""
        ...
