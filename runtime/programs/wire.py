"""What a client and a server of programs say to each other: frames of msgpack over one connection.

A connection carries any number of programs. A program is one **channel** of it: two streams of
numbered items, ops up and events down. Every item names the last item that its sender has taken
from the other side, so either side keeps exactly what the other may still lack, and sends that
again on the next connection. A client that comes back names its programs with `Attach`; nothing
else is needed to go on. Items are bytes here: only the two ends read them.

Rules: `Hello` and `Welcome` (or `Refused`) come first. Items of a channel have the numbers 1, 2, …;
one that was taken before is passed by, one that leaves a gap ends the connection. The first item of
a program begins with `OpenProgram`. An `Attach` with `acked` 0 of a program that the server does
not know begins it; any other is answered by `Lost`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from branchline.runtime.errors import BackendError
from branchline.runtime.programs.protocol import Event, Op, OpenProgram

VERSION = 1
"""Of the protocol. A server speaks one."""
MAX_FRAME_BYTES = 256 * 1024
"""Where a sender closes a frame; one item may still be larger than this."""
MAX_PROGRAM_ID = 128


class WireError(BackendError):
    """The other side broke a rule of the protocol: the connection cannot go on."""


class Hello(msgspec.Struct, frozen=True, array_like=True, tag="hello"):
    """First message of a client.

    Attributes:
        version: of the protocol it speaks.
        client: its name and version, for the server's log.
    """

    version: int
    client: str = ""


class Welcome(msgspec.Struct, frozen=True, array_like=True, tag="welcome"):
    """The server's answer to `Hello`.

    Attributes:
        version: of the protocol.
        server: name and version of the server.
        model: name of its model.
        features: see `ProgramBackend.features`.
        lease_s: seconds a program is kept for a client whose connection broke.
        max_item_bytes: largest item that the server takes.
    """

    version: int
    server: str
    model: str
    features: tuple[str, ...]
    lease_s: float
    max_item_bytes: int


class Refused(msgspec.Struct, frozen=True, array_like=True, tag="refused"):
    """Instead of `Welcome`; the connection ends.

    Attributes:
        error: wire form, see `runtime.errors`.
    """

    error: dict[str, Any]


class Attach(msgspec.Struct, frozen=True, array_like=True, tag="attach"):
    """The client's program `program_id` is channel `channel` of this connection.

    Attributes:
        received: events items it has taken.
        acked: its own items of which it knows that the server has taken them.
    """

    channel: int
    program_id: str
    received: int = 0
    acked: int = 0


class Item(msgspec.Struct, frozen=True, array_like=True, tag="item"):
    """One numbered item of a channel.

    Attributes:
        received: items the sender has taken from the other side.
        body: upwards a list of `UpPart`, downwards a list of `Event`.
    """

    channel: int
    number: int
    received: int
    body: msgspec.Raw


class Ack(msgspec.Struct, frozen=True, array_like=True, tag="ack"):
    """The sender has taken `received` items of this channel."""

    channel: int
    received: int


class Lost(msgspec.Struct, frozen=True, array_like=True, tag="lost"):
    """The server does not have this program (any more), or never began it."""

    channel: int
    error: dict[str, Any]


class Abandon(msgspec.Struct, frozen=True, tag="abandon"):
    """Last part of a program that nobody waits for: cancel what runs, forget it."""


Up = Hello | Attach | Item | Ack
Down = Welcome | Refused | Item | Ack | Lost
UpPart = OpenProgram | Op | Abandon

_encoder = msgspec.msgpack.Encoder()
_up = msgspec.msgpack.Decoder(list[Up])
_down = msgspec.msgpack.Decoder(list[Down])
_parts = msgspec.msgpack.Decoder(list[UpPart])
_events = msgspec.msgpack.Decoder(list[Event])


def encode(messages: Sequence[Up | Down | UpPart | Event]) -> bytes:
    """One frame, or the body of one item."""
    return _encoder.encode(messages)


def decode_up(frame: bytes) -> list[Up]:
    """Messages of a client's frame; `WireError` when it is not one."""
    try:
        return _up.decode(frame)
    except msgspec.DecodeError as error:
        raise _not_a_frame(error) from error


def decode_down(frame: bytes) -> list[Down]:
    """Messages of a server's frame; `WireError` when it is not one."""
    try:
        return _down.decode(frame)
    except msgspec.DecodeError as error:
        raise _not_a_frame(error) from error


def decode_parts(body: bytes | msgspec.Raw) -> list[UpPart]:
    """What a client's item holds; raises `msgspec.DecodeError`."""
    return _parts.decode(body)


def decode_events(body: bytes | msgspec.Raw) -> list[Event]:
    """What a server's item holds; raises `msgspec.DecodeError`."""
    return _events.decode(body)


def _not_a_frame(error: msgspec.DecodeError) -> WireError:
    return WireError(
        f"not a frame of programs: {error}",
        hint=f"Frames are msgpack lists of the messages of protocol version {VERSION}.",
    )
