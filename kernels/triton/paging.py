"""Slots of whole rows end to end, for libraries that want a list of pages.

Invariant: the list is made on the device, from the slot table as it is when its turn comes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from branchline.kernels.triton.tuning import plain_launch

__all__ = ["slots_of_rows"]


@triton.jit
def slots_kernel(slot_table, rows, indptr, out, context, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    first = tl.load(indptr + row)
    length = tl.load(indptr + row + 1) - first
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    table = slot_table + tl.load(rows + row).to(tl.int64) * context
    tl.store(out + first + i, tl.load(table + i, mask=i < length), mask=i < length)


def slots_of_rows(
    slot_table: torch.Tensor,
    rows: torch.Tensor,
    indptr: torch.Tensor,
    out: torch.Tensor,
    longest: int,
) -> None:
    """Write the slots of the first tokens of each row, one row after the other.

    Args:
        slot_table: [max_rows, max_ctx] int32.
        rows: [b] int32 on the device, rows of the table.
        indptr: [b + 1] int32 on the device, where each row begins in `out`, and their end.
        out: [n] int32, n at least that end.
        longest: of the rows, or more.
    """
    if len(rows) and longest:
        slots_kernel[(len(rows), triton.cdiv(longest, 1024))](
            slot_table, rows, indptr, out, slot_table.stride(0), BLOCK=1024, **plain_launch(4)
        )
