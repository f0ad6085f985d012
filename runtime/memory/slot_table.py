"""The map (row, position) → slot, and what each row holds.

Invariant of a row in use: positions [0, shared) point at slots of the prefix cache, positions
[shared, held) at slots of pages that only this row has; shared and held are multiples of the page
size. Knows nothing of requests, of tokens, and of where free pages come from.
"""

from __future__ import annotations

import numpy as np

from branchline.runtime.core.batch import SlotWrites
from branchline.runtime.memory.types import Pages, Slots


class SlotTable:
    """Rows of slots on the host.

    Args:
        max_rows: sequences that can hold memory at once.
        max_context: longest sequence, in tokens; rounded up to whole pages.
        page_size: tokens of a page.

    Attributes:
        array: int32 [max_rows, max_context rounded up], C-contiguous, never reallocated, so that
            `torch.from_numpy` can share it. Entries past what a row holds are stale.
        shared: per row, leading positions whose slots belong to the prefix cache.
        held: per row, positions that have a slot.
    """

    def __init__(self, max_rows: int, max_context: int, page_size: int) -> None:
        if max_rows < 1 or max_context < 1 or page_size < 1:
            raise ValueError(
                "max_rows, max_context and page_size must be at least 1, got "
                f"{max_rows}, {max_context}, {page_size}"
            )
        width = -(-max_context // page_size) * page_size
        self.max_rows = max_rows
        self.max_context = max_context
        self.page_size = page_size
        self.array = np.zeros((max_rows, width), dtype=np.int32)
        self.shared = [0] * max_rows
        self.held = [0] * max_rows
        self.in_use = [False] * max_rows
        self._free = list(range(max_rows - 1, -1, -1))
        self._changed: list[tuple[int, int, int]] | None = None
        self._offsets = np.arange(page_size, dtype=np.int32)

    @property
    def num_free_rows(self) -> int:
        """Rows that can be handed out now."""
        return len(self._free)

    def rows_in_use(self) -> list[int]:
        """Rows that are handed out, ascending."""
        return [row for row, used in enumerate(self.in_use) if used]

    def allocate(self) -> int | None:
        """An empty row, the lowest numbers first on a fresh table; None when all are in use."""
        if not self._free:
            return None
        row = self._free.pop()
        self.in_use[row] = True
        self.shared[row] = self.held[row] = 0
        return row

    def free(self, row: int) -> None:
        """Give a row back; a row that is not in use is refused with `ValueError`."""
        self.check(row)
        self.in_use[row] = False
        self.shared[row] = self.held[row] = 0
        self._free.append(row)

    def free_list(self) -> list[int]:
        """Rows that are not handed out, for audits; a copy."""
        return list(self._free)

    def rebuild_free_list(self) -> None:
        """Make the free list what `in_use` says; the repair of a damaged one."""
        self._free = [row for row in range(self.max_rows - 1, -1, -1) if not self.in_use[row]]

    def check(self, row: int) -> None:
        """Raise `ValueError` unless the row is in use."""
        if not 0 <= row < self.max_rows or not self.in_use[row]:
            raise ValueError(f"row {row} is not in use")

    def write(self, row: int, start: int, slots: Slots) -> None:
        """Point positions start … start + len(slots) - 1 of a row at these slots."""
        end = start + len(slots)
        self.array[row, start:end] = slots
        if self._changed is not None and len(slots):
            self._changed.append((row, start, end))

    def record_changes(self) -> None:
        """From now on keep what is written for `take_changes`; once, on a fresh table."""
        self._changed = []

    def take_changes(self) -> SlotWrites | None:
        """What was written since the last call, for a copy of the table elsewhere; None = nothing,
        or nothing is recorded. A place written twice comes twice, with its present value."""
        changed = self._changed
        if not changed:
            return None
        width = self.array.shape[1]
        index = np.concatenate(
            [np.arange(row * width + start, row * width + end) for row, start, end in changed]
        )
        changed.clear()
        return SlotWrites(index, self.array.reshape(-1)[index])

    def share(self, row: int, slots: Slots) -> None:
        """Let an empty row begin with cached slots: int32, whole pages."""
        self.write(row, 0, slots)
        self.shared[row] = self.held[row] = len(slots)

    def append_pages(self, row: int, pages: Pages) -> None:
        """Give the row more pages behind those it has."""
        slots = self.page_slots(pages)
        start = self.held[row]
        self.write(row, start, slots)
        self.held[row] = start + len(slots)

    def page_slots(self, pages: Pages) -> Slots:
        """All slots of these pages in order: int32 [len(pages) * page_size]."""
        if self.page_size == 1:
            return pages
        slots: Slots = (pages[:, None] * np.int32(self.page_size) + self._offsets).reshape(-1)
        return slots

    def own_pages(self, row: int, start: int | None = None) -> Pages:
        """Pages of positions [start, held) of a row, int32, a copy. start is on a page boundary
        and defaults to the first position that is not shared."""
        begin = self.shared[row] if start is None else start
        return slot_pages(self.array[row, begin : self.held[row]], self.page_size)


def slot_pages(slots: Slots, page_size: int) -> Pages:
    """The pages that whole-page runs of slots lie in: int32 [len(slots) / page_size], a copy."""
    if page_size == 1:
        return slots.copy()
    pages: Pages = slots[::page_size] // np.int32(page_size)
    return pages
