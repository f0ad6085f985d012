"""Sampling parameters of a step's rows as arrays. Invariant: built once, never changed after.

A batch stays valid from step to step as long as the rows are the same: what moves (positions,
token table, grammar masks) is handed to the sampler beside it. Knows no device and no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from branchline.runtime.core.batch import Float32Array, Int64Array, UInt64Array
from branchline.runtime.core.sampling_params import SamplingParams
from branchline.runtime.sampling.numerics import mix_seeds

_MIN_TEMPERATURE = 1e-30


class RowSampling(NamedTuple):
    """One row's part.

    Attributes:
        params: the request's choices.
        seed: resolved seed, any integer (taken modulo 2^64).
        prompt_len: positions below it belong to the prompt.
        suppress_ids: ids masked while fewer than `params.min_tokens` tokens have been put out.
    """

    params: SamplingParams
    seed: int
    prompt_len: int
    suppress_ids: tuple[int, ...] = ()


class Sparse(NamedTuple):
    """Entries of an [s, V] array: `values[i]` at (`rows[i]`, `ids[i]`)."""

    rows: Int64Array
    ids: Int64Array
    values: Float32Array


class Suppression(NamedTuple):
    """Ids masked in a row while the position of its next token is below `until`."""

    rows: Int64Array
    ids: Int64Array
    until: Int64Array


class Penalty(NamedTuple):
    """Penalties of one row."""

    row: int
    prompt_len: int
    repetition: float
    frequency: float
    presence: float


@dataclass(frozen=True, slots=True)
class SamplingBatch:
    """Parameters of s rows, in the order of the sampled rows.

    Rows are of one of three kinds, told apart by their own parameters alone: greedy, plain (drawn
    from the whole distribution) and truncated (top_k, top_p or min_p in force).

    Attributes:
        size: s.
        greedy_rows, plain_rows, truncated_rows: int64, ascending; together 0 … s - 1.
        inv_temperature: float32 [s]; 1 for greedy rows.
        top_k: int64 [s]; 0 = off.
        top_p: float64 [s]; 1 = off.
        min_p: float64 [s]; 0 = off.
        mixed_seeds: uint64 [s], starting points of the rows' random streams.
        bias: entries added to the logits, or None.
        penalties: rows with penalties.
        suppression: ids masked up to a position, or None.
        logprob_rows: int64, rows that asked for log-probabilities.
        logprobs_k: the most alternatives that any of them asked for.
    """

    size: int
    greedy_rows: Int64Array
    plain_rows: Int64Array
    truncated_rows: Int64Array
    inv_temperature: Float32Array
    top_k: Int64Array
    top_p: np.ndarray[tuple[int], np.dtype[np.float64]]
    min_p: np.ndarray[tuple[int], np.dtype[np.float64]]
    mixed_seeds: UInt64Array
    bias: Sparse | None
    penalties: tuple[Penalty, ...]
    suppression: Suppression | None
    logprob_rows: Int64Array
    logprobs_k: int

    @property
    def all_greedy(self) -> bool:
        """True when no row needs a random number."""
        return len(self.greedy_rows) == self.size

    @property
    def likeliest_alone(self) -> bool:
        """True when nothing but the likeliest ids is wanted of any row."""
        return self.all_greedy and not self.edited and not len(self.logprob_rows)

    @property
    def edited(self) -> bool:
        """True when some row's logits are changed before the mask."""
        return self.bias is not None or bool(self.penalties) or self.suppression is not None

    @staticmethod
    @lru_cache(maxsize=256)  # checks of guesses differ in their number from step to step
    def greedy(size: int) -> SamplingBatch:
        """Of s rows whose most likely ids are wanted, and nothing else. Their seeds are not kept:
        nobody draws."""
        nothing = np.zeros(0, dtype=np.int64)
        return SamplingBatch(
            size=size,
            greedy_rows=np.arange(size),
            plain_rows=nothing,
            truncated_rows=nothing,
            inv_temperature=np.ones(size, dtype=np.float32),
            top_k=np.zeros(size, dtype=np.int64),
            top_p=np.ones(size),
            min_p=np.zeros(size),
            mixed_seeds=np.zeros(size, dtype=np.uint64),
            bias=None,
            penalties=(),
            suppression=None,
            logprob_rows=nothing,
            logprobs_k=0,
        )

    @staticmethod
    def build(rows: Sequence[RowSampling]) -> SamplingBatch:
        """Gather s rows; O(s) and a few microseconds a row."""
        kinds: tuple[list[int], list[int], list[int]] = ([], [], [])
        numbers: list[tuple[float, float, float]] = []
        top_k: list[int] = []
        penalties: list[Penalty] = []
        bias: list[tuple[int, dict[int, float]]] = []
        suppressed: list[tuple[int, int, tuple[int, ...]]] = []
        logprob_rows: list[int] = []
        logprobs_k = 0
        for index, (params, _, prompt_len, suppress_ids) in enumerate(rows):
            temperature, k = params.temperature, params.top_k
            if temperature == 0.0 or k == 1:
                kinds[0].append(index)
                temperature = 1.0
            elif k > 0 or params.top_p < 1.0 or params.min_p > 0.0:
                kinds[2].append(index)
            else:
                kinds[1].append(index)
            numbers.append((1.0 / max(temperature, _MIN_TEMPERATURE), params.top_p, params.min_p))
            top_k.append(max(k, 0))
            if params.has_penalties:
                penalties.append(
                    Penalty(
                        index,
                        prompt_len,
                        params.repetition_penalty,
                        params.frequency_penalty,
                        params.presence_penalty,
                    )
                )
            if params.logit_bias:
                bias.append((index, params.logit_bias))
            if params.min_tokens > 0 and suppress_ids:
                suppressed.append((index, prompt_len + params.min_tokens, suppress_ids))
            if params.logprobs is not None:
                logprob_rows.append(index)
                logprobs_k = max(logprobs_k, params.logprobs)
        table = np.array(numbers, dtype=np.float64).reshape(-1, 3)
        return SamplingBatch(
            size=len(rows),
            greedy_rows=np.array(kinds[0], dtype=np.int64),
            plain_rows=np.array(kinds[1], dtype=np.int64),
            truncated_rows=np.array(kinds[2], dtype=np.int64),
            inv_temperature=table[:, 0].astype(np.float32),
            top_k=np.array(top_k, dtype=np.int64),
            top_p=np.ascontiguousarray(table[:, 1]),
            min_p=np.ascontiguousarray(table[:, 2]),
            mixed_seeds=mix_seeds([row.seed for row in rows]),
            bias=_gather_bias(bias),
            penalties=tuple(penalties),
            suppression=_gather_suppression(suppressed),
            logprob_rows=np.array(logprob_rows, dtype=np.int64),
            logprobs_k=logprobs_k,
        )


def merely_greedy(params: SamplingParams) -> bool:
    """Whether the most likely id is wanted, of the model's own logits, and nothing else."""
    return (
        (params.temperature == 0.0 or params.top_k == 1)
        and params.logprobs is None
        and params.min_tokens == 0
        and not params.logit_bias
        and not params.has_penalties
    )


def _gather_bias(entries: list[tuple[int, dict[int, float]]]) -> Sparse | None:
    if not entries:
        return None
    return Sparse(
        np.repeat(
            np.array([row for row, _ in entries], dtype=np.int64), [len(d) for _, d in entries]
        ),
        np.array([token for _, d in entries for token in d], dtype=np.int64),
        np.array([value for _, d in entries for value in d.values()], dtype=np.float32),
    )


def _gather_suppression(entries: list[tuple[int, int, tuple[int, ...]]]) -> Suppression | None:
    if not entries:
        return None
    counts = [len(ids) for _, _, ids in entries]
    return Suppression(
        np.repeat(np.array([row for row, _, _ in entries], dtype=np.int64), counts),
        np.array([token for _, _, ids in entries for token in ids], dtype=np.int64),
        np.repeat(np.array([until for _, until, _ in entries], dtype=np.int64), counts),
    )
