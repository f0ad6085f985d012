"""A linear layer, maybe several projections of one input fused into one matrix.

Invariant: the fused matrix holds the rows of its parts in the order in which they were named.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch

from branchline.kernels.lora import LoraBatch, LoraWeight
from branchline.kernels.ops import Ops
from branchline.kernels.weights import Weight
from branchline.runtime.layers.lora_site import LoraSite
from branchline.runtime.layers.parameter import (
    Slot,
    StoredTensor,
    WeightDtype,
    make_vector,
    make_weight,
)


class Linear:
    """x [t, columns] -> [t, sum of the parts' rows].

    Args:
        columns: width of the input.
        parts: (name without ".weight", rows) of each projection fused here.
        bias: the projections carry biases; all or none of a fused layer's parts.
        dtype: how the matrix is kept.

    Attributes:
        lora: what adapters add; None where none can be loaded.
    """

    weight: Weight
    bias: torch.Tensor | None = None
    lora: LoraWeight | None = None

    def __init__(
        self,
        columns: int,
        parts: Sequence[tuple[str, int]],
        *,
        bias: bool = False,
        dtype: WeightDtype = "auto",
    ) -> None:
        self.columns = columns
        self.rows = sum(rows for _, rows in parts)
        self._parts = tuple(parts)
        self._has_bias = bias
        self._dtype: WeightDtype = dtype
        self._weights: dict[int, StoredTensor] = {}
        self._biases: dict[int, StoredTensor] = {}

    def prepare(self, ops: Ops) -> None:
        """Bring the matrix into the layout that these ops want."""
        self.weight = ops.prepare(self.weight)

    def slots(self) -> Iterator[Slot]:
        """A weight for each part, and its bias where there is one."""
        for i, (name, rows) in enumerate(self._parts):
            yield Slot(f"{name}.weight", (rows, self.columns), partial(self._put_weight, i))
            if self._has_bias:
                yield Slot(f"{name}.bias", (rows,), partial(self._put_bias, i))

    def apply(self, x: torch.Tensor, ops: Ops, lora: LoraBatch | None) -> torch.Tensor:
        """The product [t, rows] of x [t, columns], adapters included."""
        if lora is None or self.lora is None:
            return ops.linear(x, self.weight, self.bias)
        return ops.adapted_linear(x, self.weight, self.lora, lora, self.bias)

    def site(self) -> LoraSite:
        """Where adapters add to it."""
        return LoraSite("linear", self.columns, self._parts, self._put_lora)

    def memory(self) -> int:
        """Bytes of the matrix and the bias."""
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)

    def _put_lora(self, weight: LoraWeight | None) -> None:
        self.lora = weight

    def _put_weight(self, part: int, tensor: StoredTensor) -> None:
        self._weights[part] = tensor
        if len(self._weights) == len(self._parts):
            ordered = [self._weights[i] for i in range(len(self._parts))]
            self._weights = {}
            self.weight = make_weight(ordered, self._dtype)

    def _put_bias(self, part: int, tensor: StoredTensor) -> None:
        self._biases[part] = tensor
        if len(self._biases) == len(self._parts):
            self.bias = make_vector([self._biases[i] for i in range(len(self._parts))])
            self._biases = {}
