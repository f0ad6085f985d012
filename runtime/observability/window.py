"""Values of the last minute, for whoever looks now. Bounded; knows not what they measure."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
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
        self._values: deque[tuple[float, float]] = deque(maxlen=most)
        self._lock = threading.Lock()

    def add(self, value: float) -> None:
        """One more."""
        with self._lock:
            self._values.append((self._clock(), value))

    def quantiles(self, shares: Sequence[float]) -> list[float]:
        """For each share the smallest value that at least so many are not above; [] without any."""
        with self._lock:
            oldest = self._clock() - self._seconds
            while self._values and self._values[0][0] < oldest:
                self._values.popleft()
            values = sorted(value for _, value in self._values)
        if not values:
            return []
        return [values[max(0, math.ceil(share * len(values)) - 1)] for share in shares]
