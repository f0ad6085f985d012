"""Turns the segments chosen for a step into a `ScheduleBatch`. Knows no policy and no memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from operator import is_
from typing import NamedTuple

import numpy as np

from branchline.runtime.core.batch import (
    SHORTEST_TRUNK,
    ForwardMode,
    Int32Array,
    RowInit,
    ScheduleBatch,
    ScoreRead,
)
from branchline.runtime.core.request import Request
from branchline.runtime.core.tree import DraftTree, TreeGroup
from branchline.runtime.memory.slot_table import SlotTable
from branchline.runtime.memory.types import Slots
from branchline.runtime.sampling.sampling_batch import RowSampling, SamplingBatch
from branchline.runtime.scheduler.candidates import tree_mask
from branchline.runtime.scheduler.draft import Draft
from branchline.runtime.scheduler.pace import Decision
from branchline.runtime.scheduler.repeats import Repeats

_NO_INTS = np.zeros(0, dtype=np.int32)
_BEFORE = np.array([[-1], [0]], dtype=np.int32)


@dataclass(slots=True)
class Segment:
    """One row's part of a step: tokens at positions start … start + count - 1, then candidates.

    Attributes:
        sample: the id after the segment's last token is sampled.
        group: choices to score behind the segment's last token.
        draft: guesses behind it; the ids after each of them are sampled as well.
        score_prompt: read the log-probability of the prompt's next token at every token.
        hidden: tokens at the segment's end whose hidden states are read; nothing is sampled then.
    """

    request: Request
    start: int
    count: int
    sample: bool
    group: TreeGroup | None = None
    draft: Draft | None = None
    score_prompt: bool = False
    hidden: int = 0

    @property
    def tree(self) -> DraftTree | None:
        """The candidates behind the segment's last token, whatever they are for."""
        if self.draft is not None:
            return self.draft.tree
        return None if self.group is None else self.group.tree

    @property
    def num_tokens(self) -> int:
        """Tokens of the row in this step, candidates included."""
        tree = self.tree
        return self.count if tree is None else self.count + len(tree)

    @property
    def forced_id(self) -> int | None:
        """The id behind its last token, where that was forced after the step had been planned."""
        request, place = self.request, self.start + self.count
        return int(request.ids[place]) if place < request.length else None

    @property
    def plain(self) -> bool:
        """One token, whose next is sampled, and nothing else."""
        return (
            self.count == 1
            and self.sample
            and self.draft is None
            and self.group is None
            and not self.score_prompt
            and not self.hidden
        )


class _Decoding(NamedTuple):
    """n plain segments.

    Attributes:
        rows, starts, ids, slots: int32 [n], of their tokens.
        before: int32 [n], slot of the token before each, 0 for the first of a row; where plans are
            linked.
        inits: ids of the rows that the token table lacks.
    """

    rows: Int32Array
    starts: Int32Array
    ids: Int32Array
    slots: Int32Array
    before: Int32Array | None
    inits: list[RowInit]


@dataclass(slots=True)
class Span:
    """Which of a plan's reads of one kind belong to a segment: `[start, start + count)`."""

    segment: int
    start: int
    count: int


@dataclass(slots=True)
class StepPlan:
    """A plan and what its commit needs to know of it.

    Attributes:
        spans: of the m log-probabilities that are read.
        hidden_spans: of the p hidden states that are read.
        guesses: candidates that are sampled; what rows with some become is known at commit.
        steady: it decodes, and computes nothing of a prompt.
        waited: it was begun when the one before was over, to have guesses.
        decision: how many of them it was to have.
        queued: `time.perf_counter()` when the worker had queued it.
        plain: so many segments, the first ones, are plain; each has one sampled place, in order.
    """

    batch: ScheduleBatch
    segments: list[Segment]
    spans: list[Span]
    hidden_spans: list[Span] = field(default_factory=list)
    guesses: int = 0
    steady: bool = False
    waited: bool = False
    decision: Decision | None = None
    queued: float = 0.0
    plain: int = 0

    @property
    def host_reads(self) -> bool:
        """The worker makes candidates that must be known before the step is sampled."""
        return self.batch.drafted is not None and self.batch.drafted.host_reads


