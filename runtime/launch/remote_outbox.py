"""Where a scheduler's results go when they are read in other processes.

Invariant: what one turn of the loop says leaves in one frame for each reader, in order; ids go to
the detokenizer, what has no text straight to the HTTP process. A stop in the text comes back later,
as an abort with the reason "stop". All calls are made on the loop thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from branchline.runtime.core.messages import EngineRequest, GenerateRequest
from branchline.runtime.core.request import Request
from branchline.runtime.core.sequence import end_of, openings, reading_of, tokens_since
from branchline.runtime.ipc.messages import Started, ToDetokenizer, ToPort
from branchline.runtime.ipc.sockets import Outlet


@dataclass(slots=True)
class _Told:
    """Of a sequence: whether its ids are told as they come, and how many have been."""

    as_they_come: bool
    shown: int = 0


class RemoteOutbox:
    """An `Outbox` over sockets.

    Args:
        port: to the HTTP process.
        detokenizer: to the process that reads text.
    """

    def __init__(
        self, model_name: str, port: Outlet[ToPort], detokenizer: Outlet[ToDetokenizer]
    ) -> None:
        self._model_name = model_name
        self._port = port
        self._detokenizer = detokenizer
        self._forget: Callable[[Request], None] = _not_connected
        self._told: dict[str, _Told] = {}
        self._started: list[str] = []
        self._to_port: list[ToPort] = []
        self._to_detokenizer: list[ToDetokenizer] = []

    def connect(self, forget: Callable[[Request], None]) -> None:
        """Name the scheduler's side: forget an ended request."""
        self._forget = forget

    def attach(self, detokenizer: Outlet[ToDetokenizer]) -> None:
        """Text is read by another process from now on, which knows nothing of older requests."""
        self._to_detokenizer.clear()
        self._detokenizer.close()
        self._detokenizer = detokenizer

    def open(self, request: EngineRequest) -> None:
        """The scheduler has taken `request`."""
        if isinstance(request, GenerateRequest):
            for opened in openings(request):
                self._told[opened.request_id] = _Told(opened.needs_text)
                self._to_detokenizer.append(opened)

    def tell(self, message: ToPort) -> None:
        """Say something to the HTTP process that is no result of a step."""
        self._to_port.append(message)

    # ---- Outbox

    def started(self, request: Request) -> None:
        """See `Outbox`."""
        self._started.append(request.id)

    def push(self, request: Request) -> bool:
        """See `Outbox`; stops are found elsewhere, so never True."""
        told = self._told[request.id]
        if told.as_they_come:
            tokens = tokens_since(request, told.shown)
            told.shown += len(tokens.token_ids)
            self._to_detokenizer.append(tokens)
        return False

    def quiet(self, request: Request) -> bool:
        """See `Outbox`."""
        return not self._told[request.id].as_they_come

    def finish(self, request: Request) -> None:
        """See `Outbox`."""
        self._forget(request)
        if not request.generates:
            self._to_port.append(reading_of(request, self._model_name))
            return
        told = self._told.pop(request.id)
        self._to_detokenizer.append(end_of(request, told.shown, self._model_name))

    def flush(self) -> None:
        """Send what has been said since the last flush."""
        if self._started:
            self._to_port.append(Started(self._started))
            self._started = []
        if self._to_port:
            self._port.send(self._to_port)
            self._to_port = []
        if self._to_detokenizer:
            self._detokenizer.send(self._to_detokenizer)
            self._to_detokenizer = []


def _not_connected(_: Request) -> None:
    raise AssertionError("the outbox is not connected to a scheduler")
