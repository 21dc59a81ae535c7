"""A tokenizer for text worlds: a name is one token, a stock phrase is one token.

Text engines speak in templates around names: ``You arrive at cabinet 3. The cabinet 3 is closed.``
A general byte-pair encoding cuts that into 20 pieces and a name into two or three, so that a small
model spends its capacity on spelling. Here every ``cabinet 3`` is one token, and so is every phrase
that the engine puts between two names; an episode becomes about three times shorter and looking a
thing up in the context is matching single tokens. What a name is, the actions tell: they are verbs
and names. Everything else is byte-level BPE, so that any text is encoded without loss.

The result is an ordinary fast tokenizer (``tokenizer.json`` + ``chat_template.jinja``): it loads in
`transformers.AutoTokenizer` and in vLLM without code of ours.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence

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

_NUMBERED = r" [a-z]+ [0-9]+(?![0-9A-Za-z])"
# What is neither a name nor a phrase: words with their blank, pairs of digits, runs of the rest.
_WORDS = r" ?\p{L}+| ?\p{N}{1,2}| ?[^\s\p{L}\p{N}]+|\s+"

# ``move glass cup to sink``, ``click[buy now]``: verb, then names between prepositions. With the
# place of `gym_llmworld.protocol.Placed`, ``go south @kitchen``, both may be names, and the two
# together.
_VERB = re.compile(r"\s*\w+[ \[]")
_BETWEEN_NAMES = re.compile(
    r"[^\w' @-]+|\b(?:at|around|down|from|in|into|off|on|onto|out|over|the|to|under|up|with)\b"
)
_NAME = re.compile(r"[A-Za-z@][\w' @-]*")
# A phrase stays within its sentence and its line: what follows may be another every time.
_SENTENCES = re.compile(
    r"(?= ?\n)(?<![\n ])|(?<=\n)(?=\S)|(?<=[.!?:])(?= )|(?= ?[\[|<])(?<! )|(?<=[\]|>])"
)


def mine_names(chats: Iterable[Chat], minimum: int = 5) -> list[str]:
    """Finds the names of things and places: what stands between verb and prepositions of actions.

    Args:
        chats: Of world models or of agents, see `training.data.Conversation`.
        minimum: In how many chats an action has to use a name, and a context or an observation to
            contain it; what an agent mistypes stays out.

    Returns:
        Names with their leading blank, such as ``" cabinet 3"``, numberings completed from 1 to the
        highest seen, sorted.
    """
    asked: Counter[str] = Counter()
    documents = []
    for chat in chats:
        # Whoever learns to act says the actions, whoever plays the world hears them.
        actor = "user" if chat[0].role == "system" else "assistant"
        asked.update({name for m in chat if m.role == actor for name in _arguments(m.content)})
        documents.append("\n".join(m.content for m in chat if m.role != actor))
    often = {name for name, n in asked.items() if n >= minimum}
    # ``go to open door 3``: what is more than a numbered name is no name of its own.
    wanted = [name for name in often if not _more_than_numbered(name, often)]
    told = _documents_with(wanted, documents)
    names = {f" {name}" for name in wanted if told[name] >= minimum}
    return sorted(names | _numberings(names))


def _arguments(action: str) -> Iterator[str]:
    """Yields what an action names; its first word is the verb.

    A wording may tell more below it, see `gym_llmworld.worlds.recall`.
    """
    for part in _BETWEEN_NAMES.split(_VERB.sub("", action.partition("\n")[0], count=1)):
        thing, _, place = part.partition(" @")
        for name in {part.strip(), thing.strip(), place.strip(), place and f"@{place.strip()}"}:
            if _NAME.fullmatch(name):
                yield name


def _more_than_numbered(name: str, names: Collection[str]) -> bool:
    last = " ".join(name.split()[-2:])
    return last != name and last in names and re.fullmatch(_NUMBERED, f" {last}") is not None


def _documents_with(names: Sequence[str], documents: Sequence[str]) -> Counter[str]:
    if not names:
        return Counter()
    pattern = re.compile(rf"(?<!\w)(?:{_any_of(names)})(?!\w)")
    told = Counter(name for text in documents for name in set(pattern.findall(text)))
    for name in [name for name in told if " @" in name]:
        # The longest match has hidden the place in it.
        told[f"@{name.partition(' @')[2]}"] += told[name]
    return told


def _numberings(names: Iterable[str]) -> set[str]:
    highest: dict[str, int] = {}
    for name in names:
        kind, _, number = name.rpartition(" ")
        # Beyond two digits it is a quantity rather than a name.
        if kind and number.isdecimal() and len(number) <= 2:
            highest[kind] = max(highest.get(kind, 0), int(number))
    return {f"{kind} {i}" for kind, last in highest.items() for i in range(1, last + 1)}


def mine_phrases(
    texts: Iterable[str], names: Sequence[str], minimum: int = 20, limit: int = 1000
) -> list[str]:
    """Finds the fixed wordings of an engine: what stands between two names, or alone.

    Args:
        texts: Observations, and other text that an engine words; not instructions, whose wording is
            to stay open.
        names: What `mine_names` found.
        minimum: How often a wording has to occur.
        limit: Keep at most this many, the most frequent.

    Returns:
        Wordings of at least two signs, longest first, so that a regular expression that tries them
        in turn finds the longest.
    """
    between = re.compile("|".join([_NUMBERED, *([_any_of(names)] if names else [])]))
    counts: Counter[str] = Counter()
    for text in texts:
        for sentence in _SENTENCES.split(text):
            # A blank at the end belongs to the word that follows.
            counts.update(piece.rstrip(" ") for piece in between.split(sentence))
    frequent = [piece for piece, n in counts.most_common(limit) if n >= minimum]
    return _long_first(p for p in frequent if len(p) > 1)


def _long_first(pieces: Iterable[str]) -> list[str]:
    return sorted(pieces, key=lambda piece: (-len(piece), piece))


def train_tokenizer(
    chats: Sequence[Chat], merges: int = 600, minimum: int = 20
) -> PreTrainedTokenizerFast:
    """Builds the tokenizer of a set of episodes.

    Args:
        chats: Of world models or of agents, see `training.data.Conversation`.
        merges: Size of the byte-level BPE part beyond the 256 bytes.
        minimum: How often a wording has to occur to become one token.

    Returns:
        A fast tokenizer with `CHAT_TEMPLATE`, `END` as end-of-sequence token and `PAD` for padding.
    """
    texts = [message.content for chat in chats for message in chat]
    names = mine_names(chats)
    phrases = mine_phrases((text for chat in chats for text in _worded(chat)), names, minimum)
    pattern = "|".join(
        [_NUMBERED, *([_any_of([*names, *phrases])] if names or phrases else []), _WORDS]
    )
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
    return _assemble(words, split, to_bytes, [*names, *phrases])


def _worded(chat: Chat) -> list[str]:
    """What the engine worded: all but the context's last line, which is often the instruction."""
    return [chat[0].content.rpartition("\n")[0], *(m.content for m in chat[1:])]


