"""Llama equals transformers' Llama, float32, on random checkpoints of many shapes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from branchline.kernels.cpu.native_ops import NativeOps
from branchline.kernels.dispatch import make_ops
from branchline.kernels.ops import Ops
from branchline.runtime.config.model_spec import ModelSpec
from branchline.runtime.errors import ModelLoadError
from branchline.runtime.loading.checkpoint import DummyCheckpoint
from branchline.runtime.loading.weight_map import expected_tensors
from branchline.runtime.models.registry import MODELS, make_model
from tests.support.model_driver import (
    CONTEXT,
    Driver,
    Part,
    load_tiny,
    reference_logprobs,
    reference_model,
    tiny_llama,
)

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 24,
}
SHAPES: dict[str, dict[str, Any]] = {
    "tied, 3 queries a head": {},
    "untied, 1 query a head": {
        "tie_word_embeddings": False,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
    },
    "2 queries a head": {"num_attention_heads": 4, "num_key_value_heads": 2},
    "8 queries a head": {"num_attention_heads": 8, "num_key_value_heads": 1},
    "head_dim is not hidden / heads": {
        "head_dim": 40,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
    },
    "biases": {"attention_bias": True, "mlp_bias": True},
    "one layer": {"num_hidden_layers": 1},
    "odd widths": {"vocab_size": 67, "intermediate_size": 50, "hidden_size": 36},
    "linear rope": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}},
    "llama3 rope": {"rope_parameters": LLAMA3},
    "dynamic rope": {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
}
PROMPT = [1, 17, 5, 99, 42, 42, 8, 63, 12, 30, 3]


@pytest.fixture(scope="module", params=["native", "reference"])
def ops(request: pytest.FixtureRequest) -> Ops:
    return make_ops(request.param, threads=2)


@pytest.fixture(scope="module", params=SHAPES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny"), **SHAPES[request.param])


def greedy(logprobs: torch.Tensor) -> int:
    return int(logprobs[-1].argmax())


def test_logprobs_and_greedy_tokens_equal_transformers(checkpoint: Path, ops: Ops) -> None:
    reference = reference_model(checkpoint)
    model = load_tiny(checkpoint, ops)
    driver = Driver(model, ops)
    ids = [i % model.spec.vocab_size for i in PROMPT]
    got = driver.logprobs(Part(0, ids, every=True))
    torch.testing.assert_close(got, reference_logprobs(reference, ids), rtol=1e-4, atol=1e-4)
    limit = CONTEXT - 1 if isinstance(ops, NativeOps) else 32
    while len(ids) < limit:
        ids.append(greedy(got))
        got = driver.logprobs(Part(0, ids[-1:]))
    expected = reference_logprobs(reference, ids)
    torch.testing.assert_close(got[-1], expected[-1], rtol=1e-4, atol=1e-4)
    for place in range(len(PROMPT), len(ids)):
        best = expected[place - 1]
        assert best[ids[place]] >= best.max() - 1e-4  # the same token, exact ties aside


def test_bfloat16_weights_follow_transformers_closely(tmp_path: Path, ops: Ops) -> None:
    folder = tiny_llama(tmp_path)
    expected = reference_logprobs(reference_model(folder), PROMPT)
    driver = Driver(load_tiny(folder, ops, "bfloat16"), ops, kv_dtype=torch.bfloat16)
    got = driver.logprobs(Part(0, PROMPT, every=True))
    assert (got.exp() * (got - expected)).sum(-1).max() < 0.02


def test_an_architecture_without_class_names_the_supported_ones(tmp_path: Path) -> None:
    spec = load_tiny(tiny_llama(tmp_path), make_ops("reference")).spec
    foreign = dataclasses.replace(spec)
    object.__setattr__(foreign, "architecture", "gpt2")
    with pytest.raises(ModelLoadError, match="Supported: llama, mistral") as error:
        make_model(foreign, 8)
    assert error.value.value == "gpt2"


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


@pytest.mark.parametrize("context", [0, 33])
def test_a_context_the_model_does_not_have_is_refused(context: int) -> None:
    with pytest.raises(ModelLoadError, match="Use 1 to 32"):
        make_model(SPEC, context)


def test_an_activation_without_op_is_refused() -> None:
    with pytest.raises(ModelLoadError, match="silu"):
        make_model(dataclasses.replace(SPEC, activation="gelu"), 8)


@pytest.mark.parametrize("architecture", MODELS)
@pytest.mark.parametrize("tied", [False, True])
def test_slots_are_the_tensors_that_the_spec_promises(architecture: str, tied: bool) -> None:
    spec = dataclasses.replace(
        SPEC,
        architecture=architecture,
        tie_embeddings=tied,
        attention_bias="qkv" if architecture == "qwen2" else "qkvo" if tied else "",
        mlp_bias=tied,
        qk_norm=architecture == "qwen3",
    )
    slots = {slot.name: slot.shape for slot in make_model(spec, 8).slots()}
    assert slots == expected_tensors(spec)


def test_memory_report_counts_every_matrix_once() -> None:
    spec = dataclasses.replace(SPEC, tie_embeddings=True)
    ops = make_ops("reference")
    model = make_model(spec, 16)
    checkpoint = DummyCheckpoint(spec)
    for slot in model.slots():
        slot.put(checkpoint.read(slot.name))
    model.prepare(ops)
    report = model.memory_report()
    numbers = sum(torch.Size(shape).numel() for shape in expected_tensors(spec).values())
    assert report.total - report.tables == 4 * numbers
    assert report.tables == 4 * 16 * 8
    assert report.head == 0
    assert sum(report.kinds.values()) == report.embedding + report.attention + report.mlp


FAMILY: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM, {}),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM, {}),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM, {"head_dim": 16}),
}


@pytest.mark.parametrize("architecture", FAMILY)
def test_relatives_of_llama_equal_transformers(architecture: str, tmp_path: Path, ops: Ops) -> None:
    """Qwen2 has biases on q, k and v; Qwen3 norms q and k; both are rows of the registry."""
    make_config, make, changes = FAMILY[architecture]
    torch.manual_seed(3)
    saved = make(
        make_config(
            vocab_size=60,
            hidden_size=48,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=CONTEXT,
            initializer_range=0.2,
            **changes,
        )
    )
    for name, parameter in saved.named_parameters():
        if "norm" in name or name.endswith("bias"):
            torch.nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.3)
    saved.save_pretrained(tmp_path)
    ids = [3, 50, 7, 7, 21, 9]
    model = load_tiny(tmp_path, ops)
    assert model.spec.architecture == architecture
    got = Driver(model, ops).logprobs(Part(0, ids, every=True))
    expected = reference_logprobs(reference_model(tmp_path), ids)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
