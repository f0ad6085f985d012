"""The meaning of the adapters' ops: the sum of a product and a low-rank one, token by token."""

from __future__ import annotations

import torch

from branchline.kernels.lora import LoraBatch, LoraWeight
from branchline.kernels.reference import ReferenceOps
from branchline.kernels.stream import BlockEnd
from branchline.kernels.weights import DenseWeight

SLOTS, RANK, K, PARTS = 3, 16, 24, (8, 4, 4)


def random_weight(generator: torch.Generator, dtype: torch.dtype = torch.float32) -> LoraWeight:
    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    n = sum(PARTS)
    ranks = torch.tensor([[4, 16, 0], [1, 2, 3], [16, 16, 16]], dtype=torch.int32)
    a, b = normal(SLOTS, len(PARTS), RANK, K), normal(SLOTS, RANK, n)
    for slot in range(SLOTS):
        first = 0
        for part, rows in enumerate(PARTS):
            a[slot, part, ranks[slot, part] :] = torch.nan
            b[slot, ranks[slot, part] :, first : first + rows] = torch.nan
            first += rows
    scales = torch.rand(SLOTS, len(PARTS), generator=generator) + 0.5
    return LoraWeight(a.to(dtype), b.to(dtype), ranks, scales, PARTS)


def merged(weight: LoraWeight, slot: int) -> torch.Tensor:
    """B A of one slot with its scales: float64 [N, K]."""
    pieces, first = [], 0
    for part, rows in enumerate(weight.parts):
        rank = weight.ranks[slot, part]
        b = weight.b[slot, :rank, first : first + rows].double().T
        pieces.append(weight.scales[slot, part].double() * b @ weight.a[slot, part, :rank].double())
        first += rows
    return torch.cat(pieces)


def test_lora_add_is_the_product_with_the_merged_matrix() -> None:
    generator = torch.Generator().manual_seed(1)
    weight = random_weight(generator)
    slots = torch.tensor([-1, 2, 0, 0, 1, -1, 2], dtype=torch.int32)
    x = torch.randn(len(slots), K, generator=generator)
    y = torch.randn(len(slots), sum(PARTS), generator=generator)
    expected = y.double().clone()
    for token, slot in enumerate(slots.tolist()):
        if slot >= 0:
            expected[token] += merged(weight, slot) @ x[token].double()
    got = y.clone()
    ReferenceOps().lora_add(got, x, weight, LoraBatch(slots))
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(got[slots < 0], y[slots < 0])


def test_lora_embedding_adds_the_columns_of_the_merged_matrix() -> None:
    generator = torch.Generator().manual_seed(2)
    vocabulary, hidden = 11, 8
    a = torch.randn(SLOTS, vocabulary, RANK, generator=generator)
    b = torch.randn(SLOTS, RANK, hidden, generator=generator)
    ranks = torch.full((SLOTS, 1), RANK, dtype=torch.int32)
    weight = LoraWeight(a, b, ranks, torch.full((SLOTS, 1), 0.5), (hidden,))
    slots = torch.tensor([1, -1, 0, 2], dtype=torch.int32)
    ids = torch.tensor([3, 3, 10, 0], dtype=torch.int32)
    y = torch.randn(4, hidden, generator=generator)
    got = y.clone()
    ReferenceOps().lora_embedding(got, ids, weight, LoraBatch(slots))
    for token, slot in enumerate(slots.tolist()):
        want = y[token] if slot < 0 else y[token] + 0.5 * (a[slot, ids[token]] @ b[slot])
        torch.testing.assert_close(got[token], want)


def test_an_adapted_step_of_base_rows_is_a_residual_step() -> None:
    generator = torch.Generator().manual_seed(3)
    ops = ReferenceOps()
    weight = random_weight(generator)
    projection = DenseWeight(torch.randn(K, K, generator=generator))
    into = DenseWeight(torch.randn(sum(PARTS), K, generator=generator))
    x, residual = (torch.randn(3, K, generator=generator) for _ in range(2))
    norm = torch.rand(K, generator=generator)
    first, second = residual.clone(), residual.clone()
    plain = ops.residual_step(BlockEnd(x, projection, first, norm, 1e-5), into)
    lora = LoraBatch(torch.tensor([-1, 1, -1], dtype=torch.int32))
    end = BlockEnd(x, projection, second, norm, 1e-5)
    adapted = ops.adapted_step(end, into, lora, None, weight_lora=weight)
    base = [0, 2]
    assert torch.equal(plain[base], adapted[base]) and torch.equal(first, second)
    assert not torch.equal(plain[1], adapted[1])
