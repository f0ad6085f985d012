"""Workers: steps run in the order given, in a thread of their own or in the caller's.

Invariant: a step that fails fails alone; its `result` raises what happened and the next step runs.
A step's sampling never waits for a later step's forward, nor the other way round. Knows nothing of
what the steps are for.
"""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING

import torch

from branchline.runtime.core.batch import ForwardOutput, ScheduleBatch
from branchline.runtime.core.protocols import Pending
from branchline.runtime.errors import BackendError
from branchline.runtime.executor.step import StepExecutor
from branchline.runtime.executor.torch_threads import start_with_torch_threads

if TYPE_CHECKING:
    from branchline.runtime.core.protocols import Bitmask


class PendingStep:
    """A step on its way; see `core.protocols.Pending`."""

    def __init__(self, plan: ScheduleBatch) -> None:
        self.plan = plan
        self._bitmask: Bitmask | None = None
        self._named = False
        self._may_sample = threading.Event()
        self._finished = threading.Event()
        self._output: ForwardOutput | None = None
        self._error: BaseException | None = None

    def result(self) -> ForwardOutput:
        """Wait for the step; raise what it raised."""
        self._finished.wait()
        if self._error is not None:
            raise self._error
        assert self._output is not None, "a finished step has an output or an error"
        return self._output

    def done(self) -> bool:
        """True when `result` would not wait."""
        return self._finished.is_set()

    def name_mask(self, bitmask: Bitmask | None) -> None:
        """The step may sample, under this mask."""
        self._bitmask = bitmask
        self._named = True
        self._may_sample.set()

    def wait_for_mask(self) -> Bitmask | None:
        """Wait until the step may sample. Raises `BackendError` if the worker closes first."""
        self._may_sample.wait()
        if not self._named:
            raise BackendError("The worker was closed before this step was sampled.")
        return self._bitmask

    def give_up_waiting(self) -> None:
        """Nobody will name a mask any more."""
        self._may_sample.set()

    def complete(self, output: ForwardOutput) -> None:
        """The step is over."""
        self._output = output
        self._finished.set()

    def fail(self, error: BaseException) -> None:
        """The step is over, badly."""
        self._error = error
        self._finished.set()


class CpuWorker:
    """Runs steps on its own thread; `forward` and `sample` return at once.

    Step N + 1 begins when step N has been sampled. Plans are read until their step is over and must
    not be changed before. `close` when done with it: steps not begun by then fail.

    Args:
        executor: used by the worker's thread alone from now on.
        torch_threads: of each torch op in the worker's thread; None = as many as here.
    """

    def __init__(self, executor: StepExecutor, torch_threads: int | None = None) -> None:
        self._executor = executor
        self._steps: queue.SimpleQueue[PendingStep | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._current: PendingStep | None = None
        self._thread = start_with_torch_threads(
            self._run, "branchline-worker", torch_threads or torch.get_num_threads()
        )

    def forward(self, plan: ScheduleBatch) -> Pending:
        """Queue a step. Raises `BackendError` after `close`."""
        step = PendingStep(plan)
        with self._lock:
            if self._closed:
                raise BackendError("The worker is closed.", hint="Make a new engine.")
            self._steps.put(step)
        return step

    def sample(self, pending: Pending, bitmask: Bitmask | None) -> None:
        """Let the step sample as soon as its logits are there. A failed step ignores it."""
        _own(pending).name_mask(bitmask)

    def close(self) -> None:
        """Stop after the forward that is running; wait for the thread to end. Callable twice."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._steps.put(None)
            current = self._current
        if current is not None:
            current.give_up_waiting()
        self._thread.join()

    def _run(self) -> None:
        while True:
            step = self._steps.get()
            if step is None:
                return
            with self._lock:
                closed = self._closed
                self._current = step
            if closed:
                step.fail(BackendError("The worker was closed before this step ran."))
                continue
            try:
                forwarded = self._executor.forward(step.plan)
                output = self._executor.finish(forwarded, step.wait_for_mask())
            except Exception as error:  # delivered by the step's result()
                step.fail(error)
            else:
                step.complete(output)


class SyncWorker:
    """Runs each step in the caller's thread, when it is sampled.

    Args:
        executor: what runs the steps.
    """

    def __init__(self, executor: StepExecutor) -> None:
        self._executor = executor

    def forward(self, plan: ScheduleBatch) -> Pending:
        """Note the step."""
        return PendingStep(plan)

    def sample(self, pending: Pending, bitmask: Bitmask | None) -> None:
        """Run it now, both halves; a failure is kept for `result`."""
        step = _own(pending)
        try:
            output = self._executor.finish(self._executor.forward(step.plan), bitmask)
        except Exception as error:  # delivered by the step's result()
            step.fail(error)
        else:
            step.complete(output)

    def close(self) -> None:
        """There is nothing to end."""


def _own(pending: Pending) -> PendingStep:
    assert isinstance(pending, PendingStep), "a step belongs to the worker that made it"
    return pending
