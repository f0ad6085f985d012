"""The two halves of a channel: what was sent and may be lacking, and what was taken.

Law: whatever connections do (end anywhere, deliver a frame twice), the items taken on one side are
the first so-many items put on the other, each once and in order; and once a connection lasts, all
of them. Pure bookkeeping: no sockets, no clocks, no threads.
"""

from __future__ import annotations

from collections import deque

from branchline.runtime.programs.wire import WireError

WINDOW_BYTES = 256 * 1024
"""Bytes of one channel that may be under way, not acknowledged."""
ACK_BYTES = 64 * 1024
ACK_ITEMS = 16


class Outgoing:
    """Items of one direction, kept until the other side has them.

    Attributes:
        acknowledged: number of the last item that the other side has taken.
        held_bytes: of items not acknowledged.
    """

    __slots__ = ("_flying", "_items", "_sent", "_window", "acknowledged", "held_bytes")

    def __init__(self, window: int = WINDOW_BYTES) -> None:
        self.acknowledged = 0
        self.held_bytes = 0
        self._items: deque[bytes] = deque()
        self._sent = 0
        self._flying = 0
        self._window = window

    @property
    def last(self) -> int:
        """Number of the last item put."""
        return self.acknowledged + len(self._items)

    @property
    def all_sent(self) -> bool:
        """True when `take` has nothing more, whatever the window."""
        return self._sent == self.last

    @property
    def open(self) -> bool:
        """True when the window lets another item go."""
        return self._flying < self._window

    def put(self, body: bytes) -> None:
        """Add an item."""
        self._items.append(body)
        self.held_bytes += len(body)

    def take(self) -> tuple[int, bytes] | None:
        """Number and body of the next item to send; None = all are sent, or the window is full.

        A single item may be larger than the window.
        """
        if self.all_sent or not self.open:
            return None
        body = self._items[self._sent - self.acknowledged]
        self._sent += 1
        self._flying += len(body)
        return self._sent, body

    def acknowledge(self, number: int) -> None:
        """The other side has taken all items up to `number`; an older word changes nothing.

        Raises `WireError` when there is no such item.
        """
        if number > self.last:
            raise WireError(
                "an item was acknowledged that was never sent", value=number, hint="Reconnect."
            )
        while self.acknowledged < number:
            size = len(self._items.popleft())
            self.acknowledged += 1
            self.held_bytes -= size
            if self.acknowledged <= self._sent:
                self._flying -= size
        self._sent = max(self._sent, self.acknowledged)

    def rewind(self) -> None:
        """A new connection: what is not acknowledged goes again."""
        self._sent = self.acknowledged
        self._flying = 0


class Incoming:
    """What was taken of one direction.

    Attributes:
        arrived: number of the last item that is here.
        taken: number of the last item taken; those between are kept back, so that the other side's
            window stays closed.
    """

    __slots__ = ("_quiet_bytes", "_reported", "arrived", "taken")

    def __init__(self) -> None:
        self.arrived = 0
        self.taken = 0
        self._reported = 0
        self._quiet_bytes = 0

    def accept(self, number: int, size: int, *, keep: bool = False) -> bool:
        """Take item `number` of `size` bytes; False when it was here before.

        Args:
            keep: it is kept back, to be taken by `take`.

        Raises `WireError` when items before it are missing.
        """
        if number <= self.arrived:
            return False
        if number != self.arrived + 1:
            raise WireError(
                "items of a channel are missing",
                value=f"{number} after {self.arrived}",
                hint="Reconnect.",
            )
        self.arrived = number
        if not keep:
            self.take(size)
        return True

    def take(self, size: int) -> None:
        """The first of the items kept back, of `size` bytes, is taken."""
        self.taken += 1
        self._quiet_bytes += size

    def take_rest(self) -> None:
        """All that is kept back is taken."""
        self.taken = self.arrived

    def ack_is_due(self) -> bool:
        """True when enough was taken that the other side has not been told of."""
        return (
            self.taken - self._reported >= ACK_ITEMS
            or self._quiet_bytes >= ACK_BYTES
            or (self._reported == 0 and self.taken > 0)
        )

    def report(self) -> int:
        """The number to send as acknowledgement; counts as told."""
        self._reported = self.taken
        self._quiet_bytes = 0
        return self.taken

    def forget_reports(self) -> None:
        """A new connection: what was told may not have arrived."""
        self._reported = 0
