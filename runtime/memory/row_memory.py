"""Rows and pages: who has which page, and what a row can get, keep and give back.

Law: every page is exactly one of free, cached, running. A breach found on the way is mended,
counted and logged; it is no reason to stop. Knows nothing of token ids, namespaces or requests; of
the prefix cache it knows that pages can be evicted from it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from branchline.runtime.memory.audit import Auditor
from branchline.runtime.memory.page_allocator import PageAllocator
from branchline.runtime.memory.prefix_cache import CacheHandle, PrefixCache
from branchline.runtime.memory.slot_table import SlotTable, slot_pages
from branchline.runtime.memory.types import (
    CacheStats,
    Pages,
    Positions,
    Slots,
    Violation,
    empty_slots,
)

logger = logging.getLogger(__name__)


class RowMemory:
    """Pages and rows of one pool; `CacheManager` is this plus cached prefixes.

    Args:
        num_pages: pages that can be used; page 0 comes on top and takes padding writes.
        page_size: tokens per page.
        max_rows: sequences that can hold memory at once.
        max_context: longest sequence, in tokens.
        cache: where pages can be evicted from.

    Attributes:
        slot_table: its `array`, int32 [max_rows, max_context rounded up to pages], maps
            (row, position) to slot. Read it; write it only through this class.
    """

    def __init__(
        self, num_pages: int, page_size: int, max_rows: int, max_context: int, cache: PrefixCache
    ) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self.slot_table = SlotTable(max_rows, max_context, page_size)
        self._cache = cache
        self._pages = PageAllocator(num_pages)
        self._loose = np.zeros(num_pages + 1, dtype=np.bool_)
        self._handles: list[CacheHandle | None] = [None] * max_rows
        self._stats = CacheStats()
        self._auditor = Auditor(self._pages, self.slot_table, cache, self._loose, self._handles)

    def allocate_row(self) -> int | None:
        """An empty row, or None when all are in use."""
        return self.slot_table.allocate()

    def free_row(self, row: int) -> None:
        """Give a row back with all it has to itself, caching nothing. Its lock is not touched."""
        self.slot_table.check(row)
        self._free(self.slot_table.own_pages(row))
        self._handles[row] = None
        self.slot_table.free(row)

    def attach(self, row: int, handle: CacheHandle) -> None:
        """Let an empty row begin with a cached prefix. The handle must be locked, and stay so as
        long as the row has it. `ValueError` when it is out of date or the row is not empty."""
        self.slot_table.check(row)
        slots = self._cache.slots_of(handle)
        if slots is None or self.slot_table.held[row]:
            raise ValueError(f"row {row} is not empty, or {handle!r} is out of date")
        self.slot_table.share(row, slots)
        self._handles[row] = handle

    def allocate(self, count: int) -> Slots | None:
        """Slots outside of any row, whole pages, until `free`: int32 [count], count a multiple of
        the page size. Evicts when needed; None, and nothing changed, when impossible."""
        if count % self.page_size:
            raise ValueError(f"{count} is no multiple of the page size {self.page_size}")
        pages = self._take(count // self.page_size)
        if pages is None:
            return None
        self._loose[pages] = True
        return self.slot_table.page_slots(pages)

    def free(self, slots: Slots) -> None:
        """Give back slots of `allocate`: whole pages, each once."""
        pages = slot_pages(slots, self.page_size)
        ours = self._loose[pages]
        if not ours.all():
            strange = int((~ours).sum())
            self._report([Violation("page", f"{strange} pages were freed by a stranger")])
            pages = pages[ours]
        self._loose[pages] = False
        self._free(pages)

    def extend(self, row: int, cur_len: int, new_len: int) -> bool:
        """Make sure that positions [cur_len, new_len) of a row have slots.

        Fills the page that cur_len lies in before it takes new ones, and evicts unlocked cached
        pages when there are too few free ones. Positions that have a slot keep it. On an empty row,
        cur_len > 0 says that the caller wrote cached slots of a locked handle to the first cur_len
        positions itself (as `attach` does).

        Returns:
            False, and nothing changed, when there is not enough memory.

        Raises:
            ValueError: new_len is over the longest context, or cur_len is over what the row has.
        """
        table = self.slot_table
        table.check(row)
        held = table.held[row]
        if new_len > table.max_context:
            raise ValueError(f"{new_len} tokens do not fit in a row of {table.max_context}")
        adopted = cur_len if held == 0 else 0
        if adopted % self.page_size or cur_len > held + adopted:
            raise ValueError(f"row {row} has {held} slots, so it cannot grow from {cur_len}")
        missing = -(-(new_len - held - adopted) // self.page_size)
        pages = self._take(missing) if missing > 0 else None
        if missing > 0 and pages is None:
            return False
        if adopted:
            table.shared[row] = table.held[row] = adopted
        if pages is not None:
            table.append_pages(row, pages)
        return True

    def truncate(self, row: int, new_len: int) -> None:
        """Free the whole pages of a row past new_len. Into the cached part, where nothing is freed,
        it may cut only at a page boundary (`ValueError`)."""
        table = self.slot_table
        table.check(row)
        end = -(-new_len // self.page_size) * self.page_size
        if new_len < table.shared[row] and end != new_len:
            raise ValueError(f"position {new_len} lies inside a cached page of row {row}")
        if end >= table.held[row]:
            return
        self._free(table.own_pages(row, max(end, table.shared[row])))
        table.held[row] = end
        table.shared[row] = min(table.shared[row], end)

    def keep_path(
        self, row: int, base_len: int, kept_positions: Sequence[int] | Positions
    ) -> tuple[Slots, Slots]:
        """Keep some of a row's candidate tokens: kept_positions[i] moves to base_len + i, and the
        row's other slots at or past base_len are freed.

        With page size 1 slots are renumbered and nothing moves. Else the caller must copy keys
        and values, all at once (sources are read before a target is written), before the next
        step runs.

        Returns:
            (src, dst): int32 slots to copy; empty with page size 1.

        Raises:
            ValueError: a kept position is repeated, below base_len or without a slot, or base_len
                lies in the cached part.
        """
        table = self.slot_table
        table.check(row)
        held = table.held[row]
        kept = np.asarray(kept_positions, dtype=np.int64)
        if not table.shared[row] <= base_len <= held:
            raise ValueError(
                f"row {row} has candidates in [{table.shared[row]}, {held}), not at {base_len}"
            )
        if len(kept) and (
            int(kept.min()) < base_len
            or int(kept.max()) >= held
            or len(set(kept.tolist())) != len(kept)  # a few: as numbers they are sorted slower
        ):
            raise ValueError(f"kept positions must be distinct and in [{base_len}, {held})")
        slots = table.array[row]
        src: Slots = slots[kept]
        new_len = base_len + len(kept)
        if self.page_size > 1:
            dst: Slots = slots[base_len:new_len].copy()
            moved = src != dst
            self.truncate(row, new_len)
            return src[moved], dst[moved]
        others = np.ones(held - base_len, dtype=np.bool_)
        others[kept - base_len] = False
        dropped: Slots = slots[base_len:held][others]
        table.write(row, base_len, src)
        table.held[row] = new_len
        self._free(dropped)
        return empty_slots(), empty_slots()

    def _take(self, count: int) -> Pages | None:
        """Free pages, evicting as many as are missing; None, nothing evicted, when impossible."""
        short = (count - self._pages.num_free) * self.page_size
        if short > 0:
            if short > self._cache.evictable_tokens:
                return None
            slots = self._cache.evict(short)
            self._stats.evicted += len(slots)
            self._free(slot_pages(slots, self.page_size))
        return self._pages.allocate(count)

    def _free(self, pages: Pages) -> None:
        refused = self._pages.free(self._auditor.without_disputed(pages))
        if refused:
            self._report([Violation("page", f"{refused} pages were freed twice")])

    def _report(self, found: list[Violation]) -> None:
        self._stats.violations += len(found)
        for violation in found:
            logger.error("memory law broken (%s): %s", violation.kind, violation.detail)
