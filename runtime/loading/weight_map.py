"""One set of tensor names for all file formats, and the shapes a model of a given spec has.

Canonical names are those of Hugging Face's Llama (`model.layers.0.self_attn.q_proj.weight`, …).
Invariant: after mapping, a tensor means the same whichever file it came from; in particular the
query and key rows of GGUF Llama files, stored for interleaved rotation, are put back into halves.
"""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt

from branchline.runtime.config.model_spec import ModelSpec

_GGUF_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_GGUF_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GGUF_LAYER_NAME = re.compile(r"blk\.(\d+)\.([a-z_]+)\.(weight|bias)")
_NOT_WEIGHTS = re.compile(r"(.*\.rotary_emb\.inv_freq|rope_freqs\.weight)$")


def canonical_from_gguf(name: str) -> str | None:
    """Canonical name of a GGUF tensor; an unknown name unchanged; None if it is no weight."""
    if _NOT_WEIGHTS.match(name):
        return None
    if name in _GGUF_TOP:
        return _GGUF_TOP[name]
    found = _GGUF_LAYER_NAME.fullmatch(name)
    if found is None or found[2] not in _GGUF_LAYER:
        return name
    return f"model.layers.{found[1]}.{_GGUF_LAYER[found[2]]}.{found[3]}"


def canonical_from_hf(name: str, spec: ModelSpec) -> str | None:
    """Canonical name of a safetensors entry; None if it is no weight of its own.

    A tied head that the file holds a second time is left out; a file saved from the bare decoder
    lacks the "model." prefix.
    """
    if _NOT_WEIGHTS.match(name):
        return None
    if name == "lm_head.weight":
        return None if spec.tie_embeddings else name
    if name.startswith(("embed_tokens.", "layers.", "norm.")):
        return f"model.{name}"
    return name


def gguf_interleaved_heads(name: str, spec: ModelSpec) -> int:
    """Heads of a canonical tensor whose rows a GGUF file stores interleaved; 0 if it does not."""
    if spec.architecture not in ("llama", "mistral"):
        return 0
    if ".self_attn.q_proj." in name:
        return spec.heads
    return spec.kv_heads if ".self_attn.k_proj." in name else 0


def halves_from_pairs(heads: int, head_dim: int) -> npt.NDArray[np.intp]:
    """[heads * head_dim] row order that undoes the interleaving: canonical row i is file row [i].

    The converter of Llama files moves row (half, i) of a head to (i, half).
    """
    rows = np.arange(heads * head_dim, dtype=np.intp)
    return rows.reshape(heads, head_dim // 2, 2).swapaxes(1, 2).reshape(-1)


def expected_tensors(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Every canonical tensor name of a model of `spec`, with its shape ([out, in] or [out])."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (spec.vocab_size, spec.hidden)
    }
    for layer in range(spec.num_layers):
        prefix = f"model.layers.{layer}."
        shapes |= {prefix + name: shape for name, shape in _layer_tensors(spec).items()}
    shapes["model.norm.weight"] = (spec.hidden,)
    if not spec.tie_embeddings:
        shapes["lm_head.weight"] = (spec.vocab_size, spec.hidden)
    return shapes


def _layer_tensors(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    projections = {
        "self_attn.q_proj": (spec.q_size, spec.hidden),
        "self_attn.k_proj": (spec.kv_size, spec.hidden),
        "self_attn.v_proj": (spec.kv_size, spec.hidden),
        "self_attn.o_proj": (spec.hidden, spec.q_size),
        "mlp.gate_proj": (spec.ffn, spec.hidden),
        "mlp.up_proj": (spec.ffn, spec.hidden),
        "mlp.down_proj": (spec.hidden, spec.ffn),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (spec.hidden,),
        "post_attention_layernorm.weight": (spec.hidden,),
    }
    for name, shape in projections.items():
        shapes[f"{name}.weight"] = shape
        letter = name.removeprefix("self_attn.")[0]
        biased = spec.mlp_bias if name.startswith("mlp.") else letter in spec.attention_bias
        if biased:
            shapes[f"{name}.bias"] = shape[:1]
    if spec.qk_norm:
        shapes["self_attn.q_norm.weight"] = (spec.head_dim,)
        shapes["self_attn.k_norm.weight"] = (spec.head_dim,)
    return shapes
