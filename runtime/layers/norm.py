"""Root-mean-square norm (Zhang and Sennrich, 2019)."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from branchline.runtime.layers.parameter import Slot, StoredTensor, make_vector


class RMSNorm:
    """Weight of x / rms(x) * weight over the last axis; `Ops` has the norm in several forms.

    Args:
        name: tensor name without ".weight".
        width: length of the last axis.
        eps: added to the mean square.
    """

    weight: torch.Tensor

    def __init__(self, name: str, width: int, eps: float) -> None:
        self._name = name
        self._width = width
        self.eps = eps

    def slots(self) -> Iterator[Slot]:
        """The weight."""
        yield Slot(f"{self._name}.weight", (self._width,), self._put)

    def memory(self) -> int:
        """Bytes of the weight."""
        return self.weight.nbytes

    def _put(self, tensor: StoredTensor) -> None:
        self.weight = make_vector([tensor])
