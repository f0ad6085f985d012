"""The ops of a layer's heads on a GPU, a part of `TritonOps`.

Invariant: for few rows of a model without norms over heads, whose matrix is small, the product that
makes the heads rotates and writes them, too; else a kernel behind it does.
"""

from __future__ import annotations

from weakref import ReferenceType, ref

import torch

from branchline.kernels.heads import HeadPlaces
from branchline.kernels.ops import Ops
from branchline.kernels.stream import BlockEnd
from branchline.kernels.triton.linear import Linears, dense_of
from branchline.kernels.weights import Weight

__all__ = ["HeadOps"]


class HeadOps(Ops):
    """What `TritonOps` does with heads, over products that it has made."""

    _linears: Linears
    _rotated: ReferenceType[torch.Tensor] | None
    """The queries that were rotated last; see `attend`."""

    def linear_heads(
        self, x: torch.Tensor, weight: Weight, into: HeadPlaces, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        if not self._linears.rotates(x.shape[0], dense_of(weight), into):
            return super().linear_heads(x, weight, into, bias)
        return self._remembered(self._linears.heads(x, dense_of(weight), into, bias))

    def norm_heads(
        self,
        x: torch.Tensor,
        norm: torch.Tensor,
        eps: float,
        weight: Weight,
        into: HeadPlaces,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        rows, dense = x.shape[0], dense_of(weight)
        if not self._linears.rotates(rows, dense, into):
            return super().norm_heads(x, norm, eps, weight, into, bias)
        if not self._linears.norms(rows, dense):
            return self.linear_heads(self.rms_norm(x, norm, eps), weight, into, bias)
        return self._remembered(
            self._linears.norm_linear(x, norm, eps, dense, bias, gated=False, into=into)
        )

    def step_heads(
        self,
        end: BlockEnd,
        weight: Weight,
        into: HeadPlaces,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        rows, dense, linears = end.x.shape[0], dense_of(weight), self._linears
        if not linears.rotates(rows, dense, into):
            return super().step_heads(end, weight, into, bias)
        if linears.norms(rows, dense):
            linears.end_block(end)
            return self.norm_heads(end.residual, end.norm, end.eps, weight, into, bias)
        if linears.steps(rows, dense_of(end.projection)):
            return self._remembered(linears.norm_step(end, dense, bias, gated=False, into=into))
        return self.linear_heads(super().residual_step(end, None), weight, into, bias)

    def _remembered(self, out: torch.Tensor) -> torch.Tensor:
        self._rotated = ref(out)
        return out
