"""A device's queue of work, and host memory that copies to it without waiting.

Invariant: work queued here runs in the order in which it was queued, and queueing never waits for
it. On a CPU everything is done at once and every mark has passed, so code written for a queue runs
there unchanged. Knows nothing of what is queued.
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any

import numpy as np
import torch


class Mark:
    """A point of the queue."""

    def __init__(self, event: torch.cuda.Event | None = None) -> None:
        self._event = event

    def wait(self) -> None:
        """Until all work queued before the mark is done; other threads run meanwhile."""
        if self._event is not None:
            self._event.synchronize()

    def passed(self) -> bool:
        """True when `wait` would not wait."""
        return self._event is None or bool(self._event.query())  # type: ignore[no-untyped-call]


class DeviceStream:
    """One queue. As a context: inference mode, and torch calls go to this queue, behind what the
    thread has queued elsewhere: buffers are made, and filled, before anyone enters.

    Args:
        device: where the work runs.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._open: list[tuple[Any, Any]] = []
        self._thread = 0

    def __enter__(self) -> DeviceStream:
        inference = torch.inference_mode()
        inference.__enter__()
        mine = self._stream is None or threading.get_ident() == self._thread
        stream = None if mine else torch.cuda.stream(self._stream)
        if stream is not None:
            self._follow()
            stream.__enter__()  # type: ignore[no-untyped-call]
        self._open.append((inference, stream))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        inference, stream = self._open.pop()
        if stream is not None:
            stream.__exit__(kind, error, trace)
        inference.__exit__(kind, error, trace)

    def adopt(self) -> None:
        """The calling thread's torch calls go to this queue from now on; entering is then cheap."""
        if self._stream is not None and threading.get_ident() != self._thread:
            self._follow()
            torch.cuda.set_stream(self._stream)
            self._thread = threading.get_ident()

    def _follow(self) -> None:
        """What comes next waits for what the calling thread has queued so far."""
        if self._stream is not None:
            before = torch.cuda.current_stream(self.device)
            self._stream.wait_stream(before)

    def mark(self) -> Mark:
        """The end of the queue as it is now."""
        if self._stream is None:
            return Mark()
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(self._stream)
        return Mark(event)

    def drain(self) -> None:
        """Wait for everything queued."""
        if self._stream is not None:
            self._stream.synchronize()


def host_buffer(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Host memory, zero, from which and to which copies to `device` need not wait."""
    return torch.zeros(shape, dtype=dtype, pin_memory=device.type == "cuda")


def to_device(array: np.ndarray[Any, Any], device: torch.device) -> torch.Tensor:
    """A copy on the device, queued; `array` may be changed at once."""
    source = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cpu":
        return source.clone()
    return source.pin_memory().to(device, non_blocking=True)


def to_host(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in host memory, valid once a mark made after this call has passed."""
    if tensor.device.type == "cpu":
        return tensor.clone()
    target = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return target.copy_(tensor, non_blocking=True)
