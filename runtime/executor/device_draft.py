"""Guessing on a device: all levels of several rows recorded as one graph, one copy there and back.

The same beam as `host_draft`, with fixed sizes: every row has `width` guesses at every level, dead
ones score -inf. Invariant: nothing outside the scratch slots is written; what a replay gives for a
row does not depend on the rows beside it, beyond what its kernels promise. Knows nothing of
requests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import torch

from branchline.kernels.beam import HEADER, Beam, BeamOps
from branchline.kernels.ops import AttentionMeta, Ops
from branchline.runtime.core.forward import ForwardBatch
from branchline.runtime.errors import InvalidRequest
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

    Raises:
        InvalidRequest: the ops cannot search.
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
        if not isinstance(ops, BeamOps):
            raise InvalidRequest(
                f"{type(ops).__name__} cannot search on a device.", hint="Use TritonOps."
            )
        self.max_depth = max_depth
        self._draft, self._stream, self._recorder = draft, stream, recorder
        self._ops: Ops = ops
        self._search: BeamOps = ops
        self._width, self._context = width, max_context
        self._first = draft.model.sizes.first
        self._attention = EntryAttention()
        device, rows = stream.device, ROW_SIZES[-1]
        # length, last slot, whether masked, pending ids, slots: what every row needs, in one copy
        self._host = host_buffer((rows, HEADER + max_depth + max_context), torch.int32, device)
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
        ids, parents, scores = arrays[:, :count].copy()
        return Guesses(ids, parents, scores.view(np.float32))

    def _load(self, seeds: Sequence[DraftSeed], rows: int) -> None:
        host, first = self._host.numpy(), HEADER + self.max_depth
        masked = False
        for row, seed in enumerate(seeds):
            n, asks = len(seed.slots), seed.allowed is not None
            known = seed.pending.tolist()
            none = [-1] * (self.max_depth - len(known))
            host[row, :first] = [n, int(seed.slots[-1]), asks, *known, *none]
            host[row, first : first + n - self._first] = seed.slots[self._first :]
            if seed.allowed is not None:
                masked = True
                self._host_masks.numpy()[row] = seed.allowed
        if len(seeds) < rows:
            host[len(seeds) : rows, :first] = [0, 0, 0, 0, *[-1] * (self.max_depth - 1)]
        # of one row, what it has; of several, rows as they lie: a copy costs more than its bytes
        size = first + len(seeds[0].slots) if rows == 1 else rows * host.shape[1]
        self._inputs.view(-1)[:size].copy_(self._host.view(-1)[:size], non_blocking=True)
        if masked:
            self._masks[:rows].copy_(self._host_masks[:rows], non_blocking=True)

    # -- what is recorded --------------------------------------------------------------------------

    def _run(self, rows: int, depth: int) -> torch.Tensor:
        """int32 [3, rows, guesses]: ids, parents, bits of the scores."""
        beam = self._beam(rows, depth)
        self._search.beam_begin(beam)
        for level in range(depth):
            self._search.beam_step(beam, level, self._logits(beam, level))
        return beam.found

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
