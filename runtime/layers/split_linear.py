"""A linear layer whose input lies in several tensors: its matrix is cut by columns.

Invariant: the result is that of one matrix over the inputs side by side, up to rounding; nothing is
put side by side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch

from branchline.kernels.ops import Ops
from branchline.kernels.weights import DenseWeight, Weight
from branchline.runtime.errors import ModelLoadError
from branchline.runtime.layers.parameter import (
    Slot,
    StoredTensor,
    WeightDtype,
    make_vector,
    make_weight,
)


class SplitLinear:
    """x_0 [t, w_0], x_1 [t, w_1], … -> [t, sum of the parts' rows].

    Args:
        widths: columns of each input.
        parts: (name without ".weight", rows) of each projection fused here.
        bias: the projections carry biases.
        dtype: how the matrix is kept.

    Attributes:
        weights: one for each input.
        bias: float32 [rows], if there is one.
    """

    def __init__(
        self,
        widths: Sequence[int],
        parts: Sequence[tuple[str, int]],
        *,
        bias: bool = False,
        dtype: WeightDtype = "auto",
    ) -> None:
        self.widths = tuple(widths)
        self.weights: list[Weight] = []
        self.bias: torch.Tensor | None = None
        self._parts = tuple(parts)
        self._has_bias = bias
        self._dtype: WeightDtype = dtype
        self._stored: dict[int, StoredTensor] = {}
        self._biases: dict[int, StoredTensor] = {}

    def apply(self, index: int, x: torch.Tensor, ops: Ops) -> torch.Tensor:
        """The share of input `index`; the first one's carries the bias."""
        return ops.linear(x, self.weights[index], self.bias if index == 0 else None)

    def add(self, index: int, x: torch.Tensor, y: torch.Tensor, ops: Ops) -> torch.Tensor:
        """y + the share of a further input; y is used up."""
        if index == 0 and self.bias is not None:
            return ops.add(y, self.apply(index, x, ops))
        return ops.linear_add(x, self.weights[index], y)

    def slots(self) -> Iterator[Slot]:
        """A weight for each part, and its bias where there is one."""
        for i, (name, rows) in enumerate(self._parts):
            yield Slot(f"{name}.weight", (rows, sum(self.widths)), partial(self._put_weight, i))
            if self._has_bias:
                yield Slot(f"{name}.bias", (rows,), partial(self._put_bias, i))

    def memory(self) -> int:
        """Bytes of the matrix and the bias."""
        bias = 0 if self.bias is None else self.bias.nbytes
        return sum(weight.nbytes for weight in self.weights) + bias

    def _put_weight(self, part: int, tensor: StoredTensor) -> None:
        self._stored[part] = tensor
        if len(self._stored) < len(self._parts):
            return
        whole = make_weight([self._stored[i] for i in range(len(self._parts))], self._dtype)
        self._stored = {}
        if not isinstance(whole, DenseWeight):
            raise ModelLoadError(
                "A matrix of a draft head is stored in blocks, which cannot be cut by columns.",
                value=self._parts[0][0],
                hint="Save the head in bfloat16 or float32.",
            )
        cut = torch.split(whole.tensor, list(self.widths), dim=1)
        self.weights = [DenseWeight(share.contiguous()) for share in cut]

    def _put_bias(self, part: int, tensor: StoredTensor) -> None:
        self._biases[part] = tensor
        if len(self._biases) == len(self._parts):
            self.bias = make_vector([self._biases[i] for i in range(len(self._parts))])
            self._biases = {}