def _any_of(pieces: Iterable[str]) -> str:
    """Returns a regular expression that matches the longest of some literal texts.

    Common beginnings are written once: an engine that tries alternatives in turn would be 30 times
    slower on a flat list of a thousand.
    """
    return _branches(sorted(set(pieces)), "")


def _branches(tails: Sequence[str], before: str) -> str:
    groups: dict[str, list[str]] = {}
    for tail in filter(None, tails):
        groups.setdefault(tail[0], []).append(tail)
    options = []
    for group in groups.values():
        shared = os.path.commonprefix(group)  # noqa: RUF071 - by character, as it should be
        rest = [tail[len(shared) :] for tail in group]
        options.append(re.escape(shared) + _branches(rest, shared[-1]))
    if "" in tails:
        options.append(_boundary(before))
    return options[0] if len(options) == 1 else f"(?:{'|'.join(options)})"


def _boundary(piece: str) -> str:
    """A piece that ends within a word must not cut a longer word in two."""
    return r"(?![A-Za-z0-9])" if piece[-1].isalnum() else ""


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
    return for_chats(tokenizer)


def for_chats(tokenizer: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    """Returns a tokenizer that knows `CHAT_TEMPLATE` and its tokens.

    Args:
        tokenizer: With all of `SPECIAL_TOKENS` in its vocabulary.
        special: Further tokens by their role, such as ``unk_token``.
    """
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        **special,
        extra_special_tokens=[SYSTEM, USER, ASSISTANT],
        clean_up_tokenization_spaces=False,
        padding_side="right",
        chat_template=CHAT_TEMPLATE,
    )
