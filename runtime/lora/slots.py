"""The adapters' memory on the device: a fixed number of slots of one size.

Invariant: `write` returns when the slot can be read by whatever is queued from then on, and holds
up what is queued meanwhile by one small piece at most. Nobody else may use the slot until then.
Knows nothing of which adapter is where.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from branchline.runtime.lora.layout import Packed, SlotLayout

PIECE_BYTES = 4 << 20
"""Copied to a device at a time: a step's own copies wait behind one piece, about 0.2 ms."""

Wait = Callable[[], None]


class Slots:
    """`count` slots of a layout; the model's layers see them from now on.

    Args:
        layout: of the model's sites.
        count: of the slots.
        device: where they are.
    """

    def __init__(self, layout: SlotLayout, count: int, device: torch.device) -> None:
        self.layout = layout
        self.count = count
        self.values = torch.zeros((count, layout.elements), dtype=layout.dtype, device=device)
        self.ranks = torch.zeros((count, layout.parts), dtype=torch.int32, device=device)
        self.scales = torch.zeros((count, layout.parts), dtype=torch.float32, device=device)
        self._stream: torch.cuda.Stream | None = None
        self._pieces: list[torch.Tensor] = []
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            size = min(layout.elements, PIECE_BYTES // layout.dtype.itemsize)
            self._pieces = [torch.empty(size, dtype=layout.dtype, pin_memory=True) for _ in "ab"]
        layout.attach(self.values, self.ranks, self.scales)

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return self.values.nbytes + self.ranks.nbytes + self.scales.nbytes

    def write(self, slot: int, packed: Packed) -> None:
        """Put an adapter into a slot; from a thread of the caller's choice, one at a time."""
        with torch.inference_mode():
            if self._stream is None:
                self.values[slot].copy_(packed.values)
                self.ranks[slot].copy_(packed.ranks)
                self.scales[slot].copy_(packed.scales)
                return
            with torch.cuda.stream(self._stream):
                copy_in_pieces(self.values[slot], packed.values, self._pieces, self._mark)
                self.ranks[slot].copy_(packed.ranks)
                self.scales[slot].copy_(packed.scales)
            self._stream.synchronize()

    def _mark(self) -> Wait:
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(self._stream)
        return event.synchronize


def copy_in_pieces(
    target: torch.Tensor,
    source: torch.Tensor,
    pieces: Sequence[torch.Tensor],
    mark: Callable[[], Wait],
) -> None:
    """Copy through memory from which a device copies without waiting.

    While one piece is on its way, the next one is filled; it is queued once the one before has
    arrived, so that others' copies never wait for more than one.

    Args:
        target: [n] on the device.
        source: [n] in host memory.
        pieces: two buffers of the same size.
        mark: gives a function that waits for what has been queued so far.
    """
    size = len(pieces[0])
    arrived: Wait | None = None
    for turn, start in enumerate(range(0, len(source), size)):
        part = source[start : start + size]
        piece = pieces[turn % 2][: len(part)]
        piece.copy_(part)  # the one that left it last has arrived: it was waited for below
        if arrived is not None:
            arrived()
        target[start : start + len(part)].copy_(piece, non_blocking=True)
        arrived = mark()
