"""A plan's arrays as tensors. On a CPU nothing is copied.

Invariant: tensors made here are views of the plan and of the host tables, read-only for the
forward. Knows nothing of what the tokens mean.
"""

from __future__ import annotations

import numpy as np
import torch

from branchline.kernels.ops import AttentionMeta
from branchline.runtime.core.batch import ScheduleBatch


def attention_meta(plan: ScheduleBatch, slot_table: torch.Tensor) -> AttentionMeta:
    """Who attends to what.

    Args:
        plan: of the step.
        slot_table: int32 [max_rows, max_context].
    """
    tree = plan.tree
    return AttentionMeta(
        rows=torch.from_numpy(plan.rows),
        slot_table=slot_table,
        seq_lens=torch.from_numpy(plan.seq_lens),
        extend_lens=torch.from_numpy(plan.extend_lens),
        extend_start=torch.from_numpy(plan.extend_start),
        tree_lens=None if tree is None else torch.from_numpy(tree.counts),
        tree_offsets=None if tree is None else torch.from_numpy(tree.offsets),
        tree_words=None if tree is None else torch.from_numpy(tree.words.view(np.int64)),
    )


def token_tensors(plan: ScheduleBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """input_ids int32 [t] (-1 still in it), positions int64 [t], out_slots int32 [t]."""
    return (
        torch.from_numpy(plan.input_ids),
        torch.from_numpy(plan.positions),
        torch.from_numpy(plan.out_slots),
    )
