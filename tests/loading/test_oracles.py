"""Specs, names and shapes agree with transformers; the default model agrees with `gguf`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from branchline.runtime.config.model_spec import from_hf_config
from branchline.runtime.loading.load import load_into, open_checkpoint
from branchline.runtime.loading.weight_map import expected_tensors

SIZES: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


@pytest.mark.parametrize(
    ("kind", "extra"),
    [
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 16}),
        ("mistral", {"sliding_window": None}),
        ("qwen2", {"tie_word_embeddings": True}),
        ("qwen3", {"head_dim": 8}),
    ],
)
def test_a_model_saved_by_transformers_fits_its_spec(
    tmp_path: Path, kind: str, extra: dict[str, Any]
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(kind, **SIZES, **extra)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    spec = checkpoint.spec
    assert (spec.architecture, spec.eos_ids, spec.file_dtype) == (kind, (2,), "f32")
    assert spec.rms_eps == config.rms_norm_eps
    state = model.state_dict()
    loaded = dict(load_into(expected_tensors(spec), checkpoint))
    assert loaded.keys() == state.keys() - ({"lm_head.weight"} if spec.tie_embeddings else set())
    for name, tensor in loaded.items():
        assert torch.equal(tensor.to_torch(torch.float32), state[name])


def test_rope_settings_survive_transformers_own_spelling(tmp_path: Path) -> None:
    from transformers import LlamaConfig

    scaling = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }
    config = LlamaConfig(**SIZES, rope_parameters=scaling)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path)
    rope = from_hf_config(json.loads((tmp_path / "config.json").read_text())).rope
    assert (rope.theta, rope.scaling.kind, rope.scaling.factor) == (500000.0, "llama3", 8.0)
    assert rope.scaling.original_context == 16


def test_the_default_model_fits_and_equals_the_reference_reader(default_model: Path) -> None:
    checkpoint = open_checkpoint(default_model)
    loaded = dict(load_into(expected_tensors(checkpoint.spec), checkpoint))
    assert len(loaded) == 272
    assert (checkpoint.spec.hidden, checkpoint.spec.eos_ids) == (576, (2,))
    if default_model.is_dir():
        return
    with default_model.open("rb") as file:
        raw = np.memmap(file, mode="r")
        embedding = loaded["model.embed_tokens.weight"]
        assert (embedding.kind, embedding.shape) == ("q8_0", (49152, 576))
        values = gguf.quants.dequantize(embedding.data[:64], gguf.GGMLQuantizationType.Q8_0)
        np.testing.assert_array_equal(embedding.to_torch(torch.float32)[:64].numpy(), values)
        down = loaded["model.layers.29.mlp.down_proj.weight"]
        assert (down.kind, down.data.shape) == ("q4_1", (576, 1536 // 32 * 20))
        assert bytes(down.data[0]) in bytes(raw)
