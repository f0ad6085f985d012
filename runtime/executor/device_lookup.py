"""Looking up on a device: behind every step, where each row's last ids have come before; ahead of a
step that checks guesses, what followed there.

Invariant: nothing here waits for the device, and all of it can be recorded. What is found comes
back with the step's ids, so that asking costs the host nothing. Knows nothing of requests.
"""

from __future__ import annotations

import torch

from branchline.kernels.lookup import LookupOps, Matches
from branchline.kernels.ops import Ops
from branchline.runtime.errors import InvalidRequest
from branchline.runtime.executor.device_tables import DeviceTables
from branchline.runtime.executor.plan_buffers import StepTensors


class DeviceLookup:
    """Looks rows up in their own ids.

    Args:
        ops: what it runs with.
        tables: what the rows hold.
        most: guesses of a row at most.

    Raises:
        InvalidRequest: the ops cannot look up.
    """

    def __init__(self, ops: Ops, tables: DeviceTables, most: int) -> None:
        if not isinstance(ops, LookupOps):
            raise InvalidRequest(
                f"{type(ops).__name__} cannot look up on a device.", hint="Use TritonOps."
            )
        self._ops: LookupOps = ops
        self._tables, self._most = tables, most
        lengths = torch.zeros_like(tables.lengths)
        self._matches = Matches(lengths, torch.zeros_like(lengths))

    def plant(self, step: StepTensors) -> None:
        """Queue: the places of a step's drafted rows become candidates."""
        known = self._tables.known
        self._ops.plant_chains(step.check(), step.last_known, known, self._matches, self._most)

    def find(self, step: StepTensors) -> None:
        """Queue, once a step's ids are in the table of tokens and the third line of `back`: keep
        the candidates that were sampled, and look its rows up."""
        known = self._tables.known
        self._ops.find_matches(step.check(), step.matched, known, self._matches, self._most)
