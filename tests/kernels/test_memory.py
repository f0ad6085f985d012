"""Huge-page memory holds tensors like any other memory."""

import torch

from branchline.kernels.cpu.memory import HugeArena, huge_empty
from branchline.kernels.cpu.native_ops import NativeOps
from branchline.kernels.testing import random_quantized
from branchline.kernels.weights import DenseWeight, Q4_1Weight, Q8_0Weight


def test_huge_tensors_start_on_a_huge_page() -> None:
    x = huge_empty((3, 5, 7), torch.bfloat16)
    assert x.shape == (3, 5, 7) and x.dtype == torch.bfloat16 and x.is_contiguous()
    assert x.data_ptr() % (2 << 20) == 0
    x.fill_(2.0)
    assert x.sum() == 210


def test_arena_copies_in_order_and_aligned() -> None:
    arena = HugeArena(chunk=4096)
    tensors = [torch.randn(n) for n in (10, 33, 700, 5, 900, 1)]
    placed = [arena.place(x) for x in tensors]
    assert all(torch.equal(a, b) for a, b in zip(tensors, placed, strict=True))
    assert all(x.data_ptr() % 64 == 0 for x in placed)
    assert placed[1].data_ptr() == placed[0].data_ptr() + 64


def test_prepared_weights_hold_the_same_numbers(native: NativeOps) -> None:
    for weight in (
        random_quantized(Q4_1Weight, 40, 64, 0),
        random_quantized(Q8_0Weight, 40, 64, 0),
        DenseWeight(torch.randn(40, 64)),
    ):
        ready = native.prepare(weight)
        assert ready.shape == weight.shape
        assert torch.equal(ready.dequantize(), weight.dequantize())
