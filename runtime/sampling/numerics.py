"""Row-wise primitives. Invariant: what they give for a row depends on that row alone.

Neither the other rows of the batch, nor the number of threads, nor the row's place in memory may
change a bit of a result, since a seeded request must repeat itself in any company. Sums therefore
go through blocks of fixed size and then through a sequential prefix sum, never through a reduction
that the library may split as it likes. On the CPU the order statistics use numpy, whose argmax,
partition and sort are vectorized (argmax of 49,152 floats: 3 µs against 70 µs in torch); elsewhere
torch. This module knows nothing of requests or parameters.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

BLOCK = 64
"""Entries summed in one go; rows handed to `block_sums` are padded to a multiple of it."""

_GROUP = 16
"""Entries in each group of the pre-filter of `top_values`."""

_MASK64 = (1 << 64) - 1
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)

UInt64Array = np.ndarray[tuple[int], np.dtype[np.uint64]]
Int64Array = np.ndarray[tuple[int], np.dtype[np.int64]]
Float64Array = np.ndarray[tuple[int], np.dtype[np.float64]]


def _mix(x: UInt64Array) -> UInt64Array:
    """The finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014; Stafford's variant 13)."""
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


def mix_seeds(seeds: list[int]) -> UInt64Array:
    """Seeds of any size (taken modulo 2^64) as uint64 [n] starting points of their streams.

    Mixed once, so that the streams of neighbouring seeds (n outputs of one request) are unrelated.
    """
    return _mix(np.array([seed & _MASK64 for seed in seeds], dtype=np.uint64) + _GOLDEN)


def uniforms(mixed_seeds: UInt64Array, positions: Int64Array) -> Float64Array:
    """One number in [0, 1) for each (seed, position): float64 [n], 53 random bits each.

    Counter-based: output `position` of the SplitMix64 stream that starts at the mixed seed, found
    without the ones before it.
    """
    state = mixed_seeds + (positions.astype(np.uint64) + np.uint64(1)) * _GOLDEN
    return (_mix(state) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def row_argmax(x: Tensor) -> Tensor:
    """Index of the largest entry of each row, the lowest among equals; of a NaN if there is one.

    Args:
        x: float32 [r, V].

    Returns:
        int64 [r].
    """
    return torch.from_numpy(x.numpy().argmax(axis=-1))


def block_sums(x: Tensor) -> Tensor:
    """Sums of blocks of 64 neighbours: float32 [r, W] with W a multiple of 64 → [r, W / 64]."""
    return x.view(x.shape[0], -1, BLOCK).sum(dim=-1)


def row_sums(x: Tensor) -> Tensor:
    """Sums of non-negative float32 rows [r, W], W a multiple of 64: float64 [r]."""
    return block_sums(x).cumsum(dim=-1, dtype=torch.float64)[:, -1]


def pick_by_weight(prefix: Tensor, targets: Tensor) -> Tensor:
    """First entry whose prefix sum exceeds the target, never one of weight zero at the end.

    Args:
        prefix: float64 [r, n], non-decreasing, last entry positive.
        targets: float64 [r], in [0, prefix[:, -1]].

    Returns:
        int64 [r].
    """
    found = torch.searchsorted(prefix, targets[:, None], right=True)
    last = torch.searchsorted(prefix, prefix[:, -1:].contiguous(), right=False)
    return torch.minimum(found, last)[:, 0]


def top_values(x: Tensor, k: int) -> Tensor:
    """The k largest entries of each row, largest first: float32 [r, W] → [r, k].

    Exact. A pre-filter comes first where it pays: entries are dealt into groups of 16; the k groups
    with the largest maxima hold the k largest entries, so only those are sorted. W must be a
    multiple of 64.
    """
    width = x.shape[1]
    k = min(k, width)
    small = 4 * k * _GROUP <= width
    values = (_group_candidates(x, k)[0] if small else x).numpy()
    if 2 * k <= values.shape[1]:
        values = np.partition(values, values.shape[1] - k, axis=-1)[:, values.shape[1] - k :]
    ordered = np.sort(values, axis=-1)[:, : -k - 1 : -1]
    return torch.from_numpy(ordered.copy())


def top_entries(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values float32 [r, k] and indices int64 [r, k] of the k largest entries, largest first.

    Which of several equal entries come first is not defined, but depends on the row alone.
    """
    if x.device.type != "cpu" or x.shape[1] % _GROUP or 4 * k * _GROUP > x.shape[1]:
        values, indices = x.topk(k, dim=-1)
        return values, indices
    candidates, ids = _group_candidates(x, k)
    values, places = candidates.topk(k, dim=-1)
    return values, ids.gather(1, places)


def _group_candidates(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Entries [r, 16 k] that include the k largest of each row, and their indices."""
    rows, width = x.shape
    groups = width // _GROUP
    dealt = x[:, : groups * _GROUP].reshape(rows, _GROUP, groups)
    maxima = dealt.amax(dim=1).numpy()
    kept = np.argpartition(maxima, groups - k, axis=-1)[:, groups - k :]
    chosen = torch.from_numpy(kept)[:, None, :].expand(rows, _GROUP, k)
    offsets = torch.arange(0, width, groups)[None, :, None]
    return dealt.gather(2, chosen).reshape(rows, -1), (chosen + offsets).reshape(rows, -1)


def index_of(x: Tensor, values: Tensor, skip: Tensor) -> Tensor:
    """Index in each row of the entry equal to `values[row]`, after `skip[row]` such entries.

    Args:
        x: float32 [r, W].
        values: float32 [r], each present in its row more than `skip[row]` times.
        skip: int64 [r].

    Returns:
        int64 [r].
    """
    equal_rows = x.numpy() == values.numpy()[:, None]
    found = equal_rows.argmax(axis=-1)
    for row in np.flatnonzero(skip.numpy()):
        found[row] = np.flatnonzero(equal_rows[row])[int(skip[row])]
    return torch.from_numpy(found)
