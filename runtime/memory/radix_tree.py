"""A radix tree over token ids, one root per namespace.

Invariant: a node's key is a non-empty run of whole pages, siblings differ in their first page, and
`slots[i]` holds the keys and values of token i of the key. Knows nothing of who holds a node, which
node may go, or where slots come from; it only keeps what others note on its nodes right when a
node is split.

Keys are kept as bytes, four per token: a node is compared by one memcmp and found by its first
page's bytes, so that a match costs per node, not per token.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from branchline.runtime.memory.types import ID_BYTES, Slots, TokenIds, empty_slots


class RadixNode:
    """One edge of the tree with what lies at its end.

    Attributes:
        key: token ids of the edge, encoded; empty for a root.
        slots: int32, one per token; often a view; never written in place.
        children: by the bytes of their first page.
        parent: None for a root and for a node that left the tree.
        end: tokens from the root to the end of this node.
        lock_count: locks on this node itself plus the children that are locked; > 0 keeps the
            node, and with it its whole path, in the tree.
        created, last_use: ticks of the tree's clock.
        hits: matches that passed through.
        priority: highest priority of the requests whose tokens these are.
        serial: order of creation; breaks ties.
        queued: has an entry in the eviction queue.
        namespace: of its root.
    """

    __slots__ = (
        "children",
        "created",
        "end",
        "hits",
        "key",
        "last_use",
        "lock_count",
        "namespace",
        "parent",
        "priority",
        "queued",
        "serial",
        "slots",
    )

    def __init__(self, key: bytes, slots: Slots, parent: RadixNode | None, namespace: str) -> None:
        self.key = key
        self.slots = slots
        self.children: dict[bytes, RadixNode] = {}
        self.parent = parent
        self.end: int = len(slots) + (0 if parent is None else parent.end)
        self.lock_count = 0
        self.created = 0
        self.last_use = 0
        self.hits = 0
        self.priority = 0
        self.serial = 0
        self.queued = False
        self.namespace = namespace

    @property
    def token_ids(self) -> TokenIds:
        """The key as int32 ids; read-only."""
        return np.frombuffer(self.key, dtype=np.int32)

    def __repr__(self) -> str:
        return (
            f"RadixNode(end={self.end}, tokens={len(self.slots)}, children={len(self.children)}, "
            f"lock_count={self.lock_count}, hits={self.hits}, namespace={self.namespace!r})"
        )


class RadixTree:
    """The nodes and the walks over them.

    Args:
        page_size: tokens per page; keys are cut down to whole pages.

    Attributes:
        roots: by namespace; a root without children is dropped.
        clock: logical time; one tick for each match or insertion.
    """

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self.roots: dict[str, RadixNode] = {}
        self.clock = 0
        self._step = page_size * ID_BYTES
        self._serial = 0

    def match_len(self, data: bytes, namespace: str) -> int:
        """Tokens of the longest cached prefix of an encoded key, whole pages; changes nothing."""
        node = self.roots.get(namespace)
        if node is None:
            return 0
        step = self._step
        pos = 0
        while True:
            child = node.children.get(data[pos : pos + step])
            if child is None:
                return pos // ID_BYTES
            if not data.startswith(child.key, pos):
                return pos // ID_BYTES + self._common(child.key, data, pos)
            pos += len(child.key)
            node = child

    def match(self, data: bytes, namespace: str) -> RadixNode | None:
        """The node at the end of the longest cached prefix, splitting the last one if the prefix
        ends inside it. Every node on the way is used and hit. None when nothing is cached."""
        root = self.roots.get(namespace)
        if root is None:
            return None
        self.clock += 1
        node = self._walk(root, data, hits=1, priority=0)
        return None if node is root else node

    def walk_for_insert(self, data: bytes, namespace: str, priority: int) -> RadixNode:
        """Like `match`, for a key that is about to be inserted: makes the root when there is none,
        raises priorities on the way, counts no hit. Returns the root when nothing is cached."""
        root = self.roots.get(namespace)
        if root is None:
            root = RadixNode(b"", empty_slots(), None, namespace)
            self.roots[namespace] = root
        self.clock += 1
        return self._walk(root, data, hits=0, priority=priority)

    def add_leaf(self, parent: RadixNode, key: bytes, slots: Slots, priority: int) -> RadixNode:
        """A new child of `parent`. The key is whole pages and not empty, and no sibling begins with
        its first page. The tree keeps `slots`."""
        node = RadixNode(key, slots, parent, parent.namespace)
        node.created = node.last_use = self.clock
        node.priority = priority
        node.serial = self._next_serial()
        parent.children[key[: self._step]] = node
        return node

    def extend_leaf(self, leaf: RadixNode, key: bytes, slots: Slots, priority: int) -> None:
        """Lengthen a childless node in place."""
        leaf.key += key
        leaf.slots = np.concatenate((leaf.slots, slots))
        leaf.end += len(slots)
        leaf.last_use = self.clock
        leaf.priority = max(leaf.priority, priority)

    def trim_leaf(self, leaf: RadixNode, tokens: int) -> Slots:
        """Cut the last `tokens` (whole pages, fewer than the node has) off a childless node;
        returns their slots."""
        keep = len(leaf.slots) - tokens
        gone = leaf.slots[keep:]
        leaf.slots = leaf.slots[:keep]
        leaf.key = leaf.key[: keep * ID_BYTES]
        leaf.end -= tokens
        return gone

    def remove(self, node: RadixNode) -> None:
        """Take a node, with all below it, out of the tree; drops a root that is left empty."""
        parent = node.parent
        if parent is None:
            return
        del parent.children[node.key[: self._step]]
        node.parent = None
        if not parent.children and parent.parent is None:
            self.roots.pop(parent.namespace, None)

    def nodes(self) -> Iterator[RadixNode]:
        """Every node but the roots, parents first."""
        stack = list(self.roots.values())
        while stack:
            node = stack.pop()
            if node.parent is not None:
                yield node
            stack.extend(node.children.values())

    def split(self, node: RadixNode, tokens: int) -> RadixNode:
        """Cut a node in two after `tokens` of its tokens; returns the new upper part.

        The lower part stays the same object, so that pointers to its end (locks, handles, queue
        entries) stay right. The upper part has all the lower one's history, and is locked through
        it when the lower one is locked.
        """
        parent = node.parent
        if parent is None:
            raise ValueError("a root cannot be split")
        cut = tokens * ID_BYTES
        upper = RadixNode(node.key[:cut], node.slots[:tokens], parent, node.namespace)
        upper.lock_count = 1 if node.lock_count else 0
        upper.created = node.created
        upper.last_use = node.last_use
        upper.hits = node.hits
        upper.priority = node.priority
        upper.serial = self._next_serial()
        parent.children[node.key[: self._step]] = upper
        node.key = node.key[cut:]
        node.slots = node.slots[tokens:]
        node.parent = upper
        upper.children[node.key[: self._step]] = node
        return upper

    def _walk(self, node: RadixNode, data: bytes, *, hits: int, priority: int) -> RadixNode:
        step = self._step
        clock = self.clock
        pos = 0
        while True:
            child = node.children.get(data[pos : pos + step])
            if child is None:
                return node
            whole = data.startswith(child.key, pos)
            node = child if whole else self.split(child, self._common(child.key, data, pos))
            node.last_use = clock
            node.hits += hits
            if priority > node.priority:
                node.priority = priority
            if not whole:
                return node
            pos += len(child.key)

    def _common(self, key: bytes, data: bytes, pos: int) -> int:
        """Tokens, in whole pages, that `key` and `data[pos:]` share; their first page is equal and
        the key is not a prefix of the data."""
        size = min(len(key), len(data) - pos) // ID_BYTES
        left = np.frombuffer(key, dtype=np.int32, count=size)
        right = np.frombuffer(data, dtype=np.int32, count=size, offset=pos)
        differs = left != right
        first = int(differs.argmax())
        same = first if differs[first] else size
        return same - same % self.page_size

    def _next_serial(self) -> int:
        self._serial += 1
        return self._serial
