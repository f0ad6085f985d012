"""One program that runs here for a client elsewhere: its channel, its limits, its unread events.

Invariant: what it holds is bounded by its limits, whatever the client sends and however slowly it
reads: text that nobody has read yet is joined, a client that lags behind is not listened to until
it has read, and one that lets even that run over loses its program. Lives on the host's thread.
Knows nothing of sockets; connections come and go (see `remote`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec

from branchline.runtime.config.sections import setting
from branchline.runtime.errors import (
    BackendError,
    BranchlineError,
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    ProgramError,
)
from branchline.runtime.programs.channel import WINDOW_BYTES, Incoming, Outgoing
from branchline.runtime.programs.protocol import (
    AppendText,
    BeginRole,
    Closed,
    DeclareTools,
    Event,
    Fork,
    Generate,
    Join,
    JoinReady,
    LaneContent,
    NodeFailed,
    Op,
    OpenProgram,
    ReadLane,
    ReasoningDelta,
    Select,
    Session,
    SetVariable,
    TextDelta,
    ValueReady,
)
from branchline.runtime.programs.wire import Abandon, UpPart, WireError, decode_parts, encode

LAGGING_EVENTS = 64
"""From so many unread events on, unread text of one node is joined, up to `JOINED_CHARS`."""
JOINED_CHARS = 4096
EVENT_BYTES = 64
"""Counted for an event beside its texts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramLimits:
    """What one program, and all of them together, may use. A field `x` is set by `--limit x=…`."""

    max_programs: int = setting(16384, "programs that clients may have here at a time")
    max_program_ops: int = setting(100_000, "operations of one program")
    max_program_lanes: int = setting(16384, "branches of one program")
    max_program_text_bytes: int = setting(
        16 * 1024 * 1024, "bytes of text, choices, constraints and tools that one program may send"
    )
    max_program_unread_bytes: int = setting(
        4 * 1024 * 1024, "bytes of one program's events that its client has not taken"
    )
    program_idle_s: float = setting(
        300.0, "seconds in which a program asks for nothing and waits for nothing"
    )
    program_total_s: float = setting(3600.0, "seconds from opening a program to its end")
    program_lease_s: float = setting(
        15.0, "seconds a program is kept for a client whose connection broke"
    )


class Guard:
    """Counts what one program has used. Raises `InvalidRequest` where it passes a limit."""

    __slots__ = ("_left", "_limits")

    def __init__(self, limits: ProgramLimits) -> None:
        self._limits = limits
        self._left = {
            "ops": limits.max_program_ops,
            "lanes": limits.max_program_lanes - 1,
            "text_bytes": limits.max_program_text_bytes,
        }

    def check(self, op: Op) -> None:
        """Count one op."""
        self._take("ops", 1)
        if isinstance(op, Fork):
            self._take("lanes", len(op.children))
        elif size := _text_bytes(op):
            self._take("text_bytes", size)

    def _take(self, what: str, count: int) -> None:
        self._left[what] -= count
        if self._left[what] < 0:
            limit = getattr(self._limits, f"max_program_{what}")
            raise InvalidRequest(
                f"the program has more {_WORDS[what]} than this server allows",
                value=f"more than {limit}",
                hint="Split the program, or start the server with a larger "
                f"--limit max_program_{what}=….",
            )


_WORDS = {"ops": "operations", "lanes": "branches", "text_bytes": "bytes of text"}


