"""The meaning of looking up, in plain torch."""

from __future__ import annotations

import torch

from branchline.kernels.beam import Check, SlotRows
from branchline.kernels.lookup import CHANGED, LEAST, LONG, MATCH, SEARCHED, LookupOps, Matches


class ReferenceLookup(LookupOps):
    """Row by row."""

    def plant_chains(
        self, check: Check, last_known: torch.Tensor, known: SlotRows, matches: Matches, most: int
    ) -> None:
        for at, first in enumerate(check.firsts.tolist()):
            if first < 0:
                continue
            row, n, last = int(check.rows[at]), int(check.tree_lens[at]), int(last_known[at])
            last = int(known.lengths[row]) if last < 0 else last
            end = int(matches.ends[row]) if int(matches.lengths[row]) == last + 1 else 0
            _plant(check, at, known, last, _following(known.tokens[row], end, last, n))

    def find_matches(
        self,
        check: Check,
        matched: torch.Tensor,
        known: SlotRows,
        matches: Matches,
        most: int,
    ) -> None:
        for at, first in enumerate(check.firsts.tolist()):
            row, last = int(check.rows[at]), int(check.seq_lens[at])
            if first >= 0:
                last = int(check.sample_positions[first]) + _kept(check, at)
                known.lengths[row] = last
            last = min(last, known.tokens.shape[1] - 1)
            end, score = _best(known.tokens[row, : last + 1])
            matches.lengths[row], matches.ends[row], matched[at] = last + 1, end, score


def _kept(check: Check, at: int) -> int:
    """Candidates of a row's chain that were sampled, from the first one on."""
    first, n = int(check.firsts[at]), int(check.tree_lens[at])
    ids, parents = check.nodes[:2, first + 1 : first + 1 + n].tolist()
    sampled = check.nodes[2, first : first + n].tolist()
    for i in range(n):
        if parents[i] != i - 1 or ids[i] != sampled[i]:
            return i
    return n


def _best(ids: torch.Tensor) -> tuple[int, int]:
    """(place, how well it matches) of the best place of int32 [n] ids; (0, 0) where none does."""
    last = len(ids) - 1
    ends = torch.arange(max(0, last - SEARCHED) + 1, last + 1, device=ids.device)
    if not len(ends):
        return 0, 0
    back = torch.arange(1, MATCH + LONG + 1, device=ids.device)
    at, tail = ends[:, None] - back, last + 1 - back
    same = (ids[at.clamp(min=0)] == ids[tail.clamp(min=0)]) & (at >= 0) & (tail >= 0)
    misses = (~same).int().cumsum(1)
    run = (misses == 0).sum(1).clamp(max=MATCH)
    more = ((misses == 1) & same).sum(1)
    score = run + CHANGED * (more >= LONG).int()
    best = int(score.max())
    if best < LEAST:
        return 0, 0
    return int(ends[(score == best).nonzero()[-1, 0]]), best


def _following(tokens: torch.Tensor, end: int, last: int, n: int) -> list[int]:
    """The n ids from a place on, round and round; none for place 0."""
    if end <= 0:
        return []
    period = last + 1 - end
    return [int(tokens[end + i % period]) for i in range(n)]


def _plant(check: Check, at: int, known: SlotRows, last: int, chain: list[int]) -> None:
    """Row `at` of a step gets a chain of candidates, or none, behind position `last`."""
    n, first, row = int(check.tree_lens[at]), int(check.firsts[at]), int(check.rows[at])
    token, words = int(check.extend_start[at + 1]) - n - 1, -(-n // 64)
    i = torch.arange(n)
    depths = i if chain else torch.zeros_like(i)
    parents = i - 1 if chain else torch.full_like(i, -2)
    ids = torch.tensor(chain or [0] * n, dtype=torch.int32)
    positions = torch.cat([torch.tensor([last]), last + 1 + depths])
    slots, sampled = known.slots[row], slice(first, first + n + 1)
    check.seq_lens[at] = last + 1 + n
    check.input_ids[token + 1 : token + 1 + n] = ids
    check.positions[token : token + 1 + n] = positions
    check.out_slots[token : token + 1 + n] = slots[last : last + 1 + n]
    check.previous[token] = slots[max(0, last - 1)]
    check.previous[token + 1 : token + 1 + n] = slots[last + 1 + parents.clamp(min=-1)]
    check.sample_positions[sampled] = positions + 1
    check.sample_places[sampled] = row * known.tokens.shape[1] + positions + 1
    check.nodes[0, first + 1 : first + 1 + n] = ids
    check.nodes[1, first + 1 : first + 1 + n] = parents.int()
    for node in range(n):
        seen = (1 << node + 1) - 1 if chain else 1 << node
        for word in range(words):
            part = (seen >> 64 * word) & (1 << 64) - 1
            place = int(check.tree_offsets[at]) + node * words + word
            check.tree_words[place] = part - (1 << 64 if part >> 63 else 0)
