"""The detokenizer's process: ids to text, stops found in it. Run as a module by the supervisor.

Invariant: text is what `Reading` reads, as in the engine's own process. A stop ends the
sequence at the scheduler; what was generated meanwhile is dropped. Sequences with a pattern as stop
are read on a thread of their own, so that no pattern holds up the text of others. No torch here.
"""

from __future__ import annotations

import zmq

from branchline.runtime.config.engine import EngineConfig
from branchline.runtime.core.outputs import FinishReason, Output
from branchline.runtime.core.sequence import SequenceEnd, SequenceOpen, SequenceTokens
from branchline.runtime.errors import BranchlineError, wrap
from branchline.runtime.ipc.messages import (
    Abort,
    Beat,
    DetokenizerLoaded,
    StartFailed,
    ToDetokenizer,
    ToPort,
    ToScheduler,
)
from branchline.runtime.ipc.socket_loop import SocketLoop
from branchline.runtime.ipc.sockets import Inbox, Outlet
from branchline.runtime.launch.starts import (
    BEAT_PERIOD_S,
    LINGER_S,
    ProcessStart,
    detokenizer_codec,
    live,
    port_codec,
    scheduler_codec,
)
from branchline.runtime.launch.text_parts import load_text
from branchline.runtime.tokenizer.reading import Reading
from branchline.runtime.tokenizer.side_thread import SideThread
from branchline.runtime.tokenizer.tokenizer import TokenizerLike


class Detokenizer:
    """Reads all sequences of one scheduler.

    Args:
        loop: whose thread calls `handle` and `flush`.
    """

    def __init__(
        self,
        tokenizer: TokenizerLike,
        loop: SocketLoop,
        port: Outlet[ToPort],
        scheduler: Outlet[ToScheduler],
    ) -> None:
        self._tokenizer = tokenizer
        self._loop = loop
        self._port = port
        self._scheduler = scheduler
        self._reading: dict[str, Reading] = {}
        self._side = SideThread("branchline-side")
        self._outputs: list[ToPort] = []
        self._aborts: list[ToScheduler] = []

    def handle(self, message: ToDetokenizer) -> None:
        """Read on."""
        name = message.request_id
        if isinstance(message, SequenceOpen):
            self._reading[name] = self._open(message)
            return
        reading = self._reading.get(name)
        if reading is None:
            return  # of a life before this one
        if isinstance(message, SequenceEnd):
            del self._reading[name]
        if reading.aside:
            self._side.put(lambda: self._read_aside(reading, message))
        else:
            self._deliver(name, *_read(reading, message))

    def beat(self, corrupt: int) -> None:
        """Say that this process lives, and how many frames it could not read."""
        self._outputs.append(Beat(self._loop.turns, False, corrupt))

    def flush(self) -> None:
        """Send what the turn has gathered."""
        if self._outputs:
            self._port.send(self._outputs)
            self._outputs = []
        if self._aborts:
            self._scheduler.send(self._aborts)
            self._aborts = []

    def _open(self, opened: SequenceOpen) -> Reading:
        try:
            return Reading(self._tokenizer, opened)
        except BranchlineError as error:  # whoever sent the request has checked it
            self._aborts.append(Abort(opened.request_id))
            broken = Reading(self._tokenizer, SequenceOpen(request_id=opened.request_id))
            broken.fail(error)
            return broken

    def _deliver(self, name: str, outputs: list[Output], over: FinishReason | None) -> None:
        self._outputs += outputs
        if over is not None:
            self._aborts.append(Abort(name, over))

    def _read_aside(self, reading: Reading, message: SequenceTokens | SequenceEnd) -> None:
        outputs, over = _read(reading, message)
        self._loop.call_soon(lambda: self._deliver(message.request_id, outputs, over))


def _read(
    reading: Reading, message: SequenceTokens | SequenceEnd
) -> tuple[list[Output], FinishReason | None]:
    """(what is seen, why the scheduler need not go on)."""
    if isinstance(message, SequenceTokens):
        return reading.push(message)
    return reading.end(message), None


def run(start: ProcessStart, context: zmq.Context[zmq.Socket[bytes]]) -> int:
    """Load, say so, and read until the parent ends; the exit status."""
    port: Outlet[ToPort] = Outlet(context, start.port, port_codec(), LINGER_S)
    try:
        text = load_text(EngineConfig.from_settings(start.settings))
    except Exception as error:
        port.send([StartFailed(wrap(error).to_wire())])
        return 1
    loop = SocketLoop("branchline-detokenizer")
    scheduler: Outlet[ToScheduler] = Outlet(context, start.peer, scheduler_codec())
    detokenizer = Detokenizer(text.tokenizer, loop, port, scheduler)
    inbox: Inbox[ToDetokenizer] = Inbox(context, start.inbox, detokenizer_codec())
    loop.after_turn = detokenizer.flush
    loop.watch(inbox, detokenizer.handle)
    loop.every(BEAT_PERIOD_S, lambda: detokenizer.beat(inbox.corrupt))
    port.send([DetokenizerLoaded()])
    loop.run()
    return 0


if __name__ == "__main__":
    live("detokenizer", run)
