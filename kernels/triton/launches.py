"""Launches of the products of a few rows, and of any number in a fixed order.

Invariant: tiles depend on shapes alone, so does when the kernel behind a product may start. Knows
nothing of which kernel is for which number of rows, but that small matrices are read at once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton

from branchline.kernels.errors import KernelInputError
from branchline.kernels.heads import HeadPlaces
from branchline.kernels.triton.linear_kernels import (
    fixed_kernel,
    gemv_kernel,
    rows_kernel,
    skinny_kernel,
)
from branchline.kernels.triton.lora import Inner
from branchline.kernels.triton.rope import starts_late
from branchline.kernels.triton.tiles import (
    READY_ROWS,
    cut_width,
    gemv_tile,
    is_ready,
    ready_tile,
    skinny_tile,
    two_fit,
)
from branchline.kernels.triton.tuning import Device, power_of_two

__all__ = ["Launches", "Product", "Stream", "check_product"]

_FEWEST = 2
"""Rows of one token each up to which attention starts late behind a product that rotates heads."""
_AHEAD_ROWS = 8
_PREFETCHED = 16 << 20
"""Rows, and elements of the largest matrix, that is asked into the cache before its turn: with
2 to 8 rows a step is 4 % faster for it, with 16 or more slower: attention wants the memory."""


class Stream(NamedTuple):
    """What lies between the products of a `norm_step`: weights of the norm, the stream times them,
    sums of squares [t, programs], eps."""

    norm: torch.Tensor
    scaled: torch.Tensor
    squares: torch.Tensor
    eps: float


class Product(NamedTuple):
    """x times weight, plus bias.

    Attributes:
        x: [t, K].
        weight: [N, K].
        bias: [N] float32.
        out: [t, N], or with `gated` [t, N / 2]; with `into` queries [t, hq, d].
        gated: the weight holds gate and up, the result is silu(gate) * up.
        add: the result is added to what is in `out`.
        into: the result is heads, which are rotated; keys and values are written.
    """

    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    out: torch.Tensor
    gated: bool = False
    add: bool = False
    into: HeadPlaces | None = None

    def sizes(self) -> tuple[int, int]:
        """(outputs, columns), checked."""
        return check_product(self.x, self.weight, self.out, self.gated, self.into)


class Launches:
    """Of the kernels of products on one device.

    Args:
        gpu: facts of the device.
    """

    def __init__(self, gpu: Device) -> None:
        self._gpu = gpu

    def ready(
        self,
        product: Product,
        *,
        norm: torch.Tensor | None = None,
        eps: float = 0.0,
        stream: Stream | None = None,
    ) -> None:
        """With `stream` it is the first product of a `norm_step`."""
        x, weight, bias, out, gated, add, into = product
        n, k = product.sizes()
        block_n, ways = ready_tile(weight.numel(), k, gated)
        block_k, rest_k = cut_width(k, ways)
        norms = weight if norm is None else norm
        rows_kernel[(triton.cdiv(n, block_n),)](
            x,
            weight,
            weight if bias is None else bias,
            norms if stream is None else stream.norm,
            out,
            *((out, out) if stream is None else stream[1:3]),
            *_head_operands(into, out),
            x.shape[0],
            n,
            k,
            eps,
            NORM=norm is not None,
            GATED=gated,
            ADD=add,
            BIAS=bias is not None,
            SCALED=stream is not None,
            HEAD=_head_size(into),
            BLOCK_T=READY_ROWS,
            BLOCK_N=block_n,
            WAYS=ways,
            BLOCK_K=block_k,
            REST_K=rest_k,
            LATE=int(gated) if into is None else _lateness(x.shape[0], into),
            WIDE=self._gpu.interpreted,
            **self._gpu.launch(ways),
        )

    def one(
        self,
        product: Product,
        *,
        norm: torch.Tensor | None = None,
        eps: float = 0.0,
        made: Inner | None = None,
    ) -> None:
        """Of one row, with its adapter if there is `made`."""
        x, weight, bias, out, gated, add, into = product
        n, k = product.sizes()
        block_n, block_k, warps = gemv_tile(n, k)
        gemv_kernel[(triton.cdiv(n, block_n),)](
            x,
            weight,
            weight if bias is None else bias,
            weight if norm is None else norm,
            out,
            *_adapters(made, out),
            *_head_operands(into, out),
            n,
            k,
            eps,
            NORM=norm is not None,
            GATED=gated,
            ADD=add,
            BIAS=bias is not None,
            **_parts(made),
            HEAD=_head_size(into),
            LATE=into is not None,
            BLOCK_N=block_n,
            BLOCK_K=block_k,
            **self._gpu.launch(warps),
        )

    def few(self, product: Product, *, stream: Stream | None = None) -> None:
        """With `stream` it is the first product of a `norm_step` where it adds, else the second."""
        x, weight, bias, out, gated, add, into = product
        if (stream is None or add) and is_ready(x.shape[0], weight):
            self.ready(product, stream=stream)
            return
        t, (n, k) = x.shape[0], product.sizes()
        block_n, block_k, stages, warps = skinny_tile(t, n, gated)
        block_k = block_k * 2 // x.element_size()
        if triton.cdiv(n, block_n) > self._gpu.processors:
            stages = two_fit(stages, t, block_n, block_k, x, gated)
        skinny_kernel[(triton.cdiv(n, block_n),)](
            x,
            weight,
            weight if bias is None else bias,
            out,
            *((out, out, out) if stream is None else stream[:3]),
            *_head_operands(into, out),
            t,
            n,
            k,
            0 if stream is None else stream.squares.shape[1],
            0.0 if stream is None else stream.eps,
            GATED=gated,
            BIAS=bias is not None,
            ADD=add,
            SCALED=add and stream is not None,
            NORMED=stream is not None and not add,
            SQUARES=1 if stream is None else power_of_two(stream.squares.shape[1]),
            HEAD=_head_size(into),
            LATE=into is not None and starts_late(t),
            BLOCK_T=max(16, power_of_two(t)),
            BLOCK_N=block_n,
            BLOCK_K=block_k,
            STAGES=stages,
            AHEAD=self._gpu.overlap and t <= _AHEAD_ROWS and weight.numel() <= _PREFETCHED,
            WIDE=self._gpu.interpreted,
            **self._gpu.launch(warps, stages),
        )

    def fixed(self, product: Product) -> None:
        """Of any number of rows, in one order of sums; neither gated nor added."""
        x, weight, bias, out, *_ = product
        t, (n, k) = x.shape[0], weight.shape
        fixed_kernel[(triton.cdiv(t, 64), triton.cdiv(n, 64))](
            x,
            weight,
            weight if bias is None else bias,
            out,
            t,
            n,
            k,
            BIAS=bias is not None,
            BLOCK_T=64,
            BLOCK_N=64,
            BLOCK_K=64 if x.dtype != torch.float32 else 32,
            STAGES=4,
            WIDE=self._gpu.interpreted,
            **self._gpu.launch(4, 4),
        )


def _adapters(made: Inner | None, none: torch.Tensor) -> tuple[Any, ...]:
    """Operands of a product's adapters, or of none."""
    return (none, none, none, none, 0, 0, 0, 0) if made is None else made.operands()


