"""`Sampler` for a device that computes while the host goes on: nothing here waits for it.

Invariant: a row's token depends on that row alone; edits, their order and the cuts are those of
`Sampler`, the random numbers are the ops' own. What cannot be sampled is marked in the result,
since looking would mean waiting. Knows nothing of requests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from branchline.kernels.sampling import Draws, SamplingOps
from branchline.runtime.core.batch import Int64Array
from branchline.runtime.sampling.logprobs import queue_top_logprobs
from branchline.runtime.sampling.sampling_batch import Penalty, SamplingBatch

Upload = Callable[[np.ndarray[Any, Any]], Tensor]
Bitmask = np.ndarray[tuple[int, int], np.dtype[np.int32]]


class QueuedSample(NamedTuple):
    """What `DeviceSampler.sample` gives, on the device.

    Attributes:
        ids: int32 [s]; -1 where the logits held NaN or +inf, or nothing that was allowed.
        logprobs: (chosen float32 [n], top_ids int32 [n, k], top_values float32 [n, k]) of the n
            rows that asked for them, or None.
    """

    ids: Tensor
    logprobs: tuple[Tensor, Tensor, Tensor] | None


class DeviceSampler:
    """Chooses tokens; see `Sampler.sample` for the order of what is done.

    Args:
        ops: mask, cut and draw.
        upload: copies an array to the device without waiting for it.
    """

    def __init__(self, ops: SamplingOps, upload: Upload) -> None:
        self._ops = ops
        self._upload = upload
        self._last: tuple[SamplingBatch, Draws] | None = None

    def sample(
        self,
        logits: Tensor,
        batch: SamplingBatch,
        positions: Int64Array,
        histories: Callable[[int], Tensor],
        bitmask: Bitmask | None = None,
        queued_positions: Tensor | None = None,
    ) -> QueuedSample:
        """Queue the choice of the next token of s rows.

        Args:
            logits: [s, V], float32 or bfloat16; may be overwritten.
            batch: parameters of the rows.
            positions: int64 [s], position that the new token takes.
            histories: int32 [n] tokens of sampled row i so far, on the device; asked for rows with
                penalties only.
            bitmask: int32 [s, ceil(V / 32)], bit set = allowed; None = all are.
            queued_positions: `positions` on the device, where they are there already.
        """
        source: Tensor | None = None
        if len(batch.logprob_rows):
            source = logits[self._upload(batch.logprob_rows)].float()
        if batch.edited:
            logits = logits.float()
            self._edit(logits, batch, positions, histories)
        mask = None if bitmask is None else self._upload(bitmask)
        there = self._upload(positions) if queued_positions is None else queued_positions
        draws = replace(self._parameters(batch), positions=there)
        ids, bad = self._ops.sample_rows(logits.float(), draws, mask)
        logprobs = None
        if source is not None:
            chosen = ids[self._upload(batch.logprob_rows)].long()
            logprobs = queue_top_logprobs(source, chosen, batch.logprobs_k)
        return QueuedSample(ids.masked_fill(bad, -1), logprobs)

    def _edit(
        self,
        logits: Tensor,
        batch: SamplingBatch,
        positions: Int64Array,
        histories: Callable[[int], Tensor],
    ) -> None:
        if batch.bias is not None:
            places = self._upload(batch.bias.rows), self._upload(batch.bias.ids)
            logits.index_put_(places, self._upload(batch.bias.values), accumulate=True)
        for penalty in batch.penalties:
            _penalize(logits[penalty.row], penalty, histories(penalty.row).long())
        if batch.suppression is not None:
            active = positions[batch.suppression.rows] < batch.suppression.until
            if active.any():
                rows = self._upload(batch.suppression.rows[active])
                ids = self._upload(batch.suppression.ids[active])
                values = torch.full(ids.shape, -torch.inf, device=logits.device)
                logits.index_put_((rows, ids), values)

    def _parameters(self, batch: SamplingBatch) -> Draws:
        """A batch is the same from step to step as long as its rows are; positions move."""
        if self._last is None or self._last[0] is not batch:
            self._last = batch, self._upload_batch(batch)
        return self._last[1]

    def _upload_batch(self, batch: SamplingBatch) -> Draws:
        """One copy brings all parameters: each costs the host more than its bytes."""
        width = -(-batch.size // 4) * 4  # kernels are compiled for addresses that 16 divides
        there = self._upload(packed_draws(batch, width))
        return draws_of(there, batch.size, truncated=bool(len(batch.truncated_rows)))


def packed_draws(batch: SamplingBatch, width: int) -> np.ndarray[tuple[int, int], Any]:
    """Parameters of s rows in int32 [6, width], rows beyond them greedy; see `draws_of`."""
    size = batch.size
    inverse = batch.inv_temperature.copy()
    inverse[batch.greedy_rows] = 0.0
    packed = np.zeros((6, width), dtype=np.int32)
    packed[:2].reshape(-1).view(np.uint64)[:size] = batch.mixed_seeds
    packed[2, :size] = batch.top_k
    for row, values in enumerate((inverse, batch.top_p, batch.min_p), start=3):
        packed[row, :size] = np.asarray(values, dtype=np.float32).view(np.int32)
    return packed


def draws_of(packed: Tensor, size: int, *, truncated: bool) -> Draws:
    """Views of the first rows of `packed_draws`, on the device; without positions."""
    floats = packed[3:, :size].view(torch.float32)
    seeds = packed[:2].reshape(-1).view(torch.int64)[:size]
    return Draws(
        inv_temperature=floats[0],
        top_k=packed[2, :size],
        top_p=floats[1],
        min_p=floats[2],
        seeds=seeds,
        positions=seeds,
        truncated=truncated,
    )


def _penalize(row: Tensor, penalty: Penalty, tokens: Tensor) -> None:
    """`penalties.penalize` with figures that do not depend on how many distinct tokens there are.

    Args:
        row: float32 [V], changed in place.
        tokens: int64 [n], prompt first.
    """
    if penalty.repetition != 1.0:
        old = row[tokens]
        row[tokens] = torch.where(old > 0, old / penalty.repetition, old * penalty.repetition)
    output = tokens[penalty.prompt_len :]
    if (penalty.frequency or penalty.presence) and len(output):
        ones = torch.ones(len(output), dtype=row.dtype, device=row.device)
        counts = torch.zeros_like(row).index_add_(0, output, ones)
        row -= counts * penalty.frequency + (counts > 0) * penalty.presence
