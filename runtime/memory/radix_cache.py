"""The prefix cache: a radix tree with locks, counts and an eviction order.

Invariant: a node whose `lock_count` is 0 has no locked node below it, so `evictable_tokens`, the
tokens of such nodes, can all be evicted, leaves first. A partly filled page never enters the cache:
it stays with the row that fills it and is freed with the row. Knows nothing of rows, free pages or
requests.

A lock walks up only as far as the first ancestor that is locked already: `lock_count` counts locks
on the node itself plus its locked children. Radix tree as the prefix index: Zheng et al., "SGLang:
Efficient Execution of Structured Language Model Programs", 2024.
"""

from __future__ import annotations

import logging

import numpy as np

from branchline.runtime.core.prefixes import CachedPrefix
from branchline.runtime.memory.eviction import EvictionQueue, EvictionStrategy, evictable
from branchline.runtime.memory.prefix_cache import CacheHandle, InsertResult, MatchResult
from branchline.runtime.memory.radix_tree import RadixNode, RadixTree
from branchline.runtime.memory.tree_summary import most_used
from branchline.runtime.memory.types import (
    ID_BYTES,
    Slots,
    TokenIds,
    Violation,
    empty_slots,
    encode,
)

logger = logging.getLogger(__name__)


class RadixCache:
    """`PrefixCache` over a `RadixTree`.

    Args:
        page_size: tokens per page.
        strategy: order of eviction.
    """

    def __init__(self, page_size: int, strategy: EvictionStrategy) -> None:
        self.page_size = page_size
        self.cached_tokens = 0
        self.evictable_tokens = 0
        self.losses = 0
        self.tree = RadixTree(page_size)
        self.queue = EvictionQueue(strategy)
        self.holders: dict[CacheHandle, int] = {}

    def match(self, ids: TokenIds, namespace: str) -> MatchResult:
        """Longest cached prefix of int32 ids; see `PrefixCache.match`."""
        node = self.tree.match(encode(ids), namespace)
        if node is None:
            return MatchResult(0, CacheHandle())
        return MatchResult(node.end, CacheHandle(node, node.end))

    def match_len(self, ids: TokenIds, namespace: str) -> int:
        """Length of the longest cached prefix; changes nothing."""
        return self.tree.match_len(encode(ids), namespace)

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
        """Add a prefix; see `PrefixCache.insert`. A key of no whole page is not taken.

        A leaf that only the holder locks and that nobody ever matched is lengthened in place: a
        prompt computed in chunks is one node, not one per chunk.
        """
        if len(ids) % self.page_size or len(ids) == 0:
            return InsertResult(CacheHandle(), 0, empty_slots())
        data = encode(ids)
        node = self.tree.walk_for_insert(data, namespace, priority)
        matched = node.end
        if matched < start:
            logger.error("the cache lost %d tokens of a locked prefix", start - matched)
            return InsertResult(CacheHandle(), matched, empty_slots())
        theirs = _slots_between(node, start) if matched > start else empty_slots()
        if matched < len(ids):
            node = self._add(node, data[matched * ID_BYTES :], slots[matched:], holder, priority)
        return InsertResult(CacheHandle(node, len(ids)), matched, theirs)

    def _add(
        self, node: RadixNode, key: bytes, slots: Slots, holder: CacheHandle, priority: int
    ) -> RadixNode:
        own = self.holders.get(holder, 0) if holder.node is node else 0
        alone = own <= 1 and node.lock_count == own
        self.cached_tokens += len(slots)
        if alone and node.hits == 0 and not node.children and node.parent is not None:
            self.tree.extend_leaf(node, key, slots, priority)
        else:
            node = self.tree.add_leaf(node, key, slots.copy(), priority)
        if node.lock_count == 0:
            self.evictable_tokens += len(slots)
            self.queue.add(node)
        return node

    def lock(self, handle: CacheHandle) -> None:
        """Protect a path from eviction. O(nodes up to the first locked ancestor).

        Raises:
            ValueError: the path, or its end, was evicted since the handle was made.
        """
        node = handle.node
        if node is None:
            return
        if node.parent is None or node.end < handle.length:
            raise ValueError(f"{handle!r} is out of date: match again, then lock at once")
        self.holders[handle] = self.holders.get(handle, 0) + 1
        while node is not None and node.parent is not None:
            node.lock_count += 1
            if node.lock_count > 1:
                return
            self.evictable_tokens -= len(node.slots)
            node = node.parent

    def unlock(self, handle: CacheHandle) -> bool:
        """Undo one lock of this handle; False, and nothing done, when it has none."""
        node = handle.node
        if node is None:
            return True
        count = self.holders.get(handle, 0)
        if count == 0:
            return False
        if count == 1:
            del self.holders[handle]
        else:
            self.holders[handle] = count - 1
        while node is not None and node.parent is not None:
            node.lock_count -= 1
            if node.lock_count > 0:
                return True
            self.evictable_tokens += len(node.slots)
            self.queue.add(node)
            node = node.parent
        return True

    def evict(self, num_tokens: int) -> Slots:
        """Free exactly `num_tokens` rounded up to whole pages, or all that is unlocked if less.

        The last leaf is cut to measure from its end, so nothing goes that need not.
        """
        wanted = -(-num_tokens // self.page_size) * self.page_size
        gone: list[Slots] = []
        while wanted > 0:
            leaf = self.queue.peek()
            if leaf is None:
                break
            size = len(leaf.slots)
            if size > wanted:
                gone.append(self.tree.trim_leaf(leaf, wanted))
                break
            self.queue.pop()
            parent = leaf.parent
            self.tree.remove(leaf)
            gone.append(leaf.slots)
            wanted -= size
            if parent is not None:
                self.queue.add(parent)
        if not gone:
            return empty_slots()
        slots: Slots = np.concatenate(gone)
        self.losses += 1
        self.cached_tokens -= len(slots)
        self.evictable_tokens -= len(slots)
        return slots

    def most_used(self) -> list[CachedPrefix]:
        """See `PrefixCache.most_used`."""
        return most_used(self.tree.roots.values())

    def flush(self) -> Slots:
        """Free every unlocked token."""
        return self.evict(self.evictable_tokens)

    def slots_of(self, handle: CacheHandle) -> Slots | None:
        """Slots of a prefix, int32 [handle.length]; None when it is not in the cache any more."""
        node = handle.node
        if node is None:
            return empty_slots()
        if node.parent is None or node.end < handle.length:
            return None
        return _slots_between(node, 0)[: handle.length]

    def all_slots(self) -> Slots:
        """Slots of every cached token, in no order."""
        found = [node.slots for node in self.tree.nodes()]
        return np.concatenate(found) if found else empty_slots()

    def drop_pages(self, bad: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> int:
        """Forget every node that uses a marked page, and all below it; see `PrefixCache`."""
        before = self.cached_tokens
        for node in list(self.tree.nodes()):
            if node.parent is not None and bad[node.slots // self.page_size].any():
                self._detach(node)
        self._recount()
        return before - self.cached_tokens

    def repair(self, num_pages: int) -> list[Violation]:
        """Mend structure, locks, counts and queue; returns what was wrong. O(nodes)."""
        self.losses += 1
        found = self._repair_structure()
        found += self._repair_slots(num_pages)
        return found + self._recount()

    def _repair_structure(self) -> list[Violation]:
        found: list[Violation] = []
        seen: set[int] = set()
        stack: list[RadixNode] = []
        for namespace, root in list(self.tree.roots.items()):
            if root.parent is not None or root.end or root.namespace != namespace:
                found.append(Violation("tree", f"bad root of namespace {namespace!r}"))
                del self.tree.roots[namespace]
            else:
                stack.append(root)
        while stack:
            node = stack.pop()
            for first, child in list(node.children.items()):
                problem = self._problem(node, first, child)
                if id(child) in seen:
                    problem = "is reached twice"
                if problem:
                    found.append(Violation("tree", f"{child!r} {problem}; forgotten"))
                    del node.children[first]
                    if id(child) not in seen:
                        self._forget(child)
                    continue
                seen.add(id(child))
                if child.parent is not node or child.end != node.end + len(child.slots):
                    found.append(Violation("tree", f"{child!r} had a wrong parent or end"))
                    child.parent = node
                    child.end = node.end + len(child.slots)
                stack.append(child)
        for namespace, root in list(self.tree.roots.items()):
            if not root.children:
                del self.tree.roots[namespace]
        return found

    def _problem(self, parent: RadixNode, first: bytes, node: RadixNode) -> str:
        step = self.page_size * ID_BYTES
        if not node.key or len(node.key) % step or len(node.slots) * ID_BYTES != len(node.key):
            return "has a key and slots of unequal or partial pages"
        if node.key[:step] != first:
            return "is filed under another page than its first"
        if node.namespace != parent.namespace:
            return "is in another namespace than its parent"
        return ""

    def _repair_slots(self, num_pages: int) -> list[Violation]:
        """Forget nodes whose slots are not whole pages of the pool; one pass if all are."""
        if self._are_pages(self.all_slots(), num_pages):
            return []
        found: list[Violation] = []
        for node in list(self.tree.nodes()):
            if node.parent is not None and not self._are_pages(node.slots, num_pages):
                found.append(Violation("tree", f"{node!r} has impossible slots; forgotten"))
                self._detach(node)
        return found

    def _are_pages(self, slots: Slots, num_pages: int) -> bool:
        pages = slots.reshape(-1, self.page_size)
        heads = pages[:, :1]
        low, high = self.page_size, num_pages * self.page_size
        inside = (heads >= low) & (heads <= high) & (heads % self.page_size == 0)
        in_order = pages == heads + np.arange(self.page_size, dtype=np.int32)
        return bool(inside.all() and in_order.all())

    def _recount(self) -> list[Violation]:
        """Recompute counts, lock counts and the queue from nodes and holders; fix and report."""
        found: list[Violation] = []
        nodes = list(self.tree.nodes())
        locks: dict[int, int] = {}
        for handle, count in self.holders.items():
            locks[id(handle.node)] = locks.get(id(handle.node), 0) + count
        cached = unlocked = 0
        for node in reversed(nodes):
            count = locks.get(id(node), 0)
            if node.lock_count != count:
                found.append(Violation("lock", f"{node!r} should have lock_count {count}"))
                node.lock_count = count
            cached += len(node.slots)
            if count == 0:
                unlocked += len(node.slots)
            elif node.parent is not None:
                locks[id(node.parent)] = locks.get(id(node.parent), 0) + 1
        if (cached, unlocked) != (self.cached_tokens, self.evictable_tokens):
            found.append(
                Violation(
                    "count",
                    f"{self.cached_tokens} tokens cached and {self.evictable_tokens} evictable "
                    f"were counted, there are {cached} and {unlocked}",
                )
            )
            self.cached_tokens, self.evictable_tokens = cached, unlocked
        lost = [node for node in nodes if evictable(node) and not node.queued]
        if lost:
            found.append(Violation("queue", f"{len(lost)} evictable leaves were not queued"))
        if found:
            self.queue.clear()
            for node in nodes:
                node.queued = False
                self.queue.add(node)
        return found

    def _detach(self, node: RadixNode) -> None:
        """Take a subtree out of the tree and mark all its nodes as gone."""
        self.tree.remove(node)
        self._forget(node)

    def _forget(self, top: RadixNode) -> None:
        self.losses += 1
        stack = [top]
        while stack:
            node = stack.pop()
            stack.extend(node.children.values())
            node.children = {}
            node.parent = None


def _slots_between(node: RadixNode, start: int) -> Slots:
    """Slots of positions [start, node.end) of the path to `node`: int32, a fresh array."""
    parts: list[Slots] = []
    at: RadixNode | None = node
    while at is not None and at.end > start:
        parts.append(at.slots)
        at = at.parent
    parts.reverse()
    slots: Slots = np.concatenate(parts)
    return slots[len(slots) - (node.end - start) :]
