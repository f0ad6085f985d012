"""The ops that draft heads have to themselves on a GPU, a part of `TritonOps`."""

from __future__ import annotations

import torch

from branchline.kernels.ops import Ops
from branchline.kernels.stream import BlockEnd
from branchline.kernels.triton.linear import Linears, dense_of
from branchline.kernels.triton.row_kernels import joined_norms_kernel
from branchline.kernels.triton.tuning import Device, power_of_two
from branchline.kernels.weights import Weight

__all__ = ["DraftOps"]


class DraftOps(Ops):
    """What `TritonOps` does for draft heads, over products that it has made."""

    joins_inputs = True
    _gpu: Device
    _linears: Linears

    def joined_norms(
        self,
        ids: torch.Tensor,
        table: Weight,
        norm: torch.Tensor,
        index: torch.Tensor,
        states: torch.Tensor,
        state_norm: torch.Tensor,
        eps: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        t, width = ids.shape[0], states.shape[1]
        out = torch.empty(t, 2 * width, dtype=self.dtype, device=states.device)
        kept = torch.empty(t, width, dtype=states.dtype, device=states.device)
        joined_norms_kernel[(t, 2)](
            ids,
            dense_of(table),
            norm,
            index,
            states,
            state_norm,
            out,
            kept,
            width,
            eps,
            BLOCK=power_of_two(width),
            **self._gpu.launch(4),
        )
        return out, kept

    def linear_add(self, x: torch.Tensor, weight: Weight, y: torch.Tensor) -> torch.Tensor:
        if not self._linears.adds(y):
            return super().linear_add(x, weight, y)
        self._linears.linear_add(x, dense_of(weight), y, None)
        return y

    def head_step(self, end: BlockEnd, head: Weight) -> torch.Tensor:
        rows, linears, wide = end.x.shape[0], self._linears, torch.float32
        if linears.fuses(rows):
            linears.end_block(end)
            operands = end.residual, end.norm, end.eps, dense_of(head), None
            return linears.norm_linear(*operands, gated=False, dtype=wide)
        if linears.steps(rows, dense_of(end.projection)):
            return linears.norm_step(end, dense_of(head), None, gated=False, dtype=wide)
        return super().head_step(end, head)
