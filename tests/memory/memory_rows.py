"""Helpers of this room's tests: a row with its tokens, and a pool whose contents can be checked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from branchline.runtime.memory.cache_manager import CacheManager
from branchline.runtime.memory.prefix_cache import CacheHandle
from branchline.runtime.memory.types import Slots, TokenIds

Content = tuple[str, tuple[int, ...]]


def array(ids: list[int]) -> TokenIds:
    return np.array(ids, dtype=np.int32)


def tokens(length: int, *, salt: int = 0) -> TokenIds:
    return np.arange(length, dtype=np.int32) + np.int32(salt * 1_000_000)


@dataclass(eq=False)
class Row:
    """A running sequence as a scheduler would hold it."""

    row: int
    ids: list[int]
    namespace: str
    handle: CacheHandle
    computed: int


class FakePool:
    """Stands for keys and values: each slot holds the whole prefix that its entry depends on."""

    def __init__(self, manager: CacheManager) -> None:
        self.manager = manager
        self.content: list[Content | None] = [None] * ((manager.num_pages + 1) * manager.page_size)

    def compute(self, row: Row, new_len: int) -> None:
        """Write positions [computed, new_len), as a forward would."""
        slots = self.manager.slot_table.array[row.row]
        for position in range(row.computed, new_len):
            assert slots[position] >= self.manager.page_size, "a write into the padding page"
            self.content[slots[position]] = (row.namespace, tuple(row.ids[: position + 1]))
        row.computed = new_len

    def copy(self, src: Slots, dst: Slots) -> None:
        moved = [self.content[slot] for slot in src]
        for slot, value in zip(dst, moved, strict=True):
            self.content[slot] = value

    def check_row(self, row: Row) -> None:
        """What an attention over the row would read is what the row computed."""
        slots = self.manager.slot_table.array[row.row, : row.computed]
        self.check(slots, row.ids, row.namespace)

    def check(self, slots: Slots, ids: list[int], namespace: str) -> None:
        for position, slot in enumerate(slots):
            assert self.content[slot] == (namespace, tuple(ids[: position + 1]))


def start(
    manager: CacheManager, ids: list[int], namespace: str = "", *, extra: int = 0
) -> Row | None:
    """Match, lock, take a row and slots for all ids and `extra` more; None when memory is short."""
    match = manager.match(array(ids), namespace)
    manager.lock(match.handle)
    number = manager.allocate_row()
    if number is None:
        manager.unlock(match.handle)
        return None
    manager.attach(number, match.handle)
    if not manager.extend(number, match.cached_len, len(ids) + extra):
        manager.unlock(match.handle)
        manager.free_row(number)
        return None
    return Row(number, list(ids), namespace, match.handle, match.cached_len)


def started(manager: CacheManager, ids: list[int], namespace: str = "") -> Row:
    row = start(manager, ids, namespace)
    assert row is not None
    row.computed = len(ids)
    return row


def commit(manager: CacheManager, row: Row, *, priority: int = 0) -> None:
    row.handle = manager.commit(
        row.row, array(row.ids), row.computed, row.handle, row.namespace, priority=priority
    )


def release(manager: CacheManager, row: Row, *, insert: bool = True, priority: int = 0) -> None:
    manager.release(
        row.row,
        array(row.ids),
        row.computed,
        row.handle,
        row.namespace,
        insert=insert,
        priority=priority,
    )


def cache(manager: CacheManager, ids: list[int], namespace: str = "", *, priority: int = 0) -> None:
    """Run a row over ids and let it end, so that they are cached."""
    release(manager, started(manager, ids, namespace), priority=priority)
