"""The cache manager's promises, one by one."""

from __future__ import annotations

import random
import subprocess
import sys

import numpy as np
import pytest

from branchline.runtime.memory.cache_manager import CacheManager
from branchline.runtime.memory.prefix_cache import CacheHandle
from branchline.runtime.memory.radix_cache import RadixCache
from tests.memory.memory_rows import (
    FakePool,
    array,
    cache,
    commit,
    release,
    start,
    started,
    tokens,
)


def manager(num_pages: int = 64, page_size: int = 1, **options: object) -> CacheManager:
    return CacheManager(num_pages, page_size, 8, 256, **options)  # type: ignore[arg-type]


def test_a_finished_prompt_is_found_again_with_its_slots() -> None:
    cm = manager()
    row = started(cm, [5, 6, 7])
    slots = cm.slot_table.array[row.row, :3].tolist()
    release(cm, row)
    match = cm.match(array([5, 6, 7, 8]))
    found = cm.slots_of(match.handle)
    assert found is not None
    assert (match.cached_len, found.tolist()) == (3, slots)
    assert 0 not in slots
    assert (cm.used_tokens, cm.cached_tokens, cm.free_tokens) == (0, 3, 61)


def test_namespaces_never_share() -> None:
    cm = manager()
    cache(cm, [1, 2, 3], "tenant-a")
    assert cm.match(array([1, 2, 3])).cached_len == 0
    assert cm.match_len(array([1, 2, 3]), "tenant-b") == 0
    assert cm.match_len(array([1, 2, 3]), "tenant-a") == 3


def test_commit_shares_a_running_row_at_once() -> None:
    cm = manager()
    first = started(cm, list(range(10)))
    commit(cm, first)
    second = started(cm, [*range(10), 77])
    assert second.handle.length == 10
    shared = cm.slot_table.array[:, :10]
    assert shared[first.row].tolist() == shared[second.row].tolist()
    assert cm.running_tokens == 1


def test_commit_frees_duplicates_and_rewrites_the_row() -> None:
    cm = manager(page_size=4)
    first, second = started(cm, list(range(10))), started(cm, [*range(8), 70, 71])
    assert cm.free_tokens == (64 - 6) * 4
    commit(cm, first)
    commit(cm, second)
    table = cm.slot_table.array
    assert table[first.row, :8].tolist() == table[second.row, :8].tolist()
    assert table[first.row, 8:12].tolist() != table[second.row, 8:12].tolist()
    assert cm.free_tokens == (64 - 4) * 4
    assert cm.stats().duplicates == 8
    release(cm, first)
    assert cm.match_len(tokens(8)) == 8
    release(cm, second)
    assert cm.used_tokens == 0 and cm.audit() == []


def test_commit_moves_the_lock_so_that_the_new_part_stays() -> None:
    cm = manager(num_pages=12)
    row = started(cm, list(range(10)))
    commit(cm, row)
    assert cm.evictable_tokens == 0
    assert start(cm, [90, 91, 92]) is None
    release(cm, row)
    assert cm.evictable_tokens == 10
    assert start(cm, [90, 91, 92]) is not None
    assert cm.match_len(tokens(10)) == 9


def test_a_prompt_committed_in_chunks_is_one_node() -> None:
    cm = manager(num_pages=200)
    row = started(cm, list(range(120)))
    for computed in range(10, 121, 10):
        row.computed = computed
        commit(cm, row)
    assert isinstance(cm._cache, RadixCache)
    assert len(list(cm._cache.tree.nodes())) == 1
    release(cm, row)
    assert cm.match_len(tokens(120)) == 120


def test_a_row_never_locks_what_another_row_added() -> None:
    cm = manager()
    first, second = started(cm, [1, 2, 3]), started(cm, [1, 2, 3])
    commit(cm, first)
    commit(cm, second)
    assert cm.extend(first.row, 3, 6)
    first.ids += [4, 5, 6]
    first.computed = 6
    release(cm, first)
    assert (cm.cached_tokens, cm.evictable_tokens) == (6, 3)


def test_what_is_added_to_a_matched_prefix_does_not_inherit_its_matches() -> None:
    cm = manager(num_pages=9, eviction="lfu")
    cache(cm, [1, 1, 1])
    for _ in range(3):
        cm.match(array([1, 1, 1]))
    cache(cm, [1, 1, 1, 5, 5])
    cache(cm, [2, 2])
    cm.match(array([2, 2]))
    started(cm, [3, 3, 3, 3])
    assert cm.match_len(array([1, 1, 1, 5, 5])) == 3
    assert cm.match_len(array([2, 2])) == 2


