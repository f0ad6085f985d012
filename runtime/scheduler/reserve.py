"""Memory that admission leaves to the requests that run.

Each may still write as much as it asked for, and most write less: a share of that is kept free,
larger after a retraction, and a little smaller with every step that admits.
"""

from __future__ import annotations

from collections.abc import Iterable

from branchline.runtime.core.request import Request
from branchline.runtime.memory.cache_manager import CacheManager

RESERVE_TOKENS = 256
"""Tokens a running request may still write that admission keeps free for it at most."""


class Reserve:
    """Counts what must stay free. Changes no memory but leases, where nothing else runs."""

    def __init__(self, cache: CacheManager) -> None:
        self._cache = cache
        self._share = 0.5

    def retracted(self) -> None:
        """Too little was kept."""
        self._share = min(1.0, self._share + 0.2)

    def of_all(self, running: Iterable[Request]) -> int:
        """Tokens to keep free for the running requests, at the beginning of an admission."""
        total = 0
        share = self._share
        for request in running:
            sampled = request.sampled_len
            room = request.max_len - sampled
            if room > RESERVE_TOKENS:
                room = RESERVE_TOKENS
            total += sampled - request.planned_len + int(room * share)
            if request.readout is not None:
                total += _nodes(request)
        self._share = max(0.1, share - 0.001)
        return total

    def of(self, request: Request) -> int:
        """Tokens to keep free for what a running request has to compute and may still write."""
        sampled = request.sampled_len
        room = min(request.max_len - sampled, RESERVE_TOKENS)
        return sampled - request.planned_len + _nodes(request) + int(room * self._share)

    def fits(self, request: Request, cached_len: int, reserved: int, *, alone: bool) -> bool:
        """True when `request` may start; where nothing runs (`alone`), leases give way to it.

        Args:
            cached_len: tokens of it that are cached, and locked.
            reserved: of those that run.
        """
        cache = self._cache
        nodes = max(len(g.tree) for g in request.score.groups) if request.score is not None else 0
        needed = request.length - cached_len + nodes + cache.page_size
        if not alone:
            room = min(request.max_len - request.length, RESERVE_TOKENS)
            needed += reserved + int(room * self._share)
        available = cache.free_tokens + cache.evictable_tokens
        if available < needed and alone:
            cache.break_leases(needed)
            available = cache.free_tokens + cache.evictable_tokens
        return available >= needed


def _nodes(request: Request) -> int:
    """Candidates that a step of a score request may still have."""
    score = request.score
    if score is None or score.complete:
        return 0
    return max(len(group.tree) for group in score.groups)
