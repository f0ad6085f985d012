"""Adapters kept in host memory, ready for a slot: a bounded number of bytes, the least used go.

Invariant: what is kept stays within the bound, but for a single adapter that is larger than it,
which is kept until the next one comes. Used by one thread at a time. Knows no files.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from branchline.runtime.lora.layout import Packed


class HostTier:
    """Packed adapters by key, least recently used first.

    Args:
        limit: bytes.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: OrderedDict[Hashable, Packed] = OrderedDict()
        self.nbytes = 0

    def __contains__(self, key: Hashable) -> bool:
        return key in self._kept

    def __len__(self) -> int:
        return len(self._kept)

    def has_room(self, nbytes: int) -> bool:
        """Whether so many bytes more can be kept and nothing has to go."""
        return self.nbytes + nbytes <= self._limit

    def get(self, key: Hashable) -> Packed | None:
        """What is kept under a key, which is now the most recently used one."""
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
        return found

    def put(self, key: Hashable, packed: Packed) -> None:
        """Keep an adapter; what was not used longest makes room."""
        self.drop(key)
        while self._kept and not self.has_room(packed.nbytes):
            self.drop(next(iter(self._kept)))
        self._kept[key] = packed
        self.nbytes += packed.nbytes

    def drop(self, key: Hashable) -> None:
        """Forget a key, if it is kept."""
        gone = self._kept.pop(key, None)
        if gone is not None:
            self.nbytes -= gone.nbytes
