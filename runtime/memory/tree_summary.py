"""The part of a radix tree that is used most, in bounded time.

Law: every node told is below the node that it names as its parent, which is told before it. Reads
the tree and changes nothing, not even a last use.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from itertools import islice

from branchline.runtime.core.prefixes import LOOKS, MAX_PREFIXES, SHOWN_IDS, CachedPrefix
from branchline.runtime.memory.radix_tree import RadixNode


def most_used(
    roots: Iterable[RadixNode], most: int = MAX_PREFIXES, looks: int = LOOKS
) -> list[CachedPrefix]:
    """Nodes by hits, then by tokens, each behind its parent.

    Args:
        most: nodes in the answer.
        looks: nodes that are looked at; of more siblings, the newest.
    """
    found: list[CachedPrefix] = []
    heap: list[tuple[int, int, int, int, RadixNode]] = []
    left = looks
    waiting: list[tuple[RadixNode, int]] = [(root, -1) for root in roots]
    while True:
        for node, place in waiting:
            for child in islice(reversed(node.children.values()), left):
                left -= 1
                # `left` is another number each time, so that nodes themselves are never compared.
                heapq.heappush(heap, (-child.hits, -len(child.slots), -left, place, child))
        if not heap or len(found) >= most:
            return found
        *_, parent, node = heapq.heappop(heap)
        waiting = [(node, len(found))]
        found.append(_told(node, parent))


def _told(node: RadixNode, parent: int) -> CachedPrefix:
    return CachedPrefix(
        parent=parent,
        tokens=len(node.slots),
        end=node.end,
        hits=node.hits,
        locks=node.lock_count,
        children=len(node.children),
        token_ids=node.token_ids[:SHOWN_IDS].tolist(),
    )
