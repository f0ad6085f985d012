"""Arrays and small records of this room. Imports nothing of the project."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

TokenIds = np.ndarray[tuple[int], np.dtype[np.int32]]
"""Token ids, int32 [n]."""

Slots = np.ndarray[tuple[int], np.dtype[np.int32]]
"""Places in the key-value pool, int32 [n]; slot = page * page_size + offset."""

Pages = np.ndarray[tuple[int], np.dtype[np.int32]]
"""Page numbers, int32 [n]; page 0 takes padding writes and is never handed out."""

Positions = np.ndarray[tuple[int], np.dtype[np.int64]]
"""Places in a sequence, int64 [n]."""

ID_BYTES = 4
"""Bytes of one token id in an encoded key."""


class Violation(NamedTuple):
    """One breach of law 1 that an audit found.

    Attributes:
        kind: short name of the broken rule, fit for a metric label.
        detail: what was found, for a log line.
        repaired: False when the state could not be made consistent.
    """

    kind: str
    detail: str
    repaired: bool = True


@dataclass(slots=True)
class CacheStats:
    """Counters since the manager was made. Tokens unless said otherwise.

    Attributes:
        hits: calls of `match` that found at least one page.
        misses: calls of `match` that found none.
        queried: length of the keys given to `match`.
        matched: tokens that `match` found.
        inserted: tokens that entered the prefix cache.
        duplicates: tokens of a row that were freed since the cache held them already.
        evicted: tokens taken out of the cache to make room (flushes not counted).
        leases_broken: leases dropped because running requests needed their memory.
        violations: breaches of law 1 found and repaired.
    """

    hits: int = 0
    misses: int = 0
    queried: int = 0
    matched: int = 0
    inserted: int = 0
    duplicates: int = 0
    evicted: int = 0
    leases_broken: int = 0
    violations: int = 0

    @property
    def hit_rate(self) -> float:
        """Matched over queried tokens, 0.0 when nothing was asked."""
        return self.matched / self.queried if self.queried else 0.0


def encode(ids: TokenIds) -> bytes:
    """Token ids as bytes, 4 per id: keys compare with one memcmp and hash without boxing."""
    return np.asarray(ids, dtype=np.int32).tobytes()


def empty_slots() -> Slots:
    """A new empty int32 array."""
    return np.empty(0, dtype=np.int32)