class PlanBuilder:
    """Builds plans; keeps the last sampling batch, which steady decoding reuses, and how many ids
    of each row the token table will hold: sampling writes most of them there, and those it did not
    (forced ones, kept guesses) are written before they are needed.

    Args:
        slot_table: position -> slot of every row; its recorded changes travel with the plans.
        suppress_ids: ids that may not be sampled before `min_tokens`, for one request.
        linked: plans name the slot of the token before each, for models that draft.
    """

    def __init__(
        self,
        slot_table: SlotTable,
        suppress_ids: Callable[[Request], tuple[int, ...]],
        *,
        linked: bool = False,
    ) -> None:
        self._table = slot_table
        self._slots = slot_table.array
        self._suppress_ids = suppress_ids
        self._linked = linked
        self._sampled: list[Request] = []
        self._sampling: SamplingBatch | None = None
        self._told = np.zeros(slot_table.max_rows, dtype=np.int64)
        self._repeats = Repeats()

    def build(
        self,
        segments: list[Segment],
        inits: list[RowInit],
        copies: tuple[Slots, Slots] | None = None,
    ) -> StepPlan:
        """One `ScheduleBatch` of all segments: plain ones first, else in order.

        Args:
            segments: of the step.
            inits: rows that it begins with.
            copies: (src, dst) slots to copy before it.
        """
        again = None if inits or copies else self._repeats.of(segments, self._table.take_changes)
        if again is not None:
            return again
        for entered in inits:
            self._told[entered.row] = entered.start + len(entered.ids)
        plain: list[Segment] = []
        rest: list[Segment] = []
        for segment in segments:
            (plain if segment.count == 1 and segment.plain else rest).append(segment)
        segments = plain + rest
        first = self._decoding(plain)
        inits = [
            *inits,
            *first.inits,
            *(init for s in rest if (init := self._missing(s)) is not None),
        ]
        if rest:
            plan = self._extend(segments, first, inits)
        else:
            plan = self._decode(segments, first, inits)
        plan.plain = len(plain)
        plan.batch.copies = copies
        if self._linked:
            plan.batch.previous = self._previous(plan, first)
        self._repeats.built(plan)
        return plan

    def _previous(self, plan: StepPlan, first: _Decoding) -> Int32Array:
        """The slot of the token before each of the step's, 0 for the first of a row."""
        assert first.before is not None, "plans are linked"
        if len(plan.segments) == len(first.rows):
            return first.before
        parts = [first.before]
        for segment in plan.segments[len(first.rows) :]:
            slots = self._slots[segment.request.row]
            last = segment.start + segment.count - 1
            before = np.arange(segment.start - 1, last, dtype=np.int32)
            if segment.tree is not None:
                before = np.concatenate([before, segment.tree.parents + np.int32(last + 1)])
            parts.append(np.where(before < 0, np.int32(0), slots[before]))
        return np.concatenate(parts)

    def _missing(self, segment: Segment) -> RowInit | None:
        """The row's ids up to the segment's end that the token table lacks; notes what it will
        have when the step is over."""
        if segment.draft is not None and segment.draft.follows:
            return None  # the worker knows
        request, end = segment.request, segment.start + segment.count
        told, known = int(self._told[request.row]), min(end, request.length)
        self._told[request.row] = max(told, end + segment.sample)
        if told >= known:
            return None
        return RowInit(request.row, told, request.ids[told:known].copy())

    def _decode(self, segments: list[Segment], own: _Decoding, inits: list[RowInit]) -> StepPlan:
        b, rows, starts = len(segments), own.rows, own.starts
        every = np.arange(b, dtype=np.int32)
        requests = [s.request for s in segments]
        batch = ScheduleBatch(
            mode=ForwardMode.DECODE,
            rows=rows,
            seq_lens=starts + np.int32(1),
            extend_lens=np.ones(b, dtype=np.int32),
            input_ids=own.ids,
            positions=starts.astype(np.int64),
            out_slots=own.slots,
            logit_idx=every,
            sample_idx=every,
            sample_rows=every,
            sampling=self._sampling_batch(requests),
            inits=inits,
            slot_writes=self._table.take_changes(),
            adapter_slots=_adapter_slots(segments),
            trunks=self._trunks(rows, starts),
        )
        return StepPlan(batch, segments, [], steady=True)

    def _trunks(self, rows: Int32Array, starts: Int32Array) -> bool:
        """Whether neighbours have a long beginning in common: a slot is in one place of its rows,
        so one place tells."""
        long = rows[starts >= SHORTEST_TRUNK]
        if len(long) < 2:
            return False
        slots = self._slots[long, SHORTEST_TRUNK - 1]
        return bool((slots[1:] == slots[:-1]).any())

    def _extend(self, segments: list[Segment], first: _Decoding, inits: list[RowInit]) -> StepPlan:
        ids, positions, slots, logits = [], [], [], []
        sample_idx: list[int] = []
        sample_rows: list[int] = []
        read_rows: list[Int32Array] = []
        read_tokens: list[Int32Array] = []
        hidden_rows: list[Int32Array] = []
        spans: list[Span] = []
        hidden_spans: list[Span] = []
        n = len(first.rows)
        lens, seq_lens, batch_rows = _sizes(segments, first)
        start = np.zeros(len(segments) + 1, dtype=np.int32)
        np.cumsum(lens, out=start[1:])
        num_logits = num_reads = num_hidden = 0
        if n:
            ids.append(first.ids)
            positions.append(first.starts.astype(np.int64))
            slots.append(first.slots)
            logits.append(start[:n])
            sample_idx.extend(range(n))
            sample_rows.extend(range(n))
            num_logits = n
        for index, segment in enumerate(segments[n:], n):
            ids.append(_segment_ids(segment))
            positions.append(_segment_positions(segment))
            row, end = segment.request.row, segment.start + segment.num_tokens
            slots.append(self._slots[row, segment.start : end])
            wanted, reads, tokens = _segment_reads(segment)
            if len(reads):
                spans.append(Span(index, num_reads, len(reads)))
                read_rows.append((reads + num_logits).astype(np.int32))
                read_tokens.append(tokens)
                num_reads += len(reads)
            if segment.hidden:
                hidden_spans.append(Span(index, num_hidden, segment.hidden))
                end = num_logits + segment.hidden
                hidden_rows.append(np.arange(num_logits, end, dtype=np.int32))
                num_hidden += segment.hidden
            if segment.sample:
                places = 1 if segment.draft is None else len(wanted)
                last = num_logits + len(wanted)
                sample_idx.extend(range(last - places, last))
                sample_rows.extend([index] * places)
            logits.append(wanted + start[index])
            num_logits += len(wanted)
        sampled = [segments[i].request for i in sample_rows]
        batch = ScheduleBatch(
            mode=_mode(segments),
            rows=batch_rows,
            seq_lens=seq_lens,
            extend_lens=lens,
            input_ids=np.concatenate(ids),
            positions=np.concatenate(positions),
            out_slots=np.concatenate(slots),
            logit_idx=np.concatenate(logits).astype(np.int32),
            sample_idx=np.array(sample_idx, dtype=np.int32),
            sample_rows=np.array(sample_rows, dtype=np.int32),
            sampling=self._sampling_batch(sampled) if sampled else None,
            score=(
                ScoreRead(np.concatenate(read_rows), np.concatenate(read_tokens), _top_k(segments))
                if read_rows
                else None
            ),
            hidden_rows=np.concatenate(hidden_rows) if hidden_rows else None,
            tree=tree_mask(segments),
            inits=inits,
            slot_writes=self._table.take_changes(),
            adapter_slots=_adapter_slots(segments),
        )
        guesses = sum(len(s.draft) for s in segments if s.draft is not None)
        steady = all(s.sample and s.start >= s.request.prompt_len for s in segments)
        return StepPlan(batch, segments, spans, hidden_spans, guesses, steady)

    def _decoding(self, segments: list[Segment]) -> _Decoding:
        """What a step has of plain segments, all at once."""
        n = len(segments)
        requests = [s.request for s in segments]
        rows = np.array([r.row for r in requests], np.int32)
        starts = np.array([s.start for s in segments], np.int32)
        missing: list[RowInit] = []
        if (self._told[rows] <= starts).any():
            missing = [init for s in segments if (init := self._missing(s)) is not None]
        else:
            self._told[rows] = starts + 2
        ids = np.full(n, -1, np.int32)  # where a step in flight samples it
        known = np.flatnonzero(starts < np.array([r.length for r in requests], np.int32)).tolist()
        for i in known:
            ids[i] = requests[i].ids[segments[i].start]
        if not self._linked:
            return _Decoding(rows, starts, ids, self._slots[rows, starts], None, missing)
        before, slots = self._slots[rows, starts + _BEFORE]  # both at once costs little more
        if known and starts.min() == 0:  # the first id of a row is known
            before = np.where(starts == 0, np.int32(0), before)
        return _Decoding(rows, starts, ids, slots, before, missing)

    def failure_of(self, segment: Segment) -> Exception | None:
        """What is wrong with one segment's own part of a plan, if something is. Changes nothing."""
        try:
            _segment_ids(segment)
            _segment_positions(segment)
            _segment_reads(segment)
            if segment.sample and not segment.request.greedy:
                SamplingBatch.build([self._row(segment.request)])
        except Exception as error:
            return error
        return None

    def _row(self, request: Request) -> RowSampling:
        suppressed = self._suppress_ids(request)
        return RowSampling(request.sampling, request.seed, request.prompt_len, suppressed)

    def _sampling_batch(self, requests: list[Request]) -> SamplingBatch:
        # The requests themselves are kept: the address of one that is gone may be another's.
        same = len(requests) == len(self._sampled) and all(map(is_, requests, self._sampled))
        if not same or self._sampling is None:
            if all(r.greedy for r in requests):
                self._sampling = SamplingBatch.greedy(len(requests))
            else:
                self._sampling = SamplingBatch.build([self._row(r) for r in requests])
            self._sampled = requests
        return self._sampling