def test_partial_pages_stay_with_their_row() -> None:
    cm = manager(page_size=16)
    row = started(cm, list(range(20)))
    commit(cm, row)
    assert (cm.cached_tokens, cm.running_tokens) == (16, 16)
    assert cm.extend(row.row, 20, 32)
    assert cm.running_tokens == 16, "the tail of the second page is filled first"
    release(cm, row)
    assert (cm.cached_tokens, cm.free_tokens) == (16, 63 * 16)


def test_extend_is_all_or_nothing() -> None:
    cm = manager(num_pages=10)
    cache(cm, [1, 2, 3, 4])
    row = started(cm, [9, 9])
    before = cm.slot_table.array.copy()
    assert not cm.extend(row.row, 2, 11)
    assert (cm.free_tokens, cm.cached_tokens, cm.evictable_tokens) == (4, 4, 4)
    assert cm.match_len(array([1, 2, 3, 4])) == 4
    assert (cm.slot_table.array == before).all()
    assert cm.extend(row.row, 2, 6)
    assert cm.cached_tokens == 4, "nothing is evicted while pages are free"
    assert cm.extend(row.row, 6, 8)
    assert cm.cached_tokens == 2, "and then no more than is missing"
    assert cm.stats().evicted == 2


def test_extend_refuses_what_no_row_can_hold() -> None:
    cm = manager()
    row = cm.allocate_row()
    assert row is not None
    with pytest.raises(ValueError, match="257 tokens do not fit in a row of 256"):
        cm.extend(row, 0, 257)
    assert cm.extend(row, 0, 4)
    with pytest.raises(ValueError, match="cannot grow from 6"):
        cm.extend(row, 6, 8)
    with pytest.raises(ValueError, match="row 3 is not in use"):
        cm.extend(3, 0, 1)


def test_extend_again_keeps_the_slots_that_are_there() -> None:
    cm = manager()
    row = started(cm, [1, 2, 3])
    assert cm.extend(row.row, 3, 9)
    slots = cm.slot_table.array[row.row, :9].tolist()
    assert cm.extend(row.row, 4, 10)
    assert cm.slot_table.array[row.row, :9].tolist() == slots
    assert cm.running_tokens == 10


def test_rows_run_out_and_come_back() -> None:
    cm = manager()
    rows = [cm.allocate_row() for _ in range(8)]
    assert sorted(row for row in rows if row is not None) == list(range(8))
    assert cm.allocate_row() is None and cm.num_free_rows == 0
    cm.free_row(3)
    assert cm.allocate_row() == 3
    cm.free_row(5)
    with pytest.raises(ValueError, match="row 5 is not in use"):
        cm.free_row(5)


def test_keep_path_renumbers_slots_without_moving_data() -> None:
    cm = manager()
    row = started(cm, [1, 2, 3])
    assert cm.extend(row.row, 3, 9)
    slots = cm.slot_table.array[row.row, :9].tolist()
    src, dst = cm.keep_path(row.row, 3, [4, 7])
    assert len(src) == len(dst) == 0
    assert cm.slot_table.array[row.row, :5].tolist() == [*slots[:3], slots[4], slots[7]]
    assert cm.running_tokens == 5 and cm.audit() == []


def test_keep_path_of_larger_pages_names_the_slots_to_copy() -> None:
    cm = manager(page_size=4)
    row = started(cm, [1, 2, 3])
    assert cm.extend(row.row, 3, 12)
    slots = cm.slot_table.array[row.row, :12].tolist()
    src, dst = cm.keep_path(row.row, 3, [3, 8, 11])
    assert src.tolist() == [slots[8], slots[11]]
    assert dst.tolist() == [slots[4], slots[5]]
    assert cm.slot_table.array[row.row, :8].tolist() == slots[:8]
    assert cm.running_tokens == 8 and cm.audit() == []


@pytest.mark.parametrize("kept", [[2], [9], [4, 4]])
def test_keep_path_refuses_positions_that_are_not_candidates(kept: list[int]) -> None:
    cm = manager()
    row = started(cm, [1, 2, 3])
    assert cm.extend(row.row, 3, 9)
    with pytest.raises(ValueError, match="distinct and in"):
        cm.keep_path(row.row, 3, kept)
    commit(cm, row)
    with pytest.raises(ValueError, match="candidates in"):
        cm.keep_path(row.row, 2, [4])


def test_truncate_frees_whole_pages_only() -> None:
    cm = manager(page_size=4)
    row = started(cm, list(range(16)))
    cm.truncate(row.row, 9)
    assert cm.running_tokens == 12
    row.computed = 8
    commit(cm, row)
    with pytest.raises(ValueError, match="inside a cached page"):
        cm.truncate(row.row, 6)
    cm.truncate(row.row, 4)
    assert cm.running_tokens == 0
    assert cm.extend(row.row, 4, 8)
    assert cm.match_len(tokens(8)) == 8 and cm.audit() == []


