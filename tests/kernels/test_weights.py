"""Packed weights hold exactly the numbers of the file."""

import gguf
import gguf.quants
import numpy as np
import pytest
import torch

from branchline.kernels.errors import KernelInputError
from branchline.kernels.testing import random_quantized
from branchline.kernels.weights import (
    DenseWeight,
    PanelWeight,
    Q4_1Weight,
    Q8_0Weight,
    concat,
    pick_rows,
    quantize_q4_1,
)

_KINDS = [
    (Q4_1Weight, gguf.GGMLQuantizationType.Q4_1),
    (Q8_0Weight, gguf.GGMLQuantizationType.Q8_0),
]


@pytest.mark.parametrize(("kind", "code"), _KINDS)
@pytest.mark.parametrize(("n", "k"), [(16, 32), (48, 64), (37, 96), (1, 160)])
def test_dequantize_equals_gguf(
    kind: type[Q4_1Weight | Q8_0Weight], code: gguf.GGMLQuantizationType, n: int, k: int
) -> None:
    raw = gguf.quants.quantize(
        np.random.default_rng(n).standard_normal((n, k)).astype(np.float32), code
    )
    weight = kind(torch.from_numpy(raw), k)
    assert weight.shape == (n, k)
    assert np.array_equal(weight.dequantize().numpy(), gguf.quants.dequantize(raw, code))


@pytest.mark.parametrize(("kind", "code"), _KINDS)
def test_concat_stacks_rows(
    kind: type[Q4_1Weight | Q8_0Weight], code: gguf.GGMLQuantizationType
) -> None:
    rng = np.random.default_rng(0)
    parts = [
        kind(torch.from_numpy(gguf.quants.quantize(rng.random((n, 64), np.float32), code)), 64)
        for n in (32, 16, 21)
    ]
    fused = concat(parts)
    assert torch.equal(fused.dequantize(), torch.cat([p.dequantize() for p in parts]))
    with pytest.raises(KernelInputError, match="multiple of 16"):
        concat([parts[2], parts[0]])
    with pytest.raises(KernelInputError, match="different kinds"):
        concat([parts[0], DenseWeight(torch.zeros(4, 64))])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("n", "k"), [(64, 8), (130, 7), (5, 33)])
def test_panels_hold_the_matrix(dtype: torch.dtype, n: int, k: int) -> None:
    x = torch.randn(n, k).to(dtype)
    assert torch.equal(PanelWeight(x).dequantize(), x.float())


@pytest.mark.parametrize("count", [1, 16, 37])
def test_picked_rows_are_the_rows(count: int) -> None:
    index = torch.randint(0, 50, (count,))
    tensor = torch.randn(50, 96)
    for weight in (
        random_quantized(Q4_1Weight, 50, 96, 1),
        random_quantized(Q8_0Weight, 50, 96, 2),
        DenseWeight(tensor),
        PanelWeight(tensor.bfloat16()),
        PanelWeight(tensor),
    ):
        picked = pick_rows(weight, index)
        assert picked.shape == (count, 96)
        assert torch.equal(picked.dequantize(), weight.dequantize()[index])
    following = pick_rows(DenseWeight(tensor), torch.arange(7, 20))
    assert isinstance(following, DenseWeight)
    assert following.tensor.data_ptr() == tensor[7:].data_ptr()


def test_rounding_to_4_bits_is_no_worse_than_the_whole_range_of_each_block() -> None:
    tensor = torch.randn(19, 64) * 3
    tensor[4, :32] = 0
    tensor[5, :32] = 1.5
    blocks = tensor.view(19, 2, 32)
    low, high = blocks.amin(-1, keepdim=True), blocks.amax(-1, keepdim=True)
    step = (high - low) / 15
    whole = low + ((blocks - low) / step.clamp(min=1e-30)).round() * step
    error = quantize_q4_1(tensor).dequantize().view_as(blocks) - blocks
    limit = (whole - blocks).square().sum(-1) + 1e-3 * blocks.square().sum(-1)
    assert (error.square().sum(-1) <= limit).all()


def test_rounding_to_4_bits_keeps_what_4_bits_can_say() -> None:
    codes = torch.arange(64).reshape(2, 32) % 16
    tensor = codes * torch.tensor([[0.5], [2.0]]) - torch.tensor([[3.0], [8.0]])
    assert torch.equal(quantize_q4_1(tensor).dequantize(), tensor)


def test_cut_file_is_refused() -> None:
    with pytest.raises(KernelInputError, match="cut short"):
        Q8_0Weight(torch.zeros(33, dtype=torch.uint8), 32)
    with pytest.raises(KernelInputError, match="multiple of 32"):
        Q8_0Weight(torch.zeros(34, dtype=torch.uint8), 31)
    with pytest.raises(KernelInputError, match="float16"):
        DenseWeight(torch.zeros(2, 2, dtype=torch.float16))
