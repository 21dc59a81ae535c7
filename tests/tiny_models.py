"""Tiny random language models in the published formats, for tests that need a real checkpoint.

The tokenizer is trained on the spot (byte-level BPE), so nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    Lfm2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from gym_llmworld.backends.base import Backend
from gym_llmworld.core import Completion, Message, Sampling

Architecture = Literal["llama", "qwen3", "gpt2", "mistral", "lfm2"]
ARCHITECTURES: tuple[Architecture, ...] = ("llama", "qwen3", "gpt2")
"""Those whose layers all attend to the whole conversation."""

CHATML = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
LLAMA3 = (
    "{{- bos_token -}}"
    "{%- for message in messages -%}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'"
    " + message['content'] | trim + '<|eot_id|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}"
    "{%- endif -%}"
)
# Moves the system text into the last user message, as Mistral's early templates do: what a chat
# renders to is no prefix of what it renders to two messages later.
SYSTEM_LAST = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}"
    "{{- '<|im_start|>user\\n' -}}"
    "{%- if loop.last and messages[0]['role'] == 'system' -%}"
    "{{- messages[0]['content'] + '\\n\\n' -}}"
    "{%- endif -%}"
    "{{- message['content'] + '<|im_end|>\\n' -}}"
    "{%- elif message['role'] == 'assistant' -%}"
    "{{- '<|im_start|>assistant\\n' + message['content'] + '<|im_end|>\\n' -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)
CORPUS = (
    "You are in the middle of a room. Looking quickly around you, you see a cabinet 10, a drawer "
    "3, a countertop 1, a fridge 1, a garbagecan 1, and a toaster 1.",
    "Your task is to: put a hot plate in cabinet.",
    "You arrive at cabinet 1. The cabinet 1 is closed. You open the cabinet 1. In it, you see "
    "nothing.",
    "On the countertop 1, you see a apple 2, a bread 1, a egg 1, and a soapbottle 3.",
    "You pick up the plate 1 from the drawer 3. You heat the plate 1 using the microwave 1.",
    "go to cabinet 1 open drawer 3 take plate 1 from drawer 3 heat plate 1 with microwave 1",
    "inventory Nothing happens. You are carrying: a plate 1. system user assistant [SUCCESS]",
)


def tiny_tokenizer(
    vocabulary: int = 384, template: str | None = CHATML, eos: str = "<|im_end|>"
) -> PreTrainedTokenizerFast:
    """Trains a byte-level tokenizer with Qwen's and Llama 3's control tokens."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL],
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=eos,
        pad_token="<|endoftext|>",
        bos_token="<|begin_of_text|>",
    )
    tokenizer.chat_template = template
    return tokenizer


def tiny_model(
    architecture: Architecture, vocabulary: int, context: int = 512, seed: int = 0
) -> PreTrainedModel:
    """Builds a random two-layer model, with grouped-query attention where there is such a thing.

    ``"mistral"`` has a sliding window of 16 tokens, ``"lfm2"`` a convolution in its first layer.
    """
    sizes = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": context,
        # Small weights give a flat distribution, in which float noise decides the greedy token.
        "initializer_range": 0.4,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    configs: dict[str, PreTrainedConfig] = {
        "llama": LlamaConfig(**sizes),
        "qwen3": Qwen3Config(**sizes, head_dim=8),
        "gpt2": GPT2Config(**{**sizes, "intermediate_size": None}),
        "mistral": MistralConfig(**sizes, sliding_window=16),
        "lfm2": Lfm2Config(**sizes, layer_types=["conv", "full_attention"]),
    }
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(configs[architecture]).eval()
    return model


def save_checkpoint(
    folder: Path,
    architecture: Architecture = "llama",
    *,
    template: str | None = CHATML,
    eos: str = "<|im_end|>",
    context: int = 512,
    seed: int = 0,
) -> Path:
    """Writes a random checkpoint (weights, tokenizer, chat template) and returns its folder."""
    tokenizer = tiny_tokenizer(template=template, eos=eos)
    model = tiny_model(architecture, len(tokenizer), context, seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def chat_of(world: int, turns: int = 0) -> list[Message]:
    """Returns what world number ``world`` asks after so many turns."""
    chat = [Message("system", f"{CORPUS[world % len(CORPUS)]} desk {world}")]
    for turn in range(turns):
        chat += [Message("user", f"look {turn}"), Message("assistant", CORPUS[turn])]
    return [*chat, Message("user", "look")]


def ask(
    backend: Backend, chats: Sequence[Sequence[Message]], sampling: Sampling
) -> list[Completion]:
    """Asks for one completion of each chat, and takes no error for an answer."""
    answers = backend.generate(chats, [sampling] * len(chats))
    completions = [answer for answer in answers if isinstance(answer, Completion)]
    assert len(completions) == len(chats), answers
    return completions
