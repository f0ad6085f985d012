"""Slots of whole rows end to end, for libraries that want a list of pages.

Invariant: the list is made on the device from the slot table; the host gives its lengths.
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
    slot_table: torch.Tensor, rows: torch.Tensor, indptr: torch.Tensor, lens: torch.Tensor
) -> torch.Tensor:
    """Slots of the first lens[i] tokens of each row, one row after the other: int32 [sum].

    Args:
        slot_table: [max_rows, max_ctx] int32.
        rows: [b] int32 on the device, rows of the table.
        indptr: [b + 1] int32 on the device, where each row begins in the result.
        lens: [b] int32 on the host.
    """
    out = torch.empty(int(lens.sum()), dtype=torch.int32, device=slot_table.device)
    if len(out):
        slots_kernel[(len(lens), triton.cdiv(int(lens.max()), 1024))](
            slot_table, rows, indptr, out, slot_table.stride(0), BLOCK=1024, **plain_launch(4)
        )
    return out
