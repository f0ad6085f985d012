"""What the cache manager needs of a prefix cache, and the cache that keeps nothing.

Invariant of every implementation: slots given by `insert` belong to the cache until `evict` or
`flush` returns them; those of a locked path are never returned. Knows nothing of rows or requests.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from branchline.runtime.core.prefixes import CachedPrefix
from branchline.runtime.memory.radix_tree import RadixNode
from branchline.runtime.memory.types import Slots, TokenIds, Violation, empty_slots


class CacheHandle:
    """A pointer to a cached prefix.

    Valid until the cache changes, unless locked; each `lock` is undone by one `unlock` of the same
    handle. A handle of length 0 points nowhere, and locking it does nothing.

    Attributes:
        node: end of the path; None when nothing is cached.
        length: tokens of the prefix, whole pages.
    """

    __slots__ = ("length", "node")

    def __init__(self, node: RadixNode | None = None, length: int = 0) -> None:
        self.node = node
        self.length = length

    def __repr__(self) -> str:
        return f"CacheHandle(length={self.length})"


class MatchResult(NamedTuple):
    """Longest cached prefix of a key.

    Attributes:
        cached_len: its tokens, whole pages; may be the whole key.
        handle: unlocked pointer to it.
    """

    cached_len: int
    handle: CacheHandle


class InsertResult(NamedTuple):
    """What an insertion did.

    Attributes:
        handle: unlocked pointer to the whole key; length 0 when the cache did not take it, in
            which case the caller keeps all its slots.
        matched: tokens of the key that were cached before, whole pages.
        slots: int32 [max(0, matched - start)], the cache's slots of positions start … matched - 1.
    """

    handle: CacheHandle
    matched: int
    slots: Slots


class PrefixCache(Protocol):
    """Cached prefixes by namespace. Sizes are in tokens.

    Attributes:
        cached_tokens: tokens held.
        evictable_tokens: of these, the ones that no lock protects.
        losses: counts up whenever something may have left it.
    """

    cached_tokens: int
    evictable_tokens: int
    losses: int

    def match(self, ids: TokenIds, namespace: str) -> MatchResult:
        """Longest cached prefix; may split a node; counts as a use and a hit."""

    def match_len(self, ids: TokenIds, namespace: str) -> int:
        """Length of the longest cached prefix; changes nothing."""

    def insert(
        self,
        ids: TokenIds,
        slots: Slots,
        namespace: str,
        *,
        start: int,
        holder: CacheHandle,
        priority: int,
    ) -> InsertResult:
        """Take ids (whole pages) with their slots, of which positions before `start` are cached
        already and locked by `holder`. The cache copies what it keeps."""

    def lock(self, handle: CacheHandle) -> None:
        """Protect a path. `ValueError` when the handle is out of date."""

    def unlock(self, handle: CacheHandle) -> bool:
        """Undo one lock; False, and nothing done, when this handle is not locked."""

    def evict(self, num_tokens: int) -> Slots:
        """Give up at least that many tokens if there are as many unlocked ones, else all unlocked
        ones; returns their slots, whole pages."""

    def flush(self) -> Slots:
        """Give up every unlocked token; returns their slots."""

    def most_used(self) -> list[CachedPrefix]:
        """The nodes used most, a bounded number of them, each behind its parent."""

    def slots_of(self, handle: CacheHandle) -> Slots | None:
        """Slots of a prefix: int32 [handle.length]; None when the handle is out of date."""

    def all_slots(self) -> Slots:
        """Slots of every cached token, in no order."""

    def drop_pages(self, bad: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> int:
        """Forget, locks or not, every prefix that uses a page marked in bool [num_pages + 1];
        returns the tokens forgotten. Their slots are not handed out by anyone."""

    def repair(self, num_pages: int) -> list[Violation]:
        """Check and mend the cache's own state: structure, locks, counts, eviction queue."""


class NoPrefixCache:
    """Keeps nothing: every row owns all its slots until it ends."""

    def __init__(self) -> None:
        self.cached_tokens = 0
        self.evictable_tokens = 0
        self.losses = 0

    def match(self, ids: TokenIds, namespace: str) -> MatchResult:
        return MatchResult(0, CacheHandle())

    def match_len(self, ids: TokenIds, namespace: str) -> int:
        return 0

    def insert(
        self,
        ids: TokenIds,
        slots: Slots,
        namespace: str,
        *,
        start: int,
        holder: CacheHandle,
        priority: int,
    ) -> InsertResult:
        return InsertResult(CacheHandle(), 0, empty_slots())

    def lock(self, handle: CacheHandle) -> None:
        if handle.length:
            raise ValueError(f"{handle!r} is not of this cache")

    def unlock(self, handle: CacheHandle) -> bool:
        return handle.length == 0

    def evict(self, num_tokens: int) -> Slots:
        return empty_slots()

    def most_used(self) -> list[CachedPrefix]:
        return []

    def flush(self) -> Slots:
        return empty_slots()

    def slots_of(self, handle: CacheHandle) -> Slots | None:
        return empty_slots() if handle.length == 0 else None

    def all_slots(self) -> Slots:
        return empty_slots()

    def drop_pages(self, bad: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> int:
        return 0

    def repair(self, num_pages: int) -> list[Violation]:
        return []
