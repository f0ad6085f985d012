"""Random operations on the cache manager against a dictionary of cached prefixes and a pool whose
every slot says what it holds."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from branchline.runtime.memory.cache_manager import CacheManager
from branchline.runtime.memory.prefix_cache import CacheHandle
from tests.memory.memory_rows import FakePool, Row, array, release, start

NAMESPACES = ("", "tenant-a", "adapter:7")
Key = tuple[str, tuple[int, ...]]


class CacheMachine(RuleBasedStateMachine):
    page_size = 1

    @initialize(
        eviction=st.sampled_from(["lru", "lfu", "fifo", "priority"]),
        num_pages=st.integers(8, 24),
        prompt_pages=st.integers(2, 5),
    )
    def build(self, eviction: str, num_pages: int, prompt_pages: int) -> None:
        self.manager = CacheManager(num_pages, self.page_size, 6, 512, eviction=eviction)
        self.pool = FakePool(self.manager)
        self.rows: list[Row] = []
        self.known: dict[Key, tuple[int, ...]] = {}
        self.locked: list[tuple[CacheHandle, Key]] = []
        self.leased: dict[str, Key] = {}
        self.prompt_len = prompt_pages * self.page_size

    # A small alphabet in runs, so that prefixes often agree for many pages and then differ.
    def draw_ids(self, data: Any, limit: int) -> list[int]:
        runs = data.draw(
            st.lists(st.tuples(st.integers(0, 2), st.integers(1, 2 * self.page_size)), max_size=5)
        )
        ids = [token for token, count in runs for _ in range(count)]
        return ids[: max(1, limit)]

    def pages_of(self, ids: list[int], namespace: str) -> list[Key]:
        size = self.page_size
        return [(namespace, tuple(ids[:end])) for end in range(size, len(ids) + 1, size)]

    def longest(self, ids: list[int], namespace: str) -> int:
        length = 0
        for key in self.pages_of(ids, namespace):
            if key not in self.known:
                break
            length = len(key[1])
        return length

    def forget_evicted(self) -> None:
        """Eviction may take any unlocked prefix; learn which are left, and check that what is gone
        could go."""
        self.known = {
            key: slots
            for key, slots in self.known.items()
            if self.manager.match_len(array(list(key[1])), key[0]) == len(key[1])
        }

    def learn(self, row: Row) -> None:
        table = self.manager.slot_table.array[row.row]
        for key in self.pages_of(row.ids[: row.computed], row.namespace):
            end = len(key[1])
            slots = tuple(int(slot) for slot in table[end - self.page_size : end])
            assert self.known.setdefault(key, slots) == slots, "the row kept a duplicate"

    @rule(data=st.data(), namespace=st.sampled_from(NAMESPACES))
    def begin(self, data: Any, namespace: str) -> None:
        ids = self.draw_ids(data, self.prompt_len)
        expected = self.longest(ids, namespace)
        assert self.manager.match_len(array(ids), namespace) == expected
        before = self.manager.used_tokens
        row = start(self.manager, ids, namespace)
        self.forget_evicted()
        if row is None:
            assert self.manager.used_tokens == before
            return
        assert row.handle.length == expected
        self.pool.compute(row, len(ids))
        self.rows.append(row)

    @rule(data=st.data(), namespace=st.sampled_from(NAMESPACES))
    def match(self, data: Any, namespace: str) -> None:
        ids = self.draw_ids(data, 4 * self.page_size)
        match = self.manager.match(array(ids), namespace)
        assert match.cached_len == self.longest(ids, namespace) == len(match.slots)
        self.pool.check(match.slots, ids, namespace)
        if match.cached_len and data.draw(st.booleans()):
            self.manager.lock(match.handle)
            self.locked.append((match.handle, (namespace, tuple(ids[: match.cached_len]))))

    @precondition(lambda self: self.locked)
    @rule(data=st.data())
    def unlock(self, data: Any) -> None:
        handle, _ = self.locked.pop(data.draw(st.integers(0, len(self.locked) - 1)))
        self.manager.unlock(handle)

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def grow(self, data: Any) -> None:
        row = data.draw(st.sampled_from(self.rows))
        added = self.draw_ids(data, 2 * self.page_size)
        held = self.manager.slot_table.held[row.row]
        missing = -(-(len(row.ids) + len(added) - held) // self.page_size) * self.page_size
        room = self.manager.free_tokens + self.manager.evictable_tokens
        evictions = max(0, missing - self.manager.free_tokens)
        cached = self.manager.cached_tokens
        given = self.manager.extend(row.row, len(row.ids), len(row.ids) + len(added))
        assert given == (missing <= room)
        assert self.manager.cached_tokens == cached - (evictions if given else 0)
        self.forget_evicted()
        if given:
            row.ids += added
            self.pool.compute(row, len(row.ids))

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def try_candidates(self, data: Any) -> None:
        row = data.draw(st.sampled_from(self.rows))
        base = len(row.ids)
        count = data.draw(st.integers(1, 6))
        if not self.manager.extend(row.row, base, base + count):
            return
        self.forget_evicted()
        kept = sorted(data.draw(st.sets(st.integers(0, count - 1))))
        added = [data.draw(st.integers(0, 2)) for _ in kept]
        slots = self.manager.slot_table.array[row.row, base : base + count].copy()
        for index, offset in enumerate(kept):
            prefix = tuple(row.ids + added[: index + 1])
            self.pool.content[slots[offset]] = (row.namespace, prefix)
        src, dst = self.manager.keep_path(row.row, base, [base + offset for offset in kept])
        assert len(src) == 0 or self.page_size > 1
        self.pool.copy(src, dst)
        row.ids += added
        row.computed = len(row.ids)
        assert self.manager.slot_table.held[row.row] < len(row.ids) + self.page_size

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def truncate(self, data: Any) -> None:
        row = data.draw(st.sampled_from(self.rows))
        shared = self.manager.slot_table.shared[row.row]
        length = data.draw(st.integers(max(1, shared), len(row.ids))) if row.ids else 0
        self.manager.truncate(row.row, length)
        row.ids = row.ids[:length]
        row.computed = min(row.computed, length)

    @precondition(lambda self: self.rows)
    @rule(data=st.data(), priority=st.integers(0, 2))
    def commit(self, data: Any, priority: int) -> None:
        row = data.draw(st.sampled_from(self.rows))
        row.handle = self.manager.commit(
            row.row, array(row.ids), row.computed, row.handle, row.namespace, priority=priority
        )
        self.learn(row)

    @precondition(lambda self: self.rows)
    @rule(data=st.data(), insert=st.booleans())
    def finish(self, data: Any, insert: bool) -> None:
        row = self.rows.pop(data.draw(st.integers(0, len(self.rows) - 1)))
        whole = row.computed - row.computed % self.page_size
        release(self.manager, row, insert=insert)
        if not insert:
            return
        found = self.manager.match(array(row.ids[:whole]), row.namespace)
        assert found.cached_len == whole
        for key in self.pages_of(row.ids[:whole], row.namespace):
            end = len(key[1])
            slots = tuple(int(slot) for slot in found.slots[end - self.page_size : end])
            assert self.known.setdefault(key, slots) == slots

    @rule(data=st.data(), namespace=st.sampled_from(NAMESPACES), lane=st.sampled_from("xyz"))
    def lease(self, data: Any, namespace: str, lane: str) -> None:
        ids = self.draw_ids(data, 4 * self.page_size)
        length = self.manager.lease(lane, array(ids), namespace)
        assert length == self.longest(ids, namespace) == self.manager.leased_len(lane)
        self.leased.pop(lane, None)
        if length:
            self.leased[lane] = (namespace, tuple(ids[:length]))

    @rule(lane=st.sampled_from("xyz"))
    def release_lease(self, lane: str) -> None:
        assert self.manager.release_lease(lane) == (self.leased.pop(lane, None) is not None)

    @rule(pages=st.integers(1, 8))
    def break_leases(self, pages: int) -> None:
        wanted = pages * self.page_size
        broken = self.manager.break_leases(wanted)
        for lane in list(self.leased)[:broken]:
            del self.leased[lane]
        assert list(self.leased) == [lane for lane in self.leased if self.manager.leased_len(lane)]
        room = self.manager.free_tokens + self.manager.evictable_tokens
        assert room >= wanted or not self.leased

    @rule()
    def flush(self) -> None:
        evictable, free = self.manager.evictable_tokens, self.manager.free_tokens
        assert self.manager.flush() == evictable
        assert self.manager.free_tokens == free + evictable
        assert self.manager.evictable_tokens == 0
        self.forget_evicted()

    @invariant()
    def law_1_holds(self) -> None:
        manager = self.manager
        assert manager.audit() == []
        assert manager.stats().violations == 0
        total = manager.free_tokens + manager.cached_tokens + manager.running_tokens
        assert total == manager.capacity_tokens
        assert manager.cached_tokens == len(self.known) * self.page_size
        owned = sum(
            manager.slot_table.held[row.row] - manager.slot_table.shared[row.row]
            for row in self.rows
        )
        assert manager.running_tokens == owned

    @invariant()
    def locked_prefixes_stay(self) -> None:
        held = [key for _, key in self.locked] + list(self.leased.values())
        for namespace, ids in held:
            assert self.manager.match_len(array(list(ids)), namespace) == len(ids)
        protected = {key for ns, ids in held for key in self.pages_of(list(ids), ns)}
        for row in self.rows:
            shared = row.ids[: row.handle.length]
            protected |= set(self.pages_of(shared, row.namespace))
        assert protected <= set(self.known)
        locked = self.manager.cached_tokens - self.manager.evictable_tokens
        assert locked >= len(protected) * self.page_size

    @invariant()
    def rows_read_what_they_computed(self) -> None:
        for row in self.rows:
            self.pool.check_row(row)

    def teardown(self) -> None:
        if not hasattr(self, "manager"):
            return
        for row in self.rows:
            release(self.manager, row)
        for handle, _ in self.locked:
            self.manager.unlock(handle)
        for lane in list(self.leased):
            self.manager.release_lease(lane)
        assert self.manager.evictable_tokens == self.manager.cached_tokens
        self.manager.flush()
        assert self.manager.free_tokens == self.manager.capacity_tokens
        assert self.manager.audit() == []


@pytest.mark.parametrize("page_size", [1, 4, 16])
def test_random_operations_keep_every_law(page_size: int) -> None:
    class Machine(CacheMachine):
        pass

    Machine.page_size = page_size
    run_state_machine_as_test(
        Machine,
        settings=settings(max_examples=80, stateful_step_count=50, deadline=None, derandomize=True),
    )
