"""A fake model for tests: its answers depend on the whole chat, so mixed-up histories show."""

from __future__ import annotations

from collections.abc import Sequence

from gym_llmworld.core import Message

MODEL = "scripted:tests.scripted_world:answer"


def answer(chat: Sequence[Message]) -> str:
    """Answers the last action; ``win`` solves the task, ``blank`` writes nothing."""
    action = chat[-1].content
    if action == "blank":
        return ""
    trail = "+".join(message.content[:12] for message in chat if message.role == "user")
    text = f"Turn {len(chat) // 2} of {len(chat[0].content)}: {trail}"
    return text + (" [SUCCESS]" if action == "win" else "")


def boast(chat: Sequence[Message]) -> str:
    """Says that every second action solves the task, whatever it is."""
    return "You did it. [SUCCESS]" if len(chat) >= 4 else "You look around."
