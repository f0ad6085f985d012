"""Draft models from their files, fitted to the model they draft for.

Invariant: what does not fit the target is said here, by a typed error, before the first request.
"""

from __future__ import annotations

import torch

from branchline.kernels.ops import Ops
from branchline.runtime.errors import ModelLoadError
from branchline.runtime.executor.build import fill_slots, load_model
from branchline.runtime.executor.torch_threads import torch_threads
from branchline.runtime.layers.parameter import WeightDtype
from branchline.runtime.loading.checkpoint import Checkpoint
from branchline.runtime.loading.eagle_checkpoint import EagleCheckpoint
from branchline.runtime.models.base import Model
from branchline.runtime.models.draft import DraftModel, StandaloneDraft, Target
from branchline.runtime.models.eagle import EagleHead


def load_head(
    checkpoint: EagleCheckpoint,
    target: Model,
    ops: Ops,
    *,
    dtype: WeightDtype = "auto",
    device: torch.device,
) -> DraftModel:
    """A head of the EAGLE family with its weights.

    Args:
        checkpoint: its directory.
        target: the model it drafts for, with its weights.
        ops: what both run with.
        dtype: how matrices are kept; on a CPU "auto" rounds them to 4 bits, since guesses need
            not be exact and each level reads them all.
        device: where the target is.

    Raises:
        ModelLoadError: the head was made for another model, or its file does not fit it.
    """
    if not isinstance(target, Target):
        raise ModelLoadError(
            "No draft head can be put beside a model of this architecture.",
            value=target.spec.architecture,
        )
    vocabulary = checkpoint.vocabulary()
    head = EagleHead(
        checkpoint.spec,
        target,
        None if vocabulary is None else torch.from_numpy(vocabulary).int(),
        dtype,
        four_bit=dtype == "auto" and device.type == "cpu",
    )
    with torch_threads(1):
        fill_slots(head.slots(), checkpoint, device)
        head.prepare(ops)
    return head


def load_standalone(
    checkpoint: Checkpoint,
    target: Model,
    ops: Ops,
    *,
    dtype: WeightDtype = "auto",
    device: torch.device,
) -> DraftModel:
    """A whole small model that drafts.

    Raises:
        ModelLoadError: it has another vocabulary or a shorter context than the target, or its file
            does not fit.
    """
    spec, facts = checkpoint.spec, target.spec
    if spec.vocab_size != facts.vocab_size:
        raise ModelLoadError(
            "The draft model has another vocabulary than the model.",
            value=f"{spec.vocab_size} ids, not {facts.vocab_size}",
            hint="Use a smaller model of the same family.",
        )
    if spec.max_context < target.max_context:
        raise ModelLoadError(
            "The draft model has a shorter context than the model.",
            value=f"{spec.max_context} tokens, not {target.max_context}",
            hint=f"Set context_length to {spec.max_context} or less, or use another draft model.",
        )
    return StandaloneDraft(
        load_model(checkpoint, ops, max_context=target.max_context, dtype=dtype, device=device)
    )
