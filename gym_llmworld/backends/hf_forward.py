"""The forward pass of a Llama-like decoder on a CPU, with nothing around it.

A world model of a few million weights spends most of a transformers forward pass between the matrix
products: module calls, configuration look-ups, a dozen small tensors per layer. `PackedForward`
computes the same function of the same weights in as few operations as it takes, and multiplies with
oneDNN, whose packed weights are faster on every batch than torch's own product with MKL on AMD
processors. Architectures that it does not know, half precision, GPUs and models whose weights may
change are left to transformers' own forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import rms_norm, silu

from gym_llmworld.backends.hf_attention import packed_attention

_ARCHITECTURES = {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}
_MOST_WEIGHTS = 2**26
"""Of larger models, whose weights are held three times here, the products take all the time."""
# Rows that oneDNN lays packed weights out for; it multiplies any number with them.
_PACKED_FOR = 64


def serves(model: Any) -> bool:
    """Tells whether `PackedForward` computes what a model computes."""
    config = model.config
    if type(model).__name__ not in _ARCHITECTURES or model.device.type != "cpu":
        return False
    if not type(model).__module__.startswith("transformers.") or config.hidden_act != "silu":
        return False
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    plain = all(type(m) is torch.nn.Linear and not m._forward_hooks for m in linear)
    return (
        plain
        and all(p.dtype == torch.float32 for p in model.parameters())
        and model.num_parameters() <= _MOST_WEIGHTS
        and torch._C._has_mkldnn
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


class _Product:
    """One or several linear layers with the same input, as one matrix."""

    def __init__(self, *layers: Any) -> None:
        weights = [layer.weight.detach() for layer in layers]
        weight = torch.cat(weights)
        biases = [layer.bias for layer in layers if layer.bias is not None]
        self.bias = torch.cat(biases).detach() if biases else None
        self.columns = weight.t().contiguous()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _PACKED_FOR)

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """Multiplies ``[tokens, inputs]``."""
        if len(states) > 1:
            product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
                states, self.packed, self.bias, "none", [], ""
            )
            return product
        if self.bias is None:
            return torch.mm(states, self.columns)
        return torch.addmm(self.bias, states, self.columns)


class _Layer:
    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.attention = attention
        self.before = layer.input_layernorm.weight.detach()
        self.between = layer.post_attention_layernorm.weight.detach()
        self.inward = _Product(attention.q_proj, attention.k_proj, attention.v_proj)
        self.outward = _Product(attention.o_proj)
        self.gate_up = _Product(mlp.gate_proj, mlp.up_proj)
        self.down = _Product(mlp.down_proj)
        self.norms: Sequence[torch.Tensor] = ()
        if hasattr(attention, "q_norm"):
            self.norms = (attention.q_norm.weight.detach(), attention.k_norm.weight.detach())


class PackedForward:
    """Computes logits as the model does, up to the rounding of floating-point sums.

    Args:
        model: One that this module `serves`; its weights must not change any more.
    """

    def __init__(self, model: Any) -> None:
        config, decoder = model.config, model.model
        self._epsilon = config.rms_norm_eps
        self._size = decoder.layers[0].self_attn.head_dim
        self._heads = config.num_attention_heads
        self._key_heads = config.num_key_value_heads
        self._embedding = decoder.embed_tokens.weight.detach()
        self._layers = [_Layer(layer) for layer in decoder.layers]
        self._norm = decoder.norm.weight.detach()
        self._head = _Product(model.lm_head)
        self._rotary = decoder.rotary_emb
        self._cos, self._sin = self._rotation(0)

    def _rotation(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the rotary factors ``[length, 1, size]``, sines with the sign of `roll`."""
        cos, sin = self._rotary(self._embedding, torch.arange(length)[None])
        signs = torch.ones(self._size)
        signs[: self._size // 2] = -1
        return cos[0, :, None], (sin[0] * signs)[:, None]

    def __call__(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor | None,
        layers: Sequence[Any],
        reach: int,
        keep: int,
    ) -> torch.Tensor:
        """Returns logits ``[rows, keep, vocabulary]`` of the last tokens.

        Args:
            ids: ``[rows, tokens]``.
            positions: Of these tokens, ``[rows, tokens]``.
            mask: ``[rows, 1, tokens or groups * tokens, length]``; None for a lone prompt.
            layers: The layers of the cache.
            reach: More than any position.
            keep: Number of final positions whose logits are needed.
        """
        if reach > len(self._cos):
            self._cos, self._sin = self._rotation(max(reach, 2 * len(self._cos), 512))
        rows, tokens = ids.shape
        places = positions.flatten()
        cos, sin = self._cos[places], self._sin[places]
        states = self._embedding[ids.flatten()]
        width = (states.shape[1],)
        for layer, cached in zip(self._layers, layers, strict=True):
            inward = layer.inward(rms_norm(states, width, layer.before, self._epsilon))
            attended = self._attend(layer, inward, cos, sin, (rows, tokens), mask, cached)
            states = states + layer.outward(attended)
            gate, up = layer.gate_up(rms_norm(states, width, layer.between, self._epsilon)).chunk(
                2, -1
            )
            states = states + layer.down(silu(gate) * up)
        last = states.view(rows, tokens, -1)[:, -keep:].reshape(-1, *width)
        logits = self._head(rms_norm(last, width, self._norm, self._epsilon))
        return logits.view(rows, -1, logits.shape[-1])

    def _attend(
        self,
        layer: _Layer,
        inward: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        shape: tuple[int, int],
        mask: torch.Tensor | None,
        cached: Any,
    ) -> torch.Tensor:
        split, size = self._heads + self._key_heads, self._size
        lanes = inward.view(len(inward), -1, size)
        turned = lanes[:, :split]
        if layer.norms:
            parts = turned[:, : self._heads], turned[:, self._heads :]
            turned = torch.cat(
                [
                    rms_norm(part, (size,), weight, self._epsilon)
                    for part, weight in zip(parts, layer.norms, strict=True)
                ],
                1,
            )
        turned = torch.addcmul(turned * cos, turned.roll(size // 2, -1), sin)
        query, key, value = (
            part.view(*shape, -1, size).transpose(1, 2)
            for part in (turned[:, : self._heads], turned[:, self._heads :], lanes[:, split:])
        )
        key, value = cached.update(key, value)
        output, _ = packed_attention(layer.attention, query, key, value, mask, scaling=size**-0.5)
        return output.reshape(len(inward), -1)
