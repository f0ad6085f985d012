"""What lies between two blocks of a decoder: the residual stream."""

from __future__ import annotations

from typing import NamedTuple

import torch

from branchline.kernels.weights import Weight

__all__ = ["BlockEnd"]


class BlockEnd(NamedTuple):
    """The end of a block and the norm that the next one begins with.

    `residual += linear(x, projection, bias)` in place, then the RMS norm of the sum.

    Attributes:
        x: [t, K].
        projection: [H, K].
        residual: [t, H], changed.
        norm: [H] weight of the norm.
        eps: of the norm.
        bias: [H] float32, of the projection.
    """

    x: torch.Tensor
    projection: Weight
    residual: torch.Tensor
    norm: torch.Tensor
    eps: float
    bias: torch.Tensor | None = None
