"""The meaning of a beam's steps, in plain torch."""

from __future__ import annotations

import torch

from branchline.kernels.beam import HEADER, Beam, BeamOps, Check, SlotRows

_DEAD = float("-inf")


class ReferenceBeam(BeamOps):
    """Every step in torch."""

    def beam_begin(self, beam: Beam) -> None:
        rows, w, inputs, known = beam.rows, beam.width, beam.inputs, beam.known
        where, told = inputs[:, 0].long(), inputs[:, 1]
        beam.lengths.copy_(torch.where(told < 0, known.lengths[where], told))
        lens = beam.lengths.long()
        entries = (lens - beam.first).clamp(min=0)
        table = beam.table.view(rows, w, -1)
        size = min(beam.context, known.slots.shape[1]) - beam.first
        table[:, :, :size] = known.slots[where, beam.first : beam.first + size][:, None]
        for level in range(beam.depth):
            n = rows * beam.size(level)
            positions = (lens + level).clamp(max=beam.context - 1)
            beam.positions[level, :n] = positions.repeat_interleave(beam.size(level))
            beam.ends[level, :n] = (entries + level + 1).int().repeat_interleave(beam.size(level))
        own = beam.scratch + torch.arange(rows, device=inputs.device) * w
        table[torch.arange(rows), 0, entries] = own.int()
        given = inputs[:, HEADER]
        beam.ids[0, :rows] = torch.where(given < 0, known.tokens[where, lens], given)
        beam.scores[0, :rows] = 0.0
        beam.nodes[0, :rows] = -1
        beam.previous[0, :rows] = known.slots[where, (lens - 1).clamp(min=0)]

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

    def beam_tree(self, beam: Beam, check: Check, most: int) -> None:
        for row in range(beam.rows):
            at, levels = int(beam.inputs[row, 4]), int(beam.inputs[row, 3])
            if at >= 0 and int(check.firsts[at]) >= 0:
                count = min(beam.count(levels), beam.found.shape[2])
                length = int(beam.lengths[row])
                pending = int((beam.inputs[row, HEADER + 1 :] >= 0).sum())
                _plant(check, at, beam.found[:, row, :count], length + pending, beam.known)

    def keep_guesses(
        self, check: Check, known: SlotRows, depth: int, most: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        b, sampled = check.rows.shape[0], check.nodes[2]
        moves = torch.zeros(2, b, depth, dtype=torch.int32, device=sampled.device)
        for i in range(b):
            first, n, row = int(check.firsts[i]), int(check.tree_lens[i]), int(check.rows[i])
            if first < 0:
                continue
            ids, parents = check.nodes[:2, first + 1 : first + 1 + n].tolist()
            base, node, kept = int(check.sample_positions[first]), -1, 0
            while kept <= depth:
                following = int(sampled[first + 1 + node])
                if following >= 0:
                    known.tokens[row, base + kept] = following
                pairs = zip(parents, ids, strict=True)
                child = next((j for j, pair in enumerate(pairs) if pair == (node, following)), None)
                if child is None or kept == depth:
                    break
                moves[0, i, kept] = known.slots[row, base + child]
                moves[1, i, kept] = known.slots[row, base + kept]
                node, kept = child, kept + 1
            known.lengths[row] = base + kept
        return moves[0].flatten(), moves[1].flatten()


def _plant(check: Check, at: int, found: torch.Tensor, last: int, known: SlotRows) -> None:
    """Row `at` of a step gets the best of what was found, int32 [3, c], behind position `last`."""
    n, first, row = int(check.tree_lens[at]), int(check.firsts[at]), int(check.rows[at])
    scores = found[2].view(torch.float32)
    order = scores.sort(descending=True, stable=True).indices[:n].tolist()
    order = [place for place in order if scores[place] > _DEAD]
    places = {place: node for node, place in enumerate(order)} | {-1: -1}
    ids = [int(found[0, place]) for place in order] + [0] * (n - len(order))
    parents = [places[int(found[1, place])] for place in order] + [-2] * (n - len(order))
    depths: list[int] = []
    seen: list[int] = []
    for node, parent in enumerate(parents):
        depths.append(depths[parent] + 1 if parent >= 0 else 0)
        seen.append((seen[parent] if parent >= 0 else 0) | 1 << node)
    token, words = int(check.extend_start[at + 1]) - n - 1, -(-n // 64)
    positions = torch.tensor([last, *(last + 1 + depth for depth in depths)])
    slots = known.slots[row]
    sampled = slice(first, first + n + 1)
    check.seq_lens[at] = last + 1 + n
    check.input_ids[token + 1 : token + 1 + n] = torch.tensor(ids, dtype=torch.int32)
    check.positions[token : token + 1 + n] = positions
    check.out_slots[token : token + 1 + n] = slots[last : last + 1 + n]
    check.previous[token] = slots[max(0, last - 1)]
    before = last + 1 + torch.tensor(parents).clamp(min=-1)
    check.previous[token + 1 : token + 1 + n] = slots[before]
    check.sample_positions[sampled] = positions + 1
    check.sample_places[sampled] = row * known.tokens.shape[1] + positions + 1
    check.nodes[0, first + 1 : first + 1 + n] = torch.tensor(ids, dtype=torch.int32)
    check.nodes[1, first + 1 : first + 1 + n] = torch.tensor(parents, dtype=torch.int32)
    for node, bits in enumerate(seen):
        for word in range(words):
            part = (bits >> 64 * word) & (1 << 64) - 1
            place = int(check.tree_offsets[at]) + node * words + word
            check.tree_words[place] = part - (1 << 64 if part >> 63 else 0)


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
    entries = (beam.lengths.long() - beam.first).clamp(min=0)
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
