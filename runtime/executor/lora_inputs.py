"""Which adapter slot each token, logit row or sampled row of a plan has.

Invariant: a token has the slot of its row, tree tokens included; padding has none. Knows nothing of
what is in the slots.
"""

from __future__ import annotations

import numpy as np

from branchline.runtime.core.batch import Int32Array, ScheduleBatch


def token_slots(plan: ScheduleBatch) -> Int32Array | None:
    """int32 [t]; None where no row has an adapter."""
    if plan.adapter_slots is None:
        return None
    return np.repeat(plan.adapter_slots, plan.extend_lens)


def logit_slots(plan: ScheduleBatch) -> Int32Array | None:
    """int32 [l], likewise."""
    slots = token_slots(plan)
    return None if slots is None else slots[plan.logit_idx]


def sample_slots(plan: ScheduleBatch) -> Int32Array | None:
    """int32 [s], likewise."""
    return None if plan.adapter_slots is None else plan.adapter_slots[plan.sample_rows]
