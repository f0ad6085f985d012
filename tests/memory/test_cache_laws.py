"""Random operations on the cache manager against a dictionary of cached prefixes and a pool whose
every slot says what it holds."""

from __future__ import annotations

from collections import Counter
from typing import Any, ClassVar

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


CHECKED = frozenset(
    {
        *("begin", "begin without room", "match", "unlock", "grow", "grow without room"),
        *("try_candidates", "truncate", "commit", "finish", "finish without insertion"),
        *("lease", "lease of nothing", "release_lease", "break_leases", "flush"),
        *("law 1", "locks", "rows", "end"),
    }
)
"""What a run must have checked, operations by their outcome."""


class CacheMachine(RuleBasedStateMachine):
    """Every operation asserts what it returns; the invariants and `teardown` assert the laws.

    Attributes:
        checked: how often each was asserted, of all runs of one class.
    """

    page_size = 1
    checked: ClassVar[Counter[str]]

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

    # Few kinds of pages, so that ids often agree for a while and then differ, also inside a page.
    def draw_ids(self, data: Any) -> list[int]:
        size = self.page_size
        kinds = ([0] * size, [1] * size, [0] * (size // 2) + [2] * (size - size // 2))
        pages = data.draw(st.lists(st.sampled_from(kinds), max_size=3))
        ids = [token for page in pages for token in page]
        return ids + [1] * data.draw(st.integers(0, size - 1))

    def draw_prompt(self, data: Any, limit: int) -> tuple[str, list[int]]:
        """A namespace, and ids that often begin with what is cached or computed there."""
        rows = {(row.namespace, tuple(row.ids)) for row in self.rows}
        begun = sorted(rows | self.known.keys())
        fresh: list[Key] = [(namespace, ()) for namespace in NAMESPACES]
        resumes = begun and data.draw(st.integers(0, 3))
        namespace, trunk = data.draw(st.sampled_from(begun if resumes else fresh))
        return namespace, [*trunk, *self.draw_ids(data)][: max(1, limit)]

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

    @rule(data=st.data())
    def begin(self, data: Any) -> None:
        namespace, ids = self.draw_prompt(data, self.prompt_len)
        expected = self.longest(ids, namespace)
        assert self.manager.match_len(array(ids), namespace) == expected
        before = self.manager.used_tokens
        row = start(self.manager, ids, namespace)
        self.forget_evicted()
        if row is None:
            assert self.manager.used_tokens == before
            self.checked["begin without room"] += 1
            return
        assert row.handle.length == expected
        self.pool.compute(row, len(ids))
        self.rows.append(row)
        self.checked["begin"] += 1

    @rule(data=st.data())
    def match(self, data: Any) -> None:
        namespace, ids = self.draw_prompt(data, 4 * self.page_size)
        match = self.manager.match(array(ids), namespace)
        slots = self.manager.slots_of(match.handle)
        assert slots is not None
        assert match.cached_len == self.longest(ids, namespace) == len(slots)
        self.pool.check(slots, ids, namespace)
        self.checked["match"] += bool(match.cached_len)
        if match.cached_len and data.draw(st.booleans()):
            self.manager.lock(match.handle)
            self.locked.append((match.handle, (namespace, tuple(ids[: match.cached_len]))))

    @precondition(lambda self: self.locked)
    @rule(data=st.data())
    def unlock(self, data: Any) -> None:
        handle, _ = self.locked.pop(data.draw(st.integers(0, len(self.locked) - 1)))
        self.manager.unlock(handle)
        self.checked["unlock"] += 1

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def grow(self, data: Any) -> None:
        row = data.draw(st.sampled_from(self.rows))
        added = self.draw_ids(data)
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
        self.checked["grow" if given else "grow without room"] += 1

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
        self.checked["try_candidates"] += 1

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def truncate(self, data: Any) -> None:
        row = data.draw(st.sampled_from(self.rows))
        shared = self.manager.slot_table.shared[row.row]
        length = data.draw(st.integers(max(1, shared), len(row.ids))) if row.ids else 0
        self.manager.truncate(row.row, length)
        row.ids = row.ids[:length]
        row.computed = min(row.computed, length)
        self.checked["truncate"] += 1

    @precondition(lambda self: self.rows)
    @rule(data=st.data(), priority=st.integers(0, 2))
    def commit(self, data: Any, priority: int) -> None:
        row = data.draw(st.sampled_from(self.rows))
        row.handle = self.manager.commit(
            row.row, array(row.ids), row.computed, row.handle, row.namespace, priority=priority
        )
        self.learn(row)
        self.checked["commit"] += 1

    @precondition(lambda self: self.rows)
    @rule(data=st.data(), insert=st.booleans())
    def finish(self, data: Any, insert: bool) -> None:
        row = self.rows.pop(data.draw(st.integers(0, len(self.rows) - 1)))
        whole = row.computed - row.computed % self.page_size
        release(self.manager, row, insert=insert)
        if not insert:
            self.checked["finish without insertion"] += 1
            return
        found = self.manager.match(array(row.ids[:whole]), row.namespace)
        assert found.cached_len == whole
        held = self.manager.slots_of(found.handle)
        assert held is not None
        for key in self.pages_of(row.ids[:whole], row.namespace):
            end = len(key[1])
            slots = tuple(int(slot) for slot in held[end - self.page_size : end])
            assert self.known.setdefault(key, slots) == slots
        self.checked["finish"] += 1

    @rule(data=st.data(), lane=st.sampled_from("xyz"))
    def lease(self, data: Any, lane: str) -> None:
        namespace, ids = self.draw_prompt(data, 4 * self.page_size)
        length = self.manager.lease(lane, array(ids), namespace)
        assert length == self.longest(ids, namespace) == self.manager.leased_len(lane)
        self.leased.pop(lane, None)
        if length:
            self.leased[lane] = (namespace, tuple(ids[:length]))
        self.checked["lease" if length else "lease of nothing"] += 1

    @precondition(lambda self: self.leased)
    @rule(data=st.data())
    def release_lease(self, data: Any) -> None:
        lane = data.draw(st.sampled_from([*sorted(self.leased), "nobody"]))
        held = self.leased.pop(lane, None) is not None
        assert self.manager.release_lease(lane) == held
        self.checked["release_lease"] += held

    @precondition(lambda self: self.leased)
    @rule(pages=st.integers(1, 24))
    def break_leases(self, pages: int) -> None:
        wanted = pages * self.page_size
        broken = self.manager.break_leases(wanted)
        for lane in list(self.leased)[:broken]:
            del self.leased[lane]
        assert list(self.leased) == [lane for lane in self.leased if self.manager.leased_len(lane)]
        room = self.manager.free_tokens + self.manager.evictable_tokens
        assert room >= wanted or not self.leased
        self.checked["break_leases"] += bool(broken)

    @rule()
    def flush(self) -> None:
        evictable, free = self.manager.evictable_tokens, self.manager.free_tokens
        assert self.manager.flush() == evictable
        assert self.manager.free_tokens == free + evictable
        assert self.manager.evictable_tokens == 0
        self.forget_evicted()
        self.checked["flush"] += bool(evictable)

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
        self.checked["law 1"] += bool(owned and self.known)

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
        self.checked["locks"] += bool(protected)

    @invariant()
    def rows_read_what_they_computed(self) -> None:
        for row in self.rows:
            self.pool.check_row(row)
        self.checked["rows"] += bool(self.rows)

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
        self.checked["end"] += 1


@pytest.mark.parametrize("page_size", [1, 4, 16])
def test_random_operations_keep_every_law(page_size: int) -> None:
    class Machine(CacheMachine):
        checked: ClassVar[Counter[str]] = Counter()

    Machine.page_size = page_size
    many = settings(max_examples=120, stateful_step_count=80, deadline=None, derandomize=True)
    run_state_machine_as_test(Machine, settings=many)
    assert {name for name, count in Machine.checked.items() if count} == CHECKED
    assert min(Machine.checked[law] for law in ("law 1", "locks", "rows")) > 500
