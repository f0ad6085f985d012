"""Free pages, as a stack.

Invariant: each of pages 1 … num_pages is at most once on the stack, and `is_free[p]` says whether p
is. Knows nothing of who holds the other pages, nor of slots.
"""

from __future__ import annotations

import numpy as np

from branchline.runtime.memory.types import Pages


class PageAllocator:
    """Hands out pages in O(n). A fresh allocator gives them in ascending, contiguous runs.

    Args:
        num_pages: pages that can be handed out; page 0 comes on top of them.
    """

    def __init__(self, num_pages: int) -> None:
        if num_pages < 1:
            raise ValueError(f"num_pages must be at least 1, got {num_pages}")
        self.num_pages = num_pages
        self.is_free = np.ones(num_pages + 1, dtype=np.bool_)
        self.is_free[0] = False
        self._stack = np.arange(num_pages, 0, -1, dtype=np.int32)
        self._top = num_pages

    @property
    def num_free(self) -> int:
        """Pages that can be handed out now."""
        return self._top

    def allocate(self, count: int) -> Pages | None:
        """Take `count` pages: int32 [count], the caller's own array. None, and nothing changed,
        when there are fewer."""
        if count > self._top:
            return None
        top = self._top - count
        pages: Pages = self._stack[top : self._top][::-1].copy()
        self._top = top
        self.is_free[pages] = False
        return pages

    def free(self, pages: Pages) -> int:
        """Give pages back; returns how many were refused.

        A page that is free already, is page 0 or does not exist is refused: putting it on the
        stack would hand it out twice.
        """
        count = len(pages)
        if count == 0:
            return 0
        if int(pages.min()) < 1 or int(pages.max()) > self.num_pages or self.is_free[pages].any():
            pages = pages[(pages >= 1) & (pages <= self.num_pages)]
            pages = np.unique(pages[~self.is_free[pages]])
        kept = len(pages)
        if self._top + kept > self.num_pages:
            pages = np.unique(pages)
            kept = len(pages)
        self._stack[self._top : self._top + kept] = pages[::-1]
        self._top += kept
        self.is_free[pages] = True
        return count - kept

    def free_pages(self) -> Pages:
        """The stack as it is, for audits: int32 [num_free], a copy."""
        return self._stack[: self._top].copy()

    def rebuild(self, pages: Pages) -> None:
        """Replace the stack by these distinct pages; the repair of a damaged one."""
        ordered = np.sort(pages)[::-1]
        self._top = len(ordered)
        self._stack = np.zeros(self.num_pages, dtype=np.int32)
        self._stack[: self._top] = ordered
        self.is_free[:] = False
        self.is_free[ordered] = True
