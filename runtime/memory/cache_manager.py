"""The only door to key-value memory.

Law: every page is exactly one of free, cached, running; only this module changes that. "Running" is
a page that one row, or one caller of `allocate`, has to itself; rows share cached pages and never
write them. A breach is found by `audit`, mended, counted and logged; it is no reason to stop.

One thread owns a manager. Freed slots may still be read by a step that was handed to the device
before: that is safe as long as steps run in order, since a slot's next owner writes it in a later
step. Knows nothing of requests, sampling or devices.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable

from branchline.runtime.core.prefixes import CachedPrefix
from branchline.runtime.memory.eviction import eviction_strategy
from branchline.runtime.memory.leases import Leases
from branchline.runtime.memory.prefix_cache import CacheHandle, MatchResult, NoPrefixCache
from branchline.runtime.memory.radix_cache import RadixCache
from branchline.runtime.memory.row_memory import RowMemory
from branchline.runtime.memory.slot_table import slot_pages
from branchline.runtime.memory.types import CacheStats, Slots, TokenIds, Violation

logger = logging.getLogger(__name__)


class CacheManager(RowMemory):
    """Pages, rows and cached prefixes of one pool.

    Args:
        num_pages: pages that can be used; page 0 comes on top and takes padding writes.
        page_size: tokens per page.
        max_rows: sequences that can hold memory at once.
        max_context: longest sequence, in tokens.
        eviction: "lru", "lfu", "fifo" or "priority".
        prefix_cache: False keeps nothing once a row ends.

    Attributes:
        slot_table: its `array`, int32 [max_rows, max_context rounded up to pages], maps
            (row, position) to slot. Read it; write it only through this class.
        on_inserted: told of each prefix that enters the cache: its ids, its namespace, how many
            of its tokens were cached before, and how many are now.
    """

    def __init__(
        self,
        num_pages: int,
        page_size: int,
        max_rows: int,
        max_context: int,
        *,
        eviction: str = "lru",
        prefix_cache: bool = True,
    ) -> None:
        strategy = eviction_strategy(eviction)
        cache = RadixCache(page_size, strategy) if prefix_cache else NoPrefixCache()
        super().__init__(num_pages, page_size, max_rows, max_context, cache)
        self._leases = Leases(cache)
        self.on_inserted: Callable[[TokenIds, str, int, int], None] = _nobody

    # -- what is there ---------------------------------------------------------------------------

    @property
    def capacity_tokens(self) -> int:
        """Tokens that fit in the pool."""
        return self.num_pages * self.page_size

    @property
    def free_tokens(self) -> int:
        """Tokens of pages that hold nothing."""
        return self._pages.num_free * self.page_size

    @property
    def cached_tokens(self) -> int:
        """Tokens in the prefix cache, locked or not."""
        return self._cache.cached_tokens

    @property
    def evictable_tokens(self) -> int:
        """Cached tokens that no lock protects; free + evictable is what `extend` can still give."""
        return self._cache.evictable_tokens

    @property
    def losses(self) -> int:
        """Counts up whenever cached tokens may have been dropped: as long as it stands, no match
        becomes shorter."""
        return self._cache.losses

    @property
    def used_tokens(self) -> int:
        """Tokens that nothing can be done about now: running pages and locked cached ones."""
        return self.capacity_tokens - self.free_tokens - self.evictable_tokens

    @property
    def running_tokens(self) -> int:
        """Tokens of pages that rows and callers of `allocate` have to themselves."""
        return self.capacity_tokens - self.free_tokens - self.cached_tokens

    @property
    def num_free_rows(self) -> int:
        """Rows that `allocate_row` can still give."""
        return self.slot_table.num_free_rows

    @property
    def num_leases(self) -> int:
        """Leases held."""
        return len(self._leases)

    def stats(self) -> CacheStats:
        """A copy of the counters."""
        return dataclasses.replace(self._stats)

    # -- cached prefixes -------------------------------------------------------------------------

    def match(self, ids: TokenIds, namespace: str = "") -> MatchResult:
        """Longest cached prefix of int32 ids; may be all of them, so pass all but the last when
        one must be computed. Counts as a use. The handle is unlocked: lock it before anything
        else is called."""
        found = self._cache.match(ids, namespace)
        self._stats.queried += len(ids)
        self._stats.matched += found.cached_len
        if found.cached_len:
            self._stats.hits += 1
        else:
            self._stats.misses += 1
        return found

    def slots_of(self, handle: CacheHandle) -> Slots | None:
        """Slots of a cached prefix: int32 [handle.length]; None when the handle is out of date."""
        return self._cache.slots_of(handle)

    def match_len(self, ids: TokenIds, namespace: str = "") -> int:
        """Length of the longest cached prefix; changes nothing, not even its last use."""
        return self._cache.match_len(ids, namespace)

    def lock(self, handle: CacheHandle) -> None:
        """Keep a path in the cache until `unlock`. `ValueError` when it is out of date."""
        self._cache.lock(handle)

    def unlock(self, handle: CacheHandle) -> None:
        """Undo one `lock` of this handle; one too many is counted as a violation."""
        if not self._cache.unlock(handle):
            self._report([Violation("lock", f"{handle!r} was unlocked more often than locked")])

    def lease(self, lane_id: str, ids: TokenIds, namespace: str = "") -> int:
        """Hold the longest cached prefix of `ids` by name until `release_lease`; returns its
        length. A lane's earlier lease is replaced, and the new one is the youngest."""
        return self._leases.take(lane_id, ids, namespace)

    def release_lease(self, lane_id: str) -> bool:
        """Drop a lease; False when the lane has none (it may have been broken)."""
        return self._leases.release(lane_id)

    def leased_len(self, lane_id: str) -> int:
        """Tokens that a lane's lease holds; 0 when it has none."""
        return self._leases.length(lane_id)

    def break_leases(self, num_tokens: int) -> int:
        """Drop leases, oldest first, until free + evictable tokens reach `num_tokens` or no lease
        is left; returns how many were dropped."""
        broken = self._leases.break_until(
            lambda: self.free_tokens + self.evictable_tokens >= num_tokens
        )
        self._stats.leases_broken += broken
        if broken:
            logger.info("broke %d leases to make room for %d tokens", broken, num_tokens)
        return broken

    def most_used(self) -> list[CachedPrefix]:
        """The cached nodes used most; a bounded number, in bounded time."""
        return self._cache.most_used()

    def flush(self) -> int:
        """Drop every unlocked cached page; returns the tokens freed."""
        slots = self._cache.flush()
        self._free(slot_pages(slots, self.page_size))
        return len(slots)

    # -- rows into the cache ---------------------------------------------------------------------

    def commit(
        self,
        row: int,
        ids: TokenIds,
        computed_len: int,
        handle: CacheHandle,
        namespace: str = "",
        *,
        priority: int = 0,
    ) -> CacheHandle:
        """Let others share what a running row has computed.

        The whole pages of ids[:computed_len] enter the cache. Where it holds the same tokens
        already, the row's pages are freed and its slots become the cache's. The row's lock moves
        from `handle` to the handle returned, which may be the same.

        Args:
            ids: int32, at least computed_len.
            computed_len: tokens whose keys and values are computed, or will be by a step that was
                handed to the device.
        """
        new = self._insert(row, ids, computed_len, handle, namespace, priority)
        if new is None:
            return handle
        self._cache.lock(new)
        self.unlock(handle)
        self._handles[row] = new
        return new

    def release(
        self,
        row: int,
        ids: TokenIds,
        computed_len: int,
        handle: CacheHandle,
        namespace: str = "",
        *,
        insert: bool = True,
        priority: int = 0,
    ) -> None:
        """End a row: cache its computed whole pages (unless `insert` is False), free the rest,
        drop its lock and free it. Right for a finish, an abort and a retraction alike."""
        if insert:
            self._insert(row, ids, computed_len, handle, namespace, priority)
        self.unlock(handle)
        self.free_row(row)

    def _insert(
        self,
        row: int,
        ids: TokenIds,
        computed_len: int,
        handle: CacheHandle,
        namespace: str,
        priority: int,
    ) -> CacheHandle | None:
        """Hand the row's computed pages to the cache; None when there was nothing to hand over."""
        table = self.slot_table
        table.check(row)
        shared, held = table.shared[row], table.held[row]
        if computed_len > min(held, len(ids)):
            raise ValueError(
                f"row {row} has {held} slots and {len(ids)} ids, so {computed_len} tokens cannot "
                "have been computed"
            )
        whole = computed_len - computed_len % self.page_size
        if whole <= shared:
            return None
        result = self._cache.insert(
            ids[:whole],
            table.array[row, :whole],
            namespace,
            start=shared,
            holder=handle,
            priority=priority,
        )
        if result.handle.length == 0:
            return None
        if result.matched > shared:
            duplicates = slot_pages(table.array[row, shared : result.matched], self.page_size)
            table.write(row, shared, result.slots)
            self._stats.duplicates += len(result.slots)
            self._free(duplicates)
        self._stats.inserted += whole - result.matched
        if whole > result.matched:
            self.on_inserted(ids, namespace, result.matched, whole)
        table.shared[row] = whole
        return result.handle

    def audit(self) -> list[Violation]:
        """Check law 1 against every page, lock and row; mend, count and log what is broken.

        Never raises. O(pages + cached nodes + rows' tokens): meant for idle moments.
        """
        found = self._auditor.run()
        self._report(found)
        return found


def _nobody(ids: TokenIds, namespace: str, before: int, now: int) -> None:
    """Wants to hear of no prefix."""
