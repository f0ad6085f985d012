"""The tree alone, against a dictionary of page prefixes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from branchline.runtime.memory.radix_tree import RadixNode, RadixTree
from branchline.runtime.memory.types import ID_BYTES, Slots, encode
from tests.memory.memory_rows import array

SEQUENCES = st.lists(st.integers(0, 2), min_size=0, max_size=24)
OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["insert", "match"]), st.sampled_from(["", "b"]), SEQUENCES),
    max_size=40,
)


def path_slots(node: RadixNode | None) -> list[int]:
    slots: list[int] = []
    while node is not None:
        slots = [*node.slots.tolist(), *slots]
        node = node.parent
    return slots


def insert(tree: RadixTree, ids: list[int], slots: Slots, namespace: str = "") -> RadixNode:
    data = encode(array(ids))
    node = tree.walk_for_insert(data, namespace, 0)
    if node.end == len(ids):
        return node
    return tree.add_leaf(node, data[node.end * ID_BYTES :], slots[node.end :], 0)


@pytest.mark.parametrize("page_size", [1, 2, 4])
@given(operations=OPERATIONS)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_matches_are_the_longest_known_page_prefix(
    page_size: int, operations: list[tuple[str, str, list[int]]]
) -> None:
    tree = RadixTree(page_size)
    known: dict[tuple[str, tuple[int, ...]], list[int]] = {}
    next_slot = 100

    def longest(namespace: str, ids: list[int]) -> int:
        end = 0
        while end + page_size <= len(ids) and (namespace, (*ids[: end + page_size],)) in known:
            end += page_size
        return end

    for kind, namespace, ids in operations:
        expected = longest(namespace, ids)
        assert tree.match_len(encode(array(ids)), namespace) == expected
        if kind == "match":
            node = tree.match(encode(array(ids)), namespace)
            assert (0 if node is None else node.end) == expected
            wanted = known.get((namespace, tuple(ids[:expected])), [])
            assert path_slots(node) == wanted
        else:
            whole = ids[: len(ids) - len(ids) % page_size]
            slots = np.arange(next_slot, next_slot + len(whole), dtype=np.int32)
            next_slot += len(whole)
            old = known.get((namespace, tuple(whole[:expected])), [])
            insert(tree, whole, slots, namespace)
            full = [*old, *slots.tolist()[expected:]]
            for end in range(expected + page_size, len(whole) + 1, page_size):
                known[namespace, tuple(whole[:end])] = full[:end]
        for node in tree.nodes():
            assert len(node.key) == ID_BYTES * len(node.slots) > 0
            assert len(node.slots) % page_size == 0
            assert node.parent is not None and node.end == node.parent.end + len(node.slots)
    assert sum(len(node.slots) for node in tree.nodes()) == page_size * len(known)


def test_match_splits_node_at_page_boundary() -> None:
    tree = RadixTree(4)
    lower = insert(tree, [1] * 12, np.arange(4, 16, dtype=np.int32))
    upper = tree.match(encode(array([1] * 7)), "")
    assert upper is not None and upper.end == 4
    assert lower.parent is upper and lower.end == 12
    assert upper.slots.tolist() == [4, 5, 6, 7]
    assert lower.token_ids.tolist() == [1] * 8


def test_split_keeps_history_and_lock_of_the_path() -> None:
    tree = RadixTree(1)
    leaf = insert(tree, [1, 2, 3], np.arange(3, dtype=np.int32))
    leaf.lock_count = 3
    tree.match(encode(array([1, 2, 3])), "")
    upper = tree.match(encode(array([1, 2])), "")
    assert upper is not None
    assert (leaf.lock_count, upper.lock_count) == (3, 1)
    assert (leaf.hits, upper.hits) == (1, 2)
    assert upper.last_use > leaf.last_use
    assert upper.created == leaf.created > 0


def test_match_len_of_part_of_a_node_changes_nothing() -> None:
    tree = RadixTree(1)
    leaf = insert(tree, [1, 2, 3], np.arange(3, dtype=np.int32))
    before = (tree.clock, leaf.last_use, leaf.hits, leaf.end, len(list(tree.nodes())))
    assert tree.match_len(encode(array([1, 2, 9])), "") == 2
    assert tree.match_len(encode(array([1, 2])), "") == 2
    assert before == (tree.clock, leaf.last_use, leaf.hits, leaf.end, len(list(tree.nodes())))


def test_a_namespace_without_prefixes_takes_no_memory() -> None:
    tree = RadixTree(1)
    for tenant in range(100):
        leaf = insert(tree, [1, 2], np.arange(2, dtype=np.int32), f"tenant-{tenant}")
        assert tree.match_len(encode(array([1, 2])), f"tenant-{tenant + 1}") == 0
        tree.remove(leaf)
    assert tree.roots == {}


def test_roots_cannot_be_split() -> None:
    tree = RadixTree(1)
    root = tree.walk_for_insert(b"", "", 0)
    with pytest.raises(ValueError, match="root"):
        tree.split(root, 1)
    assert "namespace=''" in repr(root)
