"""Matrix products: our kernels for a few rows, the vendor's library for more.

Invariant: which one is chosen depends on shapes alone; in deterministic mode there is one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from branchline.kernels.errors import KernelInputError
from branchline.kernels.heads import HeadPlaces
from branchline.kernels.lora import LoraWeight
from branchline.kernels.stream import BlockEnd
from branchline.kernels.triton.launches import Launches, Product, Stream
from branchline.kernels.triton.lora import Inner
from branchline.kernels.triton.tiles import READY_ROWS, is_ready, step_programs
from branchline.kernels.triton.tuning import Device
from branchline.kernels.weights import DenseWeight, Weight

__all__ = ["Linears", "check_outputs", "dense_of"]

_FEW = 64
"""Most rows that our kernels take; for more, the library is faster."""
_OUTPUTS = 64
"""Most outputs of a program for one row; fewer ones divide it."""
_SUMS = 5 << 8
"""Sums of squares that a product of a few rows leaves to the one behind it, at most: every program
of that one adds all of them up. Steps with 2,000 and more of them took 5 % longer than before."""
_LARGE_STREAM = 6 << 20
"""Elements of a stream from which on the library adds to it: of smaller ones a norm finds what the
product wrote in the cache, and the library's addition takes longer than the norm's."""
_ROTATED = 12 << 20
"""Elements of the largest matrix whose product rotates its heads."""


def dense_of(weight: Weight) -> torch.Tensor:
    """The matrix that `prepare` made."""
    if not isinstance(weight, DenseWeight):
        raise KernelInputError(
            f"the GPU ops cannot multiply by a {type(weight).__name__} of shape {weight.shape}; "
            "keep the result of ops.prepare(weight) instead"
        )
    return weight.tensor


class Linears:
    """Products on one device.

    Args:
        gpu: facts of the device.
        deterministic: one kernel with one tile shape for every number of rows.
    """

    def __init__(self, gpu: Device, deterministic: bool) -> None:
        self._launches = Launches(gpu)
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

    def adds(self, stream: torch.Tensor) -> bool:
        """Whether additions to this stream are part of the product, ours or the library's."""
        few = stream.shape[0] <= _FEW
        return not self._deterministic and (few or stream.numel() >= _LARGE_STREAM)

    def many(self, rows: int) -> bool:
        """Whether the library multiplies so many rows."""
        return rows > _FEW and not self._deterministic

    def gates(self, rows: int) -> bool:
        """Whether silu(gate) * up is part of the product for so many rows."""
        return rows <= _FEW and not self._deterministic

    def rotates(self, rows: int, weight: torch.Tensor, into: HeadPlaces) -> bool:
        """Whether heads are rotated and written by the product of so many rows with this matrix.

        A norm over a head would want the whole head in one program, and those are too few. Large
        matrices take longer to read in such an order than a kernel takes.
        """
        if self._deterministic or into.q_norm is not None or into.k_norm is not None:
            return False
        few = rows <= (_FEW if into.several else READY_ROWS)
        return few and weight.numel() <= _ROTATED

    def heads(
        self, x: torch.Tensor, weight: torch.Tensor, into: HeadPlaces, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """See `Ops.linear_heads`, and `rotates`."""
        out = queries(x, weight, into)
        self._few(Product(x, weight, bias, out, into=into))
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
            run = self._launches.fixed if self._deterministic else self._few
            run(Product(x, weight, bias, out))
            return out
        if dtype == x.dtype:
            return torch.nn.functional.linear(x, weight, None if bias is None else bias.to(dtype))
        if x.device.type == "cuda":
            wide = torch.mm(x, weight.t(), out_dtype=dtype)
        else:
            wide = x.to(dtype) @ weight.t().to(dtype)
        return wide if bias is None else wide + bias

    def _few(self, product: Product) -> None:
        """Of so few rows that our kernels take them."""
        (self._launches.one if product.x.shape[0] == 1 else self._launches.few)(product)

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
        into: HeadPlaces | None = None,
    ) -> torch.Tensor:
        """linear(rms_norm(x)), maybe gated, of x's dtype if none is given; see `norms`. With
        `into`, which is for x's dtype, `heads` of it."""
        t, n = x.shape[0], weight.shape[0] // 2 if gated else weight.shape[0]
        if into is None:
            out = torch.empty(t, n, dtype=x.dtype if dtype is None else dtype, device=x.device)
        else:
            out = queries(x, weight, into)
        run = self._launches.one if t == 1 else self._launches.ready
        run(Product(x, weight, bias, out, gated, into=into), norm=norm, eps=eps)
        return out

    def gated_linear(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """silu_mul(linear(x)) of a few rows."""
        out = torch.empty(x.shape[0], weight.shape[0] // 2, dtype=x.dtype, device=x.device)
        self._few(Product(x, weight, bias, out, gated=True))
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
        self._launches.one(Product(x, weight, bias, out, gated), made=made)
        return out

    def linear_add(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        residual: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> None:
        """`residual += linear(x)`, rounded once; see `adds`."""
        if x.shape[0] > _FEW:
            if bias is None:
                residual.addmm_(x, weight.t())
            else:
                residual.add_(self.linear(x, weight, bias, x.dtype))
        else:
            self._few(Product(x, weight, bias, residual, add=True))

    def end_block(self, end: BlockEnd) -> None:
        """`linear_add` of a block's end; its norm is left to who comes next."""
        self.linear_add(end.x, dense_of(end.projection), end.residual, end.bias)

    def norm_step(
        self,
        end: BlockEnd,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        *,
        gated: bool,
        dtype: torch.dtype | None = None,
        into: HeadPlaces | None = None,
    ) -> torch.Tensor:
        """`end_block`, and the product of its norm with weight [N, H], maybe gated; see `steps`.

        The product is of x's dtype if none is given. With `into`, `heads` of the norm."""
        x, projection, residual = end.x, dense_of(end.projection), end.residual
        t, n = x.shape[0], weight.shape[0] // 2 if gated else weight.shape[0]
        programs = step_programs(t, projection)
        squares = torch.empty(t, programs, dtype=torch.float32, device=x.device)
        stream = Stream(end.norm, torch.empty_like(residual), squares, end.eps)
        self._launches.few(Product(x, projection, end.bias, residual, add=True), stream=stream)
        if into is None:
            out = torch.empty(t, n, dtype=x.dtype if dtype is None else dtype, device=x.device)
        else:
            out = queries(x, weight, into)
        product = Product(stream.scaled, weight, bias, out, gated, into=into)
        self._launches.few(product, stream=stream)
        return out


def check_outputs(adapters: LoraWeight, weight: torch.Tensor, gated: bool) -> None:
    """Whether adapters add to the outputs that a matrix has."""
    n, parts = weight.shape[0], adapters.parts
    if sum(parts) != n or (gated and parts != (n // 2, n // 2)):
        raise KernelInputError(
            f"adapters of parts {parts} do not fit a matrix {tuple(weight.shape)}"
            f"{' of gate and up' if gated else ''}"
        )


def queries(x: torch.Tensor, weight: torch.Tensor, into: HeadPlaces) -> torch.Tensor:
    """Memory for the queries [t, hq, d] of a product that rotates heads."""
    _, hkv, d = into.k_pool.shape
    return x.new_empty(x.shape[0], weight.shape[0] // d - 2 * hkv, d)
