"""Attention through the ops' own kernels on a GPU: the slot table is read where it lies.

Invariant: nothing of a step is derived on the host, so a recorded forward needs no planning there.
What rows of one token share is found on the device, once for all layers: forks of a long trunk
then read it once for many rows instead of once for each.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from branchline.kernels.ops import AttentionMeta
from branchline.runtime.attention.base import (
    AttentionNeeds,
    AttentionPlan,
    OpsAttention,
    OpsPlan,
    Support,
)

_LARGEST_HEAD = 256
_FEWEST_ROWS = 8
"""Rows below which a shared trunk is read from the cache about as fast row by row."""


class TritonAttention(OpsAttention):
    """`ops.paged_attention` of `TritonOps`; where trunks are looked for, the plan has them.

    Args:
        needs: what the model and the pool are.
    """

    name = "triton"

    def __init__(self, needs: AttentionNeeds) -> None:
        self._group = needs.heads // needs.kv_heads
        self.finds_trunks = not needs.deterministic

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

    def init_graph(
        self, meta: AttentionMeta, *, trunks: bool = True, planned: bool = False
    ) -> OpsPlan:
        """Wraps the graph's own buffers; room for the trunks beside them."""
        lens, rows = meta.host_extend_lens, meta.rows.shape[0]
        single = lens is not None and len(lens) > 0 and int(lens.max()) <= 1
        looked_for = trunks and self.finds_trunks and rows >= _FEWEST_ROWS
        if not (single and looked_for) or meta.tree_lens is not None:
            return OpsPlan(meta)
        # Imported where it is used: a machine without a GPU may have no Triton.
        from branchline.kernels.triton.attention import trunk_tiles

        tiles = trunk_tiles(rows, self._group)
        found = torch.zeros(tiles, dtype=torch.int32, device=meta.rows.device)
        return OpsPlan(replace(meta, trunk_lens=found))

    def begin(self, plan: AttentionPlan) -> None:
        """Queue the search for trunks."""
        trunks = plan.meta.trunk_lens
        if trunks is None:
            return
        from branchline.kernels.triton.attention import find_trunks

        find_trunks(plan.meta, self._group, trunks)
