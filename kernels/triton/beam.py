"""Launches of the kernels of a beam search, and of those around the step that checks it."""

from __future__ import annotations

import torch
import triton

from branchline.kernels.beam import Beam, BeamOps, Check, SlotRows
from branchline.kernels.triton.beam_kernels import (
    beam_begin_kernel,
    beam_part_kernel,
    beam_select_kernel,
)
from branchline.kernels.triton.check import made_of
from branchline.kernels.triton.check_kernels import beam_tree_kernel, keep_guesses_kernel
from branchline.kernels.triton.tuning import Device, power_of_two

__all__ = ["TritonBeam"]

_PART, _PART_WARPS = 2048, 4
"""Logits that one program looks through, and its warps."""
_SELECT_WARPS, _TREE_WARPS = 4, 8
"""Of the programs that join the parts of a row's guesses, and that make its tree."""
_SLOTS = 1024
"""Slots of a row that one program copies."""


class TritonBeam(BeamOps):
    """What `TritonOps` does between the levels of a draft model."""

    _gpu: Device

    def beam_begin(self, beam: Beam) -> None:
        known = beam.known
        beam_begin_kernel[(beam.rows * beam.width, triton.cdiv(beam.context, _SLOTS))](
            beam.inputs,
            known.slots,
            known.tokens,
            known.lengths,
            beam.lengths,
            beam.table,
            beam.positions,
            beam.ends,
            beam.ids,
            beam.scores,
            beam.nodes,
            beam.previous,
            beam.inputs.stride(0),
            known.slots.stride(0),
            known.tokens.stride(0),
            beam.table.stride(0),
            beam.ids.stride(0),
            beam.first,
            beam.context,
            beam.scratch,
            beam.depth,
            W=beam.width,
            LEVELS_PAD=power_of_two(beam.levels),
            BLOCK=_SLOTS,
            **self._gpu.launch(4),
        )

    def beam_step(self, beam: Beam, level: int, logits: torch.Tensor) -> None:
        n, width, w, size = *logits.shape, beam.width, beam.size(level)
        parts = triton.cdiv(width, _PART)
        device, mapped = logits.device, beam.vocabulary is not None
        names = beam.inputs if beam.vocabulary is None else beam.vocabulary
        numbers = torch.empty(n, parts, w, dtype=torch.int64, device=device)
        tops = torch.empty(n, parts, dtype=torch.float32, device=device)
        sums = torch.empty(n, parts, dtype=torch.float32, device=device)
        more = level + 1 < beam.levels
        beam_part_kernel[(n, parts)](
            logits,
            numbers,
            tops,
            sums,
            beam.masks,
            beam.inputs,
            names,
            width,
            beam.masks.shape[1],
            beam.inputs.stride(0),
            W=w,
            BLOCK=_PART,
            MASKED=level == 0,
            MORE=more,
            MAPPED=mapped,
            **self._gpu.launch(_PART_WARPS),
        )
        beam_select_kernel[(beam.rows,)](
            numbers,
            tops,
            sums,
            beam.inputs,
            beam.lengths,
            names,
            beam.ids,
            beam.scores,
            beam.nodes,
            beam.previous,
            beam.table,
            beam.found,
            parts,
            level,
            beam.count(level),
            beam.found.stride(0),
            beam.found.stride(1),
            beam.inputs.stride(0),
            beam.table.stride(0),
            beam.ids.stride(0),
            beam.first,
            beam.scratch,
            beam.scratch_rows * w,
            SIZE=size,
            SIZE_PAD=power_of_two(size),
            W=w,
            W_PAD=power_of_two(w),
            BLOCK=power_of_two(parts * w),
            PARTS_PAD=power_of_two(parts),
            LEVELS_PAD=power_of_two(beam.levels),
            NEXT=level + 1 < beam.depth,
            MORE=more,
            MAPPED=mapped,
            **self._gpu.launch(_SELECT_WARPS),
        )

    def beam_tree(self, beam: Beam, check: Check, most: int) -> None:
        count, nodes = beam.found.shape[2], power_of_two(most)
        device, known = beam.found.device, beam.known
        places = torch.empty(beam.rows, count, dtype=torch.int32, device=device)
        order = torch.empty(beam.rows, nodes, dtype=torch.int32, device=device)
        beam_tree_kernel[(beam.rows,)](
            beam.inputs,
            beam.lengths,
            beam.found,
            places,
            order,
            known.slots,
            *made_of(check),
            beam.found.stride(0),
            beam.found.stride(1),
            beam.inputs.stride(0),
            known.slots.stride(0),
            known.tokens.stride(0),
            check.nodes.stride(0),
            W=beam.width,
            DEPTH=beam.depth,
            LEVELS=beam.levels,
            LEVELS_PAD=power_of_two(beam.levels),
            COUNT_PAD=power_of_two(count),
            NODES_PAD=nodes,
            WORDS_PAD=-(-nodes // 64),
            BLOCK=min(128, power_of_two(count)),
            **self._gpu.launch(_TREE_WARPS),
        )

    def keep_guesses(
        self, check: Check, known: SlotRows, depth: int, most: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        b = check.rows.shape[0]
        moves = torch.empty(2, b * depth, dtype=torch.int32, device=check.nodes.device)
        keep_guesses_kernel[(b,)](
            check.firsts,
            check.rows,
            check.tree_lens,
            check.sample_positions,
            check.nodes,
            known.slots,
            known.tokens,
            known.lengths,
            moves,
            check.nodes.stride(0),
            known.slots.stride(0),
            known.tokens.stride(0),
            moves.stride(0),
            DEPTH=depth,
            NODES_PAD=power_of_two(most),
            **self._gpu.launch(1),
        )
        return moves[0], moves[1]
