"""A target's forward with a draft model beside it: one place for every way to run a step.

Invariant: whatever way a step is run, the draft model keeps the same of its tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from branchline.kernels.ops import Ops
from branchline.runtime.core.forward import ForwardBatch
from branchline.runtime.memory.draft_pool import DraftPool
from branchline.runtime.memory.kv_pool import KVPool
from branchline.runtime.models.base import Model
from branchline.runtime.models.draft import DraftModel


@dataclass(slots=True)
class Draft:
    """A draft model and what it keeps."""

    model: DraftModel
    pool: DraftPool


def forward_step(
    model: Model, draft: Draft | None, batch: ForwardBatch, ops: Ops, kv: KVPool
) -> torch.Tensor:
    """The target's hidden states [l, hidden] of the tokens whose logits are wanted."""
    if draft is None:
        return model.forward(batch, ops, kv)
    tap = draft.model.tap()
    hidden = model.forward(batch, ops, kv, tap)
    draft.model.observe(batch, ops, draft.pool, tap)
    return hidden
