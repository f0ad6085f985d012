"""Log-probabilities under the model's own distribution: temperature 1, nothing masked.

Invariant: the figures of a row depend on that row alone, and extra memory is bounded by a chunk
of rows whatever n is. Knows nothing of requests.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from branchline.runtime.core.batch import TopLogprobs
from branchline.runtime.sampling.numerics import BLOCK, row_sums, top_entries

_CHUNK_ROWS = 8


def read_top_logprobs(logits: Tensor, token_ids: Tensor, k: int) -> TopLogprobs:
    """Log-probability of one token and of the k most likely ones, at n places.

    Args:
        logits: float32 [n, V], not changed.
        token_ids: integer [n].
        k: alternatives (0 = none).

    Returns:
        numpy arrays: chosen float32 [n], top_ids int32 [n, min(k, V)], top_values float32, best
        first. Rows with NaN give NaN. Which of several equal alternatives are listed at the cut is
        not defined, but depends on the row alone.
    """
    chosen, top_ids, top_values = queue_top_logprobs(logits, token_ids, k)
    return TopLogprobs(chosen.cpu().numpy(), top_ids.cpu().numpy(), top_values.cpu().numpy())


def queue_top_logprobs(logits: Tensor, token_ids: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same as tensors on the device of the logits; does not wait for it."""
    count, vocab = logits.shape
    k = min(k, vocab)
    device = logits.device
    ids = token_ids.to(device=device, dtype=torch.int64)[:, None]
    chosen = torch.empty(count, dtype=torch.float32, device=device)
    top_ids = torch.empty((count, k), dtype=torch.int32, device=device)
    top_values = torch.empty((count, k), dtype=torch.float32, device=device)
    width = -(-vocab // BLOCK) * BLOCK
    work = torch.empty((min(count, _CHUNK_ROWS), width), dtype=torch.float32, device=device)
    work[:, vocab:] = -torch.inf
    for start in range(0, count, _CHUNK_ROWS):
        part = slice(start, min(start + _CHUNK_ROWS, count))
        rows = logits[part]
        scratch = work[: len(rows)]
        largest = rows.amax(dim=-1, keepdim=True)
        torch.sub(rows, largest, out=scratch[:, :vocab])
        picked = scratch.gather(1, ids[part])
        if k:
            values, indices = top_entries(scratch[:, :vocab], k)
        log_sum = row_sums(scratch.exp_()).log()[:, None]
        work[:, vocab:] = -torch.inf
        chosen[part] = (picked - log_sum)[:, 0].float()
        if k:
            top_values[part] = (values - log_sum).float()
            top_ids[part] = indices.int()
    return chosen, top_ids, top_values


def scatter_logprobs(
    part: TopLogprobs, rows: np.ndarray[tuple[int], np.dtype[np.int64]], size: int
) -> TopLogprobs:
    """Spread n readings over `size` rows; rows not read hold NaN, id -1 and -inf."""
    if len(rows) == size:
        return part
    k = part.top_ids.shape[1]
    spread = TopLogprobs(
        np.full(size, np.nan, dtype=np.float32),
        np.full((size, k), -1, dtype=np.int32),
        np.full((size, k), -np.inf, dtype=np.float32),
    )
    spread.chosen[rows] = part.chosen
    spread.top_ids[rows] = part.top_ids
    spread.top_values[rows] = part.top_values
    return spread
