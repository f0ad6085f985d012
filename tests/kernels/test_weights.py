"""Packed weights hold exactly the numbers of the file."""

import gguf
import gguf.quants
import numpy as np
import pytest
import torch

from branchline.kernels.errors import KernelInputError
from branchline.kernels.weights import DenseWeight, PanelWeight, Q4_1Weight, Q8_0Weight, concat

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


def test_cut_file_is_refused() -> None:
    with pytest.raises(KernelInputError, match="cut short"):
        Q8_0Weight(torch.zeros(33, dtype=torch.uint8), 32)
    with pytest.raises(KernelInputError, match="multiple of 32"):
        Q8_0Weight(torch.zeros(34, dtype=torch.uint8), 31)
    with pytest.raises(KernelInputError, match="float16"):
        DenseWeight(torch.zeros(2, 2, dtype=torch.float16))
