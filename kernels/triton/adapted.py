"""Products of 2 to 64 rows with adapters: the product and A in one launch, B in what follows.

Invariant: grids and buffers depend on shapes alone, as those of `lora.Adapters`.
"""

from __future__ import annotations

import torch
import triton

from branchline.kernels.errors import KernelInputError
from branchline.kernels.lora import LoraBatch, LoraWeight
from branchline.kernels.triton.adapted_kernels import adapted_kernel, lora_gate_kernel
from branchline.kernels.triton.linear import check_outputs, check_product, skinny_tile, two_fit
from branchline.kernels.triton.lora import TILE, Inner, check_adapters, most_tiles
from branchline.kernels.triton.tuning import Device, power_of_two

__all__ = ["AdaptedProducts"]

_WARPS = 4
_COLUMNS = 64
"""Columns of A that a warp takes at a time, of two bytes each."""
_A_BYTES = 80 << 10
"""Shared memory of a program that multiplies with A at most; products have more."""
_OUTPUTS = 256
"""Outputs of a program of the gate, of each half."""


class AdaptedProducts:
    """Products on one device.

    Args:
        gpu: facts of the device.
    """

    def __init__(self, gpu: Device) -> None:
        self._gpu = gpu

    def product(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        adapters: LoraWeight,
        lora: LoraBatch,
        *,
        gated: bool = False,
    ) -> tuple[torch.Tensor, Inner]:
        """(x @ weight.T + bias, x times A) of a few rows; nothing of the second is in the first.

        Args:
            x: [t, K].
            weight: [N, K].
            gated: it holds gate and up, of which `gate` shall make one.

        Returns:
            [t, N] of x's dtype, gated of float32, and what is left to add.
        """
        (t, k), (n, _), (slots, parts, rank, _) = x.shape, weight.shape, adapters.a.shape
        check_adapters(adapters, lora, t, x)
        check_outputs(adapters, weight, gated)
        out = torch.empty(t, n, dtype=torch.float32 if gated else x.dtype, device=x.device)
        check_product(x, weight, out, False)
        inner = torch.empty(t, parts, rank, dtype=torch.float32, device=x.device)
        wide, tiles = n // 2 if gated else n, most_tiles(t, slots, TILE) * parts
        block_n, block_k, stages, _ = skinny_tile(t, wide, gated)
        block_k = block_k * 2 // x.element_size()
        programs = triton.cdiv(wide, block_n)
        if programs + tiles > self._gpu.processors:
            stages = two_fit(stages, t, block_n, block_k, x, gated)
        block_r, block_a = 16 if rank % 32 else 32, _COLUMNS * 2 // x.element_size()
        stage_bytes = _WARPS * (TILE + block_r) * block_a * x.element_size()
        adapted_kernel[(programs + tiles,)](
            x,
            weight,
            weight if bias is None else bias,
            out,
            adapters.a,
            adapters.ranks,
            adapters.scales,
            lora.order,
            lora.starts,
            inner,
            programs,
            t,
            wide,
            k,
            adapters.a.stride(0),
            adapters.ranks.stride(0),
            slots,
            GATED=gated,
            BIAS=bias is not None,
            BLOCK_T=max(16, power_of_two(t)),
            BLOCK_N=block_n,
            BLOCK_K=block_k,
            STAGES=stages,
            PARTS=parts,
            RANK=rank,
            TILE=TILE,
            BLOCK_R=block_r,
            BLOCK_A=block_a,
            BLOCK_S=power_of_two(slots),
            WARPS=_WARPS,
            STAGES_A=_A_BYTES // stage_bytes,
            WIDE=self._gpu.interpreted,
            **self._gpu.launch(_WARPS, stages),
        )
        return out, Inner(adapters, lora.slots, inner)

    def gate(
        self, y: torch.Tensor, made: Inner, lora: LoraBatch, dtype: torch.dtype
    ) -> torch.Tensor:
        """silu_mul of y [t, 2 F] and the product with B: [t, F] of `dtype`."""
        weight, t, width = made.weight, y.shape[0], y.shape[1] // 2
        if weight.parts != (width, width) or made.inner.shape[0] != t:
            raise KernelInputError(
                f"adapters of parts {weight.parts} for {made.inner.shape[0]} tokens cannot be "
                f"added to {tuple(y.shape)} of gate and up"
            )
        slots, rank = weight.b.shape[:2]
        out = torch.empty(t, width, dtype=dtype, device=y.device)
        block = max(16, min(power_of_two(width), _OUTPUTS))
        lora_gate_kernel[(most_tiles(t, slots + 1, TILE), triton.cdiv(width, block))](
            y,
            out,
            weight.b,
            made.inner,
            weight.ranks,
            lora.order,
            lora.starts,
            width,
            weight.b.stride(0),
            weight.ranks.stride(0),
            slots,
            RANK=rank,
            TILE=TILE,
            BLOCK_R=16,
            BLOCK_N=block,
            BLOCK_S=power_of_two(slots + 1),
            WIDE=self._gpu.interpreted,
            **self._gpu.launch(4),
        )
        return out
