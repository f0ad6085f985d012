"""An engine port with quotas: no adapter has more than its share of requests at a time.

Invariant: a request counts from the moment the engine took it until its last final output; one that
was refused never counts. Requests of the base model have no quota here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from branchline.runtime.core.messages import EngineRequest
from branchline.runtime.core.outputs import GenerateDelta, Output
from branchline.runtime.core.protocols import EnginePort
from branchline.runtime.core.sequence import names_of
from branchline.runtime.errors import QueueFull
from branchline.runtime.server.port_around import PortAround


class QuotaPort(PortAround):
    """A port that refuses what is beyond an adapter's quota.

    Args:
        most: requests of one adapter; None = as many as come.
    """

    def __init__(self, port: EnginePort, most: int | None) -> None:
        super().__init__(port)
        self._most = most
        self._open: Counter[str] = Counter()

    def submit(self, request: EngineRequest, on_output: Callable[[Output], None]) -> None:
        """See `EnginePort.submit`; QueueFull, which may pass, beyond the quota."""
        adapter, most = request.adapter, self._most
        if not adapter or most is None:
            self.port.submit(request, on_output)
            return
        if self._open[adapter] >= most:
            raise QueueFull(
                f"too many requests of adapter {adapter!r} are being worked on",
                value=most,
                hint="Try again later, or start the server with --limit max_adapter_requests=….",
            )
        left = len(names_of(request))

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
