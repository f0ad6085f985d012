"""Launches of the kernels that look up."""

from __future__ import annotations

import torch

from branchline.kernels.beam import Check, SlotRows
from branchline.kernels.lookup import CHANGED, LEAST, LONG, MATCH, SEARCHED, LookupOps, Matches
from branchline.kernels.triton.check import made_of
from branchline.kernels.triton.lookup_kernels import find_matches_kernel, plant_chains_kernel
from branchline.kernels.triton.tuning import Device, power_of_two

__all__ = ["TritonLookup"]

_PLACES = 1024
"""Places that a program looks at at once."""


class TritonLookup(LookupOps):
    """What `TritonOps` does around steps of chains of guesses."""

    _gpu: Device

    def plant_chains(
        self, check: Check, last_known: torch.Tensor, known: SlotRows, matches: Matches, most: int
    ) -> None:
        nodes = power_of_two(most)
        plant_chains_kernel[(check.rows.shape[0],)](
            last_known,
            known.slots,
            known.tokens,
            known.lengths,
            matches.lengths,
            matches.ends,
            *made_of(check),
            known.slots.stride(0),
            known.tokens.stride(0),
            check.nodes.stride(0),
            NODES_PAD=nodes,
            WORDS_PAD=power_of_two(-(-nodes // 64)),
            **self._gpu.launch(1),
        )

    def find_matches(
        self,
        check: Check,
        matched: torch.Tensor,
        known: SlotRows,
        matches: Matches,
        most: int,
    ) -> None:
        find_matches_kernel[(check.rows.shape[0],)](
            check.firsts,
            check.rows,
            check.seq_lens,
            check.tree_lens,
            check.sample_positions,
            check.nodes,
            known.tokens,
            known.lengths,
            matches.lengths,
            matches.ends,
            matched,
            check.nodes.stride(0),
            known.tokens.stride(0),
            NODES_PAD=power_of_two(most),
            SEARCHED=SEARCHED,
            LEAST=LEAST,
            MATCH=MATCH,
            LONG=LONG,
            CHANGED=CHANGED,
            BLOCK=_PLACES,
            **self._gpu.launch(8),
        )
