"""Attention in torch, on any device and dtype: row after row, nothing padded to the longest.

Invariant: scores, softmax and sums are float32 whatever the pool holds, and the scores that exist
at one time stay under `SCORE_BYTES`, whatever the length of a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from branchline.kernels.ops import AttentionMeta, Ops
from branchline.runtime.attention.base import AttentionNeeds, AttentionPlan, Support

SCORE_BYTES = 64 << 20
"""Most memory that the score matrices of one piece of a row take."""


@dataclass(frozen=True, slots=True)
class RowPlan:
    """One row of a step.

    Attributes:
        start, extend: its tokens are `start : start + extend` of the step.
        length: its tokens in all.
        slots: int64 [length], on the pool's device.
        tree: bool [n, n], which of the last n tokens each of them sees; None = causal.
    """

    start: int
    extend: int
    length: int
    slots: torch.Tensor
    tree: torch.Tensor | None


@dataclass(slots=True)
class TorchPlan:
    """Rows of a step with their slots looked up once for all layers."""

    meta: AttentionMeta
    rows: list[RowPlan]


class TorchAttention:
    """Gather, matrix product, softmax, matrix product."""

    name = "torch_native"
    finds_trunks = False
    most_planned_keys = 0

    def supports(self, needs: AttentionNeeds) -> Support:
        """Everything, run eagerly."""
        if needs.graph:
            return Support(False, "its torch calls cannot be recorded")
        return Support(True)

    def plan(self, meta: AttentionMeta) -> TorchPlan:
        """Looks up each row's slots and unpacks its tree mask."""
        return TorchPlan(meta, _row_plans(meta))

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
        assert isinstance(plan, TorchPlan), "a plan belongs to the backend that made it"
        out = torch.empty_like(q)
        for row in plan.rows:
            _attend_row(row, q, k_pool, v_pool, scale, out)
        return out.reshape(q.shape[0], -1)

    def begin(self, plan: AttentionPlan) -> None:
        """Nothing is derived."""

    def init_graph(
        self, meta: AttentionMeta, *, trunks: bool = True, planned: bool = False
    ) -> TorchPlan:
        """A plan without rows; `plan_replay` gives it some."""
        return TorchPlan(meta, [])

    def plan_replay(self, plan: AttentionPlan, meta: AttentionMeta) -> None:
        """Plans the step anew into the same object."""
        assert isinstance(plan, TorchPlan), "a plan belongs to the backend that made it"
        plan.meta = meta
        plan.rows = _row_plans(meta)


def _row_plans(meta: AttentionMeta) -> list[RowPlan]:
    table_rows, lengths = meta.rows.tolist(), meta.seq_lens.tolist()
    extends, starts = meta.extend_lens.tolist(), meta.extend_start.tolist()
    trees = [0] * len(lengths) if meta.tree_lens is None else meta.tree_lens.tolist()
    offsets = trees if meta.tree_offsets is None else meta.tree_offsets.tolist()
    return [
        RowPlan(
            start=starts[i],
            extend=extends[i],
            length=lengths[i],
            slots=meta.slot_table[table_rows[i], : lengths[i]].long(),
            tree=_tree_mask(meta, offsets[i], trees[i]) if trees[i] else None,
        )
        for i in range(len(lengths))
        if extends[i]
    ]


def _tree_mask(meta: AttentionMeta, offset: int, count: int) -> torch.Tensor:
    """Mask bits of one row as bool [count, count]."""
    assert meta.tree_words is not None, "a row with a tree has mask words"
    words = -(-count // 64)
    packed = meta.tree_words[offset : offset + count * words].view(count, words, 1)
    bits = torch.arange(64, dtype=torch.int64, device=packed.device)
    # the shift of a negative word drags its sign along, which the & 1 drops again
    return ((packed >> bits) & 1).bool().reshape(count, words * 64)[:, :count]


def _attend_row(
    row: RowPlan,
    q: torch.Tensor,
    k_pool: torch.Tensor,
    v_pool: torch.Tensor,
    scale: float,
    out: torch.Tensor,
) -> None:
    """Write the row's part of `out` [t, heads, head_dim]."""
    heads, dim = q.shape[1:]
    kv_heads = k_pool.shape[1]
    keys = k_pool[row.slots].float().permute(1, 2, 0)  # [kv_heads, dim, length]
    values = v_pool[row.slots].float().permute(1, 0, 2)  # [kv_heads, length, dim]
    step = max(1, SCORE_BYTES // (4 * heads * row.length))
    for first in range(0, row.extend, step):
        count = min(step, row.extend - first)
        # queries of one piece see nothing past the last of them, unless they are in a tree
        seen = row.length if row.tree is not None else row.length - row.extend + first + count
        tokens = slice(row.start + first, row.start + first + count)
        queries = q[tokens].float().view(count, kv_heads, heads // kv_heads, dim)
        queries = queries.permute(1, 2, 0, 3).reshape(kv_heads, -1, dim)
        scores = (queries @ keys[:, :, :seen]).view(kv_heads, -1, count, seen) * scale
        if count > 1 or row.tree is not None:
            scores.masked_fill_(_hidden(row, first, count, seen, q.device), float("-inf"))
        weights = torch.softmax(scores, dim=-1).view(kv_heads, -1, seen)
        result = (weights @ values[:, :seen]).view(kv_heads, heads // kv_heads, count, dim)
        out[tokens] = result.permute(2, 0, 1, 3).reshape(count, heads, dim).to(q.dtype)


def _hidden(row: RowPlan, first: int, count: int, seen: int, device: torch.device) -> torch.Tensor:
    """What tokens first … first + count - 1 of the row's extend may not see: bool [count, seen]."""
    begin = row.length - row.extend + first
    index = torch.arange(seen, device=device)
    own = torch.arange(begin, begin + count, device=device)
    hidden = index > own[:, None]
    if row.tree is not None:
        nodes = row.tree.shape[0]
        root = row.length - nodes
        inside = max(0, root - begin)  # queries of this piece before the tree
        if inside < count:
            part = row.tree[begin + inside - root : begin + count - root]
            hidden[inside:, root:] = ~part
    return hidden
