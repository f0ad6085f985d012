"""Adapters on the GPU: a step's tokens by slot, and the two low-rank products.

Invariant: grids and buffers depend on shapes alone, what is in them on the device's data, so a
recorded step serves any mix of adapters. A layer's `inner` [t, P, R] is what A made of x, scaled.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import triton

from branchline.kernels.errors import KernelInputError
from branchline.kernels.lora import LoraBatch, LoraWeight
from branchline.kernels.triton.lora_kernels import (
    lora_expand_kernel,
    lora_lookup_kernel,
    lora_norm_kernel,
    lora_order_kernel,
    lora_settle_kernel,
    lora_shrink_kernel,
)
from branchline.kernels.triton.tuning import Device, plain_launch, power_of_two

__all__ = ["TILE", "Adapters", "Inner", "check_adapters", "most_tiles"]

TILE = 16
_LARGE_TILE = 64
_MANY = 512
"""Tokens from which on tiles are large: they read A, B and y less often, and waste more rows."""
_MAX_PARTS = 3
_FEW = 64
"""Most rows whose sums are added on the way to the next norm."""
_WIDEST = 4096
"""Widest row of them: its program keeps the first ranks of B in registers."""
_STAGES = 4
_FEW_TILES = 8
"""Most tiles whose B is asked into the cache before its turn; for 64 of them it gained nothing."""
_ROUNDS = 8
"""Programs of `expand` for each multiprocessor: what they find to do is known on the device alone,
and a program that finds nothing costs about as much as one that does little."""


@dataclass(frozen=True)
class Inner:
    """What is left to multiply with B.

    Attributes:
        weight: of the layer.
        slots: [t] int32.
        inner: [t, P, R] float32.
    """

    weight: LoraWeight
    slots: torch.Tensor
    inner: torch.Tensor

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """B, `inner`, ranks and slots, as kernels take them."""
        return self.weight.b, self.inner, self.weight.ranks, self.slots

    def strides(self) -> tuple[int, int]:
        """From slot to slot: of B, and of ranks."""
        return self.weight.b.stride(0), self.weight.ranks.stride(0)

    def operands(self) -> tuple[Any, ...]:
        """As `gemv_kernel` takes them."""
        return *self.tensors(), *self.strides(), *_ends(self.weight)


class Adapters:
    """The ops of adapters on one device.

    Args:
        gpu: facts of the device.
        deterministic: tiles of one size for every number of tokens.
    """

    def __init__(self, gpu: Device, deterministic: bool) -> None:
        self._gpu = gpu
        self._deterministic = deterministic

    def batch(self, slots: torch.Tensor, count: int) -> LoraBatch:
        """Tokens sorted by slot."""
        t = slots.shape[0]
        order = torch.empty_like(slots)
        starts = torch.empty(count + 2, dtype=torch.int32, device=slots.device)
        block = min(power_of_two(t), 1024)
        lora_order_kernel[(count + 1,)](
            slots, order, starts, t, count, BLOCK=block, **plain_launch(4)
        )
        lora_settle_kernel[(1,)](starts, **plain_launch(1))
        return LoraBatch(slots, order, starts)

    def shrink(
        self, x: torch.Tensor, weight: LoraWeight, lora: LoraBatch, *, beside: bool = False
    ) -> Inner:
        """The scaled products with A.

        Args:
            beside: the kernel before is a product of the same x, see `Linears.beside`.
        """
        t, k = x.shape
        slots, parts, rank, _ = weight.a.shape
        check_adapters(weight, lora, t, x)
        inner = torch.empty(t, parts, rank, dtype=torch.float32, device=x.device)
        tile, block_r = self._tile(t), _block_of(rank)
        warps, block_k = _warps(tile, block_r)
        lora_shrink_kernel[(most_tiles(t, slots, tile), parts, rank // block_r)](
            x,
            weight.a,
            weight.ranks,
            weight.scales,
            lora.order,
            lora.starts,
            inner,
            weight.b,
            k,
            weight.b.shape[2],
            weight.a.stride(0),
            weight.b.stride(0),
            weight.ranks.stride(0),
            slots,
            *_ends(weight),
            PARTS=parts,
            RANK=rank,
            TILE=tile,
            BLOCK_R=block_r,
            BLOCK_K=max(16, block_k * 2 // x.element_size()),
            BLOCK_S=power_of_two(slots),
            WARPS=warps,
            STAGES=_STAGES,
            FEW=_FEW_TILES,
            BESIDE=beside,
            WIDE=self._gpu.interpreted,
            **self._gpu.launch(warps, _STAGES),
        )
        return Inner(weight, lora.slots, inner)

    def lookup(self, ids: torch.Tensor, weight: LoraWeight, lora: LoraBatch) -> Inner:
        """The scaled rows of an embedding's A."""
        t, rank = ids.shape[0], weight.a.shape[2]
        check_adapters(weight, lora, t)
        inner = torch.empty(t, 1, rank, dtype=torch.float32, device=ids.device)
        lora_lookup_kernel[(t,)](
            ids,
            weight.a,
            weight.ranks,
            weight.scales,
            lora.slots,
            inner,
            weight.a.stride(0),
            weight.ranks.stride(0),
            RANK=rank,
            BLOCK_R=power_of_two(rank),
            **self._gpu.launch(1),
        )
        return Inner(weight, lora.slots, inner)

    def expand(self, y: torch.Tensor, made: Inner, lora: LoraBatch) -> None:
        """y [t, N] += the products with B."""
        weight, (t, n) = made.weight, y.shape
        slots, rank = weight.b.shape[:2]
        if n != weight.b.shape[2] or t != made.inner.shape[0]:
            raise KernelInputError(
                f"adapters of {weight.b.shape[2]} outputs for {made.inner.shape[0]} tokens cannot "
                f"be added to {tuple(y.shape)}"
            )
        tile, block_n = self._tile(t), max(16, min(power_of_two(n), 128))
        tiles, blocks = most_tiles(t, slots, tile), triton.cdiv(n, block_n)
        programs = max(1, min(blocks, _ROUNDS * self._gpu.processors // tiles))
        span = triton.cdiv(blocks, programs) * block_n
        lora_expand_kernel[(tiles, triton.cdiv(n, span))](
            y,
            weight.b,
            made.inner,
            weight.ranks,
            lora.order,
            lora.starts,
            n,
            span,
            weight.b.stride(0),
            weight.ranks.stride(0),
            slots,
            *_ends(weight),
            PARTS=len(weight.parts),
            RANK=rank,
            TILE=tile,
            BLOCK_R=_block_of(rank),
            BLOCK_N=block_n,
            BLOCK_S=power_of_two(slots),
            WIDE=self._gpu.interpreted,
            **self._gpu.launch(4),
        )

    def sums(self, rows: int, width: int) -> bool:
        """Whether `norm` takes so many rows of such a width."""
        return 1 < rows <= _FEW and width <= _WIDEST and not self._deterministic

    def norm(
        self, y: torch.Tensor, made: Inner, residual: torch.Tensor, norm: torch.Tensor, eps: float
    ) -> torch.Tensor:
        """`residual += y` and the product with B, in place; rms_norm of it. All [t, H]."""
        weight, (t, width) = made.weight, y.shape
        if weight.parts != (width,) or residual.shape != y.shape or made.inner.shape[0] != t:
            raise KernelInputError(
                f"adapters of parts {weight.parts} for {made.inner.shape[0]} tokens cannot be "
                f"added to {tuple(y.shape)} and {tuple(residual.shape)}"
            )
        out = torch.empty_like(y)
        lora_norm_kernel[(t,)](
            y,
            residual,
            norm,
            out,
            weight.b,
            made.inner,
            weight.ranks,
            made.slots,
            weight.b.stride(0),
            weight.ranks.stride(0),
            width,
            eps,
            RANK=made.inner.shape[2],
            BLOCK=power_of_two(width),
            **self._gpu.launch(_norm_warps(width)),
        )
        return out

    def _tile(self, tokens: int) -> int:
        return _LARGE_TILE if tokens > _MANY and not self._deterministic else TILE


def most_tiles(tokens: int, slots: int, tile: int) -> int:
    """Most tiles that so many tokens can make: each slot may have one that is not full."""
    return min(tokens, tokens // tile + min(tokens, slots))


def _warps(tile: int, block_r: int) -> tuple[int, int]:
    """(warps, columns of each at a time) of a program that multiplies with A in bfloat16."""
    if tile == TILE:
        return 8, 32 if block_r <= 32 else 16
    return 4, 32


def _norm_warps(width: int) -> int:
    """Warps of a program that norms a row: a thread keeps 8 columns of 16 ranks of B. A step of 8B
    with one adapter took 4 % longer where a row of 4,096 read B after its wait."""
    return max(4, min(16, width // 256))


def _block_of(rank: int) -> int:
    """Ranks that a program takes: a divisor of R, which is a multiple of 16."""
    return next(block for block in (64, 32, 16) if rank % block == 0)


def _ends(weight: LoraWeight) -> tuple[int, int]:
    """Where the outputs of the first two of three parts end."""
    ends = [*accumulate(weight.parts), 0, 0]
    return ends[0], ends[1]


def check_adapters(
    weight: LoraWeight, lora: LoraBatch, tokens: int, x: torch.Tensor | None = None
) -> None:
    """Our kernels read by pointer: what does not fit must not get that far."""
    a, b, ranks, scales = weight.a, weight.b, weight.ranks, weight.scales
    slots, rank, n = b.shape
    parts = len(weight.parts)
    fits = (
        a.shape[0] == slots
        and a.shape[-2 if a.dim() == 4 else -1] == rank
        and (a.dim() == 3 or a.shape[1] == parts)
        and a.dtype == b.dtype
        and sum(weight.parts) == n
        and 1 <= parts <= _MAX_PARTS
        and rank % 16 == 0
        and ranks.shape == scales.shape == (slots, parts)
        and ranks.stride() == scales.stride()
        and (ranks.dtype, scales.dtype) == (torch.int32, torch.float32)
        and all(x[0].is_contiguous() for x in (a, b, ranks, scales))
    )
    if not fits:
        raise KernelInputError(
            "adapters need a [S, P, R, K] or [S, V, R] and b [S, R, N] of one dtype, R a multiple "
            f"of 16, int32 ranks and float32 scales [S, P], all whole within a slot, and at most "
            f"{_MAX_PARTS} parts that sum to N; got a {a.dtype} {tuple(a.shape)}, b {b.dtype} "
            f"{tuple(b.shape)}, ranks {ranks.dtype} {tuple(ranks.shape)}, scales {scales.dtype} "
            f"{tuple(scales.shape)}, {weight.parts}"
        )
    if lora.starts is None or lora.order is None or lora.starts.shape[0] != slots + 2:
        raise KernelInputError(
            f"the step's tokens are not grouped for {slots} slots: make the batch with "
            "ops.lora_batch(slots, count)"
        )
    if x is not None and (a.shape[3] != x.shape[1] or x.dtype != a.dtype):
        raise KernelInputError(
            f"x {x.dtype} {tuple(x.shape)} cannot go through adapters {a.dtype} {tuple(a.shape)}: "
            "the last sizes and the dtypes must be the same"
        )
    if lora.slots.shape[0] != tokens:
        raise KernelInputError(f"{lora.slots.shape[0]} slots given for {tokens} tokens")
