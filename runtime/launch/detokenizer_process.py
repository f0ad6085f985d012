"""The detokenizer's process: ids to text, stops found in it. Run as a module by the supervisor.

Invariant: text is what `SequenceReader` reads, as in the engine's own process. A stop ends the
sequence at the scheduler; what was generated meanwhile is dropped. Sequences with a pattern as stop
are read on a thread of their own, so that no pattern holds up the text of others. No torch here.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import msgspec
import zmq

from branchline.runtime.config.engine import EngineConfig
from branchline.runtime.core.outputs import GenerateResult, Output
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
from branchline.runtime.ipc.parent import leave, read_start
from branchline.runtime.ipc.socket_loop import SocketLoop
from branchline.runtime.ipc.sockets import Inbox, Outlet
from branchline.runtime.launch.starts import (
    BEAT_PERIOD_S,
    ProcessStart,
    detokenizer_codec,
    port_codec,
    scheduler_codec,
)
from branchline.runtime.launch.text_parts import load_text
from branchline.runtime.observability.logs import set_up_logs
from branchline.runtime.tokenizer.sequence_reader import SequenceReader
from branchline.runtime.tokenizer.side_thread import SideThread
from branchline.runtime.tokenizer.tokenizer import TokenizerLike

logger = logging.getLogger(__name__)

LINGER_S = 2.0


@dataclass(slots=True)
class _Reading:
    """A sequence being read.

    Attributes:
        offloaded: the side thread reads it.
        ended_early: the scheduler has been told that no more of it is wanted.
        error: reading broke; its end says so, and nobody else's does.
    """

    reader: SequenceReader
    offloaded: bool = False
    ended_early: bool = False
    error: BranchlineError | None = None

    def read(self, message: SequenceTokens | SequenceEnd) -> list[Output]:
        """What `message` lets the reader see."""
        try:
            if self.error is None and isinstance(message, SequenceEnd):
                return self.reader.end(message)
            if self.error is None and isinstance(message, SequenceTokens):
                return self.reader.push(message)
        except Exception as error:
            logger.exception("reading sequence %s failed", message.request_id)
            self.error = wrap(error)
        if isinstance(message, SequenceTokens) or self.error is None:
            return []
        failed = GenerateResult(
            request_id=message.request_id,
            text="",
            token_ids=[],
            meta=msgspec.structs.replace(message.meta, finish_reason="error"),
            error=self.error.to_wire(),
        )
        return [failed]


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
        self._reading: dict[str, _Reading] = {}
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
        if reading.offloaded:
            self._side.put(lambda: self._read_aside(reading, message))
        else:
            self._deliver(reading, name, reading.read(message))

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

    def _open(self, opened: SequenceOpen) -> _Reading:
        try:
            reader = SequenceReader(self._tokenizer, opened)
        except BranchlineError as error:  # whoever sent the request has checked it
            plain = SequenceOpen(request_id=opened.request_id)
            return _Reading(SequenceReader(self._tokenizer, plain), error=error)
        return _Reading(reader, offloaded=opened.stop_regex is not None)

    def _deliver(self, reading: _Reading, name: str, outputs: list[Output]) -> None:
        self._outputs += outputs
        if (reading.reader.stopped or reading.error) and not reading.ended_early:
            reading.ended_early = True
            self._aborts.append(Abort(name, "abort" if reading.error else "stop"))

    def _read_aside(self, reading: _Reading, message: SequenceTokens | SequenceEnd) -> None:
        outputs = reading.read(message)
        self._loop.call_soon(lambda: self._deliver(reading, message.request_id, outputs))


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


def main() -> int:
    """Body of the process."""
    start = read_start(ProcessStart)
    set_up_logs(start.log_format, start.log_level, "detokenizer")
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    status = run(start, context)
    # Told to stop, nobody listens any more; failed, somebody wants to know why.
    context.destroy(linger=int(LINGER_S * 1000) if status else 0)
    return status


if __name__ == "__main__":
    leave(main())
