"""A tokenizer for embodied text worlds: an entity is one token, a stock phrase is one token.

Text engines speak in templates around names: ``You arrive at cabinet 3. The cabinet 3 is closed.``
A general byte-pair encoding cuts that into 20 pieces and a name into two or three, so that a small
model spends its capacity on spelling. Here every ``cabinet 3`` is one token, and so is every phrase
that the engine puts between two names; an episode becomes about three times shorter and looking an
object up in the context is matching single tokens. Everything else is byte-level BPE, so that any
text is encoded without loss.

The result is an ordinary fast tokenizer (``tokenizer.json`` + ``chat_template.jinja``): it loads in
`transformers.AutoTokenizer` and in vLLM without code of ours.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from gym_llmworld.core import Chat

SYSTEM, USER, ASSISTANT, END, PAD = "<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|pad|>"
SPECIAL_TOKENS = (PAD, SYSTEM, USER, ASSISTANT, END)

# The end of turn stands inside of the generation block: the model has to learn to stop. A turn only
# ever appends to the text before it, so that a backend may keep its key/value cache.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}"
    f"{{{{- '{ASSISTANT}' -}}}}"
    f"{{%- generation -%}}{{{{- message['content'] + '{END}' -}}}}{{%- endgeneration -%}}"
    "{%- elif message['role'] == 'user' -%}"
    f"{{{{- '{USER}' + message['content'] -}}}}"
    "{%- else -%}"
    f"{{{{- '{SYSTEM}' + message['content'] -}}}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    f"{{%- if add_generation_prompt -%}}{{{{- '{ASSISTANT}' -}}}}{{%- endif -%}}"
)

_ENTITY = r" [a-z]+ [0-9]+(?![0-9A-Za-z])"
# What is neither an entity nor a phrase: words with their blank, single digits, runs of the rest.
_WORDS = r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+"
_ENTITY_PATTERN = re.compile(_ENTITY)


def mine_phrases(texts: Iterable[str], minimum: int = 20, limit: int = 400) -> list[str]:
    """Finds the fixed wordings of an engine: what stands between two entities, or alone.

    Args:
        texts: Observations, and other text that an engine words; not instructions, whose wording is
            to stay open.
        minimum: How often a wording has to occur.
        limit: Keep at most this many, the most frequent.

    Returns:
        Wordings of at least two words or signs, longest first, so that a regular expression that
        tries them in turn finds the longest.
    """
    counts = Counter(piece for text in texts for piece in _ENTITY_PATTERN.split(text) if piece)
    frequent = [piece for piece, n in counts.most_common(limit) if n >= minimum]
    return sorted((p for p in frequent if len(p) > 1), key=lambda p: (-len(p), p))


def mine_entities(documents: Iterable[str], minimum: int = 5) -> list[str]:
    """Finds the names in ``documents``, and completes their numbering from 1 to the highest seen.

    Args:
        documents: One text per episode.
        minimum: In how many of them a name has to occur; what an agent mistypes stays out.

    Returns:
        Names with their leading blank, such as ``" cabinet 3"``, sorted.
    """
    counts = Counter(name for text in documents for name in set(_ENTITY_PATTERN.findall(text)))
    highest: dict[str, int] = {}
    for name, n in counts.items():
        kind, number = name.rsplit(" ", 1)
        # Beyond two digits it is a quantity rather than a name.
        if n >= minimum and len(number) <= 2:
            highest[kind] = max(highest.get(kind, 0), int(number))
    return [f"{kind} {i}" for kind in sorted(highest) for i in range(1, highest[kind] + 1)]


def train_tokenizer(
    chats: Sequence[Chat], merges: int = 600, minimum: int = 20
) -> PreTrainedTokenizerFast:
    """Builds the tokenizer of a set of episodes.

    Args:
        chats: System message, then actions (user) and observations (assistant) in turn.
        merges: Size of the byte-level BPE part beyond the 256 bytes.
        minimum: How often a wording has to occur to become one token.

    Returns:
        A fast tokenizer with `CHAT_TEMPLATE`, `END` as end-of-sequence token and `PAD` for padding.
    """
    texts = [message.content for chat in chats for message in chat]
    phrases = mine_phrases((text for chat in chats for text in _worded(chat)), minimum)
    entities = mine_entities("\n".join(message.content for message in chat) for chat in chats)
    pattern = "|".join([_ENTITY, *(re.escape(p) + _boundary(p) for p in phrases), _WORDS])
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"), to_bytes]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=256 + merges,
        special_tokens=[],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    words.train_from_iterator(texts, trainer)
    return _assemble(words, split, to_bytes, [*entities, *phrases])


def _worded(chat: Chat) -> list[str]:
    """What the engine worded: all but the instruction, the context's last line.

    The context goes line by line. A phrase that ran on into the next line would be another token
    than the same words at the end of an observation, and copying would have to translate.
    """
    lines = chat[0].content.split("\n")[:-1]
    return ["\n" * (i > 0) + line for i, line in enumerate(lines)] + [m.content for m in chat[1:]]


def _boundary(phrase: str) -> str:
    """A phrase that ends within a word must not cut a longer word in two."""
    return r"(?![A-Za-z0-9])" if phrase[-1].isalnum() else ""


def _assemble(
    words: Tokenizer,
    split: pre_tokenizers.Split,
    to_bytes: pre_tokenizers.ByteLevel,
    wholes: Sequence[str],
) -> PreTrainedTokenizerFast:
    learned = json.loads(words.to_str())["model"]
    tokens = list(SPECIAL_TOKENS)
    tokens += sorted(learned["vocab"], key=lambda token: learned["vocab"][token])
    known = set(tokens)
    for whole in wholes:
        token = to_bytes.pre_tokenize_str(whole)[0][0]
        if token not in known:
            known.add(token)
            tokens.append(token)
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=[(left, right) for left, right in learned["merges"]],
            # A piece that is in the vocabulary is one token, whatever the merges would make of it.
            ignore_merges=True,
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens=[SYSTEM, USER, ASSISTANT],
        clean_up_tokenization_spaces=False,
        padding_side="right",
        chat_template=CHAT_TEMPLATE,
    )
