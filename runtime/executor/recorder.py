"""Records work on a device's queue so that one launch repeats it.

Invariant: a recording that cannot be made raises, and those made before stay usable; for want of
memory it is always a `torch.OutOfMemoryError`, whoever ran out of it. On a CPU a "recording" is the
function itself, run again. Knows nothing of what is recorded.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from branchline.runtime.executor.device_stream import DeviceStream

T = TypeVar("T")


@contextmanager
def no_collection() -> Iterator[None]:
    """Nothing is collected meanwhile: what frees memory of a device ends a recording that is being
    made, and another engine's tensors may be among what is no longer reached."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class Recorder:
    """Makes recordings that share one pool of memory, since only one runs at a time.

    Args:
        stream: where they run.
    """

    def __init__(self, stream: DeviceStream) -> None:
        self._stream = stream
        self._pool = torch.cuda.graph_pool_handle() if stream.device.type == "cuda" else None

    def record(self, run: Callable[[], T]) -> Callable[[], T]:
        """A call that repeats what `run` queues and gives what it gave; inside the stream.

        Raises:
            torch.OutOfMemoryError: no memory for it.
        """
        try:
            return self._told(run)
        except torch.OutOfMemoryError:
            if self._pool is None:
                raise
        # what torch has in store is of no use to a recording's own memory, nor to the driver
        torch.cuda.empty_cache()
        return self._told(run)

    def _told(self, run: Callable[[], T]) -> Callable[[], T]:
        try:
            return self._record(run)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # the driver's own memory has no type of its own
            if "out of memory" not in str(error):
                raise
            raise torch.OutOfMemoryError(f"no memory to make a recording: {error}") from error

    def _record(self, run: Callable[[], T]) -> Callable[[], T]:
        run()  # compiles kernels and makes libraries' handles, which cannot be recorded
        if self._pool is None:
            return run
        self._stream.drain()
        graph = torch.cuda.CUDAGraph()
        with no_collection():
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                result = run()
            except BaseException as error:
                try:
                    graph.capture_end()
                except RuntimeError as another:  # one that was broken off may not end well
                    error.add_note(f"Ending the recording failed, too: {another}")
                raise
            graph.capture_end()
        graph.replay()  # the first launch brings it to the device, which takes milliseconds

        def replay() -> T:
            graph.replay()
            return result

        return replay
