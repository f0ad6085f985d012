"""Attention through the ops' own kernel (native on CPU): slots are read where they lie.

Invariant: nothing is gathered or padded; the plan is the step's metadata and no more.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from branchline.kernels.ops import AttentionMeta, Ops
from branchline.runtime.attention.base import AttentionNeeds, AttentionPlan, Support


@dataclass(slots=True)
class CpuPlan:
    """The step's metadata; replaced as a whole on replay."""

    meta: AttentionMeta


class CpuAttention:
    """`ops.paged_attention`."""

    name = "cpu"

    def supports(self, needs: AttentionNeeds) -> Support:
        """CPU pools of float32 or bfloat16."""
        if needs.device.type != "cpu":
            return Support(False, f"its kernel runs on the CPU, the pool is on {needs.device}")
        if needs.kv_dtype not in (torch.float32, torch.bfloat16):
            return Support(False, f"it reads float32 and bfloat16 pools, not {needs.kv_dtype}")
        return Support(True)

    def plan(self, meta: AttentionMeta) -> CpuPlan:
        """Wraps `meta`."""
        return CpuPlan(meta)

    def forward(
        self,
        ops: Ops,
        q: torch.Tensor,
        k_pool: torch.Tensor,
        v_pool: torch.Tensor,
        plan: AttentionPlan,
        scale: float,
    ) -> torch.Tensor:
        """See `AttentionBackend.forward`."""
        return ops.paged_attention(q, k_pool, v_pool, plan.meta, scale)

    def init_graph(self, meta: AttentionMeta) -> CpuPlan:
        """Wraps the graph's own buffers."""
        return CpuPlan(meta)

    def plan_replay(self, plan: AttentionPlan, meta: AttentionMeta) -> None:
        """Nothing is derived from the metadata, and the graph copies it to its own buffers."""
