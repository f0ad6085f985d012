"""Cached prefixes as the outside sees them: plain data of bounded size."""

from __future__ import annotations

import msgspec

MAX_PREFIXES = 24
"""Nodes of one answer."""
LOOKS = 2048
"""Nodes looked at for one answer, so that a tree of any size costs the engine's loop well under a
step."""
SHOWN_IDS = 32
"""Ids of one node that are told."""


class CachedPrefix(msgspec.Struct, kw_only=True):
    """A node of the prefix cache.

    Attributes:
        parent: index of the node above it in the same list; -1 = none.
        tokens: of this node alone.
        end: tokens from the beginning of the prefix to the end of this node.
        hits: requests that found it.
        locks: what holds it: running requests, leases, nodes below that are held.
        children: nodes directly below it, told or not.
        token_ids: its first ids.
    """

    parent: int
    tokens: int
    end: int
    hits: int
    locks: int
    children: int
    token_ids: list[int]
