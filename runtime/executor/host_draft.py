"""Guessing on the CPU: a beam of guesses grows level by level (the dynamic tree of EAGLE-2).

Every guess of a level is a row of one token in a slot table of its own: the row's computed slots,
then the scratch slots of its path. So a level is decoding, and needs no tree mask. The best `width`
guesses of a row are looked into at the next level. Invariant: nothing outside the scratch slots is
written, so guessing changes nothing that a later step reads. Knows nothing of requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from branchline.kernels.cpu.graph import CpuGraph, GraphInputs, GraphLimits
from branchline.kernels.cpu.native_ops import NativeOps
from branchline.kernels.ops import AttentionMeta, Ops
from branchline.runtime.core.batch import Float32Array, Int32Array
from branchline.runtime.core.forward import ForwardBatch
from branchline.runtime.executor.draft_step import Draft
from branchline.runtime.executor.drafting import DraftSeed, Guesses
from branchline.runtime.models.draft import EntryAttention

MAX_ROWS = 16
"""Rows that one group of levels serves; more take several groups."""


def scratch_slots(width: int, depth: int, rows: int = MAX_ROWS) -> int:
    """Slots behind the target's that guessing needs."""
    return rows * width * depth


@dataclass(frozen=True, slots=True)
class LevelTokens:
    """The n guesses that a level looks into; int32 [n] each.

    Attributes:
        ids: of the target's vocabulary.
        positions: in their rows.
        slots: where they are kept.
        previous: slots of their parents.
        places: rows of the slot table that hold their paths.
        lens: lengths of their paths there, themselves included.
    """

    ids: Int32Array
    positions: Int32Array
    slots: Int32Array
    previous: Int32Array
    places: Int32Array
    lens: Int32Array


@dataclass(frozen=True, slots=True)
class LevelResult:
    """What follows the n guesses of a level; the logits are valid until the next level.

    Attributes:
        logits: float32 [n, v].
        logprobs: float32 [n, k], of the likeliest, largest first.
        indices: int32 [n, k], which those are, in the draft's own vocabulary.
    """

    logits: torch.Tensor
    logprobs: np.ndarray[tuple[int, int], np.dtype[np.float32]]
    indices: np.ndarray[tuple[int, int], np.dtype[np.int32]]

    def of(self, start: int, end: int) -> LevelResult:
        """That of some of them."""
        part = slice(start, end)
        return LevelResult(self.logits[part], self.logprobs[part], self.indices[part])

    def under(self, refused: torch.Tensor) -> LevelResult:
        """Without what `refused`, bool [v], forbids; -inf fills up where too little is left."""
        logits = self.logits.masked_fill(refused, float("-inf"))
        top = logits.topk(self.indices.shape[1], dim=-1)
        sums = torch.logsumexp(logits, dim=-1, keepdim=True)
        logprobs = (top.values - sums).nan_to_num(nan=float("-inf"), neginf=float("-inf"))
        return LevelResult(logits, logprobs.numpy(), top.indices.int().numpy())


