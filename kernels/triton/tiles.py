"""Tiles of the products of a few rows: outputs, columns, stages and warps of a program.

Invariant: they depend on shapes alone. Measured on an H100.
"""

from __future__ import annotations

import torch

from branchline.kernels.triton.tuning import power_of_two

__all__ = [
    "READY_ROWS",
    "cut_width",
    "gemv_tile",
    "is_ready",
    "ready_tile",
    "skinny_tile",
    "step_programs",
    "two_fit",
]

READY_ROWS = 16
_READY_WIDTH = 3072
_READY = 4 << 20
"""Rows, columns and elements of a matrix below which programs have their lines of it at hand before
the rows are there: its reading then hides behind the kernel before. Reading larger ones takes
longer than that, and is faster in larger parts."""
_SHARED = 110 << 10
"""Shared memory of a program where there are more than multiprocessors: two fit one."""


def gemv_tile(n: int, k: int) -> tuple[int, int, int]:
    """(outputs, columns at a time, warps) of a program for one row of x.

    Measured on an H100: small matrices want many short programs, or whole rows where K is long and
    few outputs are there to share out; large ones stream at 2.7 to 3.2 TB/s in any tile of 4,096.
    """
    if n * k > 12 << 20:
        return 4, min(power_of_two(k), 1024), 4
    if k <= 1024:
        return 8, min(power_of_two(k), 512), 4
    return 4, min(power_of_two(k), 4096), 4 if k <= 2048 else 8


def is_ready(rows: int, weight: torch.Tensor) -> bool:
    """Whether `rows_kernel` takes so many rows of this matrix."""
    small = weight.numel() < _READY and weight.shape[1] <= _READY_WIDTH
    return 1 < rows <= READY_ROWS and small and weight.element_size() == 2


def step_programs(rows: int, weight: torch.Tensor) -> int:
    """Programs of the first product of a `norm_step`."""
    n, k = weight.shape
    ready = is_ready(rows, weight)
    return -(-n // (ready_tile(n * k, k, False)[0] if ready else skinny_tile(rows, n, False)[0]))


def cut_width(k: int, ways: int) -> tuple[int, int]:
    """Columns of a way in the first and in the second cut of a matrix of k columns (0 = none).

    Both are powers of two and at least 16, and together they waste as little as that allows.
    """
    whole = max(16, power_of_two(-(-k // ways)))
    half = whole // 2
    if half < 16:
        return whole, 0
    rest = max(16, power_of_two(-(-(k - ways * half) // ways)))
    return (half, rest) if rest < half else (whole, 0)


def ready_tile(elements: int, k: int, gated: bool) -> tuple[int, int]:
    """(outputs, ways) of a program that has its lines of the matrix at hand, measured."""
    few = elements < 1 << 20 or (gated and k > 1024)
    return 8 if few else 16, 4 if k <= 1536 else 8


def tile_bytes(t: int, block_n: int, block_k: int, x: torch.Tensor, gated: bool) -> int:
    """Shared memory of one stage of `skinny_kernel`."""
    rows = max(16, power_of_two(t)) + block_n * (2 if gated else 1)
    return rows * block_k * x.element_size()


def two_fit(stages: int, t: int, block_n: int, block_k: int, x: torch.Tensor, gated: bool) -> int:
    """Stages, so many at most, with which two programs of `skinny_kernel` fit a processor."""
    return min(stages, max(1, _SHARED // tile_bytes(t, block_n, block_k, x, gated)))


def skinny_tile(t: int, n: int, gated: bool) -> tuple[int, int, int, int]:
    """(outputs, columns at a time, stages, warps) of a program for t rows of x, measured."""
    if t > 32:
        return 16 if n < 2048 else 32, 128, 3 if n >= 8192 else 4 if gated else 6, 4
    if gated and t > 16:
        return (64, 128, 4, 4) if n > 2048 else (32, 64, 4, 4)
    if t > 16:
        return 16 if n < 2048 else 32, 256, 6 if n < 32768 else 3, 4
    return 32, 128 if gated and n < 2048 else 256, 3 if n >= 8192 else 4 if gated else 6, 4
