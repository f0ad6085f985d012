"""Guessing on a device: all levels of several rows recorded as one graph, whose guesses become the
candidates of a step that is queued behind it, without a look from the host.

The same beam as `host_draft`, with fixed sizes: every row has `width` guesses at every level, dead
ones score -inf. Invariant: of the caches nothing outside the scratch slots is written; what a
replay gives for a row does not depend on the rows beside it, beyond what its kernels promise. Knows
nothing of requests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import torch

from branchline.kernels.beam import HEADER, Beam, BeamOps, Check
from branchline.kernels.ops import AttentionMeta, Ops
from branchline.runtime.core.batch import DraftedRows, ScheduleBatch
from branchline.runtime.core.forward import ForwardBatch
from branchline.runtime.errors import InvalidRequest
from branchline.runtime.executor.device_stream import DeviceStream, Mark, host_buffer
from branchline.runtime.executor.device_tables import DeviceTables
from branchline.runtime.executor.draft_step import Draft
from branchline.runtime.executor.recorder import Recorder
from branchline.runtime.models.draft import EntryAttention

_RING = 8
"""Host buffers used in turn, one for each group of rows that is drafted for."""

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


class DeviceDraft:
    """Runs a draft model's levels on a device's queue; used by the thread that queues steps.

    Args:
        draft: the model and its pool, with `scratch_slots(width, max_depth)` of scratch.
        ops: what it runs with.
        stream: where steps are queued too.
        recorder: of the levels.
        tables: what the rows hold.
        max_context: of a row.
        width: guesses looked into at each level.
        max_depth: levels at most.
        most: guesses of a row at most that become candidates.
        vocab_size: of the target.
        check: recorded rounds make their guesses the candidates of this step.

    Raises:
        InvalidRequest: the ops cannot search.
    """

    def __init__(
        self,
        draft: Draft,
        ops: Ops,
        stream: DeviceStream,
        recorder: Recorder,
        tables: DeviceTables,
        *,
        max_context: int,
        width: int,
        max_depth: int,
        most: int,
        vocab_size: int,
        check: Check,
    ) -> None:
        if not isinstance(ops, BeamOps):
            raise InvalidRequest(
                f"{type(ops).__name__} cannot search on a device.", hint="Use TritonOps."
            )
        self.max_depth = max_depth
        self._draft, self._stream, self._recorder = draft, stream, recorder
        self._ops: Ops = ops
        self._search: BeamOps = ops
        self._tables, self._most, self._check = tables, most, check
        self._width, self._context = width, max_context
        self._first = draft.model.sizes.first
        self._attention = EntryAttention()
        device, rows = stream.device, ROW_SIZES[-1]
        shape, words = (rows, HEADER + max_depth), (rows, -(-vocab_size // 32))
        self._host = [host_buffer(shape, torch.int32, device) for _ in range(_RING)]
        self._host_masks = [host_buffer(words, torch.int32, device) for _ in range(_RING)]
        self._marks, self._turn = [Mark()] * _RING, 0
        self._inputs = torch.zeros(shape, dtype=torch.int32, device=device)
        self._inputs[:, 4] = -1  # of no row of a step yet
        self._masks = torch.zeros(words, dtype=torch.int32, device=device)
        self._lengths = torch.zeros(rows, dtype=torch.int32, device=device)
        self._table = torch.zeros(
            (rows * width, max_context + max_depth), dtype=torch.int32, device=device
        )
        self._graphs: dict[tuple[int, int], Callable[[], None]] = {}
        # What never changes is made once: in a recording each would be a kernel at every level.
        ints = torch.arange(rows * max_depth * width + 1, dtype=torch.int32, device=device)
        self._ints, self._ones = ints, torch.ones(rows * width, dtype=torch.int32, device=device)
        self._scratch = (ints[:-1] + draft.pool.first_scratch).view(max_depth, rows * width)
        self._first_scratch = self._scratch[0, ::width].contiguous()
        self._first_places = ints[: rows * width : width].contiguous()
        self._host_ones = torch.ones(rows * width, dtype=torch.int32)

    def record(self, rows: int, depth: int) -> None:
        """Record a size, which is run op by op as long as it is not.

        Raises:
            torch.OutOfMemoryError: no memory for it; what was recorded before stays usable.
        """
        with self._stream:
            self._graphs[rows, depth] = self._recorder.record(
                lambda: self._round(rows, depth, self._check)
            )

    def guess(self, plan: ScheduleBatch, check: Check) -> Callable[[], None] | None:
        """Queue the levels for a plan's drafted rows and make what they find the step's candidates;
        the tables hold what the plan says.

        Args:
            check: the step as it was loaded, which is completed here.

        Returns:
            A call that queues the same once more for a plan that `repeats`, until this is called
            again; None where there is none.
        """
        drafted = plan.drafted
        assert drafted is not None, "the plan asks for guesses"
        recorded = check.nodes.data_ptr() == self._check.nodes.data_ptr()
        replay: Callable[[], None] | None = None
        for first in range(0, len(drafted.rows), ROW_SIZES[-1]):
            group = np.arange(first, min(first + ROW_SIZES[-1], len(drafted.rows)))
            rows = next(size for size in ROW_SIZES if size >= len(group))
            levels = int(drafted.levels[group].max())
            depth = next(d for d in recorded_depths(self.max_depth) if d >= levels)
            self._load(plan, drafted, group, rows)
            replay = self._graphs.get((rows, depth)) if recorded else None
            if replay is None:
                self._round(rows, depth, check)
            else:
                replay()
        return replay if len(drafted.rows) <= ROW_SIZES[-1] else None

    def accept(self, check: Check) -> tuple[torch.Tensor, torch.Tensor]:
        """Queue `BeamOps.keep_guesses` over the tables."""
        return self._search.keep_guesses(check, self._tables.known, self.max_depth, self._most)

    def _load(
        self,
        plan: ScheduleBatch,
        drafted: DraftedRows,
        group: np.ndarray[tuple[int], np.dtype[np.int64]],
        rows: int,
    ) -> None:
        self._turn = (self._turn + 1) % _RING
        self._marks[self._turn].wait()
        host, masks = self._host[self._turn], self._host_masks[self._turn]
        starts, masked, lines = plan.extend_start, False, []
        for row, which in enumerate(group.tolist()):
            at, allowed = int(drafted.rows[which]), drafted.allowed[which]
            length, start, known = -1, int(starts[at]), []
            if not drafted.follows[which]:
                length = int(plan.seq_lens[at] - plan.extend_lens[at])
                known = plan.input_ids[start : int(starts[at + 1]) - _places(plan, at)].tolist()
            header = int(plan.rows[at]), length, allowed is not None, int(drafted.levels[which]), at
            lines.append([*header, *known, *[-1] * (self.max_depth - len(known))])
            if allowed is not None:
                masked = True
                masks.numpy()[row] = allowed
        rest = [self._tables.padding_row, 0, 0, 1, -1, 0, *[-1] * (self.max_depth - 1)]
        host.numpy()[:rows] = lines + [rest] * (rows - len(lines))
        self._inputs[:rows].copy_(host[:rows], non_blocking=True)
        if masked:
            self._masks[:rows].copy_(masks[:rows], non_blocking=True)
        self._marks[self._turn] = self._stream.mark()

    # -- what is recorded --------------------------------------------------------------------------

    def _round(self, rows: int, depth: int, check: Check) -> None:
        beam = self._beam(rows, depth)
        self._search.beam_begin(beam)
        for level in range(depth):
            self._search.beam_step(beam, level, self._logits(beam, level))
        self._search.beam_tree(beam, check, self._most)

    def _beam(self, rows: int, depth: int) -> Beam:
        """Buffers of a search, which what is recorded keeps."""
        w, levels, device = self._width, self.max_depth, self._inputs.device
        ints = torch.empty(4, levels, rows * w, dtype=torch.int32, device=device)
        ends, ids, nodes, previous = ints.unbind(0)
        shape = (3, rows, w + (depth - 1) * w * w)
        return Beam(
            width=w,
            depth=depth,
            first=self._first,
            context=self._context,
            scratch=self._draft.pool.first_scratch,
            scratch_rows=ROW_SIZES[-1],
            inputs=self._inputs[:rows],
            known=self._tables.known,
            lengths=self._lengths[:rows],
            masks=self._masks[:rows],
            vocabulary=self._draft.model.vocabulary,
            table=self._table[: rows * w],
            positions=torch.empty(levels, rows * w, dtype=torch.int64, device=device),
            ends=ends,
            ids=ids,
            scores=torch.empty(levels, rows * w, device=device),
            nodes=nodes,
            previous=previous,
            found=torch.empty(shape, dtype=torch.int32, device=device),
        )

    def _logits(self, beam: Beam, level: int) -> torch.Tensor:
        """[R * s, v] of what follows the guesses of a level."""
        n = beam.rows * beam.size(level)
        places, scratch = self._ints[:n], self._scratch[level, :n]
        if level == 0:
            places, scratch = self._first_places[:n], self._first_scratch[:n]
        meta = AttentionMeta(
            rows=places,
            slot_table=self._table,
            seq_lens=beam.ends[level, :n],
            extend_lens=self._ones[:n],
            extend_start=self._ints[: n + 1],
            host_extend_lens=self._host_ones[:n],
        )
        batch = ForwardBatch(
            input_ids=beam.ids[level, :n],
            positions=beam.positions[level, :n],
            out_slots=scratch,
            logit_idx=self._ints[:n],
            backend=self._attention,
            plan=self._attention.init_graph(meta),
            previous=beam.previous[level, :n],
        )
        return self._draft.model.level(batch, self._ops, self._draft.pool)


def _places(plan: ScheduleBatch, at: int) -> int:
    """Candidates of a row of the batch."""
    assert plan.tree is not None, "places are kept free for candidates"
    return int(plan.tree.counts[at])
