"""The most used part of a tree: connected, ordered, bounded, and it changes nothing."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from branchline.runtime.core.prefixes import SHOWN_IDS
from branchline.runtime.memory.radix_tree import RadixTree
from branchline.runtime.memory.tree_summary import most_used
from branchline.runtime.memory.types import encode
from tests.memory.memory_rows import array
from tests.memory.test_radix_tree import OPERATIONS, insert


@given(operations=OPERATIONS, most=st.integers(0, 12), looks=st.integers(0, 40))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_every_node_is_told_behind_its_parent_and_before_less_used_ones(
    operations: list[tuple[str, str, list[int]]], most: int, looks: int
) -> None:
    tree = RadixTree(1)
    for kind, namespace, ids in operations:
        if kind == "match":
            tree.match(encode(array(ids)), namespace)
        else:
            insert(tree, ids, array(range(len(ids))), namespace)
    nodes = list(tree.nodes())
    before = [(node.hits, node.last_use) for node in nodes]
    found = most_used(tree.roots.values(), most, looks)
    assert [(node.hits, node.last_use) for node in nodes] == before
    assert len(found) <= min(most, looks)
    if most >= len(nodes) and looks >= len(nodes):
        shapes = sorted((node.end, len(node.slots), node.hits) for node in nodes)
        assert sorted((node.end, node.tokens, node.hits) for node in found) == shapes
    for place, node in enumerate(found):
        assert -1 <= node.parent < place
        above = 0 if node.parent < 0 else found[node.parent].end
        assert node.end - node.tokens == above
        assert len(node.token_ids) == min(node.tokens, SHOWN_IDS)
    for earlier, later in itertools.pairwise(found):
        child = later.parent >= 0 and found[later.parent] is earlier
        assert child or (earlier.hits, earlier.tokens) >= (later.hits, later.tokens)


def test_a_wide_tree_is_told_by_its_newest_branches() -> None:
    tree = RadixTree(1)
    for first in range(5000):
        insert(tree, [first, 1], array([0, 0]))
    found = most_used(tree.roots.values(), 3, 100)
    assert len(found) == 3
    assert all(node.token_ids[0] >= 4900 for node in found)
