"""From chats to token ids and back, for tokenizers with a chat template.

The ids of a chat are a function of the chat alone. Turns are rendered and tokenised once and then
only appended to, which needs a template whose rendering of a chat is a prefix of its rendering of
the same chat two messages later; for any other template the whole chat is encoded every time.

Message contents are untrusted. A content that spells a control token ("<|im_end|>") is cut inside
that spelling, and the pieces are tokenised apart, so that it stays ordinary text.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jinja2 import TemplateError
from numpy.typing import NDArray

from gym_llmworld.core import Message
from gym_llmworld.errors import BackendError, CheckpointError

Ids = NDArray[np.int32]

_FILLER = "x"
_PRIVATE_USE = [chr(code) for code in range(0xE000, 0xF8FF)]
_MAX_SEGMENTS = 100_000
_PROBE = (
    Message("system", "You are in the middle of a room."),
    Message("user", "go to desk 1"),
    Message("assistant", "On the desk 1, you see a pen 2, and a book 1."),
    Message("user", "take pen 2 from desk 1"),
    Message("assistant", "Nothing happens."),
    Message("user", "look"),
)


class _RewrittenHistory(BackendError):
    """A template changed earlier messages for this chat, so nothing can be appended to them."""


class ChatEncoder:
    """Encodes chats with a tokenizer and its chat template.

    Args:
        tokenizer: A transformers tokenizer.
        model: Name of the checkpoint, for messages.

    Attributes:
        turn_end: The token that ends an assistant message, None if the template writes none.

    Raises:
        CheckpointError: The tokenizer has no chat template, or one that takes no plain text.
    """

    def __init__(self, tokenizer: Any, model: str) -> None:
        if not tokenizer.chat_template:
            raise CheckpointError(
                f"{model} has no chat template: expected chat_template.jinja (or 'chat_template' "
                "in tokenizer_config.json) beside the weights. Add the template that the model was "
                "trained with; LLaMA-Factory's 'qwen' is ChatML"
            )
        self._tokenizer = tokenizer
        self._model = model
        self._segments: dict[tuple[int, str | None, str], int] = {}
        self._ids: dict[int, Ids | BackendError] = {}
        self._bases: dict[int, str] = {}
        self._expected: dict[tuple[object, ...], int] = {}
        self._controls = self._find_controls()
        added = tokenizer.added_tokens_decoder
        spellings = sorted((added[i].content for i in self._controls), key=len, reverse=True)
        self._spelling = re.compile("|".join(map(re.escape, spellings)) or "(?!)")
        self.turn_end = self._find_turn_end()
        self._appendable = {True: self._appends(_PROBE), False: self._appends(_PROBE[1:])}
        if not self._appendable[self._accepts(_PROBE)]:
            warnings.warn(
                f"the chat template of {model} rewrites earlier messages as a chat grows; every "
                "request is encoded from its start, which is correct but slower",
                stacklevel=2,
            )

    def encode(self, chats: Sequence[Sequence[Message]]) -> list[Ids | BackendError]:
        """Returns the prompt of each chat, the header of the coming assistant message included.

        A chat that the template refuses has its error in its place.
        """
        if len(self._ids) > _MAX_SEGMENTS:
            self._segments.clear()
            self._ids.clear()
        paths = [self._path(chat) for chat in chats]
        self._encode_new(chats, paths)
        prompts: list[Ids | BackendError] = []
        for chat, path in zip(chats, paths, strict=True):
            ids = self._whole(chat) if path is None else self._join(path)
            prompts.append(self._whole(chat) if isinstance(ids, _RewrittenHistory) else ids)
        return prompts

    def encode_target(self, text: str) -> list[int]:
        """Returns the tokens of an assistant message, its end included where there is one."""
        end = [] if self.turn_end is None else [self.turn_end]
        ids = self._tokens([text])[0]
        if self._count(ids):
            ids = self._broken_tokens(self._break(text, mark := _unused([text])), mark)
        return ids + end

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of generated tokens, without control tokens."""
        text: str = self._tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def _path(self, chat: Sequence[Message]) -> list[int] | None:
        """Returns the segments of a chat of alternating turns; None where it cannot be appended."""
        system = chat[0].content if chat[0].role == "system" else None
        turns = chat if system is None else chat[1:]
        if not self._appendable[system is not None] or len(turns) % 2 == 0:
            return None
        if any(m.role != ("assistant" if i % 2 else "user") for i, m in enumerate(turns)):
            return None
        # A first turn is told from a later one by its parent.
        parent = self._segment(-1, system, turns[0].content)
        path = [parent]
        for i in range(1, len(turns), 2):
            parent = self._segment(parent, turns[i].content, turns[i + 1].content)
            path.append(parent)
        return path

    def _segment(self, parent: int, before: str | None, user: str) -> int:
        return self._segments.setdefault((parent, before, user), len(self._segments))

    def _encode_new(
        self, chats: Sequence[Sequence[Message]], paths: Sequence[list[int] | None]
    ) -> None:
        todo: dict[int, tuple[list[Message], int]] = {}
        for chat, path in zip(chats, paths, strict=True):
            if path is None or path[-1] in self._ids:
                continue
            for i, segment in enumerate(path):
                if segment not in self._ids and segment not in todo:
                    todo[segment] = self._window(chat, len(chat) - 2 * (len(path) - i))
        self._ids.update(zip(todo, self._encode_windows(list(todo.values())), strict=True))

    def _window(self, chat: Sequence[Message], start: int) -> tuple[list[Message], int]:
        """Returns a short chat that ends with the turn at ``start``, and how long the rest is.

        What a turn adds to the text does not depend on the turns before it (`_appends` has made
        sure), so that a filler stands for them.
        """
        if start < 1:
            return list(chat[: start + 2]), 0
        filler = [Message("user", _FILLER)]
        if chat[0].role == "system":
            filler.insert(0, Message("system", _FILLER))
        return [*filler, chat[start], chat[start + 1]], len(filler)

    def _encode_windows(
        self, windows: Sequence[tuple[list[Message], int]]
    ) -> list[Ids | BackendError]:
        texts: list[str | BackendError] = []
        for messages, known in windows:
            try:
                texts.append(self._render_after(messages, known))
            except BackendError as error:
                texts.append(error)
        tokens = iter(self._tokens([text for text in texts if isinstance(text, str)]))
        encoded: list[Ids | BackendError] = []
        for (messages, known), text in zip(windows, texts, strict=True):
            if isinstance(text, str):
                encoded.append(self._checked(messages, known, next(tokens)))
            else:
                encoded.append(text)
        return encoded

    def _checked(
        self, messages: Sequence[Message], known: int, ids: list[int]
    ) -> Ids | BackendError:
        """Returns ids without a control token from a content, encoding them again if need be."""
        expected = self._expect(messages, known)
        if self._count(ids) != expected:
            mark = _unused([m.content for m in messages])
            broken = [Message(m.role, self._break(m.content, mark)) for m in messages]
            ids = self._broken_tokens(self._render_after(broken, known), mark)
            if self._count(ids) != expected:
                return BackendError(
                    f"a message cannot be told from the control tokens of {self._model}: "
                    f"{messages[-1].content[:80]!r}"
                )
        return np.asarray(ids, dtype=np.int32)

    def _expect(self, messages: Sequence[Message], known: int) -> int:
        """Returns how many control tokens the template itself writes around such contents."""
        shape = (known, *((m.role, bool(m.content.strip())) for m in messages))
        if shape not in self._expected:
            neutral = [Message(m.role, _FILLER if m.content.strip() else "") for m in messages]
            [ids] = self._tokens([self._render_after(neutral, known)])
            self._expected[shape] = self._count(ids)
        return self._expected[shape]

    def _whole(self, chat: Sequence[Message]) -> Ids | BackendError:
        [encoded] = self._encode_windows([(list(chat), 0)])
        return encoded

    def _join(self, path: Sequence[int]) -> Ids | BackendError:
        parts: list[Ids] = []
        for segment in path:
            ids = self._ids[segment]
            if isinstance(ids, BackendError):
                return ids
            parts.append(ids)
        return np.concatenate(parts)

    def _render(self, messages: Iterable[Message]) -> str:
        chat = [{"role": m.role, "content": m.content} for m in messages]
        try:
            text: str = self._tokenizer.apply_chat_template(
                chat, tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:
            raise BackendError(
                f"the chat template of {self._model} refuses this chat: {error}"
            ) from error
        return text

    def _render_after(self, messages: Sequence[Message], known: int) -> str:
        """Renders a chat without what its first ``known`` messages, all fillers, render to."""
        text = self._render(messages)
        if known == 0:
            return text
        if known not in self._bases:
            self._bases[known] = self._render(messages[:known])
        base = self._bases[known]
        if not text.startswith(base):
            raise _RewrittenHistory(f"the chat template of {self._model} rewrites earlier messages")
        return text[len(base) :]

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        ids: list[list[int]] = self._tokenizer(
            list(texts), add_special_tokens=False, return_attention_mask=False
        )["input_ids"]
        return ids

    def _broken_tokens(self, text: str, mark: str) -> list[int]:
        return [token for ids in self._tokens(text.split(mark)) for token in ids]

    def _break(self, content: str, mark: str) -> str:
        while match := self._spelling.search(content):
            cut = match.start() + 1
            content = content[:cut] + mark + content[cut:]
        return content

    def _count(self, ids: Iterable[int]) -> int:
        return sum(token in self._controls for token in ids)

    def _find_controls(self) -> frozenset[int]:
        """Returns the special tokens, and other added tokens that the template writes."""
        added = self._tokenizer.added_tokens_decoder
        special = {i for i, token in added.items() if token.special}
        [written] = self._tokens([self._render_probe()])
        controls = special | {token for token in written if token in added}
        controls.discard(self._tokenizer.unk_token_id)  # what unknown characters become
        return frozenset(i for i in controls if len(added[i].content) > 1)

    def _find_turn_end(self) -> int | None:
        text = self._render_probe()
        [after] = self._tokens([text.rpartition(_PROBE[4].content)[2]])
        return after[0] if after and after[0] in self._controls else None

    def _render_probe(self) -> str:
        try:
            return self._render(_PROBE if self._accepts(_PROBE) else _PROBE[1:])
        except BackendError as error:
            raise CheckpointError(f"{error}; expected a template for plain text chats") from error

    def _accepts(self, chat: Sequence[Message]) -> bool:
        try:
            self._render(chat)
        except BackendError:
            return False
        return True

    def _appends(self, probe: Sequence[Message]) -> bool:
        """Tells whether appending gives the ids that the template gives for whole chats."""
        ends = (len(probe) - 4, len(probe) - 2, len(probe))
        whole = [self._whole(probe[:end]) for end in ends]
        parts = [self._encode_windows([self._window(probe, end - 2)])[0] for end in ends]
        if any(isinstance(ids, BackendError) for ids in (*whole, *parts)):
            return False
        return all(
            np.array_equal(np.concatenate(parts[: i + 1]), ids)  # type: ignore[arg-type]
            for i, ids in enumerate(whole)
        )


def _unused(contents: Sequence[str]) -> str:
    """Returns a character that occurs in no content."""
    text = "".join(contents)
    return next(mark for mark in _PRIVATE_USE if mark not in text)
