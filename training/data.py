"""Reading what a world model learns from: our own episodes, or Word2World's training files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gym_llmworld.core import Chat, Message
from gym_llmworld.episodes import read_episodes
from gym_llmworld.errors import DataError
from gym_llmworld.worlds import get_world


@dataclass(frozen=True)
class Conversations:
    """Training chats and where they come from.

    Attributes:
        chats: System message, then actions (user) and observations (assistant) in turn.
        worlds: Keys of the worlds in them, sorted; empty when the files do not say.
        scenarios: How many different starts there are; 0 when the files do not say.
    """

    chats: tuple[Chat, ...]
    worlds: tuple[str, ...]
    scenarios: int


def read_conversations(files: Sequence[Path], style: str) -> Conversations:
    """Reads training files.

    Args:
        files: ``.jsonl`` / ``.jsonl.gz`` with our episodes, or ``.json`` in Word2World's
            ``llama_factory`` layout (a list of ``{"messages": [{"role", "content"}, ...]}``).
        style: Prompt style that words our episodes. Word2World's files are worded already.

    Raises:
        DataError: A file is not what its name says, or holds nothing to learn from.
        CheckpointError: A world has no such style.
    """
    chats: list[Chat] = []
    worlds: set[str] = set()
    scenarios: set[tuple[str, str]] = set()
    for file in files:
        if file.suffix == ".json":
            chats += _read_word2world(file)
            continue
        for episode in read_episodes(file):
            start = episode.scenario
            chat = get_world(start.world).protocol(style).conversation(episode)
            if len(chat) > 1:
                chats.append(chat)
                worlds.add(start.world)
                scenarios.add((start.world, start.id))
    if not chats:
        names = ", ".join(str(file) for file in files)
        raise DataError(
            f"no episode with at least one step in {names or 'no files at all'}; collect some with "
            "`llmworld collect`, or pass Word2World files (*.json)"
        )
    return Conversations(tuple(chats), tuple(sorted(worlds)), len(scenarios))


def _read_word2world(file: Path) -> Iterator[Chat]:
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(
            f"{file} is not JSON: {error}; episodes as JSON Lines end in .jsonl"
        ) from error
    if not isinstance(rows, list):
        raise DataError(f"{file}: expected a list of conversations, got {type(rows).__name__}")
    for number, row in enumerate(rows):
        try:
            messages = [Message(m["role"], m["content"]) for m in row["messages"]]
        except (KeyError, TypeError) as error:
            raise DataError(
                f'{file}, item {number}: expected {{"messages": [{{"role", "content"}}, ...]}}, '
                f"got {str(row)[:80]!r}"
            ) from error
        roles = [message.role for message in messages]
        turns = (len(roles) - 1) // 2
        if turns < 1 or roles != ["system", *["user", "assistant"] * turns]:
            raise DataError(
                f"{file}, item {number}: expected the roles system, (user, assistant)+, got "
                f"{', '.join(roles[:6])}"
            )
        yield messages