def _adapter_slots(segments: list[Segment]) -> Int32Array | None:
    versions = [s.request.adapter for s in segments]
    if not any(versions):
        return None
    return np.array([-1 if v is None else v.slot for v in versions], dtype=np.int32)


def _mode(segments: list[Segment]) -> ForwardMode:
    tree = any(s.tree is not None for s in segments)
    return ForwardMode.VERIFY if tree else ForwardMode.EXTEND


def _sizes(segments: list[Segment], first: _Decoding) -> tuple[Int32Array, Int32Array, Int32Array]:
    """(tokens in the step, tokens of the row then, row) of each segment, the first ones plain."""
    rest = [(s.num_tokens, s.start, s.request.row) for s in segments[len(first.rows) :]]
    table = np.array(rest, dtype=np.int32).reshape(-1, 3)
    lens = np.ones(len(segments), dtype=np.int32)
    lens[len(first.rows) :] = table[:, 0]
    seq_lens = np.concatenate([first.starts, table[:, 1]]) + lens
    return lens, seq_lens, np.concatenate([first.rows, table[:, 2]])


def _segment_ids(segment: Segment) -> Int32Array:
    request, start, end = segment.request, segment.start, segment.start + segment.count
    if segment.draft is not None and segment.draft.follows:  # the worker knows them
        plain = np.full(segment.count, -1, dtype=np.int32)
    elif end <= request.length:
        plain = request.ids[start:end]
    else:
        plain = np.full(segment.count, -1, dtype=np.int32)
        known = max(0, request.length - start)
        plain[:known] = request.ids[start : start + known]
    tree = segment.tree
    return plain if tree is None else np.concatenate([plain, tree.token_ids])