@dataclass(slots=True)
class _Grown:
    """One row's guesses so far, level by level, and its beam.

    Attributes:
        beam_ids, beam_scores, beam_nodes: of the guesses looked into next; a node is the index of
            the guess, -1 for a pending id.
        paths: int32 [beam, level], scratch slots of their paths without their own.
    """

    seed: DraftSeed
    depth: int
    beam_ids: Int32Array
    beam_scores: Float32Array
    beam_nodes: Int32Array
    paths: np.ndarray[tuple[int, int], np.dtype[np.int32]]
    count: int = 0
    ids: list[Int32Array] = field(default_factory=list)
    parents: list[Int32Array] = field(default_factory=list)
    scores: list[Float32Array] = field(default_factory=list)

    def least(self) -> float:
        """Score that a guess must exceed to be looked into: what follows it never scores more."""
        wanted = self.seed.nodes
        found = np.concatenate(self.scores)
        if wanted is None or len(found) < wanted:
            return -np.inf
        return float(np.partition(found, -wanted)[-wanted])

    def guesses(self) -> Guesses:
        if not self.ids:
            none = np.empty(0, dtype=np.int32)
            return Guesses(none, none, none.astype(np.float32))
        return Guesses(
            np.concatenate(self.ids), np.concatenate(self.parents), np.concatenate(self.scores)
        )


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
        table = torch.zeros((rows, max_context + max_depth), dtype=torch.int32)
        self._table = table.numpy()
        self._levels = _Levels(draft, ops, table, width)

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
            live = [
                (i, row) for i, row in enumerate(rows) if level < row.depth and len(row.beam_ids)
            ]
            if not live:
                break
            found = self._run(level, live)
            start = 0
            for _, row in live:
                end = start + len(row.beam_ids)
                self._grow(row, level, found.of(start, end))
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
        return _Grown(
            seed,
            depth,
            seed.pending[:1],
            np.zeros(1, dtype=np.float32),
            np.full(1, -1, dtype=np.int32),
            np.empty((1, 0), dtype=np.int32),
        )

    def _run(self, level: int, live: Sequence[tuple[int, _Grown]]) -> LevelResult:
        """What follows all rows' beams, one after the other; each beam's own slot is added to its
        path."""
        parts: list[tuple[Int32Array, ...]] = []
        for index, row in live:
            n, beam = len(row.seed.slots), len(row.beam_ids)
            begin = index * self._width
            own = self._scratch + (begin * self.max_depth + level * self._width)
            mine = np.arange(own, own + beam, dtype=np.int32)
            row.paths = np.concatenate([row.paths, mine[:, None]], axis=1)
            context = n - self._first
            self._table[begin : begin + beam, context : context + level + 1] = row.paths
            parts.append(
                (
                    row.beam_ids,
                    np.full(beam, n + level, dtype=np.int32),
                    mine,
                    row.paths[:, -2] if level else row.seed.slots[-1:],
                    np.arange(begin, begin + beam, dtype=np.int32),
                    np.full(beam, context + level + 1, dtype=np.int32),
                )
            )
        return self._levels.run(LevelTokens(*map(np.concatenate, zip(*parts, strict=True))))

    def _grow(self, row: _Grown, level: int, found: LevelResult) -> None:
        known = row.seed.pending
        if level + 1 < len(known):
            row.beam_ids = known[level + 1 : level + 2]
            return
        if level + 1 == len(known) and row.seed.allowed is not None:
            found = found.under(self._refused(row.seed.allowed))
        width = found.indices.shape[1]
        scores = (found.logprobs + row.beam_scores[:, None]).reshape(-1)
        places = found.indices.reshape(-1)
        ids = places if self._vocabulary is None else self._vocabulary[places]
        row.ids.append(ids)
        row.parents.append(np.repeat(row.beam_nodes, width))
        row.scores.append(scores)
        best = np.sort(np.argsort(-scores, kind="stable")[: self._width])
        best = best[scores[best] > row.least()]
        row.beam_ids, row.beam_scores = ids[best], scores[best]
        row.beam_nodes = (row.count + best).astype(np.int32)
        row.paths = row.paths[best // width]
        row.count += len(ids)

    def _refused(self, words: Int32Array) -> torch.Tensor:
        """bool [v], which of the draft's ids the mask forbids."""
        bits = np.unpackbits(words.view(np.uint8), bitorder="little")
        size = self._levels.vocab_size
        chosen = bits[:size] if self._vocabulary is None else bits[self._vocabulary]
        return torch.from_numpy(chosen == 0)


class _Levels:
    """One level: recorded once where the ops are native, else run eagerly.

    Args:
        table: int32 [rows, width], slots of each guess's path.
        width: of the likeliest continuations of each, how many are read.

    Attributes:
        vocab_size: columns of the logits; known after the first run.
    """

    def __init__(self, draft: Draft, ops: Ops, table: torch.Tensor, width: int) -> None:
        self._draft, self._ops, self._table, self._width = draft, ops, table, width
        self._attention = EntryAttention()
        self._graph: CpuGraph | None = None
        self.vocab_size = 0
        if isinstance(ops, NativeOps):
            rows = table.shape[0]
            limits = GraphLimits(tokens=rows, rows=rows, logit_rows=rows)
            nowhere = torch.zeros((1, 1), dtype=torch.int32)  # no id of a level is unknown
            self._graph = CpuGraph(ops.runner, limits, table, nowhere)
            every = torch.arange(rows, dtype=torch.int32)
            self._graph.inputs.logit_index.copy_(every)
            self._graph.inputs.meta.extend_lens.fill_(1)
            self._graph.inputs.meta.extend_start[1:] = every + 1
            self._graph.capture(self._recorded)
            self.vocab_size = self._graph.outputs[0].shape[1]

    def run(self, tokens: LevelTokens) -> LevelResult:
        """What follows each token."""
        n = len(tokens.ids)
        if self._graph is None:
            return self._eager(tokens)
        inputs = self._graph.inputs
        inputs.input_ids.numpy()[:n] = tokens.ids
        inputs.positions.numpy()[:n] = tokens.positions
        inputs.out_slots.numpy()[:n] = tokens.slots
        inputs.previous.numpy()[:n] = tokens.previous
        inputs.meta.rows.numpy()[:n] = tokens.places
        inputs.meta.seq_lens.numpy()[:n] = tokens.lens
        self._graph.replay(n, n, n)
        return _result(*(part[:n] for part in self._graph.outputs))

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

    def _eager(self, tokens: LevelTokens) -> LevelResult:
        n = len(tokens.ids)
        meta = AttentionMeta(
            rows=torch.from_numpy(tokens.places),
            slot_table=self._table,
            seq_lens=torch.from_numpy(tokens.lens),
            extend_lens=torch.ones(n, dtype=torch.int32),
            extend_start=torch.arange(n + 1, dtype=torch.int32),
        )
        batch = ForwardBatch(
            input_ids=torch.from_numpy(tokens.ids),
            positions=torch.from_numpy(tokens.positions).long(),
            out_slots=torch.from_numpy(tokens.slots),
            logit_idx=torch.arange(n, dtype=torch.int32),
            backend=self._attention,
            plan=self._attention.init_graph(meta),
            previous=torch.from_numpy(tokens.previous),
        )
        logits = self._draft.model.level(batch, self._ops, self._draft.pool).float()
        self.vocab_size = logits.shape[1]
        return _result(*self._read(logits, self._ops))


def _result(
    logits: torch.Tensor, sums: torch.Tensor, values: torch.Tensor, indices: torch.Tensor
) -> LevelResult:
    return LevelResult(logits, values.numpy() - sums.numpy()[:, None], indices.numpy().copy())
