"""An engine port with quotas: no adapter has more than its share of requests at a time.

Invariant: a request counts from the moment the engine took it until its last final output. One that
comes beyond the quota waits behind those of its adapter that came before, and is refused only where
too many wait already. Requests of the base model have no quota here.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from branchline.runtime.core.messages import EngineRequest
from branchline.runtime.core.outputs import FinishReason, GenerateDelta, Output
from branchline.runtime.core.protocols import EnginePort
from branchline.runtime.core.sequence import deadline_passed, names_of, never_run
from branchline.runtime.errors import BackendError, BranchlineError, QueueFull, wrap
from branchline.runtime.server.port_around import PortAround

OnOutput = Callable[[Output], None]


@dataclass(eq=False, slots=True)
class _Waiting:
    """A request that the engine has not seen.

    Attributes:
        ended: sequences of it that were aborted by their own names.
    """

    request: EngineRequest
    on_output: OnOutput
    ended: list[str] = field(default_factory=list)

    def end(self, reason: FinishReason, error: BranchlineError | None = None) -> None:
        """Answer for the engine."""
        for name in names_of(self.request):
            self.on_output(never_run(self.request, name, reason, error))


class QuotaPort(PortAround):
    """A port that has what is beyond an adapter's quota wait.

    Args:
        most: requests of one adapter; None = as many as come.
        most_waiting: of one adapter beside them; more are refused.
    """

    def __init__(self, port: EnginePort, most: int | None, most_waiting: int = 0) -> None:
        super().__init__(port)
        self._most = most
        self._most_waiting = most_waiting
        self._open: Counter[str] = Counter()
        self._waiting: dict[str, deque[_Waiting]] = {}
        self._timer_at = float("inf")

    def submit(self, request: EngineRequest, on_output: OnOutput) -> None:
        """See `EnginePort.submit`; QueueFull, which may pass, where too many wait."""
        adapter, most = request.adapter, self._most
        if not adapter or most is None:
            self.port.submit(request, on_output)
            return
        self._expire()
        waiting = self._waiting.get(adapter)
        if self._open[adapter] < most and not waiting:
            self._start(request, on_output)
            return
        if len(waiting or ()) >= self._most_waiting:
            raise QueueFull(
                f"too many requests of adapter {adapter!r} are being worked on, and wait",
                value=f"{most} and {self._most_waiting}",
                hint="Try again later, or start the server with --limit max_adapter_requests=… or "
                "--limit max_adapter_waiting=….",
            )
        self._waiting.setdefault(adapter, deque()).append(_Waiting(request, on_output))
        self._watch(request.deadline)

    def abort(self, request_id: str) -> None:
        """See `EnginePort.abort`."""
        for queue in self._waiting.values():
            for one in queue:
                if one.request.id == request_id:
                    self._remove(one)
                    one.end("abort")
                    return
                if request_id in names_of(one.request):
                    one.ended.append(request_id)
                    return
        self.port.abort(request_id)

    def _start(self, request: EngineRequest, on_output: OnOutput) -> None:
        adapter, left = request.adapter, len(names_of(request))

        def take(output: Output) -> None:
            nonlocal left
            if not isinstance(output, GenerateDelta):
                left -= 1
                if left == 0:
                    self._leave(adapter)
            on_output(output)

        self._open[adapter] += 1
        try:
            self.port.submit(request, take)
        except BaseException:
            if left:  # a port may answer before it returns
                self._leave(adapter)
            raise

    def _leave(self, adapter: str) -> None:
        self._open[adapter] -= 1
        if not self._open[adapter]:
            del self._open[adapter]
        assert self._most is not None
        while (queue := self._waiting.get(adapter)) and self._open[adapter] < self._most:
            one = queue[0]
            self._remove(one)
            try:
                self._start(one.request, one.on_output)
            except Exception as error:  # what a client would have been told at once
                one.end("error", wrap(error))
                continue
            for name in one.ended:
                self.port.abort(name)

    def _remove(self, one: _Waiting) -> None:
        queue = self._waiting[one.request.adapter]
        queue.remove(one)
        if not queue:
            del self._waiting[one.request.adapter]

    # -- deadlines of those that the engine does not know yet ------------------------------------

    def _watch(self, deadline: float | None) -> None:
        """Have `_expire` called then, on the loop thread."""
        if deadline is None or deadline >= self._timer_at:
            return
        self._timer_at = deadline
        wait_s = max(0.0, deadline - time.monotonic())
        timer = threading.Timer(wait_s, self._call_expire)
        timer.daemon = True
        timer.start()

    def _call_expire(self) -> None:
        with contextlib.suppress(BackendError):  # a closed engine
            self.port.call_soon(self._expire)

    def _expire(self) -> None:
        """End those that have waited beyond their deadlines."""
        now = time.monotonic()
        if now < self._timer_at:
            return
        self._timer_at = float("inf")
        waiting = [one for queue in self._waiting.values() for one in queue]
        for one in waiting:
            deadline = one.request.deadline
            if deadline is not None and deadline <= now:
                self._remove(one)
                one.end("deadline", deadline_passed())
            else:
                self._watch(deadline)
