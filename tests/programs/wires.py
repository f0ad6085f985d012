"""Both ends of the program protocol without a socket: frames are moved, lost or doubled by hand."""

from __future__ import annotations

from collections.abc import Callable

from branchline.lang.backends.link import Link, RemoteSession
from branchline.runtime.programs import wire
from branchline.runtime.programs.protocol import Closed, Event, Op, OpenProgram, Sink, TextDelta
from branchline.runtime.programs.remote import Connection, ProgramHost, ServerFacts
from branchline.runtime.programs.remote_program import ProgramLimits

FACTS = ServerFacts(server="branchline test", model="m", features=("select", "fork"))


class EngineSide:
    """One program as the server's engine sees it."""

    def __init__(self, opened: OpenProgram, sink: Sink) -> None:
        self.opened = opened
        self.sink = sink
        self.ops: list[Op] = []
        self.abandoned = False

    def send(self, ops: list[Op]) -> None:
        self.ops += ops

    def abandon(self) -> None:
        self.abandoned = True


class ClientSide:
    """One program as its owner sees it."""

    def __init__(self, link: Link, program_id: str) -> None:
        self.events: list[Event] = []
        self.session: RemoteSession = link.open(
            OpenProgram(program_id=program_id, name=f"name {program_id}"), self.events.extend
        )

    @property
    def closed(self) -> Closed | None:
        found = [event for event in self.events if isinstance(event, Closed)]
        assert len(found) <= 1, "a program is closed once"
        return found[0] if found else None


class Wires:
    """A link and a host, and the frames between them."""

    def __init__(self, limits: ProgramLimits | None = None, tenant: str = "") -> None:
        self.now = 0.0
        self.tenant = tenant
        self.engine: dict[str, EngineSide] = {}
        self._soon: list[Callable[[], None]] = []
        self.host = ProgramHost(
            self._open,
            FACTS,
            limits=limits or ProgramLimits(),
            clock=lambda: self.now,
            call_soon=self._soon.append,
        )
        self.link = Link(lambda: None)
        self.up: list[bytes] = []
        self.down: list[bytes] = []
        self.connection: Connection | None = None

    def _open(self, opened: OpenProgram, sink: Sink) -> EngineSide:
        side = self.engine[opened.program_id] = EngineSide(opened, sink)
        return side

    def program(self, program_id: str) -> ClientSide:
        return ClientSide(self.link, program_id)

    # ---- connections

    def connect(self, version: int = wire.VERSION) -> None:
        """A new connection; the greeting passes at once."""
        self.cut()
        connection = self.host.connect(self.tenant, self.tenant, lambda: None)
        connection.receive(wire.encode([wire.Hello(version, "test")]))
        frame = connection.collect()
        assert frame is not None
        (welcome,) = wire.decode_down(frame)
        assert isinstance(welcome, wire.Welcome)
        self.connection = connection
        self.link.connected(welcome)

    def cut(self, *, clean: bool = False) -> None:
        """The connection ends; what is under way is lost."""
        self.up.clear()
        self.down.clear()
        if self.connection is not None:
            self.link.disconnected()
            self.connection.drop(clean=clean)
            self.connection = None

    # ---- frames

    def collect(self) -> bool:
        """Both sides put their next frames on the wire; False when there are none."""
        self.run_soon()
        if self.connection is None:
            return False
        up, down = self.link.collect(), self.connection.collect()
        self.up += [] if up is None else [up]
        self.down += [] if down is None else [down]
        return up is not None or down is not None

    def arrive(self, frames: list[bytes], at: int = 0) -> None:
        """One frame arrives; a side that cannot go on ends the connection."""
        frame = frames.pop(at)
        try:
            if frames is self.up:
                assert self.connection is not None
                self.connection.receive(frame)
            else:
                self.link.receive(frame)
        except wire.WireError:
            self.cut()

    def run_soon(self) -> None:
        while self._soon:
            self._soon.pop(0)()

    def pump(self) -> None:
        """Move everything until both sides have nothing more to say."""
        while self.collect() or self.up or self.down:
            while self.up:
                self.arrive(self.up)
            while self.down:
                self.arrive(self.down)
            if self.connection is None:
                self.connect()


def joined(events: list[Event]) -> list[Event]:
    """Neighbouring texts of a node as one: a slow reader gets them in larger pieces."""
    out: list[Event] = []
    for event in events:
        last = out[-1] if out else None
        if isinstance(event, TextDelta) and isinstance(last, TextDelta) and last.node == event.node:
            out[-1] = TextDelta(last.lane, last.node, last.name, last.text + event.text)
        else:
            out.append(event)
    return out
