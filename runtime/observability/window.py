"""Values of the last minute, for whoever looks now. Knows not what they measure.

Invariant: a window takes the same memory however many values come, from the first on, so that a
process that serves does not grow by what it measures.
"""

from __future__ import annotations

import math
import threading
import time
from array import array
from collections.abc import Callable, Sequence

SECONDS = 60.0
MOST = 4096


class Window:
    """The values of the last `seconds`, at most the newest `most` of them. Any thread.

    Args:
        clock: monotonic seconds.
    """

    def __init__(
        self,
        seconds: float = SECONDS,
        most: int = MOST,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._seconds = seconds
        self._clock = clock
        self._times = array("d", [-math.inf]) * most
        self._values = array("d", [0.0]) * most
        self._next = 0
        self._lock = threading.Lock()

    def add(self, value: float) -> None:
        """One more."""
        with self._lock:
            self._times[self._next] = self._clock()
            self._values[self._next] = value
            self._next = (self._next + 1) % len(self._times)

    def quantiles(self, shares: Sequence[float]) -> list[float]:
        """For each share the smallest value that at least so many are not above; [] without any."""
        with self._lock:
            oldest = self._clock() - self._seconds
            both = zip(self._times, self._values, strict=True)
            values = sorted(value for when, value in both if when >= oldest)
        if not values:
            return []
        return [values[max(0, math.ceil(share * len(values)) - 1)] for share in shares]
