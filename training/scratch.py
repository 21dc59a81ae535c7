"""Small Llama world models from scratch, that can look things up from their first step.

With hidden context, most of a text world is *recall*: ``open cabinet 3`` is answered by what
stands behind ``cabinet 3`` in the context. A transformer does that with a two-layer circuit,
previous-token heads below heads that match and copy (induction heads: Olsson et al., arXiv
2209.11895). From an ordinary random start the circuit forms late and abruptly; on a CPU budget it
does not form at all. `recall_init` writes it into the initial weights instead. Everything stays
trainable, nothing about the architecture changes: the result is an ordinary `LlamaForCausalLM`.
That weights may be set to the structure that training would arrive at is the idea of mimetic
initialisation (Trockman & Kolter, arXiv 2305.09828); the construction here is our own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

_EMBEDDING_SCALE = 0.15
_LOGIT_SCALE = 0.05
_RANDOM_SCALE = 0.02
_POSITION_FREQUENCIES = 4
_POSITION_SHARPNESS = 8.5
_MATCH_GAIN = 1.8
_COPY_GAIN = 2.0
_RECENCY_FREQUENCIES = (4, 13)
_RECENCY_SHARPNESS = 0.6
_SHARED = 0.5
_WORD = re.compile(r"[a-z]+|[0-9]+")
_NUMBERED_NAME = re.compile(r"( [a-z]+) [0-9]+")


def small_llama(
    texts: Sequence[str],
    *,
    layers: int,
    width: int,
    heads: int,
    hidden: int,
    context: int,
    pad_id: int,
    eos_id: int,
    seed: int,
    recall: bool = True,
) -> LlamaForCausalLM:
    """Builds a Llama with tied embeddings, in float32.

    Args:
        texts: What each token stands for, in the order of their ids.
        layers: Transformer blocks, at least 2 with ``recall``.
        width: Of the residual stream.
        heads: Attention heads; ``width / heads`` is the head size (64 has been tried).
        hidden: Of the feed-forward blocks.
        context: Longest sequence, in tokens.
        pad_id: Id of the padding token.
        eos_id: Id of the end-of-turn token.
        seed: Of the random weights.
        recall: Start with `recall_init`.

    Raises:
        ValueError: The sizes do not fit together.
    """
    if width % heads or (width // heads) % 4:
        raise ValueError(
            f"width must be heads x head size, with a head size divisible by 4; got width {width}, "
            f"heads {heads}"
        )
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(texts),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        intermediate_size=hidden,
        max_position_embeddings=context,
        # Slow rotations leave half of each head's dimensions nearly unrotated over a whole episode,
        # which is what matching by content needs.
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=None,
        pad_token_id=pad_id,
        eos_token_id=eos_id,
        dtype="float32",
    )
    model = LlamaForCausalLM(config)
    if recall:
        recall_init(model, texts)
    return model


@torch.no_grad()
def recall_init(model: LlamaForCausalLM, texts: Sequence[str]) -> None:
    """Writes a look-up circuit into the first two layers of an untrained model.

    The residual stream is divided: dimension 0 holds a constant, so that queries and keys can have
    a bias without bias parameters; ``own`` holds the token itself; ``previous`` and ``before`` hold
    what layer 0 fetches from one and two positions back. Layer 1 compares them:

    * match ``previous`` (query) with ``before`` (key) and copy the key's token. At ``cabinet 3 |
      you see a`` it finds the token that once stood two behind ``cabinet 3``; within a list, at
      ``plate 1 | , and a``, the next item.
    * match ``own`` (query) with ``previous`` (key): what followed this token before.
    * the same for two tokens: what followed ``The | cabinet 3``, not ``open | cabinet 3``.

    From layer 1 on, one head of each layer starts with a preference for what is near. The others
    and all feed-forward blocks start small and random.

    Args:
        model: Freshly built; uses torch's global random generator.
        texts: What each token stands for.

    Raises:
        ValueError: Fewer than 2 layers or 4 heads, or too narrow for the division.
    """
    config = model.config
    width, heads = config.hidden_size, config.num_attention_heads
    size = width // heads
    if config.num_hidden_layers < 2 or heads < 4 or config.num_key_value_heads != heads:
        raise ValueError(
            "recall initialisation needs at least 2 layers and 4 heads, with a key/value head per "
            f"head; got {config.num_hidden_layers} layers, {heads} heads, "
            f"{config.num_key_value_heads} key/value heads"
        )
    spare = size // 4
    begin = width - 2 * size - spare
    own = torch.arange(1, begin)
    previous = torch.arange(begin, begin + size)
    before = previous + size

    _small_random(model)
    tokens = model.model.embed_tokens.weight
    tokens.zero_()
    vectors = _token_vectors(texts, len(own))
    tokens[:, own] = vectors * _EMBEDDING_SCALE
    constant = 4 * _EMBEDDING_SCALE
    # Tied embeddings also make the logits: keep those moderate whatever the embeddings' size.
    model.model.norm.weight.fill_(_LOGIT_SCALE / _EMBEDDING_SCALE)
    tokens[:, 0] = constant

    power = len(own) * _EMBEDDING_SCALE**2 + constant**2
    rms = math.sqrt(power / width)
    project = _orthonormal(size, len(own))
    fetch = model.model.layers[0].self_attn
    for head, (offset, target) in enumerate([(1, previous), (2, before), (3, None)]):
        _look_back(fetch, head, offset, size, config, constant / rms)
        if target is not None:
            _move(fetch, head, size, own, project, target, torch.eye(size) * rms)

    rms = math.sqrt((power + 2 * size * _EMBEDDING_SCALE**2) / width)
    match = model.model.layers[1].self_attn
    for head in (0, 2, 3):
        compare = _orthonormal(size // 2, size) * (_MATCH_GAIN * rms / _EMBEDDING_SCALE)
        other = compare[torch.randperm(len(compare))]
        here = (own, compare @ project)
        if head == 0:
            _match(match, head, size, [(previous, compare)], [(before, compare)])
        elif head == 2:
            _match(match, head, size, [here], [(previous, compare)])
        else:
            pair = [(previous, compare), (before, other)]
            _match(match, head, size, [here, (previous, other)], pair)
        copy = _orthonormal(size, len(own))
        _move(match, head, size, own, copy, own, copy.T * (_COPY_GAIN * rms))
    for layer in model.model.layers[1:]:
        # What the copying heads add in layer 1 about doubles the residual stream.
        later = constant / rms if layer is model.model.layers[1] else 0.6 * constant / rms
        _prefer_recent(layer.self_attn, 1, size, later)


@torch.no_grad()
def kinds_init(model: Any, texts: Sequence[str]) -> None:
    """Moves the vector of a kind (``" apple"``) to the mean of its numbered names (``" apple 1"``).

    Where a name is one token, ``clean some apple`` and ``apple 2`` have none in common, and whether
    an object is the one that a task asks for has to be learned kind by kind. A pretrained model
    that has not learned it sees them alike from here on. The mean gets the names' length.

    Args:
        model: With input embeddings; changed.
        texts: What each token stands for.
    """
    tokens = model.get_input_embeddings().weight
    numbered: dict[str, list[int]] = {}
    for index, text in enumerate(texts):
        if found := _NUMBERED_NAME.fullmatch(text):
            numbered.setdefault(found[1], []).append(index)
    for index, text in enumerate(texts):
        if names := numbered.get(text):
            rows = tokens[names]
            tokens[index] = _middle(rows)


def retokenized(model: Any, tokenizer: Any, new: Any) -> None:
    """Gives a model another tokenizer; what it knows of the old tokens, it knows of the new ones.

    Tokens that both have keep their vectors. A new one begins in the middle of the old ones that
    its text consists of, at their length (fast vocabulary transfer: Gee et al., arXiv 2402.09977,
    section 3).

    Args:
        model: With tied input and output embeddings; changed.
        tokenizer: Its own.
        new: The other.
    """
    old = tokenizer.get_vocab()
    vectors = model.get_input_embeddings().weight.detach().clone()
    rows = []
    for index, token in enumerate(new.convert_ids_to_tokens(range(len(new)))):
        if token in old:
            rows.append(vectors[old[token]])
            continue
        pieces = vectors[tokenizer(new.decode([index]), add_special_tokens=False)["input_ids"]]
        rows.append(_middle(pieces))
    model.resize_token_embeddings(len(new), mean_resizing=False)
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(torch.stack(rows))
    for config in (model.config, model.generation_config):
        config.pad_token_id, config.eos_token_id = new.pad_token_id, new.eos_token_id


def _middle(vectors: Any) -> Any:
    """Returns the mean's direction at the vectors' mean length."""
    return _unit(vectors.mean(0)) * vectors.norm(dim=1).mean()


def _prefer_recent(attention: Any, head: int, size: int, constant: float) -> None:
    """Gives a head a taste for what is near.

    Constant query and key, at geometrically spaced frequencies: the score falls with the logarithm
    of the distance. On top of it a head can learn to find the *latest* arrival, the *latest* take.
    """
    slots = head * size + torch.arange(*_RECENCY_FREQUENCIES)
    strength = math.sqrt(_RECENCY_SHARPNESS * math.sqrt(size)) / constant
    attention.q_proj.weight[slots, 0] = strength
    attention.k_proj.weight[slots, 0] = strength


def _token_vectors(texts: Sequence[str], size: int) -> Tensor:
    """Random vectors of equal norm; the more words two tokens share, the more alike they are.

    So ``" mug 1"`` starts near ``" mug"``, and `` is open. In it, you see nothing.`` near the same
    with ``closed``. Equal norms, because the norm layer then gives the constant the same size at
    every token.
    """
    words: dict[str, Tensor] = {}
    rows = []
    for text in texts:
        own = _unit(torch.randn(size))
        named = sorted(set(_WORD.findall(text.lower())))
        for word in named:
            words.setdefault(word, _unit(torch.randn(size)))
        if named:
            common = _unit(torch.stack([words[word] for word in named]).sum(0))
            own = _unit(math.sqrt(_SHARED) * common + math.sqrt(1 - _SHARED) * own)
        rows.append(own)
    return torch.stack(rows) * math.sqrt(size)


def _unit(vector: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vector, dim=0)


def _small_random(model: LlamaForCausalLM) -> None:
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            weight.normal_(0.0, _RANDOM_SCALE)
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.mul_(_EMBEDDING_SCALE)


def _orthonormal(rows: int, columns: int) -> Tensor:
    """Random orthonormal rows; as near to it as there are columns for."""
    if rows > columns:
        raise ValueError(
            f"the model is too narrow for recall initialisation: {columns} dimensions are left for "
            f"tokens, {rows} are needed; use more or smaller heads"
        )
    basis: Tensor = torch.linalg.qr(torch.randn(columns, rows))[0]
    return basis.T


def _rows(head: int, size: int) -> slice:
    return slice(head * size, (head + 1) * size)


def _look_back(
    attention: Any,
    head: int,
    offset: int,
    size: int,
    config: LlamaConfig,
    constant: float,
) -> None:
    """Makes a head attend ``offset`` positions back, whatever stands there.

    Rotary embeddings turn the constant query against the constant key by distance times frequency;
    turned back by ``offset`` times frequency, they agree exactly at that distance.
    """
    theta = config.rope_parameters["rope_theta"]
    half = size // 2
    query, key = torch.zeros(size, config.hidden_size), torch.zeros(size, config.hidden_size)
    for i in range(_POSITION_FREQUENCIES):
        angle = offset * theta ** (-i / half)
        query[i, 0] = _POSITION_SHARPNESS / constant
        key[i, 0] = _POSITION_SHARPNESS / constant * math.cos(angle)
        key[i + half, 0] = _POSITION_SHARPNESS / constant * math.sin(angle)
    attention.q_proj.weight[_rows(head, size)] = query
    attention.k_proj.weight[_rows(head, size)] = key


def _match(
    attention: Any,
    head: int,
    size: int,
    asked: Sequence[tuple[Tensor, Tensor]],
    offered: Sequence[tuple[Tensor, Tensor]],
) -> None:
    """Makes a head compare parts of the residual stream, in its slowly rotating dimensions.

    Args:
        attention: Of a layer.
        head: Its number.
        size: Of a head.
        asked: Parts that the query reads, and how.
        offered: Parts that the key reads, and how; as many.
    """
    quarter = size // 4
    slow = torch.cat([torch.arange(quarter, 2 * quarter), torch.arange(3 * quarter, 4 * quarter)])
    for weight, parts in ((attention.q_proj.weight, asked), (attention.k_proj.weight, offered)):
        block = torch.zeros(size, weight.shape[1])
        for part, values in parts:
            block[slow[:, None], part] = values
        weight[_rows(head, size)] = block


def _move(
    attention: Any,
    head: int,
    size: int,
    source: Tensor,
    read: Tensor,
    target: Tensor,
    write: Tensor,
) -> None:
    """Makes a head carry one part of the residual stream into another."""
    value = torch.zeros(size, attention.v_proj.weight.shape[1])
    value[:, source] = read
    output = torch.zeros(attention.o_proj.weight.shape[0], size)
    output[target] = write
    attention.v_proj.weight[_rows(head, size)] = value
    attention.o_proj.weight[:, _rows(head, size)] = output
