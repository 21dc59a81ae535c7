"""Attention of new tokens to all that is kept of their conversations."""

from __future__ import annotations

from typing import Any

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of a few new tokens with grouped queries, without repeating keys and values.

    transformers does this for one new token; for several it repeats the keys and values of the
    whole conversation for each group, which costs more than the attention itself. The slot cache's
    `SlotRunner` asks for it with a mask that is already repeated, ``[rows, 1, groups * tokens,
    length]``; with any other mask this is `sdpa_attention_forward`.
    """
    rows, heads, tokens, size = query.shape
    groups = heads // key.shape[1]
    if attention_mask is None or attention_mask.shape[2] != groups * tokens:
        mask = None if attention_mask is None else attention_mask[:, :, :tokens]
        result: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, mask, scaling=scaling, **kwargs
        )
        return result
    packed = query.reshape(rows, key.shape[1], groups * tokens, size)
    output = torch.nn.functional.scaled_dot_product_attention(
        packed, key, value, attn_mask=attention_mask, scale=scaling
    )
    return output.reshape(rows, heads, tokens, -1).transpose(1, 2).contiguous(), None
