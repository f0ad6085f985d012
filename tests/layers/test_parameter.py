"""Matrices keep exactly the numbers of the file, in the layout that was asked for."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from branchline.kernels.weights import DenseWeight, Q4_1Weight, Q8_0Weight
from branchline.runtime.layers.linear import Linear
from branchline.runtime.layers.parameter import WeightDtype, make_weight, stored_as
from branchline.runtime.loading.raw_tensor import Kind, RawTensor

QUANTISED: dict[Kind, gguf.GGMLQuantizationType] = {
    "q4_0": gguf.GGMLQuantizationType.Q4_0,
    "q4_1": gguf.GGMLQuantizationType.Q4_1,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
}


def raw(kind: Kind, rows: int, columns: int = 64, seed: int = 0) -> RawTensor:
    """A random tensor stored as `kind`."""
    values = np.random.default_rng(seed).standard_normal((rows, columns), dtype=np.float32)
    if kind in QUANTISED:
        data = gguf.quants.quantize(values, QUANTISED[kind])
        return RawTensor(kind, (rows, columns), data)
    if kind == "bf16":
        bits = torch.from_numpy(values).bfloat16().view(torch.int16).numpy().view(np.uint16)
        return RawTensor(kind, (rows, columns), bits)
    return RawTensor(kind, (rows, columns), values.astype(np.float16) if kind == "f16" else values)


@pytest.mark.parametrize(
    ("kind", "stored"),
    [
        ("q4_1", "Q4_1"),
        ("q4_0", "Q4_1"),
        ("q8_0", "Q8_0"),
        ("f32", "float32"),
        ("f16", "float32"),
        ("bf16", "bfloat16"),
    ],
)
@pytest.mark.parametrize("rows", [[32], [16, 48], [24, 8, 8], [5, 3]], ids=str)
def test_auto_keeps_what_the_file_holds(kind: Kind, stored: str, rows: list[int]) -> None:
    parts = [raw(kind, n, seed=i) for i, n in enumerate(rows)]
    weight = make_weight(parts, "auto")
    assert stored_as(weight) == stored
    assert weight.shape == (sum(rows), 64)
    expected = np.concatenate([part.to_numpy() for part in parts])
    torch.testing.assert_close(weight.dequantize(), torch.from_numpy(expected), rtol=1e-6, atol=0)


def test_auto_keeps_four_bits_in_five() -> None:
    weight = make_weight([raw("q4_1", 64)], "auto")
    assert isinstance(weight, Q4_1Weight)
    assert weight.nbytes == 64 * 64 * 5 // 8
    assert isinstance(make_weight([raw("q8_0", 64)], "auto"), Q8_0Weight)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["q4_1", "q4_0", "q8_0", "f32", "f16", "bf16"])
def test_a_named_dtype_widens_everything(kind: Kind, dtype: WeightDtype) -> None:
    part = raw(kind, 16)
    weight = make_weight([part, part], dtype)
    assert isinstance(weight, DenseWeight)
    assert stored_as(weight) == dtype
    expected = torch.from_numpy(part.to_numpy()).to(getattr(torch, dtype))
    assert torch.equal(weight.tensor, torch.cat([expected, expected]))


@pytest.mark.parametrize(
    ("kinds", "stored"),
    [(("q4_1", "q8_0"), "bfloat16"), (("bf16", "q8_0"), "bfloat16"), (("q4_1", "f32"), "float32")],
)
def test_parts_stored_in_different_ways_become_dense(kinds: tuple[Kind, Kind], stored: str) -> None:
    assert stored_as(make_weight([raw(kind, 16) for kind in kinds], "auto")) == stored


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
def test_fused_rows_follow_the_order_of_the_names(order: list[int]) -> None:
    parts = [raw("f32", n, seed=n) for n in (4, 6, 8)]
    biases = [RawTensor("f32", (n,), np.full(n, n, np.float32)) for n in (4, 6, 8)]
    layer = Linear(64, [("a", 4), ("b", 6), ("c", 8)], bias=True)
    slots = {slot.name: slot for slot in layer.slots()}
    assert {name: slot.shape for name, slot in slots.items()} == {
        "a.weight": (4, 64),
        "a.bias": (4,),
        "b.weight": (6, 64),
        "b.bias": (6,),
        "c.weight": (8, 64),
        "c.bias": (8,),
    }
    for i in order:
        slots[f"{'abc'[i]}.weight"].put(parts[i])
        slots[f"{'abc'[i]}.bias"].put(biases[i])
    expected = np.concatenate([part.to_numpy() for part in parts])
    assert torch.equal(layer.weight.dequantize(), torch.from_numpy(expected))
    assert layer.bias is not None
    assert layer.bias.tolist() == [4.0] * 4 + [6.0] * 6 + [8.0] * 8
    assert layer.memory() == 18 * 64 * 4 + 18 * 4
