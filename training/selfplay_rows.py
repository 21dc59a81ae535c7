"""What self-play leaves to learn from: rows with the true states, in SPA's parquet columns."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets import Dataset

from gym_llmworld.core import Message
from gym_llmworld.errors import DataError
from training.selfplay_data import FORMATS, Game, Style, masked, with_states

TRAIN_FILE, VALIDATION_FILE = "wm_train.parquet", "wm_val.parquet"
COLUMNS = ("data_source", "prompt", "response", "ability", "reward_model", "extra_info")


def rows_of(games: Iterable[Game], forbidden: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """Yields a row for every well-formed turn, with the true states, in the published columns.

    Args:
        games: Played in style ``worldmodel``.
        forbidden: Control tokens of a chat: an answer that spells one is left out.
    """
    for game in games:
        chat = list(game.chat)
        extra = {
            "episode": f"{game.level}#{game.seed}", "level": game.level,
            "coordinates": game.setting.coordinates, "won": game.won,
        }  # fmt: skip
        for number, turn in enumerate(game.turns):
            at = 2 + 2 * number
            response = with_states(turn.response, turn.state, turn.next_state)
            if response is None or any(token in response for token in forbidden):
                continue
            # Later turns see what they would have seen, had the policy been right.
            chat[at] = Message("assistant", response)
            yield {
                "data_source": game.setting.world,
                "prompt": [{"role": m.role, "content": m.content} for m in chat[:at]],
                "response": response,
                "ability": "bfs",
                "reward_model": json.dumps({"style": "rule", "reward": turn.reward}),
                "extra_info": json.dumps({**extra, "turn": number + 1}),
            }


@dataclass(frozen=True)
class Row:
    """A turn to learn from.

    Attributes:
        prompt: Ends with a question.
        response: In the format ``worldmodel``, with true states.
        level: What must not be on both sides of a split: the level's id; without one, the opening.
    """

    prompt: tuple[Message, ...]
    response: str
    level: str


def write_rows(rows: Sequence[Mapping[str, Any]], folder: Path) -> tuple[Path, Path]:
    """Writes ``wm_train.parquet`` and ``wm_val.parquet``; a level is in one of them only.

    One level in five is for validation. (Published files split by turn, so that turns of one
    episode are on both sides.)

    Raises:
        DataError: There are no rows.
    """
    if not rows:
        raise DataError(
            "self-play gave no well-formed turn; expected <think><observation>...</observation>..."
            "<prediction>...</prediction></think><answer>...</answer>; train the base for longer"
        )
    folder.mkdir(parents=True, exist_ok=True)
    files = folder / "wm_train.parquet", folder / "wm_val.parquet"
    for validation, file in enumerate(files):
        part = [row for row in rows if _is_validation(_level(row)) == bool(validation)]
        draft = file.with_suffix(".part")
        Dataset.from_list(part or list(rows[:0])).to_parquet(str(draft))
        os.replace(draft, file)
    return files


def read_rows(file: Path) -> list[Row]:
    """Reads a file of `write_rows`, or one that SPA published.

    Raises:
        DataError: There is no such file, or columns are missing.
    """
    if not file.is_file():
        raise DataError(f"{file} does not exist; make it with `python -m training.selfplay play`")
    # Not `Dataset.from_parquet`: it would keep a copy in a cache of its own.
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(file)
    missing = [name for name in ("prompt", "response") if name not in table.column_names]
    if missing:
        raise DataError(
            f"{file}: expected the columns {', '.join(COLUMNS)}; got "
            f"{', '.join(table.column_names)}"
        )
    return [
        Row(
            tuple(Message(m["role"], m["content"]) for m in row["prompt"]),
            row["response"],
            _level(row),
        )
        for row in table.to_pylist()
    ]


def _level(row: Mapping[str, Any]) -> str:
    try:
        return str(json.loads(row["extra_info"])["level"])
    except (KeyError, TypeError, ValueError):
        return "\n".join(message["content"] for message in row["prompt"][:2])


def _is_validation(level: str) -> bool:
    return zlib.crc32(level.encode()) % 5 == 0


@dataclass
class Conversation:
    """A chat and which of its answers are learned from."""

    chat: tuple[Message, ...]
    learned: set[int]


def conversations(rows: Iterable[Row]) -> list[Conversation]:
    """Joins the rows of an episode: each answer is learned once, after the same words before it."""
    found: list[Conversation] = []
    known: dict[tuple[Message, ...], Conversation] = {}
    for row in sorted(rows, key=lambda row: -len(row.prompt)):
        chat = (*row.prompt, Message("assistant", row.response))
        if chat not in known:
            conversation = Conversation(chat, set())
            found.append(conversation)
            known.update({chat[:end]: conversation for end in range(3, len(chat) + 1, 2)})
        known[chat].learned.add(len(row.prompt))
    return found


def without_states(conversation: Conversation) -> Conversation:
    """Puts placeholders where a chat's answers say states."""
    chat = tuple(
        replace(m, content=masked(m.content)) if m.role == "assistant" else m
        for m in conversation.chat
    )
    return Conversation(chat, conversation.learned)


def asked_in(conversation: Conversation, style: Style) -> Conversation:
    """Words a chat's questions as if they had asked for the other format; answers stay."""
    old, new = (FORMATS["worldmodel"], FORMATS["plain"])[:: 1 if style == "plain" else -1]
    chat = tuple(
        replace(m, content=m.content.replace(old, new)) if m.role == "user" else m
        for m in conversation.chat
    )
    return Conversation(chat, conversation.learned)
