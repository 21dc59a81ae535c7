"""Our checkpoints as GGUF files, the format of llama.cpp.

The file holds weights and no vocabulary: llama.cpp is given token ids, so that it need not know how
a checkpoint's tokenizer cuts text into words.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gym_llmworld.errors import CheckpointError

Weights = Literal["f32", "f16", "q8_0"]
WEIGHTS: tuple[Weights, ...] = ("f32", "f16", "q8_0")
_VERSION = 1
"""Of what is written; another one is written anew."""
_LAYER_TENSORS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_of(folder: Path, weights: Weights) -> Path:
    """Returns the GGUF file of a checkpoint, written to the user's cache folder if need be.

    Args:
        folder: Checkpoint of a Llama architecture, safetensors weights.
        weights: How matrices are stored; vectors stay in single precision.

    Raises:
        CheckpointError: Another architecture, or weights that are missing.
        OSError: The cache folder cannot be written to.
    """
    files = sorted(folder.glob("*.safetensors"))
    config_file = folder / "config.json"
    if not files or not config_file.is_file():
        raise CheckpointError(
            f"{folder}: expected a checkpoint folder with config.json and safetensors weights"
        )
    digest = hashlib.sha256(f"{_VERSION}".encode())
    for file in (config_file, *files):
        digest.update(file.read_bytes())
    path = _cache() / f"{digest.hexdigest()[:24]}-{weights}.gguf"
    if not path.is_file():
        config = json.loads(config_file.read_text(encoding="utf-8"))
        _check(config, folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        try:
            _write(part, config, _read(files), weights)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    return path


def _cache() -> Path:
    """Returns where the files are kept; deleting it loses only time."""
    chosen = os.environ.get("GYM_LLMWORLD_CACHE")
    if chosen:
        return Path(chosen).expanduser() / "gguf"
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "gym-llmworld" / "gguf"


def _check(config: dict[str, Any], folder: Path) -> None:
    rope = config.get("rope_parameters") or {"rope_type": "default"}
    plain = not config.get("attention_bias") and not config.get("mlp_bias")
    if config.get("architectures") != ["LlamaForCausalLM"] or not plain:
        raise CheckpointError(
            f"backend 'llamacpp' serves LlamaForCausalLM without biases, and {folder} is "
            f"{config.get('architectures')}; use backend='hf'"
        )
    if rope.get("rope_type") != "default" or config.get("rope_scaling"):
        raise CheckpointError(
            f"backend 'llamacpp' serves plain rotary embeddings, and {folder} scales them; use "
            "backend='hf'"
        )


def _read(files: list[Path]) -> dict[str, NDArray[np.float32]]:
    safetensors = importlib.import_module("safetensors")
    tensors = {}
    for file in files:
        with safetensors.safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (not a dict)
                tensors[name] = opened.get_tensor(name).float().numpy()
    return tensors


def _write(
    path: Path, config: dict[str, Any], tensors: dict[str, NDArray[np.float32]], weights: Weights
) -> None:
    gguf = importlib.import_module("gguf")
    heads = config["num_attention_heads"]
    key_heads = config.get("num_key_value_heads") or heads
    size = config.get("head_dim") or config["hidden_size"] // heads
    rope = config.get("rope_parameters") or {}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(key_heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(float(rope.get("rope_theta") or config.get("rope_theta") or 1e4))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")

    def add(name: str, tensor: NDArray[np.float32]) -> None:
        if tensor.ndim == 1 or weights == "f32":
            writer.add_tensor(name, np.ascontiguousarray(tensor))
        elif weights == "f16":
            writer.add_tensor(name, tensor.astype(np.float16))
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(tensor, kind), raw_dtype=kind)

    add("token_embd.weight", tensors["model.embed_tokens.weight"])
    add("output_norm.weight", tensors["model.norm.weight"])
    if not config.get("tie_word_embeddings"):
        add("output.weight", tensors["lm_head.weight"])
    for layer in range(config["num_hidden_layers"]):
        for theirs, ours in _LAYER_TENSORS.items():
            tensor = tensors[f"model.layers.{layer}.{theirs}.weight"]
            if ours in ("attn_q", "attn_k"):
                tensor = _interleaved(tensor, heads if ours == "attn_q" else key_heads)
            add(f"blk.{layer}.{ours}.weight", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _interleaved(tensor: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Reorders each head's rows: llama.cpp rotates neighbours, transformers the two halves."""
    rows, columns = tensor.shape
    halves = tensor.reshape(heads, 2, rows // heads // 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows, columns))
