"""Guessing on the CPU: a beam of guesses grows level by level (the dynamic tree of EAGLE-2).

Every guess of a level is a row of one token in a slot table of its own: the row's computed slots,
then the scratch slots of its path. So a level is decoding, and needs no tree mask. The best `width`
guesses of a row are looked into at the next level. Invariant: nothing outside the scratch slots is
written, so guessing changes nothing that a later step reads. Knows nothing of requests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from branchline.kernels.cpu.graph import CpuGraph, GraphInputs, GraphLimits
from branchline.kernels.cpu.native_ops import NativeOps
from branchline.kernels.ops import AttentionMeta, Ops
from branchline.runtime.core.batch import Int32Array
from branchline.runtime.core.forward import ForwardBatch
from branchline.runtime.executor.draft_step import Draft
from branchline.runtime.executor.drafting import DraftSeed, Guesses
from branchline.runtime.models.draft import EntryAttention

MAX_ROWS = 16
"""Rows that one group of levels serves; more take several groups."""


FURTHER = 2.5
"""Another level is looked into where the likeliest guess has so many times the chance that one must
have to be checked: the level is to be paid by what it finds, which is less likely than that."""

Logprobs = np.ndarray[tuple[int, int], np.dtype[np.float32]]
Indices = np.ndarray[tuple[int, int], np.dtype[np.int32]]


def scratch_slots(width: int, depth: int, rows: int = MAX_ROWS) -> int:
    """Slots behind the target's that guessing needs."""
    return rows * width * depth


