"""One-way sockets: an `Inbox` is bound by its reader, any number of `Outlet`s send to it.

Push sockets rather than dealers and routers: every direction has one reader, and nothing is a
reply. Order is kept for each sender. Nothing is bounded by the socket, and no send waits: what can
be under way is bounded by the requests that the scheduler admits, and a send that waited or failed
would break the promise of one final output each. An inbox belongs to one life of its sender or of
its reader; the next life gets a fresh one, so nothing stale can arrive. Each end belongs to the
thread that uses it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Generic, TypeVar

import zmq

from branchline.runtime.errors import CorruptMessage
from branchline.runtime.ipc.codec import Codec

logger = logging.getLogger(__name__)

M = TypeVar("M")

MAX_FRAME_BYTES = 256 << 20
"""Far above any frame; a peer that sends more is disconnected."""

FRAMES_AT_ONCE = 64


class Inbox(Generic[M]):
    """The reading end.

    Args:
        endpoint: where to listen, e.g. "ipc:///run/x/scheduler".

    Attributes:
        corrupt: frames that could not be read, and were dropped.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, codec: Codec[M]):
        self.endpoint = endpoint
        self.corrupt = 0
        self.codec = codec
        self.socket = context.socket(zmq.PULL)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVHWM, 0)
        self.socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        self.socket.bind(endpoint)

    def receive(self) -> list[M]:
        """What has arrived, in order; does not wait. A frame that cannot be read is dropped."""
        found: list[M] = []
        for _ in range(FRAMES_AT_ONCE):
            try:
                frame = self.socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                break
            try:
                found += self.codec.decode(frame)
            except CorruptMessage as error:
                self.corrupt += 1
                logger.error("%s", error)
        return found

    def wait(self, timeout_s: float | None = None) -> bool:
        """Whether something is there, after at most `timeout_s`."""
        return bool(self.socket.poll(None if timeout_s is None else int(timeout_s * 1000)))

    def close(self) -> None:
        """Let go of it; what is in it is lost."""
        self.socket.close(linger=0)


class Outlet(Generic[M]):
    """A sending end. Connects when its reader is there; until then messages wait in it.

    Args:
        endpoint: where the reader listens.
        linger_s: seconds that `close` lets sent messages leave (it does not wait for them itself;
            ending the context does).
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoint: str,
        codec: Codec[M],
        linger_s: float = 0.0,
    ) -> None:
        self._codec = codec
        self._socket = context.socket(zmq.PUSH)
        self._socket.setsockopt(zmq.LINGER, int(linger_s * 1000))
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 10)
        self._socket.connect(endpoint)

    def send(self, messages: Sequence[M]) -> None:
        """Send one frame; does not wait."""
        self._socket.send(self._codec.encode(messages), zmq.NOBLOCK)

    def close(self) -> None:
        """Let go of it."""
        self._socket.close()
