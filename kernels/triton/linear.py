"""Matrix products: our kernels for a few rows, the vendor's library for more.

Invariant: which one is chosen depends on shapes alone; in deterministic mode there is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton

from branchline.kernels.errors import KernelInputError
from branchline.kernels.lora import LoraWeight
from branchline.kernels.triton.linear_kernels import (
    fixed_kernel,
    gemv_kernel,
    rows_kernel,
    skinny_kernel,
)
from branchline.kernels.triton.lora import Inner
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
    ) -> torch.Tensor:
        """linear(rms_norm(x)), maybe gated, of x's dtype if none is given; see `norms`."""
        t, n = x.shape[0], weight.shape[0] // 2 if gated else weight.shape[0]
        out = torch.empty(t, n, dtype=x.dtype if dtype is None else dtype, device=x.device)
        run = self._one if t == 1 else self._ready
        run(x, weight, bias, out, norm=norm, eps=eps, gated=gated)
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
    ) -> torch.Tensor:
        """`residual += x @ projection.T`, and the product of its norm, maybe gated; see `steps`.

        The product is of x's dtype if none is given."""
        t, n = x.shape[0], weight.shape[0] // 2 if gated else weight.shape[0]
        programs = step_programs(t, projection)
        squares = torch.empty(t, programs, dtype=torch.float32, device=x.device)
        stream = _Stream(norm, torch.empty_like(residual), squares, eps)
        self._few(x, projection, projection_bias, residual, add=True, stream=stream)
        out = torch.empty(t, n, dtype=x.dtype if dtype is None else dtype, device=x.device)
        self._few(stream.scaled, weight, bias, out, gated=gated, stream=stream)
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
    ) -> None:
        """With `stream` it is the first product of a `norm_step`."""
        n, k = out.shape[1], weight.shape[1]
        check_product(x, weight, out, gated)
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
            x.shape[0],
            n,
            k,
            eps,
            NORM=norm is not None,
            GATED=gated,
            ADD=add,
            BIAS=bias is not None,
            SCALED=stream is not None,
            BLOCK_T=READY_ROWS,
            BLOCK_N=block_n,
            WAYS=ways,
            BLOCK_K=block_k,
            REST_K=rest_k,
            LATE=gated,
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
    ) -> None:
        n, k = out.shape[1], weight.shape[1]
        check_product(x, weight, out, gated)
        block_n, block_k, warps = gemv_tile(n, k)
        gemv_kernel[(triton.cdiv(n, block_n),)](
            x,
            weight,
            weight if bias is None else bias,
            weight if norm is None else norm,
            out,
            *_adapters(made, out),
            n,
            k,
            eps,
            NORM=norm is not None,
            GATED=gated,
            ADD=add,
            BIAS=bias is not None,
            **_parts(made),
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
    ) -> None:
        """With `stream` it is the first product of a `norm_step` where it adds, else the second."""
        if (stream is None or add) and is_ready(x.shape[0], weight):
            self._ready(x, weight, bias, out, add=add, gated=gated, stream=stream)
            return
        t, n, k = x.shape[0], out.shape[1], weight.shape[1]
        check_product(x, weight, out, gated)
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


def check_product(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, gated: bool) -> None:
    """Our kernels read by pointer: what does not fit must not get that far."""
    n, k = weight.shape
    if x.shape[1] != k or out.shape[1] != (n // 2 if gated else n) or out.shape[0] != x.shape[0]:
        raise KernelInputError(
            f"x {tuple(x.shape)} times a matrix {tuple(weight.shape)} does not give "
            f"{tuple(out.shape)}{' when gated' if gated else ''}"
        )
