"""Workers: steps run in the order given, in a thread of their own or in the caller's.

Invariant: a step that fails fails alone; its `result` raises what happened and the next step runs.
Steps run one at a time, in the order given, whichever thread runs them. A step's sampling never
waits for a later step's forward, nor the other way round. Knows nothing of what the steps are for.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from branchline.runtime.core.batch import ForwardOutput, ScheduleBatch
from branchline.runtime.core.protocols import Pending
from branchline.runtime.errors import BackendError
from branchline.runtime.executor.step import StepExecutor
from branchline.runtime.executor.torch_threads import start_with_torch_threads, torch_threads

if TYPE_CHECKING:
    from branchline.runtime.core.protocols import Bitmask


class PendingStep:
    """A step on its way; see `core.protocols.Pending`.

    Args:
        run: runs the step in the caller's thread if no other thread has it; None = never.
    """

    def __init__(
        self, plan: ScheduleBatch, run: Callable[[PendingStep], None] | None = None
    ) -> None:
        self.plan = plan
        self._run = run
        self._bitmask: Bitmask | None = None
        self._named = False
        self._may_sample = threading.Event()
        self._finished = threading.Event()
        self._output: ForwardOutput | None = None
        self._error: BaseException | None = None

    def result(self) -> ForwardOutput:
        """Wait for the step, or run it; raise what it raised."""
        if self._run is not None:
            self._run(self)
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

    An awaited plan is run by `result` in the caller's thread, if nothing else is on its way: waking
    a thread and being woken by it takes 0.1 ms, and milliseconds where cores are busy. Another plan
    that comes before sends it to the worker's thread after all.

    Args:
        executor: used by this worker alone from now on.
        op_threads: of each torch op of a step; None = as many as here.
    """

    def __init__(self, executor: StepExecutor, op_threads: int | None = None) -> None:
        self._executor = executor
        self._op_threads = op_threads or torch.get_num_threads()
        self._steps: queue.SimpleQueue[PendingStep | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._current: PendingStep | None = None
        self._held: PendingStep | None = None  # waits for its caller to run it
        self._unfinished = 0  # steps that a thread runs or will run
        self._thread = start_with_torch_threads(self._run, "branchline-worker", self._op_threads)

    def forward(self, plan: ScheduleBatch, *, awaited: bool = False) -> Pending:
        """Queue a step, or hold it for `result`. Raises `BackendError` after `close`."""
        step = PendingStep(plan, self._run_held if awaited else None)
        with self._lock:
            if self._closed:
                raise BackendError("The worker is closed.", hint="Make a new engine.")
            self._queue_held()
            if awaited and self._unfinished == 0:
                self._held = step
            else:
                self._unfinished += 1
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
                self._queue_held()
                self._steps.put(None)
            current = self._current
        if current is not None:
            current.give_up_waiting()
        self._thread.join()

    def _queue_held(self) -> None:
        """Leave a held step to the worker's thread. Called with the lock."""
        step, self._held = self._held, None
        if step is not None:
            self._unfinished += 1
            self._steps.put(step)

    def _run_held(self, step: PendingStep) -> None:
        """Run the step here if it is still held."""
        with self._lock:
            if self._held is not step:
                return
            self._held, self._current = None, step
            self._unfinished += 1
        with torch_threads(self._op_threads):
            self._execute(step)

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
            self._execute(step)

    def _execute(self, step: PendingStep) -> None:
        try:
            forwarded = self._executor.forward(step.plan)
            output = self._executor.finish(forwarded, step.wait_for_mask())
        except Exception as error:  # delivered by the step's result()
            self._over()
            step.fail(error)
        else:
            self._over()
            step.complete(output)

    def _over(self) -> None:
        with self._lock:
            self._unfinished -= 1


class SyncWorker:
    """Runs each step in the caller's thread, when it is sampled.

    Args:
        executor: what runs the steps.
    """

    def __init__(self, executor: StepExecutor) -> None:
        self._executor = executor

    def forward(self, plan: ScheduleBatch, *, awaited: bool = False) -> Pending:
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
