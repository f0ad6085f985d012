"""A spec says the same facts whichever format told them, and refuses what it cannot mean."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from branchline.runtime.config.model_spec import (
    ModelSpec,
    RopeScaling,
    from_gguf,
    from_hf_config,
)
from branchline.runtime.errors import ModelLoadError

HF: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "vocab_size": 49152,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}
GGUF: dict[str, Any] = {
    "general.architecture": "llama",
    "general.file_type": 3,
    "llama.block_count": 30,
    "llama.context_length": 8192,
    "llama.embedding_length": 576,
    "llama.feed_forward_length": 1536,
    "llama.attention.head_count": 9,
    "llama.attention.head_count_kv": 3,
    "llama.rope.freq_base": 100000.0,
    "llama.attention.layer_norm_rms_epsilon": 9.999999747378752e-06,
    "llama.vocab_size": 49152,
    "llama.rope.dimension_count": 64,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
}


def test_both_formats_tell_the_same_facts() -> None:
    hf, gguf = from_hf_config(HF), from_gguf(GGUF)
    same = dataclasses.replace(gguf, raw_architecture=hf.raw_architecture, file_dtype=hf.file_dtype)
    assert same == hf
    assert (hf.file_dtype, gguf.file_dtype) == ("bf16", "q4_1")
    assert (hf.head_dim, hf.q_size, hf.kv_size) == (64, 576, 192)


def test_float32_values_are_read_as_written() -> None:
    assert from_gguf(GGUF).rms_eps == 1e-5


def test_eos_ids_are_gathered_from_all_places() -> None:
    spec = from_hf_config(HF | {"eos_token_id": [2, 0]}, {"eos_token_id": [7, 2]}, extra_eos=[5])
    assert spec.eos_ids == (0, 2, 5, 7)
    assert from_gguf(GGUF | {"tokenizer.ggml.eot_token_id": 9}).eos_ids == (2, 9)


@pytest.mark.parametrize("where", ["rope_scaling", "rope_parameters"])
def test_rope_scaling_is_read_in_both_spellings(where: str) -> None:
    llama3 = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_theta": 500000.0,
    }
    rope = from_hf_config(HF | {where: llama3}).rope
    assert rope.theta == 500000.0
    assert rope.scaling == RopeScaling("llama3", 32.0, 1.0, 4.0, 8192)
    old = from_hf_config(HF | {where: {"type": "linear", "factor": 2.0}}).rope
    assert (old.theta, old.scaling.kind, old.scaling.factor) == (100000.0, "linear", 2.0)
    dynamic = from_hf_config(HF | {where: {"rope_type": "dynamic", "factor": 4}}).rope.scaling
    assert dynamic == RopeScaling("dynamic", 4.0, original_context=8192)


def test_gguf_rope_factors_and_linear_scaling() -> None:
    factors = [1.0] * 16 + [8.0] * 16
    assert from_gguf(GGUF, rope_factors=factors).rope.scaling.factors == tuple(factors)
    linear = from_gguf(
        GGUF | {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    )
    assert linear.rope.scaling == RopeScaling("linear", 4.0, original_context=8192)
    with pytest.raises(ModelLoadError, match="32 long"):
        from_gguf(GGUF, rope_factors=[1.0])


def test_tensor_names_tell_ties_biases_and_norms() -> None:
    names = ["output.weight", "blk.0.attn_q.bias", "blk.0.attn_q_norm.weight"]
    spec = from_gguf(GGUF, names)
    assert (spec.tie_embeddings, spec.attention_bias, spec.qk_norm) == (False, "qkv", True)
    assert from_gguf(GGUF).tie_embeddings


def test_qwen_facts() -> None:
    qwen2 = from_hf_config(HF | {"architectures": ["Qwen2ForCausalLM"]})
    assert (qwen2.attention_bias, qwen2.qk_norm) == ("qkv", False)
    qwen3 = from_hf_config(HF | {"architectures": ["Qwen3ForCausalLM"], "head_dim": 128})
    assert (qwen3.attention_bias, qwen3.qk_norm, qwen3.head_dim) == ("", True, 128)


def test_sliding_window_caps_the_context() -> None:
    mistral = HF | {"architectures": ["MistralForCausalLM"], "sliding_window": 4096}
    assert from_hf_config(mistral).max_context == 4096
    assert from_hf_config(mistral | {"sliding_window": None}).max_context == 8192


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel.*Supported: llama"),
        ({"hidden_act": "relu"}, "relu.*Supported"),
        ({"num_key_value_heads": 2}, "no multiple of kv_heads 2"),
        ({"vocab_size": None}, "does not say 'vocab_size'"),
        ({"hidden_size": "wide"}, "one whole number.*wide"),
        ({"num_hidden_layers": 0}, "num_layers 0 must be in"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn.*Supported"),
        ({"rope_scaling": {"rope_type": "linear"}}, "positive 'factor'"),
        ({"partial_rotary_factor": 0.5}, "part of the head"),
        ({"head_dim": 63}, "must be even"),
    ],
)
def test_what_cannot_be_meant_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ModelLoadError, match=says):
        from_hf_config(HF | change)


def test_unsupported_gguf_architecture_names_itself_and_the_supported() -> None:
    with pytest.raises(ModelLoadError, match=r"'rwkv6'.*Supported: llama, mistral, qwen2, qwen3"):
        from_gguf(GGUF | {"general.architecture": "rwkv6"})


def test_specs_are_frozen() -> None:
    spec = from_hf_config(HF)
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.hidden = 1  # type: ignore[misc]
    assert isinstance(hash(spec), int)
    assert isinstance(spec, ModelSpec)
