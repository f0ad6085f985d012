"""Law 1, checked from scratch and mended.

Invariant: after a run, a second one finds nothing. Running rows are believed before the prefix
cache, since a cached prefix can be computed again and a running one cannot. A page that two owners
claim cannot be given to either for good: it is *disputed*, which means that nobody's release frees
it, until a later audit sees at most one owner left. Knows nothing of what pages hold.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from branchline.runtime.memory.page_allocator import PageAllocator
from branchline.runtime.memory.prefix_cache import CacheHandle, PrefixCache
from branchline.runtime.memory.slot_table import SlotTable, slot_pages
from branchline.runtime.memory.types import Pages, Violation

logger = logging.getLogger(__name__)

Counts = np.ndarray[tuple[int], np.dtype[np.int64]]
Mask = np.ndarray[tuple[int], np.dtype[np.bool_]]


class Auditor:
    """Compares what free list, cache and rows say about each page.

    Args:
        pages: the free list.
        table: the rows.
        cache: the cached prefixes.
        loose: bool [num_pages + 1], pages handed out outside of any row; shared with the manager.
        handles: by row, the handle whose slots its shared part are, where known; shared likewise.
    """

    def __init__(
        self,
        pages: PageAllocator,
        table: SlotTable,
        cache: PrefixCache,
        loose: Mask,
        handles: Sequence[CacheHandle | None],
    ) -> None:
        self._pages = pages
        self._table = table
        self._cache = cache
        self._loose = loose
        self._handles = handles
        self._disputed: Mask = np.zeros(pages.num_pages + 1, dtype=np.bool_)
        self._any_disputed = False

    def without_disputed(self, pages: Pages) -> Pages:
        """The pages that their owner may free."""
        if not self._any_disputed:
            return pages
        inside = (pages >= 0) & (pages < len(self._disputed))
        return pages[~(self._disputed[np.where(inside, pages, 0)] & inside)]

    def run(self) -> list[Violation]:
        """Check and mend everything; never raises. An error in the audit itself is reported as a
        violation that was not repaired."""
        found: list[Violation] = []
        try:
            found += self._check_rows()
            found += self._cache.repair(self._pages.num_pages)
            found += self._check_shared()
            found += self._check_owners()
            found += self._check_free_list()
        except Exception as error:
            logger.exception("the memory audit failed")
            found.append(Violation("audit", f"the audit failed: {error!r}", repaired=False))
        return found

    def _check_rows(self) -> list[Violation]:
        """Bounds of every row, and slots of its own pages."""
        found: list[Violation] = []
        table = self._table
        size = table.page_size
        width = table.array.shape[1]
        for row in table.rows_in_use():
            shared, held = table.shared[row], table.held[row]
            good_held = min(max(held - held % size, 0), width)
            good_shared = min(max(shared - shared % size, 0), good_held)
            if (shared, held) != (good_shared, good_held):
                table.shared[row], table.held[row] = good_shared, good_held
                found.append(Violation("row", f"row {row} said it shares {shared} of {held} slots"))
            own = table.array[row, good_shared:good_held]
            pages = own[::size] // size
            outside = (pages < 1) | (pages > self._pages.num_pages)
            pages[outside] = 0
            right = table.page_slots(pages)
            wrong = int((own != right).sum())
            if wrong or outside.any():
                own[:] = right
                found.append(Violation("row", f"row {row} had {max(wrong, 1)} impossible slots"))
        if len(set(table.free_list())) != table.num_free_rows or any(
            table.in_use[row] for row in table.free_list()
        ):
            table.rebuild_free_list()
            found.append(Violation("row", "the list of free rows was wrong"))
        return found

    def _check_shared(self) -> list[Violation]:
        """The shared part of a row is what the cache has under the row's handle."""
        found: list[Violation] = []
        table = self._table
        for row in table.rows_in_use():
            handle = self._handles[row]
            slots = None if handle is None else self._cache.slots_of(handle)
            if slots is None:
                continue
            known = min(len(slots), table.shared[row])
            mine = table.array[row, :known]
            wrong = int((mine != slots[:known]).sum())
            if wrong:
                mine[:] = slots[:known]
                found.append(Violation("row", f"row {row} had {wrong} slots unlike the cache's"))
        return found

    def _owners(self) -> tuple[Counts, Counts, Mask]:
        """Per page: owners among rows and loose pages, cached copies, and whether a row reads it as
        shared."""
        table = self._table
        size = self._pages.num_pages + 1
        owned = self._loose.astype(np.int64)
        read = np.zeros(size, dtype=np.bool_)
        for row in table.rows_in_use():
            owned += np.bincount(table.own_pages(row), minlength=size)
            shared = slot_pages(table.array[row, : table.shared[row]], table.page_size)
            read[np.clip(shared, 0, size - 1)] = True
        cached = np.bincount(
            slot_pages(self._cache.all_slots(), table.page_size), minlength=size
        ).astype(np.int64)
        owned[0] = cached[0] = 0
        read[0] = False
        return owned, cached, read

    def _check_owners(self) -> list[Violation]:
        """Each page has at most one owner, and what a row shares is cached."""
        found: list[Violation] = []
        table = self._table
        owned, cached, read = self._owners()
        clash: Mask = (owned + cached > 1) & (cached > 0)
        if clash.any():
            gone = self._cache.drop_pages(clash)
            found.append(
                Violation("page", f"{_some(clash)} were cached twice; {gone} tokens forgotten")
            )
            owned, cached, read = self._owners()
        disputed: Mask = (owned > 1) | (read & (cached == 0))
        new = disputed & ~self._disputed
        if new.any():
            found.append(Violation("page", f"{_some(new)} are used by rows without one owner"))
        disputed[0] = any(bool((table.own_pages(row) == 0).any()) for row in table.rows_in_use())
        self._disputed[:] = disputed
        self._any_disputed = bool(disputed.any())
        return found

    def _check_free_list(self) -> list[Violation]:
        """The free list is the pages that nobody has, each once."""
        owned, cached, read = self._owners()
        taken: Mask = (owned + cached > 0) | read
        taken[0] = True
        listed = self._pages.free_pages()
        inside = listed[(listed >= 0) & (listed <= self._pages.num_pages)]
        counts = np.bincount(inside, minlength=len(taken))
        found: list[Violation] = []
        lost: Mask = ~taken & (counts == 0)
        if lost.any():
            found.append(Violation("page", f"{_some(lost)} had leaked"))
        stolen: Mask = taken & (counts > 0)
        if stolen.any():
            found.append(Violation("page", f"{_some(stolen)} were free and in use"))
        if len(inside) != len(listed) or (counts > 1).any():
            found.append(Violation("page", "the free list had pages twice or that do not exist"))
        if not found and (self._pages.is_free != ~taken).any():
            found.append(Violation("page", "the free marks were unlike the free list"))
        if found:
            self._pages.rebuild(np.flatnonzero(~taken).astype(np.int32))
        return found


def _some(mask: Mask) -> str:
    pages = np.flatnonzero(mask)
    names = ", ".join(str(page) for page in pages[:8])
    return f"{len(pages)} pages ({names}{', …' if len(pages) > 8 else ''})"
