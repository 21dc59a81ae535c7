"""Guesses how an answer goes on, from the conversation alone.

World models repeat: what a place looks like stands in the hidden context, or was told at the last
visit. The guess is what followed the latest earlier occurrence of the last few tokens (prompt
look-up decoding, Saxena 2023); whoever uses it checks it against the model.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gym_llmworld.backends.hf_chat import Ids

# Numbers of last tokens to look for, the most telling first.
_SUFFIXES = (8, 4, 3, 2)
_BYTES = 4


def continuation(ids: Ids, tokens: Sequence[int], most: int) -> list[int]:
    """Returns what may follow a conversation; empty when nothing like its end stands in it.

    Args:
        ids: Its tokens, ``int32``.
        tokens: The answer so far.
        most: Longest guess.
    """
    text = ids.tobytes() + np.asarray(tokens, np.int32).tobytes()
    for size in _SUFFIXES:
        end = _find(text, size * _BYTES)
        if end and most > 0:
            guess: list[int] = np.frombuffer(text[end : end + most * _BYTES], np.int32).tolist()
            return guess
    return []


def _find(text: bytes, size: int) -> int:
    """Returns the end of the latest earlier occurrence of the last ``size`` bytes, 0 for none."""
    limit = len(text) - _BYTES
    while (start := text.rfind(text[-size:], 0, limit)) >= 0:
        if start % _BYTES == 0:
            return start + size
        limit = start + size - 1
    return 0
