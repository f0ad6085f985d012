"""Helpers for tests and benchmarks of kernels: random steps and weights, and exact oracles.

Knows nothing of a particular backend.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from branchline.kernels.lora import LoraWeight
from branchline.kernels.ops import AttentionMeta
from branchline.kernels.weights import BLOCK, Q4_1Weight, Q8_0Weight, Weight

__all__ = [
    "Step",
    "meta_on",
    "random_lora",
    "random_quantized",
    "random_step",
    "rounded_linear",
    "with_adapters",
]


def random_quantized(
    kind: type[Q4_1Weight] | type[Q8_0Weight], n: int, k: int, seed: int, scale: float = 0.05
) -> Weight:
    """A weight [n, k] of random codes; values spread about `scale`."""
    gen = torch.Generator().manual_seed(seed)
    blocks = torch.randint(
        0, 256, (n * (k // BLOCK), kind.block_bytes), dtype=torch.uint8, generator=gen
    )
    d = (torch.rand(blocks.shape[0], generator=gen) + 0.5) * scale
    d = d / (4.0 if kind is Q4_1Weight else 64.0)
    parts = [d, -7.5 * d] if kind is Q4_1Weight else [d]
    halves = torch.stack(parts, dim=1).to(torch.float16)
    blocks[:, : kind.scale_bytes] = halves.view(torch.uint8)
    return kind(blocks, k)


def rounded_linear(x: torch.Tensor, weight: Weight) -> torch.Tensor:
    """x @ weight.T in float64 after rounding x per block of 32 to 8 bits, as native ops do."""
    blocks = x.float().reshape(x.shape[0], -1, BLOCK)
    top = blocks.abs().amax(-1, keepdim=True)
    # A tensor over a tensor: torch computes a number over a tensor with two roundings.
    inverse = torch.where(top > 0, torch.full_like(top, 127.0) / top, torch.zeros_like(top))
    codes = torch.round(blocks * inverse).double()
    rounded = (codes * (top / 127.0).double()).reshape(x.shape)
    return rounded @ weight.dequantize().double().T


def random_lora(
    ranks: Sequence[int],
    columns: int,
    parts: tuple[int, ...],
    dtype: torch.dtype,
    *,
    embedding: bool = False,
    device: torch.device | None = None,
) -> LoraWeight:
    """Adapters with a slot for each of `ranks`, the largest rank rounded up to a multiple of 16.

    The first part of a slot has the slot's rank, the next ones less. What is beyond a rank is NaN.

    Args:
        ranks: of the slots' first parts.
        columns: K, or with `embedding` V.
        parts: outputs of each part.
        dtype: of A and B.
        embedding: A is that of an embedding.
        device: where they lie.
    """
    most = -(-max(ranks) // 16) * 16
    each = torch.tensor([[max(0, r - p) if r else 0 for p in range(len(parts))] for r in ranks])
    beyond = torch.arange(most) >= each[..., None]
    a = torch.randn(len(ranks), len(parts), most, columns) * columns**-0.5
    a[beyond] = torch.nan
    b = torch.randn(len(ranks), most, sum(parts))
    b[torch.repeat_interleave(beyond, torch.tensor(parts), 1).mT] = torch.nan
    if embedding:
        a = a[:, 0].mT
    scales = torch.rand(each.shape) + 0.5
    return LoraWeight(
        a.contiguous().to(device=device, dtype=dtype),
        b.contiguous().to(device=device, dtype=dtype),
        each.to(device=device, dtype=torch.int32),
        scales.to(device=device),
        parts,
    )


def with_adapters(
    y: torch.Tensor, x: torch.Tensor, weight: LoraWeight, slots: torch.Tensor
) -> torch.Tensor:
    """y with each token's adapter added, in float64 on the CPU; x [t, K], or ids [t]."""
    out, x = y.double().cpu(), x.cpu()
    ends = torch.tensor(weight.parts).cumsum(0).tolist()
    for token, slot in enumerate(slots.tolist()):
        for part, (width, end) in enumerate(zip(weight.parts, ends, strict=True)):
            rank = int(weight.ranks[slot, part]) if slot >= 0 else 0
            a, b = weight.a[slot].double().cpu(), weight.b[slot].double().cpu()
            row = x[token]
            inner = a[row, :rank] if x.dim() == 1 else a[part, :rank] @ row.double()
            scaled = float(weight.scales[slot, part]) * inner
            out[token, end - width : end] += scaled @ b[:rank, end - width : end]
    return out


@dataclass(frozen=True)
class Step:
    """A random mixed batch: its attention metadata, positions and the slots it writes."""

    meta: AttentionMeta
    positions: torch.Tensor
    out_slots: torch.Tensor
    num_slots: int

    @property
    def tokens(self) -> int:
        """Tokens of the step."""
        return self.positions.shape[0]


def meta_on(meta: AttentionMeta, device: torch.device) -> AttentionMeta:
    """The metadata on a device, its lengths kept in host memory too."""
    moved = {name: x.to(device) for name, x in vars(meta).items() if x is not None}
    moved |= {"host_seq_lens": meta.seq_lens, "host_extend_lens": meta.extend_lens}
    return AttentionMeta(**moved)


def random_step(
    lens: Sequence[tuple[int, int]], seed: int = 0, trees: Sequence[int] | None = None
) -> Step:
    """Rows of (seq_len, extend_len) over randomly placed slots, in random rows of the table.

    Args:
        lens: lengths of each row.
        seed: of the placement and of the tree masks.
        trees: draft-tree tokens of each row; each sees itself and random earlier ones.
    """
    gen = torch.Generator().manual_seed(seed)
    b, ctx = len(lens), max(length for length, _ in lens) + 3
    num_slots = sum(length for length, _ in lens) + 5
    order = torch.randperm(num_slots, generator=gen).to(torch.int32)
    table_rows = torch.randperm(b + 2, generator=gen)[:b].to(torch.int32)
    table = torch.full((b + 2, ctx), -1, dtype=torch.int32)
    used, positions, slots, starts = 0, [], [], [0]
    for row, (length, extend) in zip(table_rows.tolist(), lens, strict=True):
        table[row, :length] = order[used : used + length]
        used += length
        positions.append(torch.arange(length - extend, length))
        slots.append(table[row, length - extend : length])
        starts.append(starts[-1] + extend)
    tree = _random_trees(trees, gen) if trees is not None else (None, None, None)
    meta = AttentionMeta(
        rows=table_rows,
        slot_table=table,
        seq_lens=torch.tensor([x[0] for x in lens], dtype=torch.int32),
        extend_lens=torch.tensor([x[1] for x in lens], dtype=torch.int32),
        extend_start=torch.tensor(starts, dtype=torch.int32),
        tree_lens=tree[0],
        tree_offsets=tree[1],
        tree_words=tree[2],
    )
    return Step(meta, torch.cat(positions), torch.cat(slots).contiguous(), num_slots)


def _random_trees(
    trees: Sequence[int], gen: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    offsets, words = [], [0]
    for n in trees:
        offsets.append(len(words))
        for x in range(n):
            seen = torch.randint(0, 2, (n,), generator=gen).tolist()
            seen[x:] = [1] + [0] * (n - x - 1)
            bits = sum(bit << y for y, bit in enumerate(seen))
            for w in range((n + 63) // 64):
                word = bits >> (64 * w) & (2**64 - 1)
                words.append(word - 2**64 if word >= 2**63 else word)
    return (
        torch.tensor(list(trees), dtype=torch.int32),
        torch.tensor(offsets, dtype=torch.int32),
        torch.tensor(words, dtype=torch.int64),
    )
