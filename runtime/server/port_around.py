"""An engine port around another one: what it does not do itself, the inner one does.

Invariant: a class over this one overrides what it is for, and nothing else can be forgotten. Knows
no routes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from branchline.runtime.core.messages import EngineRequest
from branchline.runtime.core.outputs import Output
from branchline.runtime.core.prefixes import CachedPrefix
from branchline.runtime.core.protocols import EnginePort
from branchline.runtime.errors import BranchlineError


class PortAround:
    """`EnginePort`; every call goes to `port`.

    Args:
        port: does the work.
    """

    def __init__(self, port: EnginePort) -> None:
        self.port = port
        self.tokenizer = port.tokenizer
        self.turns = port.turns
        self.model_name = port.model_name
        self.max_context = port.max_context
        self.heals = port.heals
        self.reasoning = port.reasoning

    def submit(self, request: EngineRequest, on_output: Callable[[Output], None]) -> None:
        """See `EnginePort.submit`."""
        self.port.submit(request, on_output)

    def call_soon(self, fn: Callable[[], None]) -> None:
        """See `EnginePort.call_soon`."""
        self.port.call_soon(fn)

    def abort(self, request_id: str) -> None:
        """See `EnginePort.abort`."""
        self.port.abort(request_id)

    def hold(self, lane_id: str, ids: Sequence[int], namespace: str, adapter: str = "") -> None:
        """See `EnginePort.hold`."""
        self.port.hold(lane_id, ids, namespace, adapter)

    def release(self, lane_id: str) -> None:
        """See `EnginePort.release`."""
        self.port.release(lane_id)

    def flush(self, on_done: Callable[[int | BranchlineError], None]) -> None:
        """See `EnginePort.flush`."""
        self.port.flush(on_done)

    def prefixes(self, on_done: Callable[[list[CachedPrefix] | BranchlineError], None]) -> None:
        """See `EnginePort.prefixes`."""
        self.port.prefixes(on_done)

    def info(self) -> dict[str, Any]:
        """See `EnginePort.info`."""
        return self.port.info()
