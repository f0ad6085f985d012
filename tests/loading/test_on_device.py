"""Tensors on their way to a device, and shapes without weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from branchline.runtime.errors import ModelLoadError
from branchline.runtime.layers.parameter import make_weight
from branchline.runtime.loading.checkpoint import DummyCheckpoint
from branchline.runtime.loading.load import open_checkpoint
from branchline.runtime.loading.on_device import Noise, OnDevice
from branchline.runtime.loading.raw_tensor import RawTensor

SHAPE = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 128,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
}


@pytest.fixture
def shape_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(SHAPE))
    return path


def test_a_configuration_alone_is_a_shape(shape_file: Path) -> None:
    checkpoint = open_checkpoint(shape_file, "dummy")
    assert isinstance(checkpoint, DummyCheckpoint)
    assert checkpoint.spec.qk_norm
    assert checkpoint.tokenizer_source is None
    assert checkpoint.shape("model.layers.0.self_attn.q_norm.weight") == (16,)


def test_a_configuration_alone_has_no_weights_to_load(shape_file: Path) -> None:
    with pytest.raises(ModelLoadError, match="dummy"):
        open_checkpoint(shape_file)


def test_parts_are_joined_where_they_come_to() -> None:
    meta = torch.device("meta")
    raw = RawTensor("f32", (3, 4), np.ones((3, 4), dtype=np.float32))
    weight = make_weight([OnDevice(raw, meta), OnDevice(raw, meta)], "bfloat16")
    assert weight.shape == (6, 4)
    assert weight.dense.device == meta
    assert weight.dense.dtype == torch.bfloat16


def test_noise_depends_on_name_and_seed_alone() -> None:
    cpu = torch.device("cpu")
    first = Noise("model.layers.0.mlp.up_proj.weight", (64, 64), 3, cpu)
    again = Noise("model.layers.0.mlp.up_proj.weight", (64, 64), 3, cpu)
    other = Noise("model.layers.1.mlp.up_proj.weight", (64, 64), 3, cpu)
    assert torch.equal(first.to_torch(torch.float32), again.to_torch(torch.float32))
    assert not torch.equal(first.to_torch(torch.float32), other.to_torch(torch.float32))
    assert abs(float(first.to_torch(torch.float32).std()) - 0.02) < 0.002
    norm = Noise("model.norm.weight", (8,), 3, cpu)
    assert norm.data.tolist() == [1.0] * 8
