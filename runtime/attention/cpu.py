"""Attention through the ops' own kernel (native on CPU): slots are read where they lie.

Invariant: nothing is gathered or padded; the plan is the step's metadata and no more.
"""

from __future__ import annotations

import torch

from branchline.runtime.attention.base import AttentionNeeds, OpsAttention, Support


class CpuAttention(OpsAttention):
    """`ops.paged_attention`."""

    name = "cpu"

    def supports(self, needs: AttentionNeeds) -> Support:
        """CPU pools of float32 or bfloat16."""
        if needs.device.type != "cpu":
            return Support(False, f"its kernel runs on the CPU, the pool is on {needs.device}")
        if needs.kv_dtype not in (torch.float32, torch.bfloat16):
            return Support(False, f"it reads float32 and bfloat16 pools, not {needs.kv_dtype}")
        return Support(True)
