"""Tensors on their way to a device: read or made when a layer asks for them, and put there.

Invariant: what arrives is what the CPU would have, converted on the CPU; random tensors alone are
made where they go, and depend on name, shape, seed and kind of device alone.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

    from branchline.runtime.layers.parameter import StoredTensor


@dataclass(frozen=True, slots=True)
class OnDevice:
    """A stored tensor that `to_torch` puts on a device; see `layers.parameter.StoredTensor`."""

    stored: StoredTensor
    device: torch.device

    @property
    def kind(self) -> str:
        """As stored."""
        return self.stored.kind

    @property
    def shape(self) -> tuple[int, ...]:
        """Logical shape."""
        return self.stored.shape

    @property
    def data(self) -> np.ndarray[Any, Any]:
        """As stored, in host memory."""
        return self.stored.data

    def to_torch(self, dtype: torch.dtype) -> torch.Tensor:
        """Values of `dtype` on the device."""
        return self.stored.to_torch(dtype).to(self.device)


@dataclass(frozen=True, slots=True)
class Noise:
    """A tensor of random values that exists once it is asked for: normal(0, 0.02), norms one."""

    name: str
    shape: tuple[int, ...]
    seed: int
    device: torch.device

    @property
    def kind(self) -> str:
        """Dense."""
        return "f32"

    @property
    def data(self) -> np.ndarray[Any, Any]:
        """The values in host memory."""
        import torch

        found: np.ndarray[Any, Any] = self.to_torch(torch.float32).cpu().numpy()
        return found

    def to_torch(self, dtype: torch.dtype) -> torch.Tensor:
        """Values of `dtype`, made on the device."""
        import torch

        if self.name.endswith("norm.weight"):
            return torch.ones(self.shape, dtype=dtype, device=self.device)
        generator = torch.Generator(self.device)
        generator.manual_seed(self.seed << 32 | zlib.crc32(self.name.encode()))
        values = torch.empty(self.shape, dtype=dtype, device=self.device)
        return values.normal_(0.0, 0.02, generator=generator)
