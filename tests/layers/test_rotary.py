"""Rotary tables are bit for bit those of transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from branchline.runtime.config.model_spec import RopeScaling, RopeSpec
from branchline.runtime.layers.rotary import rotary_table

LLAMA3 = RopeScaling(
    kind="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=256
)
CASES: dict[str, tuple[RopeSpec, dict[str, Any]]] = {
    "plain": (RopeSpec(1e4), {"rope_type": "default", "rope_theta": 1e4}),
    "base of SmolLM2": (RopeSpec(1e5), {"rope_type": "default", "rope_theta": 1e5}),
    "linear": (
        RopeSpec(1e4, RopeScaling(kind="linear", factor=3.0)),
        {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0},
    ),
    "dynamic within its context": (
        RopeSpec(1e4, RopeScaling(kind="dynamic", factor=2.0, original_context=2048)),
        {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
    ),
    "llama3": (
        RopeSpec(5e5, LLAMA3),
        {
            "rope_type": "llama3",
            "rope_theta": 5e5,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 256,
        },
    ),
}


@pytest.mark.parametrize("head_dim", [16, 64, 96])
@pytest.mark.parametrize("case", CASES)
def test_table_equals_transformers(case: str, head_dim: int) -> None:
    rope, parameters = CASES[case]
    config = LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        head_dim=head_dim,
        max_position_embeddings=2048,
        rope_parameters=parameters,
    )
    positions = torch.arange(2048)[None]
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), positions)
    table = rotary_table(rope, head_dim, 2048)
    assert table.dtype == torch.float32
    half = head_dim // 2
    torch.testing.assert_close(table[:, :half], cos[0, :, :half], rtol=0, atol=0)
    torch.testing.assert_close(table[:, half:], sin[0, :, :half], rtol=0, atol=0)


def test_factors_divide_the_frequencies() -> None:
    scaling = RopeScaling(kind="factors", factors=(1.0, 1.0, 2.0, 8.0))
    plain, scaled = (rotary_table(rope, 8, 100) for rope in (RopeSpec(), RopeSpec(1e4, scaling)))
    assert torch.equal(plain[:, :2], scaled[:, :2])
    torch.testing.assert_close(scaled[16, 3], plain[2, 3])


def test_a_shorter_table_is_the_beginning_of_a_longer_one() -> None:
    rope = RopeSpec(5e5, LLAMA3)
    assert torch.equal(rotary_table(rope, 64, 100), rotary_table(rope, 64, 1000)[:100])
