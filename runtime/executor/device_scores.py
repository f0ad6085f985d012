"""Log-probabilities that a plan asks for, read on a device without waiting for it.

Invariant: as `scores.read_scores`: natural log, temperature 1, unmasked, each of its own row alone,
in the order in which they were asked for.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from branchline.kernels.ops import Ops
from branchline.runtime.core.batch import Int32Array, ScoreRead
from branchline.runtime.executor.device_graphs import padded
from branchline.runtime.executor.device_stream import to_device

CHUNK = 256
"""Rows of logits made at once: 156 MiB for a vocabulary of 152,000."""

Head = Callable[[torch.Tensor, Int32Array], torch.Tensor]
"""The output head: hidden states [n, hidden] of the logit rows with these indices -> [n, V]."""

Reading = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""chosen float32 [m], top_ids int32 [m, k], top_values float32 [m, k]."""


def queue_scores(
    read: ScoreRead,
    hidden: torch.Tensor,
    logits: Head,
    ops: Ops,
) -> Reading:
    """Queue the readings of `read`.

    Args:
        read: m places.
        hidden: [l, hidden].
        logits: gives [n, V].
        ops: gathers rows and sums exponentials.
    """
    device = hidden.device
    # the choices of a select read one row many times: its logits are made once
    rows, inverse = np.unique(read.logit_rows, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    firsts = np.searchsorted(inverse[order], np.arange(len(rows) + 1))
    parts: list[Reading] = []
    for first in range(0, len(rows), CHUNK):
        last = min(first + CHUNK, len(rows))
        index = np.zeros(padded(last - first), dtype=np.int32)
        index[: last - first] = rows[first:last]
        made = logits(ops.gather_rows(hidden, to_device(index, device)), index)
        values = made[: last - first].float()
        here = order[firsts[first] : firsts[last]]
        local = to_device((inverse[here] - first).astype(np.int64), device)
        tokens = to_device(read.token_ids[here].astype(np.int64), device)
        sums = ops.logsumexp_rows(values)
        chosen = values[local, tokens] - sums[local]
        k = min(read.top_k, values.shape[1])
        top = values.topk(k, dim=-1) if k else None
        top_values = (
            chosen.new_empty((len(here), 0)) if top is None else (top[0] - sums[:, None])[local]
        )
        top_ids = local.new_empty((len(here), 0)) if top is None else top[1][local]
        parts.append((chosen, top_ids.int(), top_values))
    back = to_device(np.argsort(order, kind="stable"), device)
    chosen, ids, found = (torch.cat(group)[back] for group in zip(*parts, strict=True))
    return chosen, ids, found
