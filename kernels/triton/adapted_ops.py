"""The ops of adapters on a GPU, a part of `TritonOps`.

Invariant: with few rows the product with A runs beside the base product, and what follows, a norm,
a gate or a pass over the rows that have adapters, adds what B makes of it; with more, and in
deterministic mode, both are added to what the product gave.
"""

from __future__ import annotations

import torch

from branchline.kernels.errors import KernelInputError
from branchline.kernels.lora import LoraBatch, LoraWeight
from branchline.kernels.ops import Ops
from branchline.kernels.triton.linear import Linears, dense_of
from branchline.kernels.triton.lora import Adapters, Inner
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
        if not self._adapters.finishes(x.shape[0], weight_lora.parts):
            return super().adapted_linear(x, weight, weight_lora, lora, bias, gated=gated)
        # wide until it is gated, as within a product
        dtype = torch.float32 if gated else x.dtype
        y, made = self._both(x, weight, bias, dtype, weight_lora, lora)
        return self._adapters.finish(y, made, gated=gated)

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
        y, made = self._both(x, projection, projection_bias, x.dtype, projection_lora, lora)
        normed = self._adapters.norm(y, made, residual, norm, eps)
        if weight is None:
            return normed
        if weight_lora is None:
            return (self.gated_linear if gated else self.linear)(normed, weight, bias)
        return self.adapted_linear(normed, weight, weight_lora, lora, bias, gated=gated)

    def _both(
        self,
        x: torch.Tensor,
        weight: Weight,
        bias: torch.Tensor | None,
        dtype: torch.dtype,
        weight_lora: LoraWeight,
        lora: LoraBatch,
    ) -> tuple[torch.Tensor, Inner]:
        """The product of a few rows and that of A, at the same time.

        The product goes first, as it would without adapters; where its programs take turns, nothing
        could start before the last of them, and A goes first.
        """
        matrix = dense_of(weight)
        if weight_lora.b.shape[2] != matrix.shape[0]:
            raise KernelInputError(
                f"adapters of parts {weight_lora.parts} do not fit a matrix {tuple(matrix.shape)}"
            )
        if self._linears.resident(x.shape[0], matrix.shape[0]):
            y = self._linears.beside(x, matrix, bias, dtype, first=True)
            return y, self._adapters.shrink(x, weight_lora, lora, beside=True)
        made = self._adapters.shrink(x, weight_lora, lora)
        return self._linears.beside(x, matrix, bias, dtype, first=False), made
