"""What a model sees of one step, on its device. Read-only during a forward.

Symbols: t = tokens of the step, l = tokens whose logits are wanted. Knows nothing of requests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from branchline.kernels.lora import LoraBatch
    from branchline.runtime.attention.base import AttentionBackend, AttentionPlan


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """The device side of a `ScheduleBatch`.

    Attributes:
        input_ids: int32 [t], none negative.
        positions: int64 [t], places for the rotation; tokens of a draft tree share them by depth.
        out_slots: int32 [t], key-value slot that each token writes.
        logit_idx: int32 [l], increasing indices into t.
        backend: computes the attention of every layer.
        plan: the backend's own view of the step, made once for all layers.
        previous: int32 [t], slot of the token before each one on its path; None where no drafter
            reads the model's states.
        lora: slots of the t tokens' adapters; None where every token is the base model's.
        logit_lora: slots of the l logit rows; there where `lora` is.
    """

    input_ids: torch.Tensor
    positions: torch.Tensor
    out_slots: torch.Tensor
    logit_idx: torch.Tensor
    backend: AttentionBackend
    plan: AttentionPlan
    previous: torch.Tensor | None = None
    lora: LoraBatch | None = None
    logit_lora: LoraBatch | None = None