def _segment_positions(segment: Segment) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    plain = np.arange(segment.start, segment.start + segment.count, dtype=np.int64)
    tree = segment.tree
    if tree is None:
        return plain
    after = segment.start + segment.count
    return np.concatenate([plain, tree.depths.astype(np.int64) + after])


def _segment_reads(segment: Segment) -> tuple[Int32Array, Int32Array, Int32Array]:
    """(tokens of the segment that need logits, reads as indices into those, token ids read)."""
    last = segment.count - 1
    if segment.draft is not None:
        return np.arange(last, segment.num_tokens, dtype=np.int32), _NO_INTS, _NO_INTS
    if segment.group is not None:
        n = len(segment.group.tree)
        wanted = np.arange(last, last + 1 + n, dtype=np.int32)
        return wanted, segment.group.read_nodes + np.int32(1), segment.group.read_tokens
    if segment.score_prompt:
        request = segment.request
        end = min(segment.start + segment.count, request.prompt_len - 1)
        reads = np.arange(0, max(0, end - segment.start), dtype=np.int32)
        tokens = request.ids[segment.start + 1 : segment.start + 1 + len(reads)]
        wanted = np.arange(0, segment.count if segment.sample else len(reads), dtype=np.int32)
        return wanted, reads, tokens
    count = segment.hidden or int(segment.sample)
    wanted = np.arange(segment.count - count, segment.count, dtype=np.int32)
    return wanted, _NO_INTS, _NO_INTS


def _top_k(segments: list[Segment]) -> int:
    return max(
        (s.request.sampling.prompt_logprobs or 0 for s in segments if s.score_prompt), default=0
    )
