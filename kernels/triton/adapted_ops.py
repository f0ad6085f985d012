"""The ops of adapters on a GPU, a part of `TritonOps`.

Invariant: with few rows a product ends with its adapters, behind a kernel that makes `inner` beside
it, or the norm that follows begins with them; with more, and in deterministic mode, they are added
to what the product gave.
"""

from __future__ import annotations

import torch

from branchline.kernels.lora import LoraBatch, LoraWeight
from branchline.kernels.ops import Ops
from branchline.kernels.triton.linear import Linears, dense_of
from branchline.kernels.triton.lora import Adapters
from branchline.kernels.weights import Weight

__all__ = ["AdaptedOps"]


class AdaptedOps(Ops):
    """What `TritonOps` does with adapters, over products and kernels that it has made."""

    _linears: Linears
    _adapters: Adapters

    def lora_batch(self, slots: torch.Tensor, count: int) -> LoraBatch:
        return self._adapters.batch(slots, count)

    def lora_add(
        self, y: torch.Tensor, x: torch.Tensor, weight: LoraWeight, lora: LoraBatch
    ) -> None:
        if len(x):
            self._adapters.expand(y, self._adapters.shrink(x, weight, lora), lora)

    def lora_embedding(
        self, y: torch.Tensor, ids: torch.Tensor, weight: LoraWeight, lora: LoraBatch
    ) -> None:
        if len(ids):
            self._adapters.expand(y, self._adapters.lookup(ids, weight, lora), lora)

    def adapted_linear(
        self,
        x: torch.Tensor,
        weight: Weight,
        weight_lora: LoraWeight,
        lora: LoraBatch,
        bias: torch.Tensor | None = None,
        *,
        gated: bool = False,
    ) -> torch.Tensor:
        if not self._linears.adapts(x.shape[0], weight_lora.parts):
            return super().adapted_linear(x, weight, weight_lora, lora, bias, gated=gated)
        made = self._adapters.shrink(x, weight_lora, lora)
        return self._linears.adapted(x, dense_of(weight), bias, made, gated=gated)

    def adapted_step(
        self,
        x: torch.Tensor,
        projection: Weight,
        residual: torch.Tensor,
        norm: torch.Tensor,
        eps: float,
        weight: Weight | None,
        lora: LoraBatch,
        projection_lora: LoraWeight | None,
        *,
        weight_lora: LoraWeight | None = None,
        gated: bool = False,
        projection_bias: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if projection_lora is None or not self._adapters.sums(*residual.shape):
            return super().adapted_step(
                x,
                projection,
                residual,
                norm,
                eps,
                weight,
                lora,
                projection_lora,
                weight_lora=weight_lora,
                gated=gated,
                projection_bias=projection_bias,
                bias=bias,
            )
        y = self._linears.beside(x, dense_of(projection), projection_bias)
        made = self._adapters.shrink(x, projection_lora, lora, beside=True)
        normed = self._adapters.norm(y, made, residual, norm, eps)
        if weight is None:
            return normed
        if weight_lora is None:
            return (self.gated_linear if gated else self.linear)(normed, weight, bias)
        return self.adapted_linear(normed, weight, weight_lora, lora, bias, gated=gated)
