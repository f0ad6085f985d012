"""Candidate tokens of one row, run together under a tree mask: one mechanism for several uses.

A select's choices, tokens forced by a grammar and a drafter's guesses are all a `DraftTree`. The
tree knows nothing of why its tokens are candidates, nor of which will be kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Int32Array = np.ndarray[tuple[int], np.dtype[np.int32]]
UInt64Array = np.ndarray[tuple[int], np.dtype[np.uint64]]


NOBODY = -2
"""Parent of a place that holds no candidate."""


@dataclass(frozen=True, slots=True)
class DraftTree:
    """n candidate tokens; every parent stands before its children.

    Attributes:
        token_ids: int32 [n].
        parents: int32 [n], index of the candidate before it; -1 = follows the row's last token;
            `NOBODY` = no candidate, a place alone.
        depths: int32 [n], 0 for candidates whose parent is -1.
    """

    token_ids: Int32Array
    parents: Int32Array
    depths: Int32Array

    def __len__(self) -> int:
        return len(self.token_ids)

    def mask_words(self) -> UInt64Array:
        """uint64 [n * ceil(n / 64)]: bit i of candidate j's words = j sees i (itself included)."""
        n = len(self)
        bits: list[int] = []
        for j, parent in enumerate(self.parents.tolist()):
            bits.append((bits[parent] if parent >= 0 else 0) | 1 << j)
        size = (n + 63) // 64 * 8
        return np.frombuffer(b"".join(word.to_bytes(size, "little") for word in bits), np.uint64)

    def first_path(self) -> DraftTree:
        """The first candidate of all, the first behind that one, and so on."""
        kept: list[int] = []
        last = -1
        for node, parent in enumerate(self.parents.tolist()):
            if parent == last:
                kept.append(node)
                last = node
        order = np.arange(len(kept), dtype=np.int32)
        return DraftTree(self.token_ids[kept], order - 1, order)

    def path(self, node: int) -> list[int]:
        """Candidates from the first level down to `node`; empty for -1."""
        found: list[int] = []
        while node >= 0:
            found.append(node)
            node = int(self.parents[node])
        return found[::-1]


class GrowingTree:
    """A `DraftTree` that is made candidate by candidate."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.depths: list[int] = []

    def __len__(self) -> int:
        return len(self.tokens)

    def add(self, token: int, parent: int) -> int:
        """Append a candidate behind `parent` (-1 = the row's last token); its index."""
        self.tokens.append(token)
        self.parents.append(parent)
        self.depths.append(0 if parent < 0 else self.depths[parent] + 1)
        return len(self.tokens) - 1

    def merge(self, path: Sequence[int], max_nodes: int) -> None:
        """Append what the tree does not have yet of a path from the first level down, as long as
        there is room."""
        parent = -1
        for token in path:
            known = zip(self.tokens, self.parents, strict=True)
            node = next((i for i, key in enumerate(known) if key == (token, parent)), None)
            if node is None:
                if len(self) >= max_nodes:
                    return
                node = self.add(token, parent)
            parent = node

    def build(self) -> DraftTree:
        """The tree."""
        return DraftTree(
            np.array(self.tokens, dtype=np.int32),
            np.array(self.parents, dtype=np.int32),
            np.array(self.depths, dtype=np.int32),
        )


@dataclass(slots=True)
class TreeGroup:
    """One forward's worth of choices.

    Attributes:
        tree: candidates that must be forwarded: every token that has another one after it.
        read_nodes: int32 [m]; candidate whose logits are read, -1 = the row's last token.
        read_tokens: int32 [m]; token whose log-probability is read there.
        choices: (index of the choice, indices into the m reads), in token order.
    """

    tree: DraftTree
    read_nodes: Int32Array
    read_tokens: Int32Array
    choices: list[tuple[int, list[int]]]


@dataclass(slots=True)
class ScoreState:
    """What a score request still has to read, and what it has read."""

    groups: list[TreeGroup]
    results: list[list[float]]
    next_group: int = 0

    @property
    def complete(self) -> bool:
        """True when every group has been planned."""
        return self.next_group >= len(self.groups)


def build_groups(choices: Sequence[Sequence[int]], max_nodes: int) -> list[TreeGroup]:
    """Tries of the choices' tokens, each with at most `max_nodes` candidates to forward.

    A choice of k tokens needs k reads and k - 1 forwarded candidates; shared prefixes are forwarded
    once per group. `max_nodes` is raised to what the longest choice needs.
    """
    longest = max(len(choice) for choice in choices) - 1
    limit = max(max_nodes, longest)
    groups: list[TreeGroup] = []
    builder = _GroupBuilder()
    for index in sorted(range(len(choices)), key=lambda i: list(choices[i])):
        if builder.size_with(choices[index]) > limit:
            groups.append(builder.build())
            builder = _GroupBuilder()
        builder.add(index, choices[index])
    groups.append(builder.build())
    return groups


class _GroupBuilder:
    """Grows one trie; nodes are numbered as they are made, so parents come first."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._parents: list[int] = []
        self._depths: list[int] = []
        self._children: dict[tuple[int, int], int] = {}
        self._reads: dict[tuple[int, int], int] = {}
        self._choices: list[tuple[int, list[int]]] = []

    def size_with(self, choice: Sequence[int]) -> int:
        node, shared = -1, 0
        for token in choice[:-1]:
            child = self._children.get((node, token))
            if child is None:
                break
            node, shared = child, shared + 1
        return len(self._tokens) + len(choice) - 1 - shared

    def add(self, index: int, choice: Sequence[int]) -> None:
        node, reads = -1, []
        for depth, token in enumerate(choice):
            reads.append(self._reads.setdefault((node, token), len(self._reads)))
            if depth == len(choice) - 1:
                break
            child = self._children.get((node, token))
            if child is None:
                child = len(self._tokens)
                self._children[(node, token)] = child
                self._tokens.append(token)
                self._parents.append(node)
                self._depths.append(depth)
            node = child
        self._choices.append((index, reads))

    def build(self) -> TreeGroup:
        tree = DraftTree(
            np.array(self._tokens, dtype=np.int32),
            np.array(self._parents, dtype=np.int32),
            np.array(self._depths, dtype=np.int32),
        )
        places = list(self._reads)
        return TreeGroup(
            tree,
            np.array([node for node, _ in places], dtype=np.int32),
            np.array([token for _, token in places], dtype=np.int32),
            self._choices,
        )
