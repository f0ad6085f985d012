"""Matrix products: our kernels for a few rows, the vendor's library for more.

Invariant: which one is chosen depends on shapes alone; in deterministic mode there is one.
"""

from __future__ import annotations

import torch
import triton

from branchline.kernels.triton.linear_kernels import fixed_kernel, gemv_kernel, skinny_kernel
from branchline.kernels.triton.tuning import Device, power_of_two

__all__ = ["Linears"]

_FEW = 16
"""Most rows that our kernels take: what one tile of the matrix units holds."""


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
        if self._deterministic:
            out = torch.empty(t, n, dtype=dtype, device=x.device)
            self._fixed(x, weight, bias, out)
            return out
        if t <= _FEW:
            out = torch.empty(t, n, dtype=dtype, device=x.device)
            self._few(x, weight, bias, None, 0.0, out)
            return out
        if dtype == x.dtype:
            return torch.nn.functional.linear(x, weight, None if bias is None else bias.to(dtype))
        if x.device.type == "cuda":
            return torch.mm(x, weight.t(), out_dtype=dtype)
        return (x.to(dtype) @ weight.t().to(dtype)).contiguous()

    def norm_linear(
        self,
        x: torch.Tensor,
        norm: torch.Tensor,
        eps: float,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        """linear(rms_norm(x)) of a few rows."""
        out = torch.empty(x.shape[0], weight.shape[0], dtype=x.dtype, device=x.device)
        self._few(x, weight, bias, norm, eps, out)
        return out

    def linear_add(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        residual: torch.Tensor,
        bias: torch.Tensor | None,
        *,
        gated: bool,
    ) -> None:
        """`residual += linear(x)` of a few rows; gated: x is silu(gate) * up of what is given."""
        self._few(x, weight, bias, None, 0.0, residual, add=True, gated=gated)

    def _few(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        norm: torch.Tensor | None,
        eps: float,
        out: torch.Tensor,
        *,
        add: bool = False,
        gated: bool = False,
    ) -> None:
        t, (n, k) = x.shape[0], weight.shape
        none = weight
        if t == 1:
            block_n, block_k, warps = gemv_tile(n, k)
            gemv_kernel[(triton.cdiv(n, block_n),)](
                x,
                weight,
                none if bias is None else bias,
                none if norm is None else norm,
                out,
                n,
                k,
                eps,
                NORM=norm is not None,
                GATED=gated,
                ADD=add,
                BIAS=bias is not None,
                BLOCK_N=block_n,
                BLOCK_K=block_k,
                **self._gpu.launch(warps),
            )
            return
        block_n, block_k, stages, warps = skinny_tile(n, k)
        skinny_kernel[(triton.cdiv(n, block_n),)](
            x,
            weight,
            none if bias is None else bias,
            none if norm is None else norm,
            out,
            t,
            n,
            k,
            eps,
            NORM=norm is not None,
            ADD=add,
            BIAS=bias is not None,
            BLOCK_T=_FEW,
            BLOCK_N=block_n,
            BLOCK_K=block_k,
            STAGES=stages,
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


def gemv_tile(n: int, k: int) -> tuple[int, int, int]:
    """(rows of the matrix, columns at a time, warps) of a program for one row of x."""
    block_k = min(power_of_two(k), 4096)
    block_n = max(1, min(16, 8192 // block_k))
    return block_n, block_k, 4


def skinny_tile(n: int, k: int) -> tuple[int, int, int, int]:
    """(rows of the matrix, columns at a time, stages, warps) for up to 16 rows of x."""
    block_n = 16 if n <= 4096 else 32
    return block_n, min(max(32, power_of_two(k)), 256), 4, 4
