"""What kernels that make a step's candidates take of it."""

from __future__ import annotations

import torch

from branchline.kernels.beam import Check

__all__ = ["made_of"]


def made_of(check: Check) -> tuple[torch.Tensor, ...]:
    """Operands of such a launch, in the order in which the kernels take them."""
    return (
        check.firsts,
        check.rows,
        check.seq_lens,
        check.extend_start,
        check.tree_lens,
        check.tree_offsets,
        check.tree_words,
        check.input_ids,
        check.out_slots,
        check.previous,
        check.positions,
        check.sample_places,
        check.sample_positions,
        check.nodes,
    )
