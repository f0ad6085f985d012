"""Putting a runner together: every mismatch is a typed error, and nothing is half loaded."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from branchline.kernels.dispatch import make_ops
from branchline.kernels.ops import Ops
from branchline.runtime.config.model_spec import ModelSpec
from branchline.runtime.errors import InvalidRequest, ModelLoadError
from branchline.runtime.executor.build import (
    KVDtype,
    RunnerSettings,
    build_runner,
    kv_dtype_of,
    load_model,
    load_weights,
    token_table,
)
from branchline.runtime.layers.parameter import WeightDtype
from branchline.runtime.loading.checkpoint import DummyCheckpoint
from branchline.runtime.models.registry import make_model
from tests.support.model_driver import Driver, Part

SPEC = ModelSpec(
    architecture="llama",
    num_layers=2,
    hidden=32,
    ffn=48,
    heads=4,
    kv_heads=2,
    head_dim=8,
    vocab_size=50,
    max_context=32,
)


@pytest.fixture(scope="module")
def ops() -> Ops:
    return make_ops("native", threads=1)


def test_every_tensor_that_does_not_fit_is_named() -> None:
    other = dataclasses.replace(SPEC, num_layers=3, ffn=64, tie_embeddings=True)
    with pytest.raises(ModelLoadError) as error:
        load_weights(make_model(SPEC, 8), DummyCheckpoint(other))
    text = str(error.value)
    assert "missing lm_head.weight [50, 32]" in text
    assert "unexpected model.layers.2.mlp.up_proj.weight [64, 32]" in text
    assert "wrong shape model.layers.0.mlp.down_proj.weight: file [32, 64], model [32, 48]" in text


def test_a_dummy_checkpoint_runs(ops: Ops) -> None:
    model = load_model(DummyCheckpoint(SPEC), ops)
    assert model.max_context == SPEC.max_context
    got = Driver(model, ops, max_rows=2).logprobs(Part(0, [1, 2, 3]))
    assert got.shape == (1, 50)
    assert got.isfinite().all()


@pytest.mark.parametrize(
    ("file", "dtype", "kv", "expected"),
    [
        ("q4_1", "auto", "auto", torch.bfloat16),
        ("bf16", "auto", "auto", torch.bfloat16),
        ("f16", "auto", "auto", torch.bfloat16),
        ("f32", "auto", "auto", torch.float32),
        ("q4_1", "float32", "auto", torch.float32),
        ("f32", "bfloat16", "auto", torch.bfloat16),
        ("q4_1", "auto", "float32", torch.float32),
        ("f32", "float32", "bfloat16", torch.bfloat16),
    ],
)
def test_keys_and_values_follow_the_weights_unless_told(
    file: str, dtype: WeightDtype, kv: KVDtype, expected: torch.dtype
) -> None:
    assert kv_dtype_of(dataclasses.replace(SPEC, file_dtype=file), dtype, kv) == expected


def test_a_slot_table_too_narrow_is_refused(ops: Ops) -> None:
    model = load_model(DummyCheckpoint(SPEC), ops)
    with pytest.raises(ModelLoadError, match="31 < 32"):
        build_runner(model, ops, RunnerSettings(num_pages=8), np.zeros((2, 31), dtype=np.int32))


def test_an_unknown_attention_backend_is_refused(ops: Ops) -> None:
    model = load_model(DummyCheckpoint(SPEC), ops)
    with pytest.raises(InvalidRequest, match="no such attention backend"):
        build_runner(
            model,
            ops,
            RunnerSettings(num_pages=8, attention="magic"),
            np.zeros((2, 32), dtype=np.int32),
        )


def test_the_slot_table_is_shared_and_a_full_row_has_room_for_its_sample(ops: Ops) -> None:
    model = load_model(DummyCheckpoint(SPEC), ops)
    table = np.zeros((2, 32), dtype=np.int32)
    runner = build_runner(model, ops, RunnerSettings(num_pages=64), table)
    assert runner.token_table.shape == token_table(2, 32).shape == (2, 33)
    driver = Driver(model, ops, max_rows=2)
    driver.slots[0, :3] = (7, 8, 9)
    driver.run(Part(0, [1, 2, 3]))
    keys, _ = driver.runner.kv_pool.layer(0)
    assert keys[7:10].abs().sum() > 0
