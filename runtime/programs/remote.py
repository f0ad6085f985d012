"""Programs of clients that come over connections, which come and go.

`ProgramHost` holds the programs, a `Connection` is one client's line to some of them: bytes in,
bytes out. Everything but the sinks of programs runs on one thread, the host's; events cross from
the engine's thread in bursts. Law: a program whose client is gone ends within its lease, one whose
client has said so ends at once, and nobody else's changes. Knows nothing of sockets or HTTP.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from branchline.runtime.errors import BackendError, BranchlineError, QueueFull, UnsupportedFeature
from branchline.runtime.programs import wire
from branchline.runtime.programs.protocol import Event, OpenProgram, Session, Sink
from branchline.runtime.programs.remote_program import ProgramLimits, RemoteProgram
from branchline.runtime.programs.wire import Ack, Attach, Down, Hello, Item, Lost, Refused, Welcome

OpenFn = Callable[[OpenProgram, Sink], Session]


class ServerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a client is told at the start; see `wire.Welcome`."""

    server: str
    model: str
    features: tuple[str, ...]


class ProgramHost:
    """All programs that clients have here.

    Args:
        opens: starts a program on the engine (`Executor.open`).
        facts: for the clients.
        limits: what programs may use.
        clock: monotonic seconds.
        call_soon: runs a function on the host's thread, soon; callable from any thread.
    """

    def __init__(
        self,
        opens: OpenFn,
        facts: ServerFacts,
        *,
        limits: ProgramLimits,
        clock: Callable[[], float],
        call_soon: Callable[[Callable[[], None]], None],
    ) -> None:
        self.facts = facts
        self.limits = limits
        self.clock = clock
        self._opens = opens
        self._call_soon = call_soon
        self._programs: dict[tuple[str, str], RemoteProgram] = {}
        self._owners: dict[RemoteProgram, tuple[Connection, int]] = {}
        self._inbox: deque[tuple[RemoteProgram, list[Event]]] = deque()
        self._awake = False
        self._draining = False

    def __len__(self) -> int:
        return len(self._programs)

    def connect(self, tenant: str, namespace: str, wake: Callable[[], None]) -> Connection:
        """A client's new connection.

        Args:
            tenant: whose programs it may attach to.
            namespace: of the prefix cache.
            wake: called when `collect` may have something to send.
        """
        return Connection(self, tenant, namespace, wake)

    def tick(self) -> None:
        """End and forget programs whose time is over; to be called about once a second."""
        now = self.clock()
        for program in list(self._programs.values()):
            if not program.check_time(now):
                self._lose(program)

    def drain(self) -> None:
        """Begin no more programs; those that run go on."""
        self._draining = True

    # ---- for connections

    def attach(self, connection: Connection, message: Attach) -> RemoteProgram:
        """The program of an `Attach`, begun if it is new; raises what `Lost` is to say."""
        key = (connection.tenant, message.program_id)
        program = self._programs.get(key)
        if program is None:
            if message.acked or message.received:
                lease_s = self.limits.program_lease_s
                raise BackendError(
                    "the server no longer has this program",
                    hint=f"A program is kept for {lease_s} s after its connection broke. "
                    "Run it again.",
                    retryable=True,
                )
            program = self._begin(key, connection.namespace)
        owner = self._owners.get(program)
        if owner is not None:
            owner[0].forget(owner[1])
        self._owners[program] = (connection, message.channel)
        return program

    def release(self, program: RemoteProgram, *, clean: bool) -> None:
        """Its connection is gone. `clean`: the client has said that it goes."""
        self._owners.pop(program, None)
        if clean or program.over:
            self.forget(program)
        else:
            program.detach(self.clock())

    def forget(self, program: RemoteProgram) -> None:
        """Cancel what runs, free everything; its id may be used again."""
        self._owners.pop(program, None)
        if self._programs.get(program.key) is program:
            del self._programs[program.key]
        program.drop()

    # ---- inside

    def _begin(self, key: tuple[str, str], namespace: str) -> RemoteProgram:
        if self._draining:
            raise BackendError("the server is going down", hint="Try again later.", retryable=True)
        if len(self._programs) >= self.limits.max_programs:
            self._make_room()

        def opens(program: RemoteProgram, opened: OpenProgram) -> Session:
            inside = "/".join(key) if key[0] else key[1]
            opened = msgspec.structs.replace(opened, program_id=inside, namespace=namespace)
            return self._opens(opened, lambda events: self._deliver(program, events))

        program = self._programs[key] = RemoteProgram(key, self.limits, opens, self.clock())
        return program

    def _make_room(self) -> None:
        """Programs that have ended and are only kept to be read go first, the oldest first."""
        ended = next((p for p in self._programs.values() if p.ended), None)
        if ended is None:
            raise QueueFull(
                "the server runs as many programs as it may",
                value=self.limits.max_programs,
                hint="Try again later, or start the server with --limit max_programs=….",
            )
        self._lose(ended)

    def _lose(self, program: RemoteProgram) -> None:
        owner = self._owners.pop(program, None)
        if owner is not None:
            error = BackendError(
                "the server has forgotten the program",
                hint="Read its texts soon after its end.",
                retryable=True,
            )
            owner[0].lose(owner[1], error)
        self.forget(program)

    def _deliver(self, program: RemoteProgram, events: list[Event]) -> None:
        """The sink of every program; on the engine's thread."""
        self._inbox.append((program, events))
        if not self._awake:
            self._awake = True
            self._call_soon(self._take)

    def _take(self) -> None:
        self._awake = False  # before looking: what comes from here on wakes again
        now = self.clock()
        for _ in range(len(self._inbox)):
            program, events = self._inbox.popleft()
            program.take_events(events, now)