def test_slots_outside_of_rows() -> None:
    cm = manager(num_pages=8, page_size=4)
    slots = cm.allocate(8)
    assert slots is not None and slots.tolist() == list(range(4, 12))
    assert cm.running_tokens == 8 and cm.audit() == []
    assert cm.allocate(28) is None
    with pytest.raises(ValueError, match="no multiple"):
        cm.allocate(3)
    cm.free(slots)
    assert cm.running_tokens == 0
    cm.free(slots)
    assert cm.stats().violations == 1 and cm.audit() == []


def test_a_lease_keeps_its_prefix_until_it_is_dropped() -> None:
    cm = manager(num_pages=10)
    cache(cm, [1, 2, 3, 4, 5])
    assert cm.lease("lane", array([1, 2, 3, 9])) == 3
    assert cm.evictable_tokens == 2
    assert start(cm, [7] * 8) is None
    assert cm.match_len(array([1, 2, 3, 4, 5])) == 5
    row = started(cm, [7] * 7)
    assert cm.match_len(array([1, 2, 3, 4, 5])) == 3
    release(cm, row)
    assert cm.release_lease("lane") and not cm.release_lease("lane")
    assert cm.evictable_tokens == cm.cached_tokens == 10


def test_a_lease_taken_again_moves_and_is_the_youngest() -> None:
    cm = manager()
    for lane, token in (("a", 1), ("b", 2)):
        cache(cm, [token] * 5)
        cm.lease(lane, array([token] * 2))
    assert cm.lease("a", array([1] * 5)) == 5
    assert cm.num_leases == 2
    assert cm.break_leases(cm.capacity_tokens - 5) == 1
    assert (cm.leased_len("a"), cm.leased_len("b")) == (5, 0)


def test_leases_are_broken_oldest_first_and_no_more_than_needed() -> None:
    cm = manager(num_pages=12)
    for token in (1, 2, 3):
        cache(cm, [token] * 4)
        cm.lease(f"lane-{token}", array([token] * 4))
    assert start(cm, [9] * 5) is None
    assert cm.break_leases(5) == 2
    assert cm.stats().leases_broken == 2
    assert start(cm, [9] * 5) is not None
    assert [cm.leased_len(f"lane-{token}") for token in (1, 2, 3)] == [0, 0, 4]
    assert cm.break_leases(1) == 0


def test_a_lease_on_nothing_holds_nothing() -> None:
    cm = manager()
    assert cm.lease("lane", array([1, 2])) == 0
    assert cm.num_leases == 0


def test_a_stale_handle_cannot_be_locked() -> None:
    cm = manager()
    cache(cm, [1, 2, 3])
    handle = cm.match(array([1, 2, 3])).handle
    cm.flush()
    with pytest.raises(ValueError, match="out of date"):
        cm.lock(handle)
    row = cm.allocate_row()
    assert row is not None
    with pytest.raises(ValueError, match="out of date"):
        cm.attach(row, handle)


def test_an_unlock_too_many_is_counted_not_obeyed() -> None:
    cm = manager()
    cache(cm, [1, 2, 3])
    handle = cm.match(array([1, 2, 3])).handle
    cm.lock(handle)
    cm.unlock(handle)
    cm.unlock(handle)
    assert cm.stats().violations == 1
    assert cm.evictable_tokens == 3 and cm.audit() == []


def test_match_len_is_not_a_use() -> None:
    cm = manager(num_pages=4)
    cache(cm, [1, 1])
    cache(cm, [2, 2])
    assert cm.match_len(array([1, 1])) == 2
    started(cm, [3])
    assert cm.match_len(array([1, 1])) == 1, "the older prefix went first"
    assert cm.match_len(array([2, 2])) == 2
    assert cm.stats().queried == 5


@pytest.mark.parametrize("page_size", [1, 4])
def test_while_nothing_is_lost_a_match_changes_only_as_insertions_say(page_size: int) -> None:
    r = random.Random(page_size)
    cm = manager(32, page_size)
    told: list[tuple[list[int], int, int]] = []
    cm.on_inserted = lambda ids, namespace, old, new: told.append((ids.tolist(), old, new))
    keys = [[r.randrange(2) for _ in range(r.randint(1, 24))] for _ in range(40)]
    kept = lost = 0
    for step in range(400):
        before, losses = [cm.match_len(array(key)) for key in keys], cm.losses
        told.clear()
        if step % 9 == 8:
            cm.flush()
        else:
            cache(cm, [r.randrange(2) for _ in range(r.randint(1, 24))])  # may evict
        after = [cm.match_len(array(key)) for key in keys]
        if cm.losses > losses:
            lost += any(now < then for then, now in zip(before, after, strict=True))
            continue
        for key, then, now in zip(keys, before, after, strict=True):
            ends = [ids[old] for ids, old, new in told if old == then and new > old]
            assert now == then or (now > then and key[then] in ends)
            kept += now > then
    assert kept > 20 and lost > 20


