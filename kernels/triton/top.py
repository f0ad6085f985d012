"""The largest logits of each row: parts of a row find their own, one program a row joins them."""

from __future__ import annotations

import torch
import triton

from branchline.kernels.triton.row_kernels import top_join_kernel, top_part_kernel
from branchline.kernels.triton.tuning import Device, power_of_two

_AT_ONCE = 16
_PART = 2048


def top_rows(gpu: Device, logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """See `Ops.top_rows`."""
    n, vocabulary = logits.shape
    if k > _AT_ONCE:
        largest = logits.float().topk(k, dim=-1)
        return largest.values, largest.indices.int()
    parts = triton.cdiv(vocabulary, _PART)
    values = torch.empty(n, parts, k, dtype=torch.float32, device=logits.device)
    indices = torch.empty(n, parts, k, dtype=torch.int32, device=logits.device)
    top_part_kernel[(n, parts)](
        logits, values, indices, vocabulary, K=k, BLOCK=_PART, **gpu.launch(8)
    )
    out = values.new_empty(n, k), indices.new_empty(n, k)
    block = power_of_two(parts * k)
    top_join_kernel[(n,)](values, indices, *out, parts * k, K=k, BLOCK=block, **gpu.launch(4))
    return out
