"""A backend without a model: a function writes the observations.

It plays the part that ``httpx.MockTransport`` plays for HTTP clients: tests and examples drive the
real environment code with answers they know.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence

from gym_llmworld.backends.base import BackendStats
from gym_llmworld.core import Completion, Message, Sampling
from gym_llmworld.errors import BackendError, CheckpointError

Answer = str | Completion | BackendError
Script = Callable[[Sequence[Message]], Answer]


class ScriptedBackend:
    """Answers every chat with what a function returns for it.

    Args:
        script: From a chat to the text of a finished completion; or to a `Completion`, for a
            cut-off one, or a `BackendError`, which takes the completion's place.
        name: Shown in reports.
        max_context: Reported, never enforced: a script returns `ContextOverflow` itself.

    Attributes:
        batch_sizes: Number of chats in each call so far.
    """

    def __init__(
        self, script: Script, *, name: str = "scripted", max_context: int | None = None
    ) -> None:
        self.name = name
        self.max_context = max_context
        self.batch_sizes: list[int] = []
        self._script = script

    @property
    def stats(self) -> BackendStats:
        """Calls and requests; a script knows no tokens."""
        return BackendStats(calls=len(self.batch_sizes), requests=sum(self.batch_sizes))

    def generate(
        self, chats: Sequence[Sequence[Message]], samplings: Sequence[Sampling]
    ) -> list[Completion | BackendError]:
        """Asks the script about each chat; the samplings are ignored.

        Raises:
            ValueError: Not one sampling per chat.
        """
        if len(chats) != len(samplings):
            raise ValueError(f"{len(chats)} chats need as many samplings, got {len(samplings)}")
        self.batch_sizes.append(len(chats))
        return [_completion(self._script(chat)) for chat in chats]

    def close(self) -> None:
        """Holds nothing."""

    def __deepcopy__(self, memo: dict[int, object]) -> ScriptedBackend:
        """A backend is shared, never copied."""
        return self


def _completion(answer: Answer) -> Completion | BackendError:
    return Completion(answer, "stop") if isinstance(answer, str) else answer


def load_script(spec: str) -> ScriptedBackend:
    """Imports a script by name.

    Args:
        spec: ``"module:function"``.

    Raises:
        CheckpointError: There is no such module or function.
    """
    module_name, _, function_name = spec.partition(":")
    try:
        script = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise CheckpointError(
            f"model='scripted:{spec}': expected 'scripted:module:function' with an importable "
            f"function from a chat to text; {type(error).__name__}: {error}"
        ) from error
    if not callable(script):
        raise CheckpointError(
            f"model='scripted:{spec}': {function_name} is a {type(script).__name__}; expected a "
            "function from a chat to text"
        )
    return ScriptedBackend(script, name=f"scripted:{spec}")
