"""A tokenizer for grid puzzles: the pieces that states are made of.

For self-play policies from scratch, and for world models of these puzzles.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from gym_llmworld.protocol import SUCCESS_MARKER
from training.tokenizer import SPECIAL_TOKENS, for_chats

ALWAYS = ("Firm ice.\n", "Slippery ice.\n", "You have ", " actions left.")
"""What the puzzles say around states, for the ``wholes`` of a world model's tokenizer."""

_UNKNOWN = "<|unknown|>"
_BOARD = r"[#_O√XPSG]{4,}\n?|\| [.0-9](?: [.0-9]){3,} ?\n?"
_PHRASE = r"[A-Z]?[a-z]+(?: \([A-Z]\))?(?: [a-z]+)* (?=\()"
ANSWERS = (
    r"</?(?:think|observation|prediction|answer)>|\[MASKED\]"
    rf"|{_BOARD}|\(\d+,|\d+\)(?:, | and |; |\.)?|\d+,|{_PHRASE}"
    r"| \|\| |[A-Z]?[a-z]+|\d+|[\s\S]"
)
"""Pieces of a policy's answers: tags; a row of a board, because a small model copies what it has
seen only once and not a row of equal signs; a coordinate in two tokens, with what follows it;
numbers of a move; a phrase up to the next coordinate; a separator; a word; anything else sign by
sign."""

CELLS = (
    rf"{re.escape(SUCCESS_MARKER)}|{_BOARD}|\(\d+,\d+\)|\d+,\d+,\d+|{_PHRASE}"
    r"|(?<=\))[PSX√_O.\d] ?| \|\| |, | and |; |[A-Z]?[a-z]+| ?\d+|[\s\S]"
)
"""Pieces of a world model's chats: a coordinate is one token, so that a cell is looked up by one
look; so is a move with a coordinate, and what stands in a cell of `BoardWording`."""

_SIGNS = [chr(code) for code in range(32, 127)] + ["\n", "√"]


def state_tokenizer(
    texts: Iterable[str], wholes: Sequence[str], pieces: str = ANSWERS
) -> PreTrainedTokenizerFast:
    """Builds a tokenizer with a token for each piece of the texts.

    Args:
        texts: All that is to be said in pieces; what they lack is spelled sign by sign. A sign that
            is neither ASCII nor in them is lost: it becomes the unknown token.
        wholes: Longer texts that are one token each, such as the rules of a game.
        pieces: Regular expression of all other tokens, `ANSWERS` or `CELLS`.

    Returns:
        A fast tokenizer with the chat template of `training.tokenizer`.
    """
    pattern = "|".join([*(re.escape(w) for w in sorted(wholes, key=len, reverse=True)), pieces])
    found = set(wholes)
    for text in texts:
        found.update(re.findall(pattern, text))
    tokens = list(dict.fromkeys([*SPECIAL_TOKENS, _UNKNOWN, *_SIGNS, *sorted(found)]))
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=[],
            # A piece that is in the vocabulary is one token, any other is spelled.
            ignore_merges=True,
            unk_token=_UNKNOWN,
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return for_chats(tokenizer, unk_token=_UNKNOWN)