def test_a_prefix_of_higher_priority_outlives_later_ones() -> None:
    cm = manager(num_pages=8, eviction="priority")
    cache(cm, [1] * 4, priority=5)
    cache(cm, [2] * 4)
    cache(cm, [3] * 4)
    assert cm.match_len(array([1] * 4)) == 4
    assert cm.match_len(array([2] * 4)) == 0


def test_statistics_count_what_match_found() -> None:
    cm = manager()
    cache(cm, [1, 2, 3])
    cm.match(array([1, 2, 9]))
    stats = cm.stats()
    assert (stats.hits, stats.misses) == (1, 1)
    assert (stats.queried, stats.matched, stats.inserted) == (6, 2, 3)
    assert stats.hit_rate == pytest.approx(1 / 3)
    assert manager().stats().hit_rate == 0.0


def test_without_prefix_cache_a_row_owns_everything() -> None:
    cm = manager(prefix_cache=False)
    row = started(cm, [1, 2, 3])
    commit(cm, row)
    assert cm.running_tokens == 3 and cm.lease("lane", array([1, 2])) == 0
    release(cm, row)
    assert cm.match(array([1, 2, 3])).cached_len == cm.match_len(array([1, 2, 3])) == 0
    assert cm.free_tokens == cm.capacity_tokens
    assert cm.flush() == 0 and cm.audit() == []
    with pytest.raises(ValueError, match="not of this cache"):
        cm.lock(CacheHandle(None, 3))


def test_a_row_whose_caller_wrote_the_cached_slots_itself() -> None:
    cm = manager()
    cache(cm, [1, 2, 3])
    match = cm.match(array([1, 2, 3]))
    cm.lock(match.handle)
    row = cm.allocate_row()
    assert row is not None
    cm.slot_table.array[row, :3] = cm.slots_of(match.handle)
    assert cm.extend(row, 3, 5)
    assert cm.running_tokens == 2
    cm.release(row, array([1, 2, 3, 4, 5]), 5, match.handle)
    assert cm.cached_tokens == 5 and cm.audit() == []


def test_more_computed_than_held_is_refused() -> None:
    cm = manager()
    row = started(cm, [1, 2, 3])
    with pytest.raises(ValueError, match="4 tokens cannot have been computed"):
        cm.commit(row.row, array([1, 2, 3, 4]), 4, row.handle)


@pytest.mark.parametrize("page_size", [1, 16])
def test_ten_thousand_lifecycles_leak_nothing(page_size: int) -> None:
    rng = random.Random(page_size)
    cm = CacheManager(4096 // page_size, page_size, 16, 512)
    pool = FakePool(cm)
    prompts = [[rng.randrange(50) for _ in range(rng.randrange(8, 60))] for _ in range(40)]
    running = []
    finished = 0
    while finished < 10_000:
        if len(running) < 16:
            prompt = rng.choice(prompts)[: rng.randrange(1, 60)]
            ids = prompt + [rng.randrange(50) for _ in range(rng.randrange(4))]
            row = start(cm, ids, rng.choice(["", "a"]), extra=2)
            if row is not None:
                running.append(row)
        row = running[rng.randrange(len(running))]
        choice = rng.random()
        if choice < 0.3 and row.computed < len(row.ids):
            pool.compute(row, rng.randrange(row.computed, len(row.ids)) + 1)
            commit(cm, row)
        elif choice < 0.5 and row.computed == len(row.ids) < 500:
            if cm.extend(row.row, row.computed, row.computed + 1):
                row.ids.append(rng.randrange(50))
                pool.compute(row, len(row.ids))
        elif choice > 0.6:
            pool.check_row(row)
            running.remove(row)
            release(cm, row, insert=rng.random() < 0.8)
            finished += 1
        if finished % 1000 == 0:
            assert cm.audit() == []
    for row in running:
        release(cm, row)
    assert cm.used_tokens == 0 and cm.evictable_tokens == cm.cached_tokens > 0
    assert cm.stats().evicted > 0
    cm.flush()
    assert cm.free_tokens == cm.capacity_tokens
    assert cm.audit() == [] and cm.stats().violations == 0


def test_the_slot_table_can_be_shared_with_torch() -> None:
    torch = pytest.importorskip("torch")
    cm = CacheManager(64, 4, 8, 30)
    shared = torch.from_numpy(cm.slot_table.array)
    row = started(cm, [1, 2, 3])
    assert shared.shape == (8, 32)
    assert shared[row.row, :3].tolist() == [4, 5, 6]
    assert cm.slot_table.array.dtype == np.int32


def test_the_cache_manager_needs_no_torch() -> None:
    code = (
        "import sys; import branchline.runtime.memory.cache_manager as door; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
