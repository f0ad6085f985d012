"""Log-probabilities of given tokens, read off hidden states.

Invariant: at most `CHUNK` rows of logits exist at a time (twice, where reads share rows), however
many are read; a figure equals the one that sampling reports for the same place.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from branchline.kernels.ops import Ops
from branchline.runtime.core.batch import Int32Array, ScoreRead, TopLogprobs
from branchline.runtime.sampling.logprobs import read_top_logprobs

CHUNK = 64
"""Rows of logits made at once: 12 MiB for a vocabulary of 49152."""

Head = Callable[[torch.Tensor, Int32Array], torch.Tensor]
"""The output head: hidden states [n, hidden] of the logit rows with these indices -> [n, V]."""


def read_scores(
    read: ScoreRead,
    hidden: torch.Tensor,
    logits: Head,
    ops: Ops,
) -> TopLogprobs:
    """Log-probabilities (natural log, temperature 1, unmasked) of the tokens asked for.

    Args:
        read: m places.
        hidden: [l, hidden].
        logits: gives float32 [n, V].
        ops: gathers rows.
    """
    # the choices of a select read one row many times: its logits are made once
    order = np.argsort(read.logit_rows, kind="stable")
    rows, firsts = np.unique(read.logit_rows[order], return_index=True)
    ends = np.append(firsts[1:], len(order))
    places: list[np.ndarray[tuple[int], np.dtype[np.int64]]] = []
    parts: list[TopLogprobs] = []
    for first in range(0, len(rows), CHUNK):
        wanted = rows[first : first + CHUNK]
        values = logits(ops.gather_rows(hidden, torch.from_numpy(wanted)), wanted)
        last = first + len(wanted)
        for start in range(int(firsts[first]), int(ends[last - 1]), CHUNK):
            here = order[start : min(start + CHUNK, int(ends[last - 1]))]
            local = np.searchsorted(wanted, read.logit_rows[here])
            tokens = torch.from_numpy(read.token_ids[here])
            alone = len(here) == len(wanted) and len(np.unique(local)) == len(wanted)
            source = values if alone else values[torch.from_numpy(local)]
            parts.append(read_top_logprobs(source, tokens, read.top_k))
            places.append(here)
    joined = TopLogprobs(
        np.concatenate([part.chosen for part in parts]),
        np.concatenate([part.top_ids for part in parts]),
        np.concatenate([part.top_values for part in parts]),
    )
    back = np.argsort(np.concatenate(places), kind="stable")
    return TopLogprobs(joined.chosen[back], joined.top_ids[back], joined.top_values[back])
