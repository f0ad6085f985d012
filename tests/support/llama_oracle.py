"""transformers' Llama of a spec of ours: the oracle of models."""

from __future__ import annotations

import transformers

from branchline.runtime.config.model_spec import ModelSpec


def llama_config(spec: ModelSpec) -> transformers.LlamaConfig:
    """Its configuration; attention is computed step by step."""
    return transformers.LlamaConfig(
        vocab_size=spec.vocab_size,
        hidden_size=spec.hidden,
        intermediate_size=spec.ffn,
        num_hidden_layers=spec.num_layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        rms_norm_eps=spec.rms_eps,
        rope_parameters={"rope_type": "default", "rope_theta": spec.rope.theta},
        max_position_embeddings=spec.max_context,
        tie_word_embeddings=spec.tie_embeddings,
        attn_implementation="eager",
    )