@dataclass(slots=True)
class _Grown:
    """One row's guesses so far and its beam. Lists, since they are short: arrays of a few elements
    take longer to make than to fill.

    Attributes:
        begin: first row of the slot table that is the seed's.
        ids, parents, scores: of the guesses, level by level.
        beam_ids, beam_scores, beam_nodes: of the guesses looked into next; a node is the index of
            the guess, -1 for a pending id.
        beam_paths: scratch slots of the tokens before each, pending ids included.
    """

    seed: DraftSeed
    begin: int
    depth: int
    beam_ids: list[int]
    beam_scores: list[float] = field(default_factory=lambda: [0.0])
    beam_nodes: list[int] = field(default_factory=lambda: [-1])
    beam_paths: list[list[int]] = field(default_factory=lambda: [[]])
    ids: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)

    def least(self) -> float:
        """Score that a guess must exceed to be looked into: what follows it never scores more."""
        wanted, least = self.seed.nodes, self.seed.least * FURTHER
        log = math.log(least) if least > 0.0 else -math.inf
        if wanted is None or len(self.scores) < wanted:
            return log
        return max(log, sorted(self.scores)[-wanted])

    def look(self, width: int, ids: list[int], scores: list[float]) -> None:
        """What follows the beam: `width` ids behind each, likeliest first, and their scores; the
        best of them are the next beam."""
        first, many = len(self.ids), len(ids) // len(self.beam_ids)
        self.ids += ids
        self.scores += scores
        for node in self.beam_nodes:
            self.parents += [node] * many
        order = sorted(range(len(ids)), key=scores.__getitem__, reverse=True)[:width]
        least = self.least()
        best = [i for i in sorted(order) if scores[i] > least]
        self.beam_ids = [ids[i] for i in best]
        self.beam_scores = [scores[i] for i in best]
        self.beam_nodes = [first + i for i in best]
        self.beam_paths = [[*self.beam_paths[i // many]] for i in best]

    def guesses(self) -> Guesses:
        return Guesses(
            np.array(self.ids, dtype=np.int32),
            np.array(self.parents, dtype=np.int32),
            np.array(self.scores, dtype=np.float32),
        )


@dataclass(frozen=True, slots=True)
class LevelResult:
    """What follows the n guesses of a level; valid until the next level.

    Attributes:
        logits: float32 [n, v].
        logprobs: float32 [n, k], of the likeliest, largest first.
        indices: int32 [n, k], which those are, in the draft's own vocabulary.
    """

    logits: torch.Tensor
    logprobs: Logprobs
    indices: Indices


class HostDraft:
    """Runs a draft model's levels; not thread-safe, but safe beside the worker's steps.

    Args:
        draft: the model and its pool, with `scratch_slots(width, max_depth)` of scratch.
        ops: what it runs with; native ones replay a recording.
        max_context: of a row.
        width: guesses looked into at each level.
        max_depth: levels at most.
    """

    def __init__(
        self, draft: Draft, ops: Ops, *, max_context: int, width: int, max_depth: int
    ) -> None:
        self.max_depth = max_depth
        self._width = width
        self._max_context = max_context
        self._first = draft.model.sizes.first
        self._scratch = draft.pool.first_scratch
        vocabulary = draft.model.vocabulary
        self._vocabulary = None if vocabulary is None else vocabulary.numpy()
        rows = MAX_ROWS * width
        self._levels = _Levels(draft, ops, rows, max_context + max_depth, width)
        self._table = self._levels.table.numpy()

    def guess(self, seeds: Sequence[DraftSeed]) -> list[Guesses]:
        """See `DraftExecutor.guess`."""
        found: list[Guesses] = []
        with torch.inference_mode():
            for first in range(0, len(seeds), MAX_ROWS):
                found += self._guess(seeds[first : first + MAX_ROWS])
        return found

    def warm_up(self) -> None:
        """A first draft that nobody waits for, behind the padding slot: pages in the weights."""
        zero = np.zeros(1, dtype=np.int32)
        self.guess([DraftSeed(zero, zero, min(2, self.max_depth))])

    def _guess(self, seeds: Sequence[DraftSeed]) -> list[Guesses]:
        rows = [self._begin(index, seed) for index, seed in enumerate(seeds)]
        for level in range(max(row.depth for row in rows)):
            live = [row for row in rows if level < row.depth and row.beam_ids]
            if not live:
                break
            count = 0
            for row in live:
                count = self._put(row, level, count)
            found = self._levels.run(count)
            start = 0
            for row in live:
                end = start + len(row.beam_ids)
                self._grow(row, level, found, start, end)
                start = end
        return [row.guesses() for row in rows]

    def _begin(self, index: int, seed: DraftSeed) -> _Grown:
        """The row's computed slots enter the table once for each guess of its beam."""
        computed = len(seed.slots)
        begin = index * self._width
        self._table[begin : begin + self._width, : computed - self._first] = seed.slots[
            self._first :
        ]
        # the last level's tokens stand at computed + depth - 1, and rotations end with the context
        depth = min(
            seed.depth + len(seed.pending) - 1, self.max_depth, self._max_context - computed
        )
        return _Grown(seed, begin, depth, [int(seed.pending[0])])

    def _put(self, row: _Grown, level: int, start: int) -> int:
        """The row's beam as tokens of the next level, from place `start` on; where they end. Each
        token's own slot is added to its path."""
        levels, beam, computed = self._levels, len(row.beam_ids), len(row.seed.slots)
        own = self._scratch + row.begin * self.max_depth + level * self._width
        for i, path in enumerate(row.beam_paths):
            path.append(own + i)
        context, end, last = computed - self._first, start + beam, row.begin + beam
        self._table[row.begin : last, context : context + level + 1] = row.beam_paths
        levels.ids[start:end] = row.beam_ids
        levels.positions[start:end] = computed + level
        levels.slots[start:end] = np.arange(own, own + beam)
        parent = [path[-2] for path in row.beam_paths] if level else row.seed.slots[-1]
        levels.previous[start:end] = parent
        levels.places[start:end] = np.arange(row.begin, last)
        levels.lens[start:end] = context + level + 1
        return end

    def _grow(self, row: _Grown, level: int, found: LevelResult, start: int, end: int) -> None:
        """What was found behind the row's beam, which is tokens `start` to `end` of the level."""
        known = row.seed.pending
        if level + 1 < len(known):
            row.beam_ids = [int(known[level + 1])]
            return
        logprobs, places = found.logprobs[start:end], found.indices[start:end]
        if level + 1 == len(known) and row.seed.allowed is not None:
            refused = self._refused(row.seed.allowed)
            logprobs, places = _under(found.logits[start:end], refused, places.shape[1])
        ids = places if self._vocabulary is None else self._vocabulary[places]
        before = row.beam_scores
        scores = [a + b for a, line in zip(before, logprobs.tolist(), strict=True) for b in line]
        row.look(self._width, ids.reshape(-1).tolist(), scores)

    def _refused(self, words: Int32Array) -> torch.Tensor:
        """bool [v], which of the draft's ids the mask forbids."""
        bits = np.unpackbits(words.view(np.uint8), bitorder="little")
        size = self._levels.vocab_size
        chosen = bits[:size] if self._vocabulary is None else bits[self._vocabulary]
        return torch.from_numpy(chosen == 0)


def _under(logits: torch.Tensor, refused: torch.Tensor, count: int) -> tuple[Logprobs, Indices]:
    """The likeliest `count` without what `refused`, bool [v], forbids; -inf fills up where too
    little is left."""
    left = logits.masked_fill(refused, float("-inf"))
    top = left.topk(count, dim=-1)
    sums = torch.logsumexp(left, dim=-1, keepdim=True)
    logprobs = (top.values - sums).nan_to_num(nan=float("-inf"), neginf=float("-inf"))
    return logprobs.numpy(), top.indices.int().numpy()


class _Levels:
    """One level: recorded once where the ops are native, else run eagerly. Its tokens are written
    into the arrays here.

    Args:
        rows: tokens of a level at most.
        context: slots of a path at most.
        width: of the likeliest continuations of each, how many are read.

    Attributes:
        table: int32 [rows, context], slots of each guess's path.
        ids: int32 [rows], of the target's vocabulary.
        positions: int64 [rows], in their sequences.
        slots, previous: int32 [rows], where they are kept, and their parents.
        places, lens: int32 [rows], rows of the table that hold their paths, and the lengths of
            these, themselves included.
        vocab_size: columns of the logits; known after the first run.
    """

    def __init__(self, draft: Draft, ops: Ops, rows: int, context: int, width: int) -> None:
        self.table = torch.zeros((rows, context), dtype=torch.int32)
        self._draft, self._ops, self._width = draft, ops, width
        self._attention = EntryAttention()
        self.vocab_size = 0
        self._graph = self._record(ops, rows) if isinstance(ops, NativeOps) else None
        if self._graph is not None:
            inputs, meta = self._graph.inputs, self._graph.inputs.meta
            arrays = [inputs.input_ids, inputs.positions, inputs.out_slots, inputs.previous]
            arrays += [meta.rows, meta.seq_lens]
            self._outputs = [part.numpy() for part in self._graph.outputs[1:]]
            self.vocab_size = self._graph.outputs[0].shape[1]
        else:
            kinds = [torch.int32, torch.int64, *[torch.int32] * 4]
            arrays = [torch.zeros(rows, dtype=kind) for kind in kinds]
        self._arrays = arrays
        self.ids, self.positions, self.slots, self.previous, self.places, self.lens = (
            part.numpy() for part in arrays
        )

    def run(self, n: int) -> LevelResult:
        """What follows each of the first n tokens."""
        if self._graph is None:
            return self._eager(n)
        self._graph.replay(n, n, n)
        sums, values, indices = self._outputs
        logits = self._graph.outputs[0][:n]
        return LevelResult(logits, values[:n] - sums[:n, None], indices[:n])

    def _record(self, ops: NativeOps, rows: int) -> CpuGraph:
        limits = GraphLimits(tokens=rows, rows=rows, logit_rows=rows)
        nowhere = torch.zeros((1, 1), dtype=torch.int32)  # no id of a level is unknown
        graph = CpuGraph(ops.runner, limits, self.table, nowhere)
        every = torch.arange(rows, dtype=torch.int32)
        graph.inputs.logit_index.copy_(every)
        graph.inputs.meta.extend_lens.fill_(1)
        graph.inputs.meta.extend_start[1:] = every + 1
        graph.capture(self._recorded)
        return graph

    def _recorded(self, ops: Ops, x: GraphInputs) -> tuple[torch.Tensor, ...]:
        batch = ForwardBatch(
            input_ids=x.input_ids,
            positions=x.positions,
            out_slots=x.out_slots,
            logit_idx=x.logit_index,
            backend=self._attention,
            plan=self._attention.init_graph(x.meta),
            previous=x.previous,
        )
        logits = self._draft.model.level(batch, ops, self._draft.pool)
        return self._read(logits, ops)

    def _read(self, logits: torch.Tensor, ops: Ops) -> tuple[torch.Tensor, ...]:
        """Logits, the logarithms of their sums, the largest and which those are."""
        return (
            logits,
            ops.logsumexp_rows(logits),
            *ops.top_rows(logits, min(self._width, logits.shape[1])),
        )

    def _eager(self, n: int) -> LevelResult:
        ids, positions, slots, previous, places, lens = (part[:n] for part in self._arrays)
        meta = AttentionMeta(
            rows=places,
            slot_table=self.table,
            seq_lens=lens,
            extend_lens=torch.ones(n, dtype=torch.int32),
            extend_start=torch.arange(n + 1, dtype=torch.int32),
        )
        batch = ForwardBatch(
            input_ids=ids,
            positions=positions,
            out_slots=slots,
            logit_idx=torch.arange(n, dtype=torch.int32),
            backend=self._attention,
            plan=self._attention.init_graph(meta),
            previous=previous,
        )
        logits = self._draft.model.level(batch, self._ops, self._draft.pool).float()
        self.vocab_size = logits.shape[1]
        logits, sums, values, indices = self._read(logits, self._ops)
        return LevelResult(logits, values.numpy() - sums.numpy()[:, None], indices.numpy())
