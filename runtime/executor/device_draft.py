"""Guessing on a device: all levels of several rows recorded as one graph, one copy there and back.

The same beam as `host_draft`, with fixed sizes: every row has `width` guesses at every level, dead
ones score -inf. Invariant: nothing outside the scratch slots is written; what a replay gives for a
row does not depend on the rows beside it, beyond what its kernels promise. Knows nothing of
requests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
import torch

from branchline.kernels.ops import AttentionMeta, Ops
from branchline.runtime.core.forward import ForwardBatch
from branchline.runtime.executor.device_stream import DeviceStream, host_buffer
from branchline.runtime.executor.draft_step import Draft
from branchline.runtime.executor.drafting import DraftSeed, Guesses
from branchline.runtime.executor.recorder import Recorder
from branchline.runtime.models.draft import EntryAttention

ROW_SIZES = (1, 2, 4, 8, 16)
"""Rows for which guessing is recorded; more take several turns."""


def recorded_depths(most: int) -> list[int]:
    """Levels for which guessing is recorded, ascending."""
    return [depth for depth in range(1, most + 1) if depth <= 4 or depth % 2 == 0 or depth == most]


def draft_sizes(max_depth: int) -> list[tuple[int, int]]:
    """(rows, levels) that are recorded, those that are used most first, should memory end."""
    return list(product(ROW_SIZES, reversed(recorded_depths(max_depth))))


def recordings_bytes(own: int, each: int, depths: Sequence[int]) -> int:
    """Memory of all recordings, at most.

    Args:
        own: bytes of tensors in the largest one; those of other numbers of rows fit in as much
            again.
        each: bytes that the driver keeps of it, which grow with the levels.
        depths: levels of them all.
    """
    return 2 * own + each * -(-sum(depths) // max(depths))


@dataclass(slots=True)
class _Beam:
    """What is looked into at a level: R rows, w guesses each (one at the first level).

    Attributes:
        ids: int32 [R, w].
        scores: float32 [R, w].
        nodes: int32 [R, w], indices of the guesses; -1 = a pending id.
        paths: int32 [R, w, level + 1], scratch slots of their paths, their own last.
        previous: int32 [R, w], slots of their parents.
    """

    ids: torch.Tensor
    scores: torch.Tensor
    nodes: torch.Tensor
    paths: torch.Tensor
    previous: torch.Tensor


class _Where(NamedTuple):
    """Where guesses stand: R rows, w guesses each, at each of L levels.

    Attributes:
        positions: int64 [L, R, w], in their rows.
        ends: int32 [L, R, w], lengths of their paths in the table, themselves included.
        columns: int64 [R, 1, L], of the levels in the table.
    """

    positions: torch.Tensor
    ends: torch.Tensor
    columns: torch.Tensor


class DeviceDraft:
    """Runs a draft model's levels on a device's queue; used by the thread that queues steps.

    Args:
        draft: the model and its pool, with `scratch_slots(width, max_depth)` of scratch.
        ops: what it runs with.
        stream: where steps are queued too.
        recorder: of the levels.
        max_context: of a row.
        width: guesses looked into at each level.
        max_depth: levels at most.
        vocab_size: of the target.
    """

    def __init__(
        self,
        draft: Draft,
        ops: Ops,
        stream: DeviceStream,
        recorder: Recorder,
        *,
        max_context: int,
        width: int,
        max_depth: int,
        vocab_size: int,
    ) -> None:
        self.max_depth = max_depth
        self._draft, self._ops, self._stream, self._recorder = draft, ops, stream, recorder
        self._width, self._context, self._vocab_size = width, max_context, vocab_size
        self._first = draft.model.sizes.first
        self._attention = EntryAttention()
        device, rows = stream.device, ROW_SIZES[-1]
        # length, last slot, whether masked, pending ids, slots: what every row needs, in one copy
        self._host = host_buffer((rows, 3 + max_depth + max_context), torch.int32, device)
        self._inputs = torch.zeros_like(self._host, device=device)
        words = -(-vocab_size // 32)
        self._host_masks = host_buffer((rows, words), torch.int32, device)
        self._masks = torch.zeros((rows, words), dtype=torch.int32, device=device)
        self._table = torch.zeros(
            (rows * width, max_context + max_depth), dtype=torch.int32, device=device
        )
        most = width + (max_depth - 1) * width * width
        self._back = host_buffer((3, rows, most), torch.int32, device)
        self._graphs: dict[tuple[int, int], Callable[[], torch.Tensor]] = {}
        # What never changes is made once: in a recording each would be a kernel at every level.
        ints = torch.arange(rows * max_depth * width + 1, dtype=torch.int32, device=device)
        self._ints, self._ones = ints, torch.ones(rows * width, dtype=torch.int32, device=device)
        self._scratch = (ints[:-1] + draft.pool.first_scratch).view(max_depth, rows, width)
        self._places = ints[: rows * width].view(rows, width)
        self._levels = torch.arange(max_depth, device=device)
        self._nowhere = torch.full((rows, 1), -1, dtype=torch.int32, device=device)
        self._no_score = torch.zeros((rows, 1), device=device)
        self._forced = torch.where(ints[:width] == 0, 0.0, float("-inf"))
        named = draft.model.vocabulary
        named = torch.arange(vocab_size, device=device) if named is None else named.long()
        self._mask_words, self._mask_bits = named >> 5, (named & 31).int()

    def record(self, rows: int, depth: int) -> None:
        """Record a size, which is run op by op as long as it is not.

        Raises:
            torch.OutOfMemoryError: no memory for it; what was recorded before stays usable.
        """
        with self._stream:
            self._graphs[rows, depth] = self._recorder.record(lambda: self._run(rows, depth))

    def guess(self, seeds: Sequence[DraftSeed]) -> list[Guesses]:
        """See `DraftExecutor.guess`."""
        found: list[Guesses] = []
        for first in range(0, len(seeds), ROW_SIZES[-1]):
            found += self._guess(seeds[first : first + ROW_SIZES[-1]])
        return found

    def _guess(self, seeds: Sequence[DraftSeed]) -> list[Guesses]:
        levels = [self._levels_of(seed) for seed in seeds]
        if max(levels) < 1:
            none = np.empty(0, dtype=np.int32)
            return [Guesses(none, none, none.astype(np.float32))] * len(seeds)
        rows = next(size for size in ROW_SIZES if size >= len(seeds))
        depth = next(d for d in recorded_depths(self.max_depth) if d >= max(levels))
        replay = self._graphs.get((rows, depth))
        self._stream.adopt()
        with self._stream:
            self._load(seeds, rows)
            result = self._run(rows, depth) if replay is None else replay()
            back = self._back.view(-1)[: result.numel()].view(result.shape)
            back.copy_(result, non_blocking=True)
            mark = self._stream.mark()
        mark.wait()
        arrays = back.numpy()
        return [self._read(arrays[:, row], max(0, count)) for row, count in enumerate(levels)]

    def _levels_of(self, seed: DraftSeed) -> int:
        """Levels wanted, pending ids among them; rotations end with the context."""
        wanted = seed.depth + len(seed.pending) - 1
        return min(wanted, self.max_depth, self._context - len(seed.slots))

    def _read(
        self, arrays: np.ndarray[tuple[int, int], np.dtype[np.int32]], levels: int
    ) -> Guesses:
        w = self._width
        count = w + (levels - 1) * w * w if levels else 0
        ids, parents, scores = arrays[:, :count]
        return Guesses(ids.copy(), parents.copy(), scores.copy().view(np.float32))

    def _load(self, seeds: Sequence[DraftSeed], rows: int) -> None:
        host, first = self._host.numpy(), 3 + self.max_depth
        host[:rows, :3] = 0
        host[:rows, 3:first] = -1
        host[len(seeds) : rows, 3] = 0
        masked = False
        for row, seed in enumerate(seeds):
            n = len(seed.slots)
            host[row, :3] = n, seed.slots[-1], seed.allowed is not None
            host[row, 3 : 3 + len(seed.pending)] = seed.pending
            host[row, first : first + n - self._first] = seed.slots[self._first :]
            if seed.allowed is not None:
                masked = True
                self._host_masks.numpy()[row] = seed.allowed
        # of one row, what it has; of several, rows as they lie: a copy costs more than its bytes
        size = first + len(seeds[0].slots) if rows == 1 else rows * host.shape[1]
        self._inputs.view(-1)[:size].copy_(self._host.view(-1)[:size], non_blocking=True)
        if masked:
            self._masks[:rows].copy_(self._host_masks[:rows], non_blocking=True)

    # -- what is recorded --------------------------------------------------------------------------

    def _run(self, rows: int, depth: int) -> torch.Tensor:
        """int32 [3, rows, guesses]: ids, parents, bits of the scores."""
        w = self._width
        inputs = self._inputs[:rows]
        pending = inputs[:, 3 : 3 + self.max_depth]
        table = self._table[: rows * w].view(rows, w, -1)
        table[:, :, : self._context] = inputs[:, None, 3 + self.max_depth :]
        lens = inputs[:, 0].long()
        where = self._where(lens, depth)
        given = pending >= 0
        beam = _Beam(
            pending[:, :1],
            self._no_score[:rows],
            self._nowhere[:rows],
            self._scratch[0, :rows, :1, None],
            inputs[:, 1:2],
        )
        ids, parents, scores = [], [], []
        count = 0
        for level in range(depth):
            total, found = self._level(level, beam, where, table)
            last = level + 1 == self.max_depth
            ids.append(found)
            parents.append(beam.nodes[:, :, None].expand(-1, -1, w).flatten(1))
            known = None if last else (pending[:, level + 1, None], given[:, level + 1, None])
            scores.append(total if known is None else total.masked_fill(known[1], float("-inf")))
            if level + 1 < depth:
                assert known is not None, "there is a level behind this one"
                beam = self._next(level, beam, found, total, count, *known)
            count += total.shape[1]
        bits = torch.cat(scores, dim=1).view(torch.int32)
        return torch.stack([torch.cat(ids, dim=1), torch.cat(parents, dim=1), bits])

    def _where(self, lens: torch.Tensor, depth: int) -> _Where:
        """Where the guesses of each level stand, of rows of so many tokens."""
        rows, levels = len(lens), self._levels[:depth]
        entries = (lens - self._first).clamp(min=0)
        positions = (lens[:, None] + levels[:, None, None]).clamp(max=self._context - 1)
        ends = (entries[:, None] + (levels[:, None, None] + 1)).int()
        return _Where(
            positions.expand(-1, rows, self._width).contiguous(),
            ends.expand(-1, rows, self._width).contiguous(),
            entries[:, None, None] + levels,
        )

    def _level(
        self, level: int, beam: _Beam, where: _Where, table: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(scores float32, ids int32) [R, beam * w] of the paths that go on from each."""
        rows, size = beam.ids.shape
        columns = where.columns[:, :, : level + 1].expand(-1, size, -1)
        table[:, :size].scatter_(2, columns, beam.paths)
        tokens = rows * size
        meta = AttentionMeta(
            rows=self._places[:rows, :size].reshape(-1),
            slot_table=self._table,
            seq_lens=where.ends[level, :, :size].reshape(-1),
            extend_lens=self._ones[:tokens],
            extend_start=self._ints[: tokens + 1],
            host_extend_lens=torch.ones(tokens, dtype=torch.int32),
        )
        batch = ForwardBatch(
            input_ids=beam.ids.reshape(-1).contiguous(),
            positions=where.positions[level, :, :size].reshape(-1),
            out_slots=self._scratch[level, :rows, :size].reshape(-1),
            logit_idx=self._ints[:tokens],
            backend=self._attention,
            plan=self._attention.init_graph(meta),
            previous=beam.previous.reshape(-1).contiguous(),
        )
        logits = self._draft.model.level(batch, self._ops, self._draft.pool)
        if level == 0:
            logits = logits.masked_fill(self._refused(rows), float("-inf"))
        values, found = self._ops.top_rows(logits, self._width)
        base = beam.scores - self._ops.logsumexp_rows(logits).view(rows, size)
        # where nothing is allowed there is no sum either
        infinite = float("-inf")
        scores = values.view(rows, size, -1) + base[:, :, None]
        scores = scores.nan_to_num(nan=infinite, neginf=infinite).flatten(1)
        vocabulary = self._draft.model.vocabulary
        ids = found if vocabulary is None else vocabulary[found]
        return scores, ids.view(rows, -1)

    def _refused(self, rows: int) -> torch.Tensor:
        """bool [rows, v], what the masks forbid: those of rows with one pending id, the others'
        guesses are dropped later where they do not fit."""
        bits = self._masks[:rows][:, self._mask_words] >> self._mask_bits
        masked = self._inputs[:rows, 2:3] > 0
        if self.max_depth > 1:
            masked = masked & (self._inputs[:rows, 4:5] < 0)
        return ((bits & 1) == 0) & masked

    def _next(
        self,
        level: int,
        beam: _Beam,
        found: torch.Tensor,
        total: torch.Tensor,
        count: int,
        known: torch.Tensor,
        given: torch.Tensor,
    ) -> _Beam:
        """The best w guesses of each row, or its next pending id where one is given."""
        rows, w = total.shape[0], self._width
        if total.shape[1] == w:
            scores, best = total, self._places[0].long().expand(rows, -1)
        else:
            scores, best = total.topk(w, dim=-1)
        parents = (best // w).masked_fill(given, 0)
        paths = beam.paths.gather(1, parents[:, :, None].expand(-1, -1, beam.paths.shape[2]))
        own = self._scratch[level + 1, :rows, :, None]
        return _Beam(
            torch.where(given, known, found.gather(1, best)),
            torch.where(given, self._forced, scores),
            (best + count).int().masked_fill(given, -1),
            torch.cat([paths, own], dim=2),
            paths[:, :, -1],
        )
