"""Leases: locks on cached prefixes, held by name.

Invariant: each lease holds exactly one lock. A lease is a promise about speed, never about
results: it may be broken at any time, and its holder then finds less cached. Knows nothing of
programs or lanes beyond their names.
"""

from __future__ import annotations

from collections.abc import Callable

from branchline.runtime.memory.prefix_cache import CacheHandle, PrefixCache
from branchline.runtime.memory.types import TokenIds


class Leases:
    """Leases by lane, least recently taken or renewed first.

    Args:
        cache: where the locks are.
    """

    def __init__(self, cache: PrefixCache) -> None:
        self._cache = cache
        self._held: dict[str, CacheHandle] = {}

    def __len__(self) -> int:
        return len(self._held)

    def take(self, lane_id: str, ids: TokenIds, namespace: str) -> int:
        """Hold the longest cached prefix of `ids` in place of what the lane held; returns its
        length. Nothing is held when nothing is cached."""
        handle = self._cache.match(ids, namespace).handle
        self._cache.lock(handle)
        self.release(lane_id)
        if handle.length:
            self._held[lane_id] = handle
        return handle.length

    def release(self, lane_id: str) -> bool:
        """Drop a lane's lease; False when it has none."""
        handle = self._held.pop(lane_id, None)
        if handle is None:
            return False
        self._cache.unlock(handle)
        return True

    def length(self, lane_id: str) -> int:
        """Tokens that a lane holds."""
        handle = self._held.get(lane_id)
        return 0 if handle is None else handle.length

    def break_until(self, enough: Callable[[], bool]) -> int:
        """Drop leases, oldest first, until `enough()` or none is left; returns how many."""
        broken = 0
        while self._held and not enough():
            self.release(next(iter(self._held)))
            broken += 1
        return broken
