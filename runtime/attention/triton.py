"""Attention through the ops' own kernels on a GPU: the slot table is read where it lies.

Invariant: nothing is derived from a step on the host, so a recorded forward needs no planning. As
on the CPU, the plan is the step's metadata; what differs is where it can run.
"""

from __future__ import annotations

import torch

from branchline.runtime.attention.base import AttentionNeeds, Support
from branchline.runtime.attention.cpu import CpuAttention

_LARGEST_HEAD = 256


class TritonAttention(CpuAttention):
    """`ops.paged_attention` of `TritonOps`."""

    name = "triton"

    def supports(self, needs: AttentionNeeds) -> Support:
        """CUDA pools of float32 or bfloat16; a graph's rows have as many tokens as it recorded."""
        if needs.device.type != "cuda":
            return Support(False, f"its kernels run on CUDA, the pool is on {needs.device}")
        if needs.kv_dtype not in (torch.float32, torch.bfloat16):
            return Support(False, f"it reads float32 and bfloat16 pools, not {needs.kv_dtype}")
        if needs.head_dim > _LARGEST_HEAD:
            return Support(
                False, f"its heads have at most {_LARGEST_HEAD} elements, not {needs.head_dim}"
            )
        return Support(True)
