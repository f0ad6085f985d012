"""Attention through the ops' own kernels on a GPU: the slot table is read where it lies.

Invariant: nothing of a step is derived on the host, so a recorded forward needs no planning there.
What rows of one token share is found on the device, once for all layers: forks of a long trunk
then read it once for many rows instead of once for each.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from branchline.kernels.ops import AttentionMeta, Ops
from branchline.runtime.attention.base import AttentionNeeds, AttentionPlan, Support

_LARGEST_HEAD = 256
_FEWEST_ROWS = 8
"""Rows below which a shared trunk is read from the cache about as fast row by row."""


@dataclass(slots=True)
class TritonPlan:
    """The step's metadata, with the trunks where they were looked for."""

    meta: AttentionMeta


class TritonAttention:
    """`ops.paged_attention` of `TritonOps`.

    Args:
        needs: what the model and the pool are.
    """

    name = "triton"

    def __init__(self, needs: AttentionNeeds) -> None:
        self._group = needs.heads // needs.kv_heads

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

    def plan(self, meta: AttentionMeta) -> TritonPlan:
        """Queues the search for trunks, if the rows have one token each and are many."""
        plan = self.init_graph(meta)
        self.plan_replay(plan, meta)
        return plan

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

    def init_graph(self, meta: AttentionMeta) -> TritonPlan:
        """Wraps the graph's own buffers; room for the trunks beside them."""
        lens, rows = meta.host_extend_lens, meta.rows.shape[0]
        single = lens is not None and len(lens) > 0 and int(lens.max()) <= 1
        if not single or meta.tree_lens is not None or rows < _FEWEST_ROWS:
            return TritonPlan(meta)
        # Imported where it is used: a machine without a GPU may have no Triton.
        from branchline.kernels.triton.attention import trunk_tiles

        tiles = trunk_tiles(rows, self._group)
        trunks = torch.zeros(tiles, dtype=torch.int32, device=meta.rows.device)
        return TritonPlan(replace(meta, trunk_lens=trunks))

    def plan_replay(self, plan: AttentionPlan, meta: AttentionMeta) -> None:
        """Look for trunks anew, on the device, in the buffers that the plan was made over."""
        assert isinstance(plan, TritonPlan), "a plan belongs to the backend that made it"
        trunks = plan.meta.trunk_lens
        if trunks is None:
            return
        from branchline.kernels.triton.attention import find_trunks

        find_trunks(meta, self._group, trunks)
