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
            found += self._replace_lost_pages()
        except Exception as error:
            logger.exception("the memory audit failed")
            found.append(Violation("audit", f"the audit failed: {error!r}", repaired=False))
        return found

    def _check_rows(self) -> list[Violation]:
        """Bounds of every row, and slots of its own pages. An impossible slot becomes one of page
        0, which `_replace_lost_pages` replaces once the free list can be trusted."""
        found: list[Violation] = []
        table = self._table
        size = table.page_size
        for row in table.rows_in_use():
            found += self._check_bounds(row)
            own = table.array[row, table.shared[row] : table.held[row]]
            pages = own[::size] // size
            pages[(pages < 1) | (pages > self._pages.num_pages)] = 0
            right = table.page_slots(pages)
            wrong = int(((own != right) | (right < size)).sum())
            if wrong:
                own[:] = right
                found.append(Violation("row", f"row {row} had {wrong} impossible slots"))
        unused = [row for row in range(table.max_rows) if not table.in_use[row]]
        if sorted(table.free_list()) != unused:
            table.rebuild_free_list()
            found.append(Violation("row", "the list of free rows was wrong"))
        return found

    def _check_bounds(self, row: int) -> list[Violation]:
        """What a row says it shares and holds is possible at all."""
        table = self._table
        size, width = table.page_size, table.array.shape[1]
        shared, held = table.shared[row], table.held[row]
        if 0 <= shared <= held <= width and shared % size == held % size == 0:
            return []
        handle = self._handles[row]
        known = shared if handle is None else handle.length
        table.shared[row] = min(max(known - known % size, 0), width)
        if 0 <= held <= width:
            table.held[row] = max(held - held % size, table.shared[row])
        else:
            table.held[row] = self._plausible_end(row)
        return [Violation("row", f"row {row} said it shares {shared} of {held} slots")]

    def _plausible_end(self, row: int) -> int:
        """End of the run of a row's slots, behind its shared ones, that nobody else can have."""
        table = self._table
        start = table.shared[row]
        table.held[row] = start
        owned, cached, read = self._owners()
        taken: Mask = (owned + cached > 0) | read | self._pages.is_free
        taken[0] = True
        pages = slot_pages(table.array[row, start:], table.page_size)
        end = start
        for page in pages.tolist():
            if not 0 < page < len(taken) or taken[page]:
                break
            taken[page] = True
            end += table.page_size
        return end

    def _replace_lost_pages(self) -> list[Violation]:
        """Give rows whose own slots were impossible fresh pages in their place. What the slots held
        is lost; that no other row is hurt is what can be saved."""
        found: list[Violation] = []
        table = self._table
        size = table.page_size
        for row in table.rows_in_use():
            start = table.shared[row]
            lost = np.flatnonzero(table.own_pages(row) == 0)
            fresh = self._pages.allocate(len(lost))
            if fresh is None:
                found.append(Violation("row", f"row {row} lacks {len(lost)} pages", repaired=False))
                continue
            for index, page in zip(lost.tolist(), fresh, strict=True):
                at = start + index * size
                table.write(row, at, table.page_slots(np.array([page], np.int32)))
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
            inside = np.clip(table.own_pages(row), 0, size - 1)
            owned += np.bincount(inside, minlength=size)
            shared = slot_pages(table.array[row, : table.shared[row]], table.page_size)
            read[np.clip(shared, 0, size - 1)] = True
        held = np.clip(slot_pages(self._cache.all_slots(), table.page_size), 0, size - 1)
        cached = np.bincount(held, minlength=size).astype(np.int64)
        owned[0] = cached[0] = 0
        read[0] = False
        return owned, cached, read

    def _check_owners(self) -> list[Violation]:
        """Each page has at most one owner, and what a row shares is cached."""
        found: list[Violation] = []
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
