"""Matrix products: our kernels for a few rows, the vendor's library for more.

Invariant: which one is chosen depends on shapes alone; in deterministic mode there is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton

from branchline.kernels.errors import KernelInputError
from branchline.kernels.heads import HeadPlaces
from branchline.kernels.lora import LoraWeight
from branchline.kernels.triton.linear_kernels import (
    fixed_kernel,
    gemv_kernel,
    rows_kernel,
    skinny_kernel,
)
from branchline.kernels.triton.lora import Inner
from branchline.kernels.triton.rope import turns_late
from branchline.kernels.triton.tiles import (
    READY_ROWS,
    cut_width,
    gemv_tile,
    is_ready,
    ready_tile,
    skinny_tile,
    step_programs,
    two_fit,
)
from branchline.kernels.triton.tuning import Device, power_of_two
from branchline.kernels.weights import DenseWeight, Weight

__all__ = ["Linears", "check_outputs", "check_product", "dense_of"]

_FEW = 64
"""Most rows that our kernels take; for more, the library is faster."""
_OUTPUTS = 64
"""Most outputs of a program for one row; fewer ones divide it."""
_SUMS = 5 << 8
"""Sums of squares that a product of a few rows leaves to the one behind it, at most: every program
of that one adds all of them up. Steps with 2,000 and more of them took 5 % longer than before."""
_AHEAD_ROWS = 8
_PREFETCHED = 16 << 20
"""Rows, and elements of the largest matrix, that is asked into the cache before its turn: with
2 to 8 rows a step is 4 % faster for it, with 16 or more slower: attention wants the memory."""


def dense_of(weight: Weight) -> torch.Tensor:
    """The matrix that `prepare` made."""
    if not isinstance(weight, DenseWeight):
        raise KernelInputError(
            f"the GPU ops cannot multiply by a {type(weight).__name__} of shape {weight.shape}; "
            "keep the result of ops.prepare(weight) instead"
        )
    return weight.tensor


class _Stream(NamedTuple):
    """What lies between the products of a `norm_step`: weights of the norm, the stream times them,
    sums of squares [t, programs], eps."""

    norm: torch.Tensor
    scaled: torch.Tensor
    squares: torch.Tensor
    eps: float


class Linears:
    """Products on one device.

    Args:
        gpu: facts of the device.
        deterministic: one kernel with one tile shape for every number of rows.
    """

    def __init__(self, gpu: Device, deterministic: bool) -> None:
        self._gpu = gpu
        self._deterministic = deterministic

    def fuses(self, rows: int) -> bool:
        """Whether norms and additions are part of the product for so many rows."""
        return rows == 1 and not self._deterministic

    def norms(self, rows: int, weight: torch.Tensor) -> bool:
        """Whether the norm is part of the product of so many rows with this matrix."""
        return not self._deterministic and (rows == 1 or is_ready(rows, weight))

    def steps(self, rows: int, projection: torch.Tensor) -> bool:
        """Whether the norm of the stream behind `projection` lies between two products of
        `norm_step`."""
        if self._deterministic or not 1 < rows <= _FEW:
            return False
        return rows * step_programs(rows, projection) <= _SUMS

    def adds(self, rows: int) -> bool:
        """Whether additions to a stream are part of the product for so many rows."""
        return rows <= _FEW and not self._deterministic

    def gates(self, rows: int) -> bool:
        """Whether silu(gate) * up is part of the product for so many rows."""
        return rows <= _FEW and not self._deterministic

    def turns(self, rows: int, into: HeadPlaces) -> bool:
        """Whether heads are turned and written by the product of so many rows.

        A norm over a head would want the whole head in one program, and those are too few.
        """
        normed = into.q_norm is not None or into.k_norm is not None
        return rows <= _FEW and not normed and not self._deterministic

    def heads(
        self, x: torch.Tensor, weight: torch.Tensor, into: HeadPlaces, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """See `Ops.linear_heads`, and `turns`."""
        out = queries(x, weight, into)
        run = self._one if x.shape[0] == 1 else self._few
        run(x, weight, bias, out, turn=into)
        return out

    def linear(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """x [t, K] @ weight [N, K].T + bias -> [t, N] of `dtype`."""
        t, n = x.shape[0], weight.shape[0]
        if self._deterministic or t <= _FEW:
            out = torch.empty(t, n, dtype=dtype, device=x.device)
            run = self._fixed if self._deterministic else self._one if t == 1 else self._few
            run(x, weight, bias, out)
            return out
        if dtype == x.dtype:
            return torch.nn.functional.linear(x, weight, None if bias is None else bias.to(dtype))
        if x.device.type == "cuda":
            wide = torch.mm(x, weight.t(), out_dtype=dtype)
        else:
            wide = x.to(dtype) @ weight.t().to(dtype)
        return wide if bias is None else wide + bias

    def norm_linear(
        self,
        x: torch.Tensor,
        norm: torch.Tensor,
        eps: float,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        *,
        gated: bool,
        dtype: torch.dtype | None = None,
        turn: HeadPlaces | None = None,
    ) -> torch.Tensor:
        """linear(rms_norm(x)), maybe gated, of x's dtype if none is given; see `norms`. With
        `turn`, which is for x's dtype, `heads` of it."""
        t, n = x.shape[0], weight.shape[0] // 2 if gated else weight.shape[0]
        if turn is None:
            out = torch.empty(t, n, dtype=x.dtype if dtype is None else dtype, device=x.device)
        else:
            out = queries(x, weight, turn)
        run = self._one if t == 1 else self._ready
        run(x, weight, bias, out, norm=norm, eps=eps, gated=gated, turn=turn)
        return out

    def gated_linear(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """silu_mul(linear(x)) of a few rows."""
        out = torch.empty(x.shape[0], weight.shape[0] // 2, dtype=x.dtype, device=x.device)
        if x.shape[0] == 1:
            self._one(x, weight, bias, out, gated=True)
        else:
            self._few(x, weight, bias, out, gated=True)
        return out

    def adapts(self, rows: int, parts: Sequence[int]) -> bool:
        """Whether the adapter of one row is part of the product.

        A program's outputs must be of one part.
        """
        return self.fuses(rows) and all(width % _OUTPUTS == 0 for width in parts)

    def adapted(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        made: Inner,
        *,
        gated: bool,
    ) -> torch.Tensor:
        """linear(x) of one row with its adapter, maybe gated; next behind `made`'s kernel."""
        out = torch.empty(
            1, weight.shape[0] // 2 if gated else weight.shape[0], dtype=x.dtype, device=x.device
        )
        check_outputs(made.weight, weight, gated)
        self._one(x, weight, bias, out, gated=gated, made=made)
        return out

    def linear_add(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        residual: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> None:
        """`residual += linear(x)` of a few rows."""
        if x.shape[0] == 1:
            self._one(x, weight, bias, residual, add=True)
        else:
            self._few(x, weight, bias, residual, add=True)

    def norm_step(
        self,
        x: torch.Tensor,
        projection: torch.Tensor,
        residual: torch.Tensor,
        norm: torch.Tensor,
        eps: float,
        weight: torch.Tensor,
        projection_bias: torch.Tensor | None,
        bias: torch.Tensor | None,
        *,
        gated: bool,
        dtype: torch.dtype | None = None,
        turn: HeadPlaces | None = None,
    ) -> torch.Tensor:
        """`residual += x @ projection.T`, and the product of its norm, maybe gated; see `steps`.

        The product is of x's dtype if none is given. With `turn`, `heads` of the norm."""
        t, n = x.shape[0], weight.shape[0] // 2 if gated else weight.shape[0]
        programs = step_programs(t, projection)
        squares = torch.empty(t, programs, dtype=torch.float32, device=x.device)
        stream = _Stream(norm, torch.empty_like(residual), squares, eps)
        self._few(x, projection, projection_bias, residual, add=True, stream=stream)
        if turn is None:
            out = torch.empty(t, n, dtype=x.dtype if dtype is None else dtype, device=x.device)
        else:
            out = queries(x, weight, turn)
        self._few(stream.scaled, weight, bias, out, gated=gated, stream=stream, turn=turn)
        return out

    def _ready(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        out: torch.Tensor,
        *,
        norm: torch.Tensor | None = None,
        eps: float = 0.0,
        add: bool = False,
        gated: bool = False,
        stream: _Stream | None = None,
        turn: HeadPlaces | None = None,
    ) -> None:
        """With `stream` it is the first product of a `norm_step`."""
        n, k = check_product(x, weight, out, gated, turn)
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
            *_turning(turn, out),
            x.shape[0],
            n,
            k,
            eps,
            NORM=norm is not None,
            GATED=gated,
            ADD=add,
            BIAS=bias is not None,
            SCALED=stream is not None,
            TURN=_dimensions(turn),
            BLOCK_T=READY_ROWS,
            BLOCK_N=block_n,
            WAYS=ways,
            BLOCK_K=block_k,
            REST_K=rest_k,
            LATE=gated or (turn is not None and turns_late(x.shape[0])),
            WIDE=self._gpu.interpreted,
            **self._gpu.launch(ways),
        )

    def _one(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        out: torch.Tensor,
        *,
        norm: torch.Tensor | None = None,
        eps: float = 0.0,
        add: bool = False,
        gated: bool = False,
        made: Inner | None = None,
        turn: HeadPlaces | None = None,
    ) -> None:
        n, k = check_product(x, weight, out, gated, turn)
        block_n, block_k, warps = gemv_tile(n, k)
        gemv_kernel[(triton.cdiv(n, block_n),)](
            x,
            weight,
            weight if bias is None else bias,
            weight if norm is None else norm,
            out,
            *_adapters(made, out),
            *_turning(turn, out),
            n,
            k,
            eps,
            NORM=norm is not None,
            GATED=gated,
            ADD=add,
            BIAS=bias is not None,
            **_parts(made),
            TURN=_dimensions(turn),
            LATE=turn is not None,
            BLOCK_N=block_n,
            BLOCK_K=block_k,
            **self._gpu.launch(warps),
        )

    def _few(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        out: torch.Tensor,
        *,
        gated: bool = False,
        add: bool = False,
        stream: _Stream | None = None,
        turn: HeadPlaces | None = None,
    ) -> None:
        """With `stream` it is the first product of a `norm_step` where it adds, else the second."""
        if (stream is None or add) and is_ready(x.shape[0], weight):
            self._ready(x, weight, bias, out, add=add, gated=gated, stream=stream, turn=turn)
            return
        t, (n, k) = x.shape[0], check_product(x, weight, out, gated, turn)
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
            *_turning(turn, out),
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
            TURN=_dimensions(turn),
            LATE=turn is not None and turns_late(t),
            BLOCK_T=max(16, power_of_two(t)),
            BLOCK_N=block_n,
            BLOCK_K=block_k,
            STAGES=stages,
            AHEAD=self._gpu.overlap and t <= _AHEAD_ROWS and weight.numel() <= _PREFETCHED,
            WIDE=self._gpu.interpreted,
            **self._gpu.launch(warps, stages),
        )

    def _fixed(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        out: torch.Tensor,
    ) -> None:
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


def check_outputs(adapters: LoraWeight, weight: torch.Tensor, gated: bool) -> None:
    """Whether adapters add to the outputs that a matrix has."""
    n, parts = weight.shape[0], adapters.parts
    if sum(parts) != n or (gated and parts != (n // 2, n // 2)):
        raise KernelInputError(
            f"adapters of parts {parts} do not fit a matrix {tuple(weight.shape)}"
            f"{' of gate and up' if gated else ''}"
        )


def _adapters(made: Inner | None, none: torch.Tensor) -> tuple[Any, ...]:
    """Operands of a product's adapters, or of none."""
    return (none, none, none, none, 0, 0, 0, 0) if made is None else made.operands()


def _parts(made: Inner | None) -> dict[str, int]:
    """What a product with adapters is compiled for."""
    if made is None:
        return {"PARTS": 0, "RANK": 0}
    return {"PARTS": made.inner.shape[1], "RANK": made.inner.shape[2]}


def _turning(turn: HeadPlaces | None, none: torch.Tensor) -> tuple[Any, ...]:
    """Operands of a product whose heads are turned, or not."""
    if turn is None:
        return (*(none,) * 5, 0, 0)
    pools = turn.k_pool, turn.v_pool
    return turn.cos_sin, turn.positions, turn.out_slots, *pools, none.shape[1], pools[0].shape[1]


def _dimensions(turn: HeadPlaces | None) -> int:
    """Of a head that is turned, 0 = it is not."""
    return 0 if turn is None else turn.k_pool.shape[2]


def queries(x: torch.Tensor, weight: torch.Tensor, into: HeadPlaces) -> torch.Tensor:
    """Memory for the queries [t, hq, d] of a product that turns heads."""
    _, hkv, d = into.k_pool.shape
    return x.new_empty(x.shape[0], weight.shape[0] // d - 2 * hkv, d)


def check_product(
    x: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor,
    gated: bool,
    turn: HeadPlaces | None = None,
) -> tuple[int, int]:
    """Our kernels read by pointer: what does not fit must not get that far.

    Returns:
        (outputs, columns).
    """
    n, k = weight.shape
    outputs = n // 2 if gated else n
    given = out.shape[1]
    if turn is not None:
        _, hkv, d = turn.k_pool.shape
        given = (given + 2 * hkv) * d
    if x.shape[1] != k or given != outputs or out.shape[0] != x.shape[0]:
        raise KernelInputError(
            f"x {tuple(x.shape)} times a matrix {tuple(weight.shape)} does not give "
            f"{tuple(out.shape)}{' when gated' if gated else ''}"
        )
    return outputs, k