class RemoteProgram:
    """See module.

    Args:
        key: tenant and the client's id of the program.
        limits: what it may use.
        opens: starts a program on the engine, with a sink that leads to `take_events`.
        now: the host's clock, seconds.

    Attributes:
        wake: called when there is something new to send.
        ended: `Closed` was sent: only lanes can still be read.
        over: takes nothing more, not even that.
        abandoned: the client has let go of it.
        detached_at: when its connection broke; None = it has one.
    """

    def __init__(
        self,
        key: tuple[str, str],
        limits: ProgramLimits,
        opens: Callable[[RemoteProgram, OpenProgram], Session],
        now: float,
    ) -> None:
        self.key = key
        self.limits = limits
        self.outgoing = Outgoing()
        self.incoming = Incoming()
        self.ended = False
        self.over = False
        self.abandoned = False
        self.detached_at: float | None = None
        self.wake: Callable[[], None] = _nobody
        self._opens = opens
        self._guard = Guard(limits)
        self._session: Session | None = None
        self._name = ""
        self._unread: list[Event] = []
        self._unread_bytes = 0
        self._kept: deque[tuple[int, list[UpPart]]] = deque()
        self._kept_bytes = 0
        self._busy: set[int] = set()
        self._began = now
        self._active = now

    # ---- from the client

    def accept(self, number: int, body: msgspec.Raw, now: float) -> None:
        """Take one item, or keep it back while the client lags behind.

        Raises `WireError` when items before it are missing, or the client's window was closed.
        """
        size, keep = len(body), self._lags()
        if keep and self._kept_bytes >= WINDOW_BYTES and number > self.incoming.arrived:
            raise WireError(
                "more is under way than the window of a channel",
                value=f"{self._kept_bytes + size} bytes",
                hint=f"Wait for acknowledgements after {WINDOW_BYTES} bytes.",
            )
        if not self.incoming.accept(number, size, keep=keep):
            return
        self._active = now
        try:
            parts = decode_parts(body)
        except msgspec.DecodeError as error:
            self.end(
                InvalidRequest(
                    f"not an item of a program: {error}",
                    hint="Send the messages of `runtime.programs.protocol`.",
                )
            )
            return
        if any(isinstance(part, Abandon) for part in parts):
            self.abandoned = True  # also where items before it are kept back
        elif keep:
            self._kept.append((size, parts))
            self._kept_bytes += size
        else:
            self._run(parts)

    def acknowledge(self, received: int) -> None:
        """The client has taken events items up to `received`; what was kept back may go on."""
        self.outgoing.acknowledge(received)
        self._go_on()
        if self.has_news:
            self.wake()

    def _lags(self) -> bool:
        held = self.outgoing.held_bytes + self._unread_bytes
        return not self.over and held >= 2 * WINDOW_BYTES

    def _go_on(self) -> None:
        """Take what was kept back, as far as the client does not lag behind."""
        while self._kept and not self._lags():
            size, parts = self._kept.popleft()
            self._kept_bytes -= size
            self.incoming.take(size)
            self._run(parts)

    def _run(self, parts: list[UpPart]) -> None:
        if self.over:
            return  # what was under way when the program was ended
        try:
            self._hand_over(parts)
        except BranchlineError as error:
            self.end(error)

    def _hand_over(self, parts: list[UpPart]) -> None:
        ops: list[Op] = []
        for part in parts:
            if isinstance(part, OpenProgram):
                self._open(part)
            elif not isinstance(part, Abandon):
                self._guard.check(part)
                if isinstance(part, (Generate, Select, Join, ReadLane)):
                    self._busy.add(part.node)
                ops.append(part)
        if self._session is None:
            raise ProgramError("the program was not opened", hint="Send OpenProgram first.")
        if ops:
            self._session.send(ops)

    def _open(self, opened: OpenProgram) -> None:
        if self._session is not None:
            raise ProgramError("the program is open already", hint="Open a program once.")
        self._name = opened.name
        self._session = self._opens(self, opened)

    # ---- from the engine

    def take_events(self, events: list[Event], now: float) -> None:
        """Keep events until they can be sent."""
        if self.over:
            return
        self._active = now
        for event in events:
            if isinstance(event, (ValueReady, NodeFailed, JoinReady, LaneContent)):
                self._busy.discard(event.node)
            elif isinstance(event, Closed):
                self.ended = True
                self._busy.clear()
            self._keep(event)
        if self._unread_bytes + self.outgoing.held_bytes > self.limits.max_program_unread_bytes:
            self._unread, self._unread_bytes = [], 0
            self.end(
                BackendError(
                    "the client does not read the program's events",
                    value=f"more than {self.limits.max_program_unread_bytes} bytes unread",
                    hint="Read faster, or start the server with a larger "
                    "--limit max_program_unread_bytes=….",
                )
            )
        self.wake()

    def _keep(self, event: Event) -> None:
        last = self._unread[-1] if self._unread else None
        if (
            len(self._unread) >= LAGGING_EVENTS
            and isinstance(event, (TextDelta, ReasoningDelta))
            and isinstance(last, (TextDelta, ReasoningDelta))
            and type(last) is type(event)
            and last.node == event.node
            and len(last.text) < JOINED_CHARS
        ):
            joined = msgspec.structs.replace(last, text=last.text + event.text)
            self._unread[-1] = joined
            self._unread_bytes += len(event.text)
            return
        self._unread.append(event)
        self._unread_bytes += _event_size(event)

    # ---- to the client

    @property
    def has_news(self) -> bool:
        """True when `next_item` may give something."""
        outgoing = self.outgoing
        return outgoing.open and not (outgoing.all_sent and not self._unread)

    def next_item(self) -> tuple[int, bytes] | None:
        """Number and body of the next item of events, if one may go."""
        if self.outgoing.all_sent and self._unread and self.outgoing.open:
            self.outgoing.put(encode(self._unread))
            self._unread, self._unread_bytes = [], 0
            self._go_on()  # an item may be smaller than its events were counted
        return self.outgoing.take()

    def attach(self, received: int, wake: Callable[[], None]) -> None:
        """A connection takes the program over; it has `received` items of events."""
        self.outgoing.acknowledge(received)
        self._go_on()
        self.outgoing.rewind()
        self.incoming.forget_reports()
        self.detached_at = None
        self.wake = wake
        wake()

    def detach(self, now: float) -> None:
        """The connection is gone; the lease begins."""
        self.detached_at = now
        self.wake = _nobody

    # ---- the end

    def check_time(self, now: float) -> bool:
        """End a program whose time is over; False when it is to be forgotten at once."""
        limits = self.limits
        if self.detached_at is not None and now - self.detached_at >= limits.program_lease_s:
            return False
        idle = not self._busy and now - self._active >= limits.program_idle_s
        if self.ended or self.over:
            return not idle
        if now - self._began >= limits.program_total_s:
            self.end(
                DeadlineExceeded(
                    "the program ran longer than this server allows",
                    value=f"{limits.program_total_s} s",
                    hint="Split the program, or start the server with --limit program_total_s=….",
                )
            )
        elif idle:
            self.end(
                Cancelled(
                    "the program asked for nothing",
                    value=f"{limits.program_idle_s} s",
                    hint="End programs that only wait, or start the server with a larger "
                    "--limit program_idle_s=….",
                )
            )
        return True

    def end(self, error: BranchlineError) -> None:
        """Fail it: what runs is cancelled, and the client hears the error in `Closed`."""
        if self.over:
            return
        self.drop()
        wire: dict[str, Any] = {"program": self._name, **error.to_wire()}
        self._keep(Closed(error=wire))
        self.wake()

    def drop(self) -> None:
        """Cancel what runs, free everything; nothing more is taken."""
        self.over = self.ended = True
        self._kept.clear()
        self._kept_bytes = 0
        self.incoming.take_rest()
        self._busy.clear()
        session, self._session = self._session, None
        if session is not None:
            with suppress(BackendError):  # an engine that is closed has forgotten it already
                session.abandon()


