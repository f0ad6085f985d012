"""Which cached leaf goes first.

Invariant: every unlocked leaf of the tree has exactly one entry in the queue; nothing else needs
one. Entries may be out of date, since a strategy's key only ever grows: an old entry comes up too
early, never too late, and is then put back under its present key. So a use costs nothing, and
evicting n leaves costs O((n + uses since) log size). Knows nothing of slots, pages or rows.
"""

from __future__ import annotations

import heapq
from typing import Protocol

from branchline.runtime.errors import InvalidRequest
from branchline.runtime.memory.radix_tree import RadixNode

Rank = tuple[int, int]


class EvictionStrategy(Protocol):
    """Order of eviction: the lowest rank goes first. A node's rank must never decrease."""

    name: str

    def rank(self, node: RadixNode) -> Rank: ...


class LeastRecentlyUsed:
    """The leaf whose last match or insertion is longest ago."""

    name = "lru"

    def rank(self, node: RadixNode) -> Rank:
        return (node.last_use, 0)


class LeastFrequentlyUsed:
    """The leaf with the fewest matches; among equals the least recently used."""

    name = "lfu"

    def rank(self, node: RadixNode) -> Rank:
        return (node.hits, node.last_use)


class FirstInFirstOut:
    """The leaf that was inserted first, used or not."""

    name = "fifo"

    def rank(self, node: RadixNode) -> Rank:
        return (node.created, 0)


class LowestPriority:
    """The leaf of the least important requests; among equals the least recently used."""

    name = "priority"

    def rank(self, node: RadixNode) -> Rank:
        return (node.priority, node.last_use)


def eviction_strategy(name: str) -> EvictionStrategy:
    """The strategy of that name: lru, lfu, fifo or priority; `InvalidRequest` for any other."""
    strategies: tuple[EvictionStrategy, ...] = (
        LeastRecentlyUsed(),
        LeastFrequentlyUsed(),
        FirstInFirstOut(),
        LowestPriority(),
    )
    for strategy in strategies:
        if strategy.name == name:
            return strategy
    known = ", ".join(strategy.name for strategy in strategies)
    raise InvalidRequest(
        "unknown eviction strategy of the prefix cache", value=name, hint=f"Choose one of: {known}."
    )


class EvictionQueue:
    """Unlocked leaves by rank; at most one entry per node."""

    def __init__(self, strategy: EvictionStrategy) -> None:
        self.strategy = strategy
        self._heap: list[tuple[Rank, int, RadixNode]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, node: RadixNode) -> None:
        """Say that a node may have become an unlocked leaf."""
        if not node.queued and evictable(node):
            node.queued = True
            heapq.heappush(self._heap, (self.strategy.rank(node), node.serial, node))

    def peek(self) -> RadixNode | None:
        """The leaf to evict next; it stays in the queue. None when no leaf may go."""
        heap = self._heap
        while heap:
            rank, serial, node = heap[0]
            if not evictable(node):
                node.queued = False
                heapq.heappop(heap)
                continue
            now = self.strategy.rank(node)
            if now == rank:
                return node
            heapq.heapreplace(heap, (now, serial, node))
        return None

    def pop(self) -> None:
        """Drop the entry that `peek` returned."""
        _, _, node = heapq.heappop(self._heap)
        node.queued = False

    def clear(self) -> None:
        """Forget all entries."""
        for _, _, node in self._heap:
            node.queued = False
        self._heap.clear()


def evictable(node: RadixNode) -> bool:
    """True for a leaf of the tree that nothing locks."""
    return node.parent is not None and not node.children and node.lock_count == 0