class Connection:
    """One client's line. Bytes in by `receive`, bytes out by `collect`.

    Attributes:
        refused: the client cannot be served; close once everything is sent.
    """

    def __init__(
        self, host: ProgramHost, tenant: str, namespace: str, wake: Callable[[], None]
    ) -> None:
        self.tenant = tenant
        self.namespace = namespace
        self.refused = False
        self._host = host
        self._wake = wake
        self._greeted = False
        self._said: list[Down] = []
        self._channels: dict[int, RemoteProgram] = {}
        self._ready: dict[int, None] = {}

    @property
    def running(self) -> bool:
        """True while a program of it has not come to its end."""
        return any(not program.ended for program in self._channels.values())

    def receive(self, frame: bytes) -> None:
        """Take one frame. `WireError`: the connection cannot go on."""
        for message in wire.decode_up(frame):
            if not self._greeted:
                self._greet(message)
            elif isinstance(message, Item):
                # A channel that was lost may get what was under way.
                if (program := self._channels.get(message.channel)) is not None:
                    program.acknowledge(message.received)
                    program.accept(message.number, message.body, self._host.clock())
                    self._after(message.channel, program)
            elif isinstance(message, Ack):
                if (program := self._channels.get(message.channel)) is not None:
                    program.acknowledge(message.received)
                    self._after(message.channel, program)
            elif isinstance(message, Attach):
                self._attach(message)
            else:
                raise wire.WireError("a second Hello", hint="Say Hello once.")
            if self.refused:
                break

    def collect(self) -> bytes | None:
        """The next frame to send; None = nothing for now."""
        messages, self._said = self._said, []
        room = wire.MAX_FRAME_BYTES
        while self._ready and room > 0:
            channel = next(iter(self._ready))
            del self._ready[channel]
            program = self._channels[channel]
            found = program.next_item()
            if found is not None:
                number, body = found
                messages.append(Item(channel, number, program.incoming.report(), msgspec.Raw(body)))
                room -= len(body)
                if program.has_news:
                    self._ready[channel] = None  # behind the others
            elif program.incoming.ack_is_due():
                messages.append(Ack(channel, program.incoming.report()))
        return wire.encode(messages) if messages else None

    def drop(self, *, clean: bool) -> None:
        """The connection is gone. `clean`: the client has closed it in order, so its programs end;
        else they are kept for the lease.
        """
        channels, self._channels = self._channels, {}
        self._ready.clear()
        for program in channels.values():
            self._host.release(program, clean=clean)

    # ---- for the host

    def forget(self, channel: int) -> None:
        """Another connection has taken the channel's program over."""
        self._channels.pop(channel, None)
        self._ready.pop(channel, None)

    def lose(self, channel: int, error: BranchlineError) -> None:
        """Tell the client that a program is gone."""
        self.forget(channel)
        self._say(Lost(channel, error.to_wire()))

    # ---- inside

    def _greet(self, message: object) -> None:
        if not isinstance(message, Hello):
            raise wire.WireError("the first message is not Hello", hint="Say Hello first.")
        self._greeted = True
        if message.version != wire.VERSION:
            error: BranchlineError = UnsupportedFeature(
                f"the server speaks version {wire.VERSION} of the program protocol, the client "
                f"version {message.version}",
                value=message.client,
                hint=f"Install the same release on both sides; the server is "
                f"{self._host.facts.server}.",
            )
            self.refused = True
            self._say(Refused(error.to_wire()))
            return
        facts, limits = self._host.facts, self._host.limits
        self._say(
            Welcome(
                wire.VERSION,
                facts.server,
                facts.model,
                facts.features,
                limits.program_lease_s,
                max_item_bytes(limits),
            )
        )

    def _attach(self, message: Attach) -> None:
        channel = message.channel
        if channel in self._channels:
            raise wire.WireError("the channel is in use", value=channel, hint="Number them anew.")
        if not 0 < len(message.program_id) <= wire.MAX_PROGRAM_ID:
            raise wire.WireError("not a program id", value=message.program_id, hint="Shorten it.")
        try:
            program = self._host.attach(self, message)
        except BranchlineError as error:
            self._say(Lost(channel, error.to_wire()))
            return
        self._channels[channel] = program

        def wake() -> None:
            self._ready[channel] = None
            self._wake()

        program.attach(message.received, wake)

    def _after(self, channel: int, program: RemoteProgram) -> None:
        """Something was taken: acknowledge it in time, forget what was abandoned."""
        if program.abandoned:
            self.forget(channel)
            self._host.forget(program)
        elif program.incoming.ack_is_due() or program.has_news:
            self._ready[channel] = None
            self._wake()

    def _say(self, message: Any) -> None:
        self._said.append(message)
        self._wake()


def max_item_bytes(limits: ProgramLimits) -> int:
    """Largest item a client may send: all the text of a program at once, with its markup."""
    return limits.max_program_text_bytes + (1 << 20)