def _parts(made: Inner | None) -> dict[str, int]:
    """What a product with adapters is compiled for."""
    if made is None:
        return {"PARTS": 0, "RANK": 0}
    return {"PARTS": made.inner.shape[1], "RANK": made.inner.shape[2]}


def _head_operands(into: HeadPlaces | None, none: torch.Tensor) -> tuple[Any, ...]:
    """Operands of a product whose heads are rotated, or not."""
    if into is None:
        return (*(none,) * 5, 0, 0)
    pools = into.k_pool, into.v_pool
    return into.cos_sin, into.positions, into.out_slots, *pools, none.shape[1], pools[0].shape[1]


def _lateness(rows: int, into: HeadPlaces) -> int:
    """When attention starts behind `rows_kernel`, of the two ways of LATE.

    Measured: programs that start with the product crowd on the multiprocessors that it leaves free,
    which costs a check of 16 tokens more than they gain by what they read ahead of their turn.
    """
    return 2 if into.several or rows <= _FEWEST else 1


def _head_size(into: HeadPlaces | None) -> int:
    """Of a head that is rotated, 0 = it is not."""
    return 0 if into is None else into.k_pool.shape[2]


def check_product(
    x: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor,
    gated: bool,
    into: HeadPlaces | None = None,
) -> tuple[int, int]:
    """Our kernels read by pointer: what does not fit must not get that far.

    Returns:
        (outputs, columns).
    """
    n, k = weight.shape
    outputs = n // 2 if gated else n
    given = out.shape[1]
    if into is not None:
        _, hkv, d = into.k_pool.shape
        given = (given + 2 * hkv) * d
    if x.shape[1] != k or given != outputs or out.shape[0] != x.shape[0]:
        raise KernelInputError(
            f"x {tuple(x.shape)} times a matrix {tuple(weight.shape)} does not give "
            f"{tuple(out.shape)}{' when gated' if gated else ''}"
        )
    return outputs, k
