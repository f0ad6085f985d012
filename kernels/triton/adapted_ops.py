"""The ops of adapters on a GPU, a part of `TritonOps`.

Invariant: with 2 to 64 rows the product of A runs beside the base product, in the same launch, and
what follows (a norm, a gate, the rotation of heads) begins with B; one row's product ends with its
adapter, behind a kernel that makes `inner` beside it; with more rows, and in deterministic mode,
adapters are added to what the product gave.
"""

from __future__ import annotations

from weakref import ReferenceType, ref

import torch

from branchline.kernels.heads import HeadPlaces
from branchline.kernels.lora import LoraBatch, LoraProduct, LoraWeight
from branchline.kernels.ops import Ops
from branchline.kernels.stream import BlockEnd
from branchline.kernels.triton.adapted import AdaptedProducts
from branchline.kernels.triton.linear import Linears, dense_of
from branchline.kernels.triton.lora import Adapters, Inner
from branchline.kernels.triton.rope import write_heads
from branchline.kernels.triton.tuning import Device
from branchline.kernels.weights import Weight

__all__ = ["AdaptedOps"]

_HEADS = 3
"""Parts of a product of heads: queries, keys, values."""


class AdaptedOps(Ops):
    """What `TritonOps` does with adapters, over products and kernels that it has made."""

    _gpu: Device
    _linears: Linears
    _adapters: Adapters
    _products: AdaptedProducts
    _rotated: ReferenceType[torch.Tensor] | None
    """The queries that were rotated last; see `attend`."""

    def _few(self, rows: int) -> bool:
        """Whether A goes beside the product of so many rows."""
        return rows > 1 and self._linears.gates(rows)

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
        if self._few(x.shape[0]):
            dense = dense_of(weight)
            y, made = self._products.product(x, dense, bias, weight_lora, lora, gated=gated)
            if gated:
                return self._products.gate(y, made, x.dtype)
            self._adapters.expand(y, made, lora)
            return y
        if not self._linears.adapts(x.shape[0], weight_lora.parts):
            return super().adapted_linear(x, weight, weight_lora, lora, bias, gated=gated)
        made = self._adapters.shrink(x, weight_lora, lora)
        return self._linears.adapted(x, dense_of(weight), bias, made, gated=gated)

    def adapted_heads(
        self,
        x: torch.Tensor,
        weight: Weight,
        weight_lora: LoraWeight,
        lora: LoraBatch,
        bias: torch.Tensor | None = None,
    ) -> LoraProduct:
        if not self._few(x.shape[0]) or len(weight_lora.parts) != _HEADS:
            return super().adapted_heads(x, weight, weight_lora, lora, bias)
        return LoraProduct(*self._products.product(x, dense_of(weight), bias, weight_lora, lora))

    def adapted_rope_write(self, heads: LoraProduct, into: HeadPlaces) -> torch.Tensor:
        made = heads.left if isinstance(heads.left, Inner) else None
        out = write_heads(self._gpu, heads.y, into, made=made)
        self._rotated = ref(out)
        return out

    def adapted_step(
        self,
        end: BlockEnd,
        weight: Weight | None,
        lora: LoraBatch,
        projection_lora: LoraWeight | None,
        *,
        weight_lora: LoraWeight | None = None,
        gated: bool = False,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if projection_lora is None or not self._adapters.sums(*end.residual.shape):
            operands = end, weight, lora, projection_lora
            return super().adapted_step(*operands, weight_lora=weight_lora, gated=gated, bias=bias)
        projection = dense_of(end.projection)
        y, made = self._products.product(end.x, projection, end.bias, projection_lora, lora)
        normed = self._adapters.norm(y, made, end.residual, end.norm, end.eps)
        if weight is None or weight_lora is None:
            return self._begun(normed, weight, bias, gated)
        return self.adapted_linear(normed, weight, weight_lora, lora, bias, gated=gated)
