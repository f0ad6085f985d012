"""Slots of whole rows end to end, for libraries that want a list of pages.

Invariant: the list is made on the device from the slot table; the host gives its lengths.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from branchline.kernels.ops import AttentionMeta

__all__ = ["slots_of_rows"]


@triton.jit
def _slots_kernel(slot_table, rows, indptr, out, context, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    first = tl.load(indptr + row)
    length = tl.load(indptr + row + 1) - first
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    table = slot_table + tl.load(rows + row).to(tl.int64) * context
    tl.store(out + first + i, tl.load(table + i, mask=i < length), mask=i < length)


def slots_of_rows(
    meta: AttentionMeta,
    indptr: torch.Tensor,
    lens: torch.Tensor,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Slots of the first lens[i] tokens of each row i, one row after the other.

    Args:
        meta: gives rows and slot table.
        indptr: [b + 1] int32 on the device, where each row begins in the result.
        lens: [b] int32 on the host.
        out: int32 of enough elements on the device; None = a new one.
    """
    total, longest = int(lens.sum()), int(lens.max()) if len(lens) else 0
    if out is None:
        out = torch.empty(total, dtype=torch.int32, device=meta.slot_table.device)
    if total:
        _slots_kernel[(len(lens), triton.cdiv(longest, 1024))](
            meta.slot_table, meta.rows, indptr, out, meta.slot_table.stride(0), BLOCK=1024
        )
    return out
