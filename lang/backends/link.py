"""The client's end of the line to a server of programs: sessions, and what they still have to say.

Invariant: a session's ops reach the server once and in order and its events come back likewise,
over however many connections that takes; when there is none for too long, every session hears so
in one `Closed`. Any thread may send; frames are taken and given on one thread, which also calls the
sinks. Knows nothing of sockets (see `endpoint`).
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable

import msgspec

from branchline.lang.errors import BackendError, BranchlineError, InvalidRequest, from_wire
from branchline.runtime.programs import wire
from branchline.runtime.programs.channel import Incoming, Outgoing
from branchline.runtime.programs.protocol import (
    Closed,
    Event,
    LaneContent,
    NodeFailed,
    Op,
    OpenProgram,
    ReadLane,
    Sink,
)
from branchline.runtime.programs.wire import Abandon, Ack, Attach, Item, Lost, Up, Welcome

logger = logging.getLogger(__name__)


class LinkStats(msgspec.Struct, frozen=True, kw_only=True):
    """Counts since the link was made.

    Attributes:
        bytes_up, bytes_down: of frames.
        connections: that came to be.
        programs: sessions that are held now.
    """

    bytes_up: int = 0
    bytes_down: int = 0
    frames_up: int = 0
    frames_down: int = 0
    connections: int = 0
    programs: int = 0


class RemoteSession:
    """One program on the server; see `protocol.Session`. Made by `Link.open`.

    Attributes:
        attached: this connection knows the program.
    """

    __slots__ = (
        "_link",
        "_reads",
        "attached",
        "channel",
        "incoming",
        "leaving",
        "lost",
        "outgoing",
        "program_id",
        "sink",
    )

    def __init__(self, link: Link, channel: int, program_id: str, sink: Sink) -> None:
        self.channel = channel
        self.program_id = program_id
        self.sink: Sink | None = sink
        self.outgoing = Outgoing()
        self.incoming = Incoming()
        self.attached = False
        self.leaving = False
        self.lost: BranchlineError | None = None
        self._link = link
        self._reads: dict[int, int] | None = None

    def send(self, ops: list[Op]) -> None:
        """Hand over ops.

        Raises:
            InvalidRequest: more at once than the server takes, or text that is no text.
            BackendError: the endpoint is closed, or the program is gone.
        """
        self._link.send(self, ops)

    def abandon(self) -> None:
        """See `protocol.Session`."""
        self._link.abandon(self)

    # ---- for the link, under its lock

    def note(self, ops: list[Op]) -> None:
        """Remember reads, which may come after everything else has ended."""
        for op in ops:
            if isinstance(op, ReadLane):
                self._reads = self._reads or {}
                self._reads[op.node] = op.lane

    def settle(self, events: list[Event]) -> None:
        """Forget reads that were answered."""
        if self._reads:
            for event in events:
                if isinstance(event, (LaneContent, NodeFailed)):
                    self._reads.pop(event.node, None)

    def lose(self, error: BranchlineError, *, ended: bool) -> list[Event]:
        """Events that say the program is gone. `ended`: its `Closed` has come before."""
        self.lost = error
        located = error.to_wire()
        reads, self._reads = self._reads or {}, None
        events: list[Event] = [
            NodeFailed(lane=lane, node=node, name="", error=located) for node, lane in reads.items()
        ]
        return events if ended else [*events, Closed(error=located)]


class Link:
    """All sessions of one endpoint.

    Args:
        wake: called, from any thread, when `collect` may have something to send.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        # Re-entrant: collecting garbage while it is held may abandon a program.
        self._lock = threading.RLock()
        self._wake = wake
        self._sessions: dict[int, RemoteSession] = {}
        self._ended: set[int] = set()
        self._ready: OrderedDict[int, None] = OrderedDict()
        self._channels = 0
        self._welcome: Welcome | None = None
        self._connected = False
        self._closed: BranchlineError | None = None
        self._bytes = [0, 0]
        self._frames = [0, 0]
        self._connections = 0

    # ---- any thread

    def open(self, program: OpenProgram, sink: Sink) -> RemoteSession:
        """Start a program; BackendError when the endpoint is closed."""
        body = wire.encode([program])
        with self._lock:
            if self._closed is not None:
                raise self._closed
            channel = self._channels = self._channels + 1
            session = RemoteSession(self, channel, program.program_id, sink)
            session.outgoing.put(body)
            self._sessions[channel] = session
            self._mark(session)
        return session

    def send(self, session: RemoteSession, ops: list[Op]) -> None:
        """See `RemoteSession.send`."""
        body = _encoded(ops)
        with self._lock:
            if session.lost is not None:
                raise (self._closed or session.lost).with_traceback(None)
            if session.leaving:
                return
            limit = self._welcome.max_item_bytes if self._welcome is not None else len(body)
            if len(body) > limit:
                raise InvalidRequest(
                    "the program appends more at once than the server takes",
                    value=f"{len(body)} bytes of {limit}",
                    hint="Append less text.",
                )
            session.note(ops)
            session.outgoing.put(body)
            self._mark(session)

    def abandon(self, session: RemoteSession) -> None:
        """See `RemoteSession.abandon`."""
        with self._lock:
            session.sink = None
            if session.leaving or session.channel not in self._sessions:
                return
            session.leaving = True
            if not session.outgoing.acknowledged and not session.attached:
                self._remove(session)  # no server has heard of it
                return
            session.outgoing.put(wire.encode([Abandon()]))
            self._mark(session)

    def stats(self) -> LinkStats:
        """Counts so far."""
        with self._lock:
            return LinkStats(
                bytes_up=self._bytes[0],
                bytes_down=self._bytes[1],
                frames_up=self._frames[0],
                frames_down=self._frames[1],
                connections=self._connections,
                programs=len(self._sessions),
            )

    @property
    def has_programs(self) -> bool:
        """True while a session wants a connection."""
        return bool(self._sessions)

    # ---- the connection's thread

    def connected(self, welcome: Welcome) -> None:
        """A new connection has been greeted; everything not acknowledged goes again."""
        with self._lock:
            self._welcome = welcome
            self._connected = True
            self._connections += 1
            for session in list(self._sessions.values()):
                session.attached = False
                session.outgoing.rewind()
                session.incoming.forget_reports()
                self._mark(session)

    def disconnected(self) -> None:
        """The connection is gone; sessions wait for the next one."""
        with self._lock:
            self._connected = False
            self._ready.clear()

    def collect(self) -> bytes | None:
        """The next frame to send; None = nothing for now."""
        with self._lock:
            if not self._connected:
                return None
            messages: list[Up] = []
            room = wire.MAX_FRAME_BYTES
            while room > 0:
                try:  # in one step: between two, collecting garbage may abandon a program
                    channel, _ = self._ready.popitem(last=False)
                except KeyError:
                    break
                if (session := self._sessions.get(channel)) is not None:
                    room -= self._say(session, messages)
            if not messages:
                return None
            frame = wire.encode(messages)
            self._frames[0] += 1
            self._bytes[0] += len(frame)
            return frame

    def receive(self, frame: bytes) -> None:
        """Take one frame and call the sinks. `WireError`: the connection cannot go on."""
        self._frames[1] += 1
        self._bytes[1] += len(frame)
        for message in wire.decode_down(frame):
            if isinstance(message, Item):
                self._take(message)
            elif isinstance(message, Ack):
                with self._lock:
                    if (session := self._sessions.get(message.channel)) is not None:
                        self._acknowledged(session, message.received)
            elif isinstance(message, Lost):
                self._lose(message.channel, from_wire(message.error))
            else:
                raise wire.WireError("a second greeting", value=type(message).__name__)

    def fail(self, error: BranchlineError, *, closed: BranchlineError | None = None) -> None:
        """There is no server any more: every program ends with `error`.

        Args:
            closed: no other program can be opened, for this reason.
        """
        with self._lock:
            self._connected = False
            self._closed = self._closed or closed
            channels = list(self._sessions)
        for channel in channels:
            self._lose(channel, error)

    # ---- inside

    def _mark(self, session: RemoteSession) -> None:
        self._ready[session.channel] = None
        self._wake()

    def _remove(self, session: RemoteSession) -> None:
        self._sessions.pop(session.channel, None)
        self._ready.pop(session.channel, None)
        self._ended.discard(session.channel)

    def _say(self, session: RemoteSession, messages: list[Up]) -> int:
        """Put what a session has to say; returns its bytes."""
        outgoing, incoming, channel = session.outgoing, session.incoming, session.channel
        if not session.attached:
            session.attached = True
            messages.append(
                Attach(channel, session.program_id, incoming.report(), outgoing.acknowledged)
            )
        found = outgoing.take()
        if found is None:
            if incoming.ack_is_due():
                messages.append(Ack(channel, incoming.report()))
            return 0
        number, body = found
        messages.append(Item(channel, number, incoming.report(), msgspec.Raw(body)))
        if session.leaving and outgoing.all_sent:
            self._remove(session)
        elif outgoing.open and not outgoing.all_sent:
            self._ready[channel] = None
        return len(body)

    def _acknowledged(self, session: RemoteSession, received: int) -> None:
        outgoing = session.outgoing
        outgoing.acknowledge(received)
        if outgoing.open and not outgoing.all_sent:
            self._mark(session)

    def _take(self, item: Item) -> None:
        with self._lock:
            session = self._sessions.get(item.channel)
            if session is None:
                return  # it was under way when the program was abandoned
            self._acknowledged(session, item.received)
            if not session.incoming.accept(item.number, len(item.body)):
                return
            if session.incoming.ack_is_due():
                self._mark(session)
            try:
                events = wire.decode_events(item.body)
            except msgspec.DecodeError as error:
                raise wire.WireError(f"not events: {error}", hint="See the server.") from error
            session.settle(events)
            if any(isinstance(event, Closed) for event in events):
                self._ended.add(item.channel)
        self._call(session, events)

    def _lose(self, channel: int, error: BranchlineError) -> None:
        with self._lock:
            session = self._sessions.get(channel)
            if session is None:
                return
            events = session.lose(error, ended=channel in self._ended)
            self._remove(session)
        if events:
            self._call(session, events)

    def _call(self, session: RemoteSession, events: list[Event]) -> None:
        """Events to the program, outside the lock; one whose sink breaks ends alone."""
        sink = session.sink
        if sink is None:
            return
        try:
            sink(events)
        except Exception:
            logger.exception("program %s abandoned: its sink failed", session.program_id)
            self.abandon(session)


def _encoded(ops: list[Op]) -> bytes:
    try:
        return wire.encode(ops)
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            "the text holds a lone surrogate, which no encoding can express",
            value=ascii(error.object[max(0, error.start - 20) : error.end + 20]),
            hint="Decode bytes with errors='replace' before they get here.",
        ) from error
    except (OverflowError, TypeError) as error:
        raise InvalidRequest(
            f"the program cannot be sent: {error}", hint="Use numbers of at most 64 bits."
        ) from error


def closed_error() -> BackendError:
    """Of an endpoint that was closed."""
    return BackendError("the endpoint is closed", hint="Make a new Endpoint.")
