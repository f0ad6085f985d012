"""A device's own copies of the slot table and the token table.

Invariant: when a step's forward runs, both hold what its plan was made from: changes travel with
the plans, and steps run in order. One row more than there are sequences belongs to padding: all
its slots are 0, so padding tokens read and write page 0 alone. Knows nothing of requests.
"""

from __future__ import annotations

import numpy as np
import torch

from branchline.runtime.core.batch import Int32Array, Int64Array, ScheduleBatch
from branchline.runtime.executor.device_stream import to_device


class DeviceTables:
    """Both tables.

    Args:
        rows: sequences; the padding row comes on top.
        slot_width: columns of the host's slot table.
        max_context: tokens of a row at most.
        device: where they are.

    Attributes:
        slots: int32 [rows + 1, slot_width].
        tokens: int32 [rows + 1, max_context + 1]: a full row still has room for the id after it.
        padding_row: index of the last row.
        padding_place: its first place in the flat token table.
    """

    def __init__(self, rows: int, slot_width: int, max_context: int, device: torch.device) -> None:
        self.padding_row = rows
        self.slots = torch.zeros((rows + 1, slot_width), dtype=torch.int32, device=device)
        self.padding_place = rows * (max_context + 1)
        self.tokens = torch.zeros((rows + 1, max_context + 1), dtype=torch.int32, device=device)

    def apply(self, plan: ScheduleBatch) -> None:
        """Queue the changes that the plan brings."""
        device = self.slots.device
        if plan.slot_writes is not None:
            self._write(self.slots, plan.slot_writes.index, plan.slot_writes.slots, device)
        if plan.inits:
            width = self.tokens.shape[1]
            places = [
                np.arange(len(init.ids), dtype=np.int64) + (init.row * width + init.start)
                for init in plan.inits
            ]
            ids = np.concatenate([init.ids for init in plan.inits])
            self._write(self.tokens, np.concatenate(places), ids, device)

    @staticmethod
    def _write(
        table: torch.Tensor, index: Int64Array, values: Int32Array, device: torch.device
    ) -> None:
        """One copy brings both: each costs the host more than its bytes."""
        both = to_device(np.stack([index, values.astype(np.int64)]), device)
        table.view(-1).index_copy_(0, both[0], both[1].int())

    def token_places(self, rows: Int32Array, positions: Int64Array) -> Int64Array:
        """Index of each (row, position) in the flat token table: int64 [n]."""
        return rows.astype(np.int64) * self.tokens.shape[1] + positions

    def put_tokens(self, places: torch.Tensor, ids: torch.Tensor) -> None:
        """Queue: write ids int32 [n] at `places` int64 [n] of the flat token table."""
        self.tokens.view(-1).index_copy_(0, places, ids)
