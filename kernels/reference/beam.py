"""The meaning of a beam's steps, in plain torch."""

from __future__ import annotations

import torch

from branchline.kernels.beam import HEADER, Beam, BeamOps

_DEAD = float("-inf")


class ReferenceBeam(BeamOps):
    """Every step in torch."""

    def beam_begin(self, beam: Beam) -> None:
        rows, w, inputs = beam.rows, beam.width, beam.inputs
        lens = inputs[:, 0].long()
        entries = (lens - beam.first).clamp(min=0)
        table = beam.table.view(rows, w, -1)
        table[:, :, : beam.context] = inputs[:, None, HEADER + beam.levels :]
        for level in range(beam.depth):
            n = rows * beam.size(level)
            positions = (lens + level).clamp(max=beam.context - 1)
            beam.positions[level, :n] = positions.repeat_interleave(beam.size(level))
            beam.ends[level, :n] = (entries + level + 1).int().repeat_interleave(beam.size(level))
        own = beam.scratch + torch.arange(rows, device=inputs.device) * w
        table[torch.arange(rows), 0, entries] = own.int()
        beam.ids[0, :rows] = inputs[:, HEADER]
        beam.scores[0, :rows] = 0.0
        beam.nodes[0, :rows] = -1
        beam.previous[0, :rows] = inputs[:, 1]

    def beam_step(self, beam: Beam, level: int, logits: torch.Tensor) -> None:
        rows, w, size = beam.rows, beam.width, beam.size(level)
        n, first = rows * size, beam.count(level)
        logits = logits.float()
        if level == 0:
            logits = logits.masked_fill(_refused(beam, logits.shape[1]), _DEAD)
        values, columns = logits.topk(w, dim=-1)
        base = beam.scores[level, :n] - torch.logsumexp(logits, dim=-1)
        scores = (values + base[:, None]).nan_to_num(nan=_DEAD, neginf=_DEAD).view(rows, -1)
        ids = columns.int() if beam.vocabulary is None else beam.vocabulary[columns]
        ids = ids.view(rows, -1)
        known = torch.full((rows, 1), -1, dtype=torch.int32, device=ids.device)
        if level + 1 < beam.levels:
            known = beam.inputs[:, HEADER + level + 1, None]
        given = known >= 0
        nodes = beam.nodes[level, :n].view(rows, size, 1).expand(-1, -1, w).reshape(rows, -1)
        found = beam.found[:, :, first : first + size * w]
        found[0], found[1] = ids, nodes
        found[2] = scores.masked_fill(given, _DEAD).view(torch.int32)
        if level + 1 < beam.depth:
            _next(beam, level, ids, scores, known)


def _next(
    beam: Beam, level: int, ids: torch.Tensor, scores: torch.Tensor, known: torch.Tensor
) -> None:
    """The best w guesses of each row, or its known id; ids, scores [R, w * s], known [R, 1]."""
    rows, w, given = beam.rows, beam.width, known >= 0
    best_scores, best = scores.topk(w, dim=-1)
    parents = (best // w).masked_fill(given, 0)
    j = torch.arange(w, device=ids.device)
    forced = torch.where(j == 0, 0.0, _DEAD)
    there, n = level + 1, rows * w
    beam.ids[there, :n] = torch.where(given, known, ids.gather(1, best)).flatten()
    beam.scores[there, :n] = torch.where(given, forced, best_scores).flatten()
    beam.nodes[there, :n] = (best + beam.count(level)).int().masked_fill(given, -1).flatten()
    row = torch.arange(rows, device=ids.device)[:, None]
    before = beam.scratch + (level * beam.scratch_rows + row) * w
    beam.previous[there, :n] = (before + parents).int().flatten()
    entries = (beam.inputs[:, 0].long() - beam.first).clamp(min=0)
    columns = (entries[:, None, None] + torch.arange(level + 1, device=ids.device)).expand(
        -1, w, -1
    )
    table = beam.table.view(rows, w, -1)
    table.scatter_(2, columns, table[row, parents].gather(2, columns))
    own = beam.scratch + (there * beam.scratch_rows + row) * w + j
    table.scatter_(2, (entries + there)[:, None, None].expand(-1, w, -1), own.int()[:, :, None])


def _refused(beam: Beam, width: int) -> torch.Tensor:
    """bool [R, v], what the masks forbid."""
    device = beam.inputs.device
    named = beam.vocabulary
    named = torch.arange(width, device=device) if named is None else named.long()
    bits = beam.masks[:, named >> 5] >> (named & 31).int()
    masked = beam.inputs[:, 2:3] > 0
    if beam.levels > 1:
        masked = masked & (beam.inputs[:, HEADER + 1, None] < 0)
    return ((bits & 1) == 0) & masked
