"""A worker that computes nothing and takes as long as it is told: what is left is the host's time.

Steps are queued as on a device: one begins when it is given or when the one before has ended,
whatever is later. Ids are read from scripts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from branchline.runtime.core.batch import ForwardOutput, ScheduleBatch
from branchline.runtime.core.protocols import Pending

if TYPE_CHECKING:
    from branchline.runtime.core.protocols import Bitmask


@dataclass(slots=True)
class TimedPending:
    """A step that ends at `until`, by `time.perf_counter`."""

    plan: ScheduleBatch
    ids: np.ndarray[tuple[int], np.dtype[np.int32]]
    until: float

    def done(self) -> bool:
        return time.perf_counter() >= self.until

    def result(self) -> ForwardOutput:
        while (left := self.until - time.perf_counter()) > 0:
            if left > 3e-4:  # sleeping costs no CPU, and may last longer
                time.sleep(left - 2e-4)
        ids = self.ids
        return ForwardOutput(ids.reshape(-1, 1), np.ones(len(ids), dtype=np.int32))


class TimedWorker:
    """See the module.

    Args:
        scripts: ids of whole sequences, prompt included, by the first id of the prompt.
        seconds: of a step, of its rows and its tokens.

    Attributes:
        steps: rows and tokens of each.
        overlapped: steps that were given while another one was on its way.
    """

    def __init__(
        self, scripts: dict[int, Sequence[int]], seconds: Callable[[int, int], float]
    ) -> None:
        self._scripts = {first: np.array(ids, dtype=np.int32) for first, ids in scripts.items()}
        self._seconds = seconds
        self._rows: dict[int, np.ndarray[tuple[int], np.dtype[np.int32]]] = {}
        self._free = 0.0
        self.steps: list[tuple[int, int]] = []
        self.overlapped = 0

    def forward(self, plan: ScheduleBatch, *, awaited: bool = False) -> Pending:
        for init in plan.inits:
            if init.start == 0:
                self._rows[init.row] = self._scripts[int(init.ids[0])]
        now = time.perf_counter()
        self.overlapped += self._free > now
        self._free = max(self._free, now) + self._seconds(len(plan.rows), plan.num_tokens)
        self.steps.append((len(plan.rows), plan.num_tokens))
        rows, positions = plan.rows[plan.sample_rows].tolist(), plan.sample_positions.tolist()
        ids = [
            self._rows[row][min(at, len(self._rows[row]) - 1)]
            for row, at in zip(rows, positions, strict=True)
        ]
        return TimedPending(plan, np.array(ids, dtype=np.int32), self._free)

    def sample(self, pending: Pending, bitmask: Bitmask | None) -> None:
        """Nothing is to be done."""

    def close(self) -> None:
        """Nothing is held."""
