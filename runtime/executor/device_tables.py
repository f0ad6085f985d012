"""A device's own copies of the slot table and the token table.

Invariant: when a step's forward runs, both hold what its plan was made from: changes travel with
the plans, and steps run in order. One row more than there are sequences belongs to padding: all
its slots are 0, so padding tokens read and write page 0 alone. Knows nothing of requests.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from branchline.kernels.beam import SlotRows
from branchline.runtime.core.batch import Int32Array, Int64Array, ScheduleBatch
from branchline.runtime.executor.device_stream import to_device


@dataclass(frozen=True, slots=True)
class TableChanges:
    """What a plan changes, on the host.

    Attributes:
        slot_places, slots: int64 and int32 [w], entries of the flat slot table.
        token_places, tokens: int64 and int32 [v], entries of the flat token table.
    """

    slot_places: Int64Array
    slots: Int32Array
    token_places: Int64Array
    tokens: Int32Array

    @property
    def most(self) -> int:
        """Entries of the table that changes most."""
        return max(len(self.slots), len(self.tokens))


_NO_PLACES = np.zeros(0, dtype=np.int64)
_NO_VALUES = np.zeros(0, dtype=np.int32)
NO_CHANGES = TableChanges(_NO_PLACES, _NO_VALUES, _NO_PLACES, _NO_VALUES)


@dataclass(frozen=True, slots=True)
class TableWrites:
    """The same on the device; a place named twice has the same value both times."""

    slot_places: torch.Tensor
    slots: torch.Tensor
    token_places: torch.Tensor
    tokens: torch.Tensor


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
        lengths: int32 [rows + 1], computed tokens of rows whose last step kept guesses by itself.
        padding_row: index of the last row.
        padding_place: its first place in the flat token table.
        padding_slot_place: its first place in the flat slot table, which stays 0.
    """

    def __init__(self, rows: int, slot_width: int, max_context: int, device: torch.device) -> None:
        self.padding_row = rows
        self.slots = torch.zeros((rows + 1, slot_width), dtype=torch.int32, device=device)
        self.padding_place = rows * (max_context + 1)
        self.padding_slot_place = rows * slot_width
        self.tokens = torch.zeros((rows + 1, max_context + 1), dtype=torch.int32, device=device)
        self.lengths = torch.zeros(rows + 1, dtype=torch.int32, device=device)

    @property
    def known(self) -> SlotRows:
        """The tables, as the ops around guesses take them."""
        return SlotRows(self.slots, self.tokens, self.lengths)

    def changes(self, plan: ScheduleBatch) -> TableChanges:
        """What the plan changes."""
        slot_places, slots = _NO_PLACES, _NO_VALUES
        if plan.slot_writes is not None:
            slot_places, slots = plan.slot_writes.index, plan.slot_writes.slots
        if not plan.inits:
            return TableChanges(slot_places, slots, _NO_PLACES, _NO_VALUES)
        width = self.tokens.shape[1]
        ids = np.concatenate([init.ids for init in plan.inits])
        firsts = np.array([init.row * width + init.start for init in plan.inits], np.int64)
        counts = np.array([len(init.ids) for init in plan.inits])
        # of each piece: its first place less what lies before it in `ids`
        firsts -= counts.cumsum() - counts
        places = firsts.repeat(counts) + np.arange(len(ids))
        return TableChanges(slot_places, slots, places, ids)

    def upload(self, changes: TableChanges) -> TableWrites:
        """Queue one copy that brings all of it, if it is anything: a copy costs the host more than
        its bytes."""
        w, v = len(changes.slots), len(changes.tokens)
        packed = np.concatenate(
            [
                changes.slot_places.view(np.int32),
                changes.token_places.view(np.int32),
                changes.slots,
                changes.tokens,
            ]
        )
        there = to_device(packed, self.slots.device)
        places = there[: 2 * (w + v)].view(torch.int64)
        values = there[2 * (w + v) :]
        return TableWrites(places[:w], values[:w], places[w:], values[w:])

    def write(self, writes: TableWrites) -> None:
        """Queue the writes; recorded, they are made again with what their buffers then hold."""
        self.slots.view(-1).index_copy_(0, writes.slot_places, writes.slots)
        self.put_tokens(writes.token_places, writes.tokens)

    def token_places(self, rows: Int32Array, positions: Int64Array) -> Int64Array:
        """Index of each (row, position) in the flat token table: int64 [n]."""
        return rows.astype(np.int64) * self.tokens.shape[1] + positions

    def put_tokens(self, places: torch.Tensor, ids: torch.Tensor) -> None:
        """Queue: write ids int32 [n] at `places` int64 [n] of the flat token table."""
        self.tokens.view(-1).index_copy_(0, places, ids)