def _nobody() -> None:
    """No connection is there to be woken."""


def _text_bytes(op: Op) -> int:
    """Bytes of the texts in an op that are kept or worked on; of tools, of their wire form."""
    if isinstance(op, AppendText):
        return sum(_size(part) for part in op.parts if isinstance(part, str))
    if isinstance(op, SetVariable):
        return _size(op.name) + _size(op.text)
    if isinstance(op, BeginRole):
        return _size(op.role)
    if isinstance(op, DeclareTools):
        return _wire_size(op.tools)
    if isinstance(op, Select):
        constraints = [item.text for item in op.constraints if item is not None]
        texts = [op.name, *op.choices, *constraints, op.baseline or "", op.adapter]
        return sum(map(_size, texts))
    if isinstance(op, Generate):
        rules = op.sampling
        constraint = "" if rules.constraint is None else rules.constraint.text
        texts = [op.name, constraint, *rules.stop, rules.stop_regex or "", op.adapter]
        return sum(map(_size, texts)) + (0 if op.tools is None else _wire_size(op.tools))
    return 0


def _wire_size(value: object) -> int:
    return len(msgspec.msgpack.encode(value))


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _event_size(event: Event) -> int:
    if isinstance(event, (TextDelta, ReasoningDelta)):
        return EVENT_BYTES + len(event.text)
    if isinstance(event, ValueReady):
        logprobs = sum(16 + 16 * len(item.top) for item in event.logprobs)
        choices = sum(len(c.text) + 9 * len(c.token_logprobs) for c in event.choices)
        return 4 * EVENT_BYTES + sum(map(len, event.texts)) + logprobs + choices
    if isinstance(event, LaneContent):
        return EVENT_BYTES + len(event.text) + 4 * len(event.token_ids)
    return 4 * EVENT_BYTES
