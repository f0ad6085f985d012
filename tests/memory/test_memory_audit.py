"""Damage of every kind: the audit finds it, mends it, finds nothing more, and the pool survives."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import pytest

from branchline.runtime.memory.cache_manager import CacheManager
from branchline.runtime.memory.radix_cache import RadixCache
from branchline.runtime.memory.radix_tree import RadixNode
from branchline.runtime.memory.slot_table import slot_pages
from tests.memory.memory_rows import Row, array, cache, commit, release, started


class Scene:
    """A manager with two running rows on a shared prefix, a lease, and some cached branches."""

    def __init__(self, page_size: int) -> None:
        size = page_size
        self.page_size = size
        self.manager = CacheManager(200, size, 6, 40 * size)
        assert isinstance(self.manager._cache, RadixCache)
        self.cache = self.manager._cache
        for last in range(4):
            cache(self.manager, [1] * 6 * size + [2 + last] * 4 * size)
        self.rows = [started(self.manager, [1] * 6 * size + [30 + i] * 5 * size) for i in range(2)]
        self.manager.lease("lane", array([1] * 6 * size + [3] * 4 * size))
        commit(self.manager, self.rows[0])
        for row in self.rows:
            assert self.manager.extend(row.row, len(row.ids), len(row.ids) + 3 * size)
        assert self.manager.audit() == []

    def leaf(self) -> RadixNode:
        return next(n for n in self.cache.tree.nodes() if not n.children and not n.lock_count)

    def own_page(self, row: Row) -> int:
        return int(self.manager.slot_table.own_pages(row.row)[0])

    def page(self, node: RadixNode) -> int:
        return int(slot_pages(node.slots, self.page_size)[0])


Damage = Callable[[Scene], object]


def leak_a_page(scene: Scene) -> None:
    scene.manager._pages.allocate(2)


def free_a_running_page(scene: Scene) -> None:
    scene.manager._pages.free(np.array([scene.own_page(scene.rows[0])], dtype=np.int32))


def free_a_cached_page(scene: Scene) -> None:
    scene.manager._pages.free(np.array([scene.page(scene.leaf())], dtype=np.int32))


def list_a_free_page_twice(scene: Scene) -> None:
    pages = scene.manager._pages
    pages._stack[0] = pages._stack[1]


def list_a_page_that_does_not_exist(scene: Scene) -> None:
    scene.manager._pages._stack[0] = 9999


def mark_a_free_page_taken(scene: Scene) -> None:
    pages = scene.manager._pages
    pages.is_free[pages._stack[0]] = False


def lock_without_holder(scene: Scene) -> None:
    scene.leaf().lock_count = 3


def lose_a_lock(scene: Scene) -> None:
    node = scene.rows[0].handle.node
    assert node is not None
    node.lock_count = 0


def miscount_evictable(scene: Scene) -> None:
    scene.cache.evictable_tokens += 7


def miscount_cached(scene: Scene) -> None:
    scene.cache.cached_tokens = -1


def lose_a_queue_entry(scene: Scene) -> None:
    scene.cache.queue.clear()


def give_two_nodes_one_page(scene: Scene) -> None:
    leaves = [n for n in scene.cache.tree.nodes() if not n.children and not n.lock_count]
    leaves[0].slots = leaves[1].slots.copy()


def cache_a_running_page(scene: Scene) -> None:
    table = scene.manager.slot_table
    start = table.shared[scene.rows[0].row]
    own = table.array[scene.rows[0].row, start : start + scene.page_size]
    leaf = scene.leaf()
    leaf.slots = np.concatenate((own, leaf.slots[scene.page_size :]))


def give_a_locked_node_a_running_page(scene: Scene) -> None:
    table = scene.manager.slot_table
    own = table.array[scene.rows[1].row, 6 * scene.page_size : 7 * scene.page_size]
    node = scene.rows[0].handle.node
    assert node is not None
    node.slots = np.concatenate((own, node.slots[scene.page_size :]))


def give_two_rows_one_page(scene: Scene) -> None:
    table, size = scene.manager.slot_table, scene.page_size
    for row in scene.rows:
        table.array[row.row, table.held[row.row] - size : table.held[row.row]] = np.arange(
            50 * size, 51 * size
        )


def write_garbage_to_an_own_slot(scene: Scene) -> None:
    table = scene.manager.slot_table
    table.array[scene.rows[1].row, table.held[scene.rows[1].row] - scene.page_size] = -5


def write_garbage_to_a_shared_slot(scene: Scene) -> None:
    scene.manager.slot_table.array[scene.rows[0].row, 2] += 5


def hold_more_than_the_row_can(scene: Scene) -> None:
    scene.manager.slot_table.held[scene.rows[0].row] = 10_000 * scene.page_size


def share_more_than_held(scene: Scene) -> None:
    scene.manager.slot_table.shared[scene.rows[1].row] = 10_000 * scene.page_size


def hand_a_row_out_twice(scene: Scene) -> None:
    scene.manager.slot_table._free.append(scene.rows[0].row)


def forget_a_free_row(scene: Scene) -> None:
    scene.manager.slot_table._free.pop()


def cut_a_nodes_slots(scene: Scene) -> None:
    leaf = scene.leaf()
    leaf.slots = leaf.slots[:-1]


def empty_a_key(scene: Scene) -> None:
    scene.leaf().key = b""


def give_a_node_slots_outside_the_pool(scene: Scene) -> None:
    leaf = scene.leaf()
    leaf.slots = leaf.slots + 1000 * scene.page_size


def file_a_node_wrongly(scene: Scene) -> None:
    node = scene.leaf()
    assert node.parent is not None
    node.parent.children[b"nonsense"] = node.parent.children.pop(node.key[: 4 * scene.page_size])


def turn_a_parent_pointer(scene: Scene) -> None:
    node = scene.rows[0].handle.node
    assert node is not None
    node.parent = scene.leaf()


def close_a_cycle(scene: Scene) -> None:
    trunk = scene.leaf().parent
    assert trunk is not None
    scene.leaf().children[trunk.key[: 4 * scene.page_size]] = trunk


def move_a_node_to_another_namespace(scene: Scene) -> None:
    scene.leaf().namespace = "someone else"


def misplace_an_end(scene: Scene) -> None:
    scene.leaf().end += scene.page_size


def give_a_root_an_end(scene: Scene) -> None:
    scene.cache.tree.roots[""].end = 4


def cut_a_locked_branch_off(scene: Scene) -> None:
    node = scene.rows[0].handle.node
    assert node is not None
    scene.cache.tree.remove(node)


DAMAGES: list[Damage] = [
    leak_a_page,
    free_a_running_page,
    free_a_cached_page,
    list_a_free_page_twice,
    list_a_page_that_does_not_exist,
    mark_a_free_page_taken,
    lock_without_holder,
    lose_a_lock,
    miscount_evictable,
    miscount_cached,
    lose_a_queue_entry,
    give_two_nodes_one_page,
    cache_a_running_page,
    give_a_locked_node_a_running_page,
    give_two_rows_one_page,
    write_garbage_to_an_own_slot,
    write_garbage_to_a_shared_slot,
    hold_more_than_the_row_can,
    share_more_than_held,
    hand_a_row_out_twice,
    forget_a_free_row,
    cut_a_nodes_slots,
    empty_a_key,
    give_a_node_slots_outside_the_pool,
    file_a_node_wrongly,
    turn_a_parent_pointer,
    close_a_cycle,
    move_a_node_to_another_namespace,
    misplace_an_end,
    give_a_root_an_end,
    cut_a_locked_branch_off,
]


@pytest.mark.parametrize("page_size", [1, 4])
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_audit_mends_damage_once_and_for_all(
    damage: Damage, page_size: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, logger="branchline.runtime.memory")
    scene = Scene(page_size)
    damage(scene)
    manager = scene.manager
    found = manager.audit()
    assert found and all(violation.repaired for violation in found), found
    assert manager.stats().violations == len(found)
    assert manager.audit() == []

    # Life goes on: old rows end, new ones run, and no page is lost.
    for row in scene.rows:
        row.computed = min(row.computed, manager.slot_table.held[row.row])
        release(manager, row)
    assert manager.release_lease("lane")
    cache(manager, [1] * 6 * page_size + [99] * 2 * page_size)
    manager.audit()
    assert manager.audit() == []
    assert manager.evictable_tokens == manager.cached_tokens
    manager.flush()
    assert manager.free_tokens == manager.capacity_tokens
    assert manager.num_free_rows == 6
    assert manager.audit() == []


def test_violations_are_logged_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene(1)
    leak_a_page(scene)
    scene.cache.evictable_tokens += 1
    with caplog.at_level(logging.ERROR):
        found = scene.manager.audit()
    assert sorted(violation.kind for violation in found) == ["count", "page"]
    assert "2 pages" in caplog.text and "leaked" in caplog.text
    assert scene.manager.stats().violations == 2


def test_a_page_with_two_rows_is_freed_once_when_both_are_gone() -> None:
    scene = Scene(1)
    give_two_rows_one_page(scene)
    scene.manager.audit()
    release(scene.manager, scene.rows[0])
    assert not scene.manager._pages.is_free[50], "the other row still writes there"
    assert scene.manager.audit() == []
    release(scene.manager, scene.rows[1])
    scene.manager.audit()
    assert scene.manager._pages.is_free[50]


def test_the_audit_reports_its_own_failure() -> None:
    scene = Scene(1)
    scene.manager._auditor._handles = []
    found = scene.manager.audit()
    assert [violation.kind for violation in found] == ["audit"]
    assert not found[0].repaired


def test_a_lost_slot_is_replaced_by_a_page_of_its_own() -> None:
    scene = Scene(4)
    write_garbage_to_an_own_slot(scene)
    scene.manager.audit()
    pages = scene.manager.slot_table.own_pages(scene.rows[1].row)
    assert len(set(pages.tolist())) == len(pages) and pages.min() > 0


def test_an_impossible_length_is_cut_to_the_slots_that_are_the_rows_own() -> None:
    scene = Scene(4)
    held = scene.manager.slot_table.held[scene.rows[0].row]
    hold_more_than_the_row_can(scene)
    scene.manager.audit()
    assert scene.manager.slot_table.held[scene.rows[0].row] == held


def test_double_frees_are_refused() -> None:
    scene = Scene(4)
    pages = scene.manager._pages
    free = pages.num_free
    assert pages.free(np.array([0, -3, 900, 199, 199], dtype=np.int32)) == 5
    taken = pages.allocate(2)
    assert taken is not None
    assert pages.free(np.array([*taken, 0], dtype=np.int32)) == 1
    assert pages.num_free == free
