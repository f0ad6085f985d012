"""What of a drafter's tree may be run. Knows nothing of requests."""

from __future__ import annotations

from collections.abc import Sequence

from branchline.runtime.core.tree import DraftTree, GrowingTree


def check_tree(tree: DraftTree, max_nodes: int, vocab_size: int) -> None:
    """Raise `ValueError` where a drafter broke its promise."""
    tokens, parents, depths = (
        part.tolist() for part in (tree.token_ids, tree.parents, tree.depths)
    )
    n = len(tokens)
    if not n == len(parents) == len(depths) or n > max_nodes:
        raise ValueError(f"a tree of {n} candidates, {max_nodes} were asked for")
    for node, (token, parent, depth) in enumerate(zip(tokens, parents, depths, strict=True)):
        if not -1 <= parent < node:
            raise ValueError("a candidate stands before its parent")
        if depth != (0 if parent < 0 else depths[parent] + 1):
            raise ValueError("the depth of a candidate is not its parent's plus one")
        if not 0 <= token < vocab_size:
            raise ValueError("a candidate is no token of the model")


def pruned(tree: DraftTree, ends: frozenset[int], max_depth: int) -> DraftTree:
    """The tree without ids that end the output, deeper levels, and what stands behind either."""
    keep: Sequence[bool] = (tree.depths < max_depth).tolist()
    tokens = tree.token_ids.tolist()
    if all(keep) and ends.isdisjoint(tokens):
        return tree
    grown = GrowingTree()
    places: dict[int, int] = {-1: -1}
    for node, parent in enumerate(tree.parents.tolist()):
        if keep[node] and parent in places and tokens[node] not in ends:
            places[node] = grown.add(tokens[node], places[parent])
    return grown.build()
