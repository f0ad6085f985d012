"""The choice of a step's tokens, recorded: one launch where `DeviceSampler` needs twenty.

For steps that were replayed, since these have the places and positions of what is sampled at the
same addresses, whose rows are masked or drawn. Invariant: a row's token is what `DeviceSampler`
would choose; rows that a size is filled up with are written to the padding row. Knows nothing of
requests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import torch

from branchline.kernels.sampling import SamplingOps
from branchline.runtime.executor.device_stream import DeviceStream, to_device
from branchline.runtime.executor.device_tables import DeviceTables
from branchline.runtime.executor.mask_buffers import MaskBuffers
from branchline.runtime.executor.plan_buffers import StepTensors
from branchline.runtime.executor.recorder import Recorder
from branchline.runtime.sampling.device_sampler import Bitmask, draws_of, packed_draws
from branchline.runtime.sampling.sampling_batch import SamplingBatch

LOGITS_BYTES = 64 << 20
"""Of a copy of the logits: as many rows as fit are recorded at most."""


def choice_sizes(most: int) -> list[int]:
    """Rows for which the choice is recorded, ascending: powers of two, and `most`."""
    sizes = [1 << bits for bits in range(most.bit_length()) if 1 << bits < most]
    return [*sizes, most]


class RecordedChoice:
    """Buffers and recordings; used by the thread that queues steps.

    Args:
        ops: mask, cut and draw.
        tables: where what is chosen is written.
        tensors: of recorded steps, of any size.
        stream, recorder: where the recordings run and who makes them.
        vocab_size: V.
        max_rows: sampled in a step.

    Attributes:
        kinds: (rows, masked, truncated) of what is to be recorded.
        masks: where masks had best be filled.
    """

    def __init__(
        self,
        ops: SamplingOps,
        tables: DeviceTables,
        tensors: StepTensors,
        stream: DeviceStream,
        recorder: Recorder,
        *,
        vocab_size: int,
        max_rows: int,
    ) -> None:
        self._ops, self._tables, self._stream, self._recorder = ops, tables, stream, recorder
        device, words = stream.device, -(-vocab_size // 32)
        most = max(1, min(max_rows, LOGITS_BYTES // (4 * vocab_size)))
        self._sizes = choice_sizes(most)
        self.kinds = list(product(reversed(self._sizes), (False, True), (False, True)))
        self._logits = torch.zeros((most, vocab_size), dtype=torch.float32, device=device)
        self._masks = torch.zeros((most, words), dtype=torch.int32, device=device)
        self._packed = torch.zeros((6, -(-most // 4) * 4), dtype=torch.int32, device=device)
        self._chosen = torch.zeros(most, dtype=torch.int32, device=device)
        self._places, self._positions = tensors.sample_places, tensors.sample_positions
        self.masks = MaskBuffers(most, words, stream)
        self._batch: SamplingBatch | None = None
        self._replays: dict[tuple[int, bool, bool], Callable[[], None]] = {}

    def record(self, rows: int, masked: bool, truncated: bool) -> None:
        """Record one of `kinds`.

        Raises:
            torch.OutOfMemoryError: no memory for it; what was recorded before stays usable.
        """
        with self._stream:
            self._replays[rows, masked, truncated] = self._recorder.record(
                lambda: self._choose(rows, masked=masked, truncated=truncated)
            )

    def choose(
        self, logits: torch.Tensor, batch: SamplingBatch, bitmask: Bitmask | None
    ) -> torch.Tensor | None:
        """Queue the choice of the next tokens of the step that was replayed last, and their way
        into the token table.

        Args:
            logits: [s, V].
            batch: parameters of the rows.
            bitmask: int32 [s, ceil(V / 32)], bit set = allowed; None = all are.

        Returns:
            int32 [s], -1 where nothing could be chosen, valid until the next choice is queued
            behind it; None = nothing was queued, these rows need what is not recorded.
        """
        count, masked = len(logits), bitmask is not None
        if count > self._sizes[-1] or batch.edited or len(batch.logprob_rows):
            return None
        rows = next(size for size in self._sizes if size >= count)
        replay = self._replays.get((rows, masked, len(batch.truncated_rows) > 0))
        if replay is None:
            return None
        self._logits[:count].copy_(logits)
        if bitmask is not None:
            self.masks.queue(bitmask, self._masks)
        if batch is not self._batch:
            packed = to_device(packed_draws(batch, self._packed.shape[1]), self._stream.device)
            self._packed.copy_(packed)
            self._batch = batch
        replay()
        return self._chosen[:count]

    def _choose(self, rows: int, *, masked: bool, truncated: bool) -> None:
        draws = draws_of(self._packed, rows, truncated=truncated)
        ids, bad = self._ops.sample_rows(
            self._logits[:rows],
            replace(draws, positions=self._positions[:rows]),
            self._masks[:rows] if masked else None,
        )
        self._tables.put_tokens(self._places[:rows], ids)
        self._chosen[:rows].copy_(torch.where(bad, -1, ids))
