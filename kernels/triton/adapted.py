"""Products of 2 to 64 rows with adapters: the product and A in one launch, B in what follows.

Invariant: grids and buffers depend on shapes alone, as those of `lora.Adapters`.
"""

from __future__ import annotations

import torch
import triton

from branchline.kernels.errors import KernelInputError
from branchline.kernels.lora import LoraBatch, LoraWeight
from branchline.kernels.triton.adapted_kernels import (
    adapted_kernel,
    late_kernel,
    lora_gate_kernel,
)
from branchline.kernels.triton.launches import check_product
from branchline.kernels.triton.linear import check_outputs
from branchline.kernels.triton.lora import TILE, Adapters, Inner, check_adapters, most_tiles
from branchline.kernels.triton.tiles import skinny_tile, two_fit
from branchline.kernels.triton.tuning import Device, power_of_two

__all__ = ["AdaptedProducts"]

_LARGE = 48 << 20
"""Elements of a matrix from which on A is multiplied by a kernel of its own beside the product: in
one launch, programs that share a multiprocessor leave each other fewer stages. Products of 8B's MLP
lose more by that than a launch takes; those of its attention, and all of 0.6B, less."""
_WARPS = 4
_COLUMNS = 64
"""Columns of A that a warp takes at a time, of two bytes each."""
_A_BYTES = 80 << 10
"""Shared memory of a program that multiplies with A at most; products have more."""
_OUTPUTS = 512
"""Outputs of a program of the gate."""


class AdaptedProducts:
    """Products on one device.

    Args:
        gpu: facts of the device.
        adapters: the ops of adapters there.
    """

    def __init__(self, gpu: Device, adapters: Adapters) -> None:
        self._gpu = gpu
        self._adapters = adapters

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
            [t, N] of x's dtype, and what is left to add.
        """
        (t, _), n = x.shape, weight.shape[0]
        check_adapters(adapters, lora, t, x)
        check_outputs(adapters, weight, gated)
        out = torch.empty(t, n, dtype=x.dtype, device=x.device)
        check_product(x, weight, out, False)
        if weight.numel() > _LARGE:
            self._alone(x, weight, bias, out, gated)
            return out, self._adapters.shrink(x, adapters, lora, beside=True)
        return out, self._both(x, weight, bias, out, adapters, lora, gated)

    def _alone(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        out: torch.Tensor,
        gated: bool,
    ) -> None:
        (t, k), n = x.shape, weight.shape[0] // 2 if gated else weight.shape[0]
        block_n, block_k, stages, warps = skinny_tile(t, n, gated)
        block_k = block_k * 2 // x.element_size()
        programs = triton.cdiv(n, block_n)
        if programs > self._gpu.processors:
            stages = two_fit(stages, t, block_n, block_k, x, gated)
        late_kernel[(programs,)](
            x,
            weight,
            weight if bias is None else bias,
            out,
            t,
            n,
            k,
            GATED=gated,
            BIAS=bias is not None,
            BLOCK_T=max(16, power_of_two(t)),
            BLOCK_N=block_n,
            BLOCK_K=block_k,
            STAGES=stages,
            WIDE=self._gpu.interpreted,
            **self._gpu.launch(warps, stages),
        )

    def _both(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        out: torch.Tensor,
        adapters: LoraWeight,
        lora: LoraBatch,
        gated: bool,
    ) -> Inner:
        (t, k), n, (slots, parts, rank, _) = x.shape, weight.shape[0], adapters.a.shape
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
        return Inner(adapters, lora.slots, inner)

    def gate(self, y: torch.Tensor, made: Inner, dtype: torch.dtype) -> torch.Tensor:
        """silu_mul of y [t, 2 F] and the product with B: [t, F] of `dtype`."""
        weight, t, width = made.weight, y.shape[0], y.shape[1] // 2
        if weight.parts != (width, width) or made.inner.shape[0] != t:
            raise KernelInputError(
                f"adapters of parts {weight.parts} for {made.inner.shape[0]} tokens cannot be "
                f"added to {tuple(y.shape)} of gate and up"
            )
        out = torch.empty(t, width, dtype=dtype, device=y.device)
        block = min(power_of_two(width), _OUTPUTS)
        lora_gate_kernel[(t, triton.cdiv(width, block))](
            y,
            out,
            *made.tensors(),
            width,
            *made.strides(),
            RANK=made.inner.shape[2],
            BLOCK=block,
            **self._gpu.launch(4),
        )
        return out
