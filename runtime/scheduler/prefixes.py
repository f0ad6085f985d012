"""Prompts that are being computed right now, so that requests which share them wait a moment.

Without this, n branches of a fork (or n programs of a batch) that arrive together would each
compute the same trunk. A request that shares much with a prompt in flight is held back until that
part is in the cache. Holding never blocks requests that share nothing.
"""

from __future__ import annotations

from branchline.runtime.core.request import Request

MIN_SHARED = 4
"""Tokens that must be gained for a request to be held back."""

MAX_COMPARED = 16
"""Prompts in flight that one candidate is compared with at most."""


class PrefixesInFlight:
    """Requests whose prompts are partly computed, by namespace and first id."""

    def __init__(self) -> None:
        self._groups: dict[tuple[str, int], dict[Request, None]] = {}

    def add(self, request: Request) -> None:
        """`request` starts to compute its prompt."""
        self._groups.setdefault(self._key(request), {})[request] = None

    def discard(self, request: Request) -> None:
        """`request`'s prompt is in the cache, or will not come."""
        key = self._key(request)
        group = self._groups.get(key)
        if group is not None:
            group.pop(request, None)
            if not group:
                del self._groups[key]

    def should_wait(self, request: Request, cached_len: int) -> bool:
        """True when a prompt in flight shares at least `MIN_SHARED` ids beyond `cached_len`."""
        group = self._groups.get(self._key(request))
        if group is None:
            return False
        ids, length = request.ids, request.length
        end = cached_len + MIN_SHARED
        wanted = ids[:end].tobytes()
        for count, other in enumerate(group):
            if count == MAX_COMPARED:
                return False
            if min(length, other.prompt_len) < end or other is request:
                continue
            # most that differ do so where they go on from what is cached
            if other.ids[end - 1] == ids[end - 1] and other.ids[:end].tobytes() == wanted:
                return True
        return False

    @staticmethod
    def _key(request: Request) -> tuple[str, int]:
        return (request.source.namespace, int(request.ids[0]))
