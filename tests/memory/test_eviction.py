"""Order and cost of eviction, against a scan of the whole tree."""

from __future__ import annotations

import random

import numpy as np
import pytest

from branchline.runtime.errors import InvalidRequest
from branchline.runtime.memory.eviction import LeastRecentlyUsed, Rank, eviction_strategy
from branchline.runtime.memory.prefix_cache import CacheHandle
from branchline.runtime.memory.radix_cache import RadixCache
from branchline.runtime.memory.radix_tree import RadixNode


def brute_force_next(cache: RadixCache, strategy: str) -> RadixNode | None:
    leaves = [n for n in cache.tree.nodes() if not n.children and n.lock_count == 0]
    order = {
        "lru": lambda n: (n.last_use, n.serial),
        "lfu": lambda n: (n.hits, n.last_use, n.serial),
        "fifo": lambda n: (n.created, n.serial),
        "priority": lambda n: (n.priority, n.last_use, n.serial),
    }[strategy]
    return min(leaves, key=order, default=None)


class Inserter:
    """Inserts random keys with fresh slots."""

    def __init__(self, cache: RadixCache, rng: random.Random) -> None:
        self.cache, self.rng = cache, rng
        self.next_slot = cache.page_size

    def ids(self) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
        pages = [
            [self.rng.randrange(3)] * self.cache.page_size for _ in range(self.rng.randrange(1, 9))
        ]
        return np.array(pages, dtype=np.int32).reshape(-1)

    def insert(self) -> None:
        ids = self.ids()
        slots = np.arange(self.next_slot, self.next_slot + len(ids), dtype=np.int32)
        self.next_slot += len(ids)
        self.cache.insert(
            ids,
            slots,
            self.rng.choice(["", "b"]),
            start=0,
            holder=CacheHandle(),
            priority=self.rng.randrange(3),
        )


@pytest.mark.parametrize("page_size", [1, 4])
@pytest.mark.parametrize("strategy", ["lru", "lfu", "fifo", "priority"])
def test_eviction_order_is_that_of_a_full_scan(strategy: str, page_size: int) -> None:
    rng = random.Random(7)
    cache = RadixCache(page_size, eviction_strategy(strategy))
    inserter = Inserter(cache, rng)
    locked: list[CacheHandle] = []
    evictions = 0
    for _ in range(3000):
        action = rng.random()
        if action < 0.3:
            inserter.insert()
        elif action < 0.6:
            cache.match(inserter.ids(), rng.choice(["", "b"]))
        elif action < 0.65:
            handle = cache.match(inserter.ids(), "").handle
            cache.lock(handle)
            locked.append(handle)
        elif action < 0.7 and locked:
            assert cache.unlock(locked.pop(rng.randrange(len(locked))))
        else:
            leaf = brute_force_next(cache, strategy)
            expected = [] if leaf is None else leaf.slots[-page_size:].tolist()
            assert cache.evict(1).tolist() == expected
            evictions += leaf is not None
    assert evictions > 300
    assert cache.repair(inserter.next_slot) == []


@pytest.mark.parametrize("strategy", ["lru", "lfu", "fifo", "priority"])
def test_evicting_many_at_once_takes_the_same_as_one_by_one(strategy: str) -> None:
    gone: list[list[int]] = []
    for step in (1, 7, 40):
        cache = RadixCache(1, eviction_strategy(strategy))
        inserter = Inserter(cache, random.Random(3))
        for _ in range(60):
            inserter.insert()
            cache.match(inserter.ids(), "")
        gone.append([])
        while len(gone[-1]) < 280 // 7 * 7 and cache.evictable_tokens:
            gone[-1] += sorted(cache.evict(min(step, 280 - len(gone[-1]))).tolist())
    assert set(gone[0]) == set(gone[1]) == set(gone[2])


def test_evict_frees_exactly_what_is_asked_in_whole_pages() -> None:
    cache = RadixCache(4, eviction_strategy("lru"))
    slots = np.arange(4, 44, dtype=np.int32)
    cache.insert(
        np.arange(40, dtype=np.int32), slots, "", start=0, holder=CacheHandle(), priority=0
    )
    assert cache.evict(5).tolist() == list(range(36, 44))
    assert (cache.cached_tokens, cache.evictable_tokens) == (32, 32)
    assert cache.match_len(np.arange(40, dtype=np.int32), "") == 32
    assert len(cache.evict(1000)) == 32
    assert len(cache.evict(1)) == 0


class CountingStrategy(LeastRecentlyUsed):
    def __init__(self) -> None:
        self.calls = 0

    def rank(self, node: RadixNode) -> Rank:
        self.calls += 1
        return super().rank(node)


def test_eviction_never_scans_the_tree() -> None:
    strategy = CountingStrategy()
    cache = RadixCache(1, strategy)
    for number in range(10_000):
        ids = np.array([number, 1, 2], dtype=np.int32)
        slots = np.arange(3 * number + 1, 3 * number + 4, dtype=np.int32)
        cache.insert(ids, slots, "", start=0, holder=CacheHandle(), priority=0)
    for number in range(500):
        cache.match(np.array([number, 1, 2], dtype=np.int32), "")
    strategy.calls = 0
    evicted = cache.evict(300)
    assert evicted.tolist()[0] == 3 * 500 + 1
    assert len(evicted) == 300
    assert strategy.calls < 2 * (500 + 100) + 2
    assert len(cache.queue) == 9_900


def test_unknown_strategy_names_the_known_ones() -> None:
    with pytest.raises(InvalidRequest, match="lru, lfu, fifo, priority"):
        eviction_strategy("random")
