"""Keys and values of every slot of every layer, on the device.

Invariant: slot s of a layer is row s of that layer's key and value views, and the slots of page 0
are zero until a padding write. Other slots are not initialised: nobody may read one before it is
written (0 × NaN is NaN, so a mask alone does not make such a read harmless). Knows nothing of who
uses a slot.

One allocation [2, layers, slots, kv_heads, head_dim]: each layer's keys are contiguous, slots can
be copied in all layers with one call, and on a CPU memory becomes resident only when a slot is
first written.
"""

from __future__ import annotations

import torch

from branchline.kernels.ops import Ops
from branchline.runtime.memory.types import Slots

MOVED_AT_ONCE = 256
"""Slots that one kernel copies."""


class KVPool:
    """Key-value storage.

    Args:
        num_layers: layers that keep keys and values.
        num_pages: pages that can be used; page 0 comes on top.
        page_size: tokens per page.
        kv_heads: heads of keys and values on this device.
        head_dim: elements per head.
        dtype: of the elements.
        device: where they are.

    Attributes:
        buffer: [2, num_layers, (num_pages + 1) * page_size, kv_heads, head_dim].
    """

    def __init__(
        self,
        num_layers: int,
        num_pages: int,
        page_size: int,
        kv_heads: int,
        head_dim: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.num_layers = num_layers
        self.num_pages = num_pages
        self.page_size = page_size
        num_slots = (num_pages + 1) * page_size
        self.buffer = torch.empty(
            (2, num_layers, num_slots, kv_heads, head_dim), dtype=dtype, device=device
        )
        self.buffer[:, :, :page_size].zero_()
        self._layers = [(self.buffer[0, i], self.buffer[1, i]) for i in range(num_layers)]

    @staticmethod
    def bytes_per_token(num_layers: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
        """Bytes that one token's keys and values take in all layers."""
        return 2 * num_layers * kv_heads * head_dim * dtype.itemsize

    @property
    def num_slots(self) -> int:
        """Slots, those of page 0 included."""
        return self.buffer.shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes of the allocation."""
        return self.buffer.numel() * self.buffer.element_size()

    def free(self) -> None:
        """Give the memory back, whoever still holds the pool; nothing may read or write it after.
        Callable twice."""
        self.buffer.untyped_storage().resize_(0)

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of a layer, each [num_slots, kv_heads, head_dim], contiguous views."""
        return self._layers[index]

    def copy_slots(self, src: torch.Tensor | Slots, dst: torch.Tensor | Slots) -> None:
        """Copy keys and values of slots `src` to slots `dst` in all layers.

        src, dst: integer [n]; dst distinct. All sources are read before a target is written.
        """
        if len(src) == 0:
            return
        device = self.buffer.device
        source = torch.as_tensor(src, dtype=torch.int64, device=device)
        target = torch.as_tensor(dst, dtype=torch.int64, device=device)
        self.buffer.index_copy_(2, target, self.buffer.index_select(2, source))

    def move_slots(self, ops: Ops, source: torch.Tensor, target: torch.Tensor) -> None:
        """As `copy_slots`, of slots int32 [n] on the device, by the ops; slot 0 may be named any
        number of times, as both."""
        for first in range(0, len(source), MOVED_AT_ONCE):
            part = slice(first, first + MOVED_AT_ONCE)
            ops.copy_slots(self.buffer, source[part], target[part])
