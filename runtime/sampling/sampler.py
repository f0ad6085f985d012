"""Logits in, one token id a row out. Invariant: a row's token depends on that row alone.

The token is a function of the row's logits, parameters, seed and position: same seed, same tokens,
whatever the batch mates, the row's place, chunking or retraction. A row whose logits cannot be
sampled is reported and harms no other. Logits are in host memory; those of a device are for
`device_sampler`. Knows nothing of requests, schedules or grammars.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from branchline.runtime.core.batch import Int32Array, Int64Array, TopLogprobs
from branchline.runtime.sampling.logprobs import read_top_logprobs, scatter_logprobs
from branchline.runtime.sampling.numerics import (
    BLOCK,
    block_sums,
    index_of,
    pick_by_weight,
    row_argmax,
    row_sums,
    top_values,
    uniforms,
)
from branchline.runtime.sampling.penalties import add_bias, apply_bitmask, penalize, suppress
from branchline.runtime.sampling.sampling_batch import SamplingBatch

_CHUNK_ROWS = 8
_SMALLEST = 1e-300
_WIDTHS = (256, 4096)
"""Candidates looked at, in turn, before a truncated row is sorted as a whole."""
_NO_TAILS: Mapping[int, Int32Array] = MappingProxyType({})


class SampleResult(NamedTuple):
    """What `Sampler.sample` gives.

    Attributes:
        ids: int32 [s]; 0 in bad rows.
        logprobs: [s] readings when some row asked for them; rows that did not hold NaN.
        bad_rows: rows whose logits held NaN or +inf, or nothing that was allowed.
    """

    ids: Tensor
    logprobs: TopLogprobs | None
    bad_rows: tuple[int, ...]


class Sampler:
    """Chooses tokens for a model with `vocab_size` logits. Owns two scratch buffers of 8 rows.

    One thread at a time.
    """

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        width = -(-vocab_size // BLOCK) * BLOCK
        self._scaled = torch.full((_CHUNK_ROWS, width), -torch.inf)
        self._weights = torch.empty_like(self._scaled)

    def sample(
        self,
        logits: Tensor,
        batch: SamplingBatch,
        positions: Int64Array,
        rows: Int32Array,
        token_table: Tensor,
        bitmask: np.ndarray[tuple[int, int], np.dtype[np.int32]] | None = None,
        *,
        tails: Mapping[int, Int32Array] = _NO_TAILS,
    ) -> SampleResult:
        """Choose the next token of s rows.

        In this order: logit bias, penalties, end ids before min_tokens, grammar mask; then the most
        likely token (the lowest id among equals), or temperature, top_k, top_p, min_p and a draw.
        Where equal logits straddle a cut the lowest ids are kept. top_p keeps the smallest set of
        the most likely tokens whose share (of what top_k left) is at least top_p; min_p keeps
        tokens at least min_p times as likely as the likeliest.

        Args:
            logits: float32 [s, V]; may be overwritten.
            positions: int64 [s], position that the new token takes (= tokens so far).
            rows: int32 [s], rows of `token_table`; read for rows with penalties only.
            token_table: int32 [max_rows, max_context].
            bitmask: int32 [s, ceil(V / 32)], bit set = allowed.
            tails: for some of the s rows, the last of the tokens so far, which the token table does
                not have; see `TreeSamples.tails`.
        """
        size = len(logits)
        if bitmask is None and batch.likeliest_alone:
            found = _likeliest(logits)
            if found is not None:
                return found
        wanted = batch.logprob_rows
        masked = _masked_rows(bitmask)
        source: Tensor | None = None
        if len(wanted):
            # Indexing with a tensor copies, which the edits below make necessary.
            plain = len(wanted) == size and not batch.edited and not len(masked)
            source = logits if plain else logits[torch.from_numpy(wanted)]
        if batch.bias is not None:
            add_bias(logits, batch.bias)
        for penalty in batch.penalties:
            tail = tails.get(penalty.row)
            known = int(positions[penalty.row]) - (0 if tail is None else len(tail))
            tokens = token_table[int(rows[penalty.row]), :known]
            if tail is not None:
                tokens = torch.cat([tokens, torch.from_numpy(tail)])
            penalize(logits, penalty, tokens)
        if batch.suppression is not None:
            suppress(logits, batch.suppression, positions)
        if bitmask is not None and len(masked):
            apply_bitmask(logits, bitmask, masked)
        ids, bad = self._choose(logits, batch, positions)
        bad_rows = tuple(bad.nonzero()[:, 0].tolist())
        logprobs = None
        if source is not None:
            chosen = ids[torch.from_numpy(wanted)]
            read = read_top_logprobs(source, chosen, batch.logprobs_k)
            logprobs = scatter_logprobs(read, wanted, size)
        return SampleResult(ids, logprobs, bad_rows)

    def _choose(
        self, logits: Tensor, batch: SamplingBatch, positions: Int64Array
    ) -> tuple[Tensor, Tensor]:
        """Ids int32 [s] and bad rows bool [s]."""
        if batch.all_greedy:
            ids = row_argmax(logits)
            bad = ~logits.gather(1, ids[:, None])[:, 0].isfinite()
            return ids.masked_fill_(bad, 0).int(), bad
        size = len(logits)
        ids = torch.zeros(size, dtype=torch.int64)
        bad = torch.zeros(size, dtype=torch.bool)
        draws = uniforms(batch.mixed_seeds, positions)
        for kind, members in enumerate((batch.greedy_rows, batch.plain_rows, batch.truncated_rows)):
            for start in range(0, len(members), _CHUNK_ROWS):
                part = members[start : start + _CHUNK_ROWS]
                index = torch.from_numpy(part)
                # Neighbouring rows are read where they lie; others are gathered.
                near = part[-1] - part[0] == len(part) - 1
                x = logits[int(part[0]) : int(part[-1]) + 1] if near else logits[index]
                if kind == 0:
                    found = row_argmax(x)
                    sick = ~x.gather(1, found[:, None])[:, 0].isfinite()
                else:
                    sick = self._scale(x, batch.inv_temperature[part])
                    u = torch.from_numpy(draws[part])
                    found = (
                        self._draw(len(part), u)
                        if kind == 1
                        else self._draw_truncated(batch, part, u)
                    )
                ids[index] = found.masked_fill(sick, 0)
                bad[index] = sick
        return ids.int(), bad

    def _scale(
        self, x: Tensor, inv_temperature: np.ndarray[tuple[int], np.dtype[np.float32]]
    ) -> Tensor:
        """Fill `_scaled` with (x - max) / temperature; return which rows cannot be sampled.

        Those are given equal logits, so that what follows need not care.
        """
        largest = x.amax(dim=-1, keepdim=True)
        sick = ~largest[:, 0].isfinite()
        scaled = self._scaled[: len(x), : self.vocab_size]
        torch.sub(x, largest, out=scaled)
        if (inv_temperature != 1.0).any():
            scaled.mul_(torch.from_numpy(inv_temperature)[:, None])
        if bool(sick.any()):
            scaled[sick] = 0.0
        return sick

    def _draw(self, count: int, u: Tensor) -> Tensor:
        """Draw from the whole distribution of `_scaled`: int64 [count].

        Inverse of the distribution function in the order of ids, by blocks: the block first, then
        the token in it.
        """
        weights = torch.exp(self._scaled[:count], out=self._weights[:count])
        prefix = block_sums(weights).cumsum(dim=-1, dtype=torch.float64)
        target = u * prefix[:, -1]
        block = pick_by_weight(prefix, target)[:, None]
        upper = prefix.gather(1, block)[:, 0]
        lower = prefix.gather(1, (block - 1).clamp_(min=0))[:, 0].masked_fill_(block[:, 0] == 0, 0)
        inside = weights.view(count, -1, BLOCK)
        inside = inside[torch.arange(count), block[:, 0]]
        inner = inside.cumsum(dim=-1, dtype=torch.float64)
        # The block's float32 sum and its float64 prefix differ in the last bits: rescale.
        share = ((target - lower) / (upper - lower)).clamp_(0.0, 1.0)
        return block[:, 0] * BLOCK + pick_by_weight(inner, share * inner[:, -1])

    def _draw_truncated(self, batch: SamplingBatch, part: Int64Array, u: Tensor) -> Tensor:
        """Draw from what top_k, top_p and min_p leave of `_scaled`: int64 [r].

        Inverse of the distribution function in the order (likeliest first, then lowest id), which
        does not depend on how many candidates had to be looked at.
        """
        count = len(part)
        scaled = self._scaled[:count]
        top_k = torch.from_numpy(batch.top_k[part])
        top_p = torch.from_numpy(batch.top_p[part])
        min_p = torch.from_numpy(batch.min_p[part])
        whole = torch.zeros(count, dtype=torch.float64)
        if ((batch.top_k[part] == 0) & (batch.top_p[part] < 1.0)).any():
            whole = row_sums(torch.exp(scaled, out=self._weights[:count]))
        needed = int(batch.top_k[part].max())
        if (batch.top_k[part] == 0).any():
            needed = max(needed, _WIDTHS[0])
        found = torch.zeros(count, dtype=torch.int64)
        left = torch.arange(count)
        for width in (needed, max(needed, _WIDTHS[1]), self.vocab_size):
            width = min(width, self.vocab_size)
            rows = scaled if len(left) == count else scaled[left]
            values = top_values(rows, width)
            kept, prefix = _cut(
                values, self.vocab_size, top_k[left], top_p[left], min_p[left], whole[left]
            )
            done = kept <= width
            last = (kept - 1).clamp_(max=width - 1)
            total = prefix.gather(1, last[:, None])[:, 0]
            rank = torch.searchsorted(prefix, (u[left] * total)[:, None], right=True)[:, 0]
            rank = torch.minimum(rank, last)
            value = values.gather(1, rank[:, None])[:, 0]
            before = torch.searchsorted(values.neg(), value.neg()[:, None], right=False)[:, 0]
            found[left] = index_of(rows, value, rank - before)
            left = left[~done]
            if not len(left):
                break
        return found


def _likeliest(logits: Tensor) -> SampleResult | None:
    """Greedy ids alone; None where some row cannot be sampled. What is done between two steps is
    not in the caches, so a few array calls take a third of the time of the general way."""
    values = logits.numpy()
    ids = values.argmax(axis=-1)
    if not np.isfinite(values[np.arange(len(ids)), ids]).all():
        return None
    return SampleResult(torch.from_numpy(ids.astype(np.int32)), None, ())


def _cut(
    values: Tensor, vocab: int, top_k: Tensor, top_p: Tensor, min_p: Tensor, whole: Tensor
) -> tuple[Tensor, Tensor]:
    """How many of the sorted candidates each row keeps; more than [n] = it may need more of them.

    Args:
        values: float32 [r, n], scaled logits, largest (0) first.
        top_k: int64 [r], 0 = off; at most n where on.
        top_p, min_p: float64 [r].
        whole: float64 [r], sum of the weights of all tokens, where top_k is off.

    Returns:
        kept int64 [r], at least 1; prefix float64 [r, n], prefix sums of the weights.
    """
    width = values.shape[1]
    beyond = width + 1 if width < vocab else width
    weights = values.double().exp_()
    prefix = weights.cumsum(dim=-1)
    limit = torch.where(top_k > 0, top_k, vocab).clamp_(max=vocab)
    total = torch.where(
        top_k > 0, prefix.gather(1, (limit - 1).clamp(max=width - 1)[:, None])[:, 0], whole
    )
    by_mass = torch.searchsorted(prefix, (top_p * total)[:, None], right=False)[:, 0] + 1
    by_mass = torch.where(top_p < 1.0, by_mass, vocab)
    # Weights fall from left to right: count those at least min_p, and none that are zero.
    floor = min_p.clamp(min=_SMALLEST)[:, None]
    by_ratio = torch.searchsorted(weights.neg(), floor.neg(), right=True)[:, 0]
    by_ratio = torch.where(by_ratio < width, by_ratio, beyond)
    kept = torch.minimum(torch.minimum(limit, by_mass), by_ratio)
    return kept.clamp_(min=1), prefix


def _masked_rows(bitmask: np.ndarray[tuple[int, int], np.dtype[np.int32]] | None) -> Int64Array:
    if bitmask is None:
        return np.empty(0, dtype=np.int64)
    return np.flatnonzero((bitmask != -1).any(axis=1))
