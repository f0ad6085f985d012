"""Requests that wait for memory and a row, in the order in which they should run.

Policies: "fcfs"; "priority" (larger first, then arrival); "lpm" (priority class, then longest
cached prefix, then arrival). Whatever the policy, a request that was passed over `max_skips` times
goes next, and retracted requests go before everything.

Longest-prefix order is kept incrementally, so its cost does not depend on how many wait. A waiting
request's match can grow only when a prefix enters the cache that agrees with it up to exactly the
end of its present match and on the id after it; requests are indexed by that (end, id) pair, and an
insertion looks up only its own pair. Matches that shrink by eviction are noticed when a request
reaches the front: if something has left the cache since, it is looked up again there. Knows
nothing of rows, pages or steps.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator

from branchline.runtime.core.request import Request, TokenIds

MatchLen = Callable[[TokenIds, str], int]
_Key = tuple[str, int, int]

REINDEX_PER_STEP = 512
"""Waiting requests whose match is looked up again in one step at most, so that no step stalls."""


class WaitingQueue:
    """Ordered waiting requests.

    Args:
        policy: "fcfs", "priority" or "lpm".
        match_len: length of the cached prefix of ids in a namespace; changes nothing.
        max_skips: how often a request may be passed over.
        losses: counts up whenever something may have left the cache; None = that can be any time.
    """

    def __init__(
        self,
        policy: str,
        match_len: MatchLen,
        max_skips: int,
        losses: Callable[[], int] | None = None,
    ) -> None:
        self._policy = policy
        self._match_len = match_len
        self._losses = losses
        self._max_skips = max_skips
        self._retracted: deque[Request] = deque()
        self._arrivals: deque[Request] = deque()
        self._heap: list[tuple[int, int, int, Request]] = []
        self._match: dict[Request, int] = {}
        self._looked_up: dict[Request, int | None] = {}  # losses then; None = look again
        self._index: dict[_Key, dict[Request, None]] = {}
        self._stale: deque[Request] = deque()
        self._arrival = 0
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Request]:
        yield from self._retracted
        yield from list(self._match)

    def add(self, request: Request) -> None:
        """Put a new request in its place."""
        self._arrival += 1
        request.progress.arrival = self._arrival
        self._size += 1
        self._arrivals.append(request)
        self._place(request, self._look_up(request) if self._policy == "lpm" else 0)

    def add_first(self, request: Request) -> None:
        """Put a retracted request before all others."""
        self._size += 1
        self._retracted.append(request)

    def remove(self, request: Request) -> bool:
        """Take a request out; False when it does not wait here."""
        if request in self._match:
            self._forget(request)
        elif request in self._retracted:
            self._retracted.remove(request)
        else:
            return False
        self._size -= 1
        return True

    def candidates(self) -> Iterator[Request]:
        """Requests in order, each at most once; the caller removes those it admits.

        A request that is yielded and stays is kept in its place; the iteration may end any time.
        """
        yield from list(self._retracted)
        self._reindex_stale()
        oldest = self._oldest()
        if oldest is not None and oldest.progress.skipped >= self._max_skips:
            yield oldest
        passed: dict[Request, tuple[int, int, int, Request]] = {}
        try:
            while self._heap:
                entry = heapq.heappop(self._heap)
                request = entry[3]
                if request not in self._match or entry != self._entry(request):
                    continue  # it left, or has a newer entry
                if request in passed:
                    continue  # its match shrank and grew again: two equal entries
                if self._shrunk(request):
                    continue
                passed[request] = entry
                if request is not oldest or request.progress.skipped < self._max_skips:
                    yield request
        finally:
            for request, entry in passed.items():
                if request in self._match:
                    heapq.heappush(self._heap, entry)

    def is_overdue(self, request: Request) -> bool:
        """Whether others should no longer be admitted before it."""
        return request.progress.skipped >= self._max_skips or request not in self._match

    def admitted(self, request: Request) -> None:
        """`request` was taken: the oldest one that was passed over counts it."""
        self.remove(request)
        oldest = self._oldest()
        if oldest is not None and oldest.progress.arrival < request.progress.arrival:
            oldest.progress.skipped += 1

    def inserted(self, ids: TokenIds, namespace: str, old_len: int, new_len: int) -> None:
        """A prefix `ids[:new_len]` entered the cache, which held `ids[:old_len]` before."""
        if self._policy != "lpm" or new_len <= old_len:
            return
        waiters = self._index.get((namespace, old_len, int(ids[old_len])))
        if waiters:
            self._stale.extend(waiters)
            self._looked_up.update(dict.fromkeys(waiters))

    def _oldest(self) -> Request | None:
        while self._arrivals and self._arrivals[0] not in self._match:
            self._arrivals.popleft()
        return self._arrivals[0] if self._arrivals else None

    def _entry(self, request: Request) -> tuple[int, int, int, Request]:
        priority = 0 if self._policy == "fcfs" else -request.source.priority
        return (priority, -self._match[request], request.progress.arrival, request)

    def _place(self, request: Request, match: int) -> None:
        self._match[request] = match
        if self._policy == "lpm":
            self._index.setdefault(self._key(request, match), {})[request] = None
        heapq.heappush(self._heap, self._entry(request))

    def _forget(self, request: Request) -> None:
        match = self._match.pop(request)
        self._looked_up.pop(request, None)
        if self._policy == "lpm":
            key = self._key(request, match)
            self._index[key].pop(request, None)
            if not self._index[key]:
                del self._index[key]

    def _key(self, request: Request, match: int) -> _Key:
        following = int(request.ids[match]) if match < request.length else -1
        return (request.source.namespace, match, following)

    def _reindex_stale(self) -> None:
        for _ in range(min(len(self._stale), REINDEX_PER_STEP)):
            request = self._stale.popleft()
            if request in self._match:
                self._shrunk(request)

    def _shrunk(self, request: Request) -> bool:
        """Look the match up again; True when its place changed (it is then in the new one)."""
        if self._policy != "lpm":
            return False
        known = self._looked_up[request]
        if known is not None and self._losses is not None and known == self._losses():
            return False
        match = self._look_up(request)
        if match == self._match[request]:
            return False
        looked_up = self._looked_up[request]
        self._forget(request)
        self._looked_up[request] = looked_up
        self._place(request, match)
        return True

    def _look_up(self, request: Request) -> int:
        self._looked_up[request] = 0 if self._losses is None else self._losses()
        return self._match_len(request.ids[: request.length], request.source.namespace)
