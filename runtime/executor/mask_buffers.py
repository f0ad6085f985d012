"""Host memory for the masks of steps, from which copies to a device need not wait.

Invariant: a mask is not handed out again before the copy that was queued from it is over. Knows
nothing of who fills masks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from branchline.runtime.executor.device_stream import DeviceStream, Mark, host_buffer

if TYPE_CHECKING:
    from branchline.runtime.core.protocols import Bitmask

_RING = 3
"""Buffers used in turn."""


class MaskBuffers:
    """Buffers used in turn, by the thread that queues steps.

    Args:
        rows, words: of a mask at most, and of each of its rows.
        stream: where copies are queued.
    """

    def __init__(self, rows: int, words: int, stream: DeviceStream) -> None:
        self._stream, self._rows, self._words = stream, rows, words
        self._host = [host_buffer((rows, words), torch.int32, stream.device) for _ in range(_RING)]
        self._arrays = [host.numpy() for host in self._host]
        self._marks, self._turn = [Mark()] * _RING, 0
        self._taken: Bitmask | None = None

    def take(self, count: int) -> Bitmask:
        """int32 [count, words] to be filled, with anything in it. Of two that are taken only the
        last is known when it is queued."""
        if count > self._rows:
            return np.empty((count, self._words), dtype=np.int32)
        self._turn = (self._turn + 1) % _RING
        self._marks[self._turn].wait()
        self._taken = self._arrays[self._turn][:count]
        return self._taken

    def owns(self, bitmask: Bitmask) -> bool:
        """Whether it is the last that was taken: that itself, not a view of it."""
        return bitmask is self._taken

    def queue(self, bitmask: Bitmask, target: torch.Tensor) -> None:
        """Queue the copy of a mask, whoever made it, to the first rows of int32 [rows or more,
        words]; no more rows than there are here."""
        count = len(bitmask)
        if not self.owns(bitmask):
            np.copyto(self.take(count), bitmask)
        target[:count].copy_(self._host[self._turn][:count], non_blocking=True)
        self._marks[self._turn] = self._stream.mark()
