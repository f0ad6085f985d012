"""Tiny model files for the tests of this room."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from branchline.runtime.config.model_spec import ModelSpec
from branchline.runtime.loading.weight_map import expected_tensors

SPEC = ModelSpec(
    architecture="llama",
    num_layers=2,
    hidden=64,
    ffn=96,
    heads=4,
    kv_heads=2,
    head_dim=16,
    vocab_size=40,
    max_context=128,
    tie_embeddings=True,
    bos_id=1,
    eos_ids=(2,),
)

_TO_GGUF = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def random_weights(spec: ModelSpec, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """Canonical name to float32 values."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.standard_normal(shape, dtype=np.float32)
        for name, shape in expected_tensors(spec).items()
    }


def interleave(values: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """What the converter does to q and k of Llama: halves of a head become pairs."""
    rows = values.shape[0] // heads
    return (
        values.reshape(heads, 2, rows // 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
    )


def gguf_name(name: str) -> str:
    """The GGUF name of a canonical one."""
    if name in _TO_GGUF:
        return _TO_GGUF[name]
    _, _, layer, rest = name.split(".", 3)
    module, _, kind = rest.rpartition(".")
    return f"blk.{layer}.{_TO_GGUF[module]}.{kind}"


def write_gguf(
    path: Path,
    spec: ModelSpec,
    weights: dict[str, np.ndarray[Any, Any]],
    quant: gguf.GGMLQuantizationType | None = None,
    extra: dict[str, Any] | None = None,
) -> Path:
    """A GGUF file of `weights`, matrices quantised as `quant`, with the `gguf` package's writer."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(spec.num_layers)
    writer.add_context_length(spec.max_context)
    writer.add_embedding_length(spec.hidden)
    writer.add_feed_forward_length(spec.ffn)
    writer.add_head_count(spec.heads)
    writer.add_head_count_kv(spec.kv_heads)
    writer.add_layer_norm_rms_eps(spec.rms_eps)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for key, value in (extra or {}).items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        else:
            writer.add_uint32(key, value)
    for name, values in weights.items():
        stored = values
        if name.endswith(("q_proj.weight", "q_proj.bias")):
            stored = interleave(values, spec.heads)
        if name.endswith(("k_proj.weight", "k_proj.bias")):
            stored = interleave(values, spec.kv_heads)
        if quant is not None and stored.ndim == 2:
            packed = gguf.quants.quantize(stored, quant)
            writer.add_tensor(gguf_name(name), packed, raw_dtype=quant)
        else:
            writer.add_tensor(gguf_name(name), np.ascontiguousarray(stored))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def hf_config(spec: ModelSpec) -> dict[str, Any]:
    """config.json of `spec`."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": spec.hidden,
        "intermediate_size": spec.ffn,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "max_position_embeddings": spec.max_context,
        "vocab_size": spec.vocab_size,
        "rms_norm_eps": spec.rms_eps,
        "tie_word_embeddings": spec.tie_embeddings,
        "bos_token_id": spec.bos_id,
        "eos_token_id": list(spec.eos_ids),
    }


def write_config(directory: Path, spec: ModelSpec) -> Path:
    """A Hugging Face directory with nothing but its config.json."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(hf_config(spec)))
    return directory
