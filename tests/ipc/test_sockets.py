"""Sockets and the loop that reads them: order, isolation of what is corrupt, no waiting."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from branchline.runtime.errors import BackendError
from branchline.runtime.ipc.codec import Codec
from branchline.runtime.ipc.messages import Abort, Release, Stop, ToScheduler
from branchline.runtime.ipc.socket_loop import SocketLoop
from branchline.runtime.ipc.sockets import Inbox, Outlet


class Wires:
    """Sockets of one test, closed at its end."""

    def __init__(self, folder: Path) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._folder = folder
        self.endpoint = f"ipc://{folder}/in"
        self.codec: Codec[ToScheduler] = Codec(ToScheduler, "scheduler")
        self._ends: list[Any] = []

    def inbox(self, name: str = "in") -> Inbox[ToScheduler]:
        self._ends.append(Inbox(self.context, f"ipc://{self._folder}/{name}", self.codec))
        return self._ends[-1]  # type: ignore[no-any-return]

    def outlet(self, endpoint: str = "") -> Outlet[ToScheduler]:
        self._ends.append(Outlet(self.context, endpoint or self.endpoint, self.codec))
        return self._ends[-1]  # type: ignore[no-any-return]

    def raw(self) -> zmq.Socket[bytes]:
        socket = self.context.socket(zmq.PUSH)
        socket.connect(self.endpoint)
        self._ends.append(socket)
        return socket

    def close(self) -> None:
        for end in self._ends:
            end.close()
        self.context.destroy(linger=0)


@pytest.fixture
def wires(tmp_path: Path) -> Iterator[Wires]:
    made = Wires(tmp_path)
    yield made
    made.close()


def receive(inbox: Inbox[Any], count: int) -> list[Any]:
    found: list[Any] = []
    end = time.monotonic() + 20
    while len(found) < count and time.monotonic() < end:
        inbox.wait(0.1)
        found += inbox.receive()
    return found


def test_messages_arrive_in_order_also_those_sent_before_anybody_listened(
    wires: Wires,
) -> None:
    early = wires.outlet()
    sent: list[ToScheduler] = [Release(str(i)) for i in range(500)]
    for start in range(0, 500, 7):
        early.send(sent[start : start + 7])
    assert receive(wires.inbox(), 500) == sent


def test_nobody_reading_never_makes_a_sender_wait(wires: Wires) -> None:
    inbox, out = wires.inbox(), wires.outlet()
    for i in range(20_000):
        out.send([Release(f"{i:0100}")])
    assert len(receive(inbox, 20_000)) == 20_000


def test_a_corrupt_frame_is_dropped_alone(wires: Wires) -> None:
    inbox, out, raw = wires.inbox(), wires.outlet(), wires.raw()
    for i in range(20):
        out.send([Abort(str(i))])
        raw.send(b"\xc1 not a message")
    raw.send_multipart([b"", b"\x00" * 1000])
    found = receive(inbox, 20)
    assert found == [Abort(str(i)) for i in range(20)]
    end = time.monotonic() + 10
    while inbox.corrupt < 22 and time.monotonic() < end:
        inbox.wait(0.1)
        assert inbox.receive() == []
    assert inbox.corrupt == 22
    out.send([Stop()])
    assert receive(inbox, 1) == [Stop()]


def test_the_loop_survives_handlers_timers_and_posted_functions_that_raise(
    wires: Wires, caplog: pytest.LogCaptureFixture
) -> None:
    loop = SocketLoop("test")
    heard: list[ToScheduler] = []
    done, ticked = threading.Event(), threading.Event()

    def hear(message: ToScheduler) -> None:
        assert loop.on_thread
        heard.append(message)
        if len(heard) == 3:
            done.set()
        raise RuntimeError("a handler breaks")

    def tick() -> None:
        ticked.set()
        raise RuntimeError("a timer breaks")

    loop.watch(wires.inbox(), hear)
    loop.every(0.01, tick)
    loop.start()
    loop.call_soon(lambda: 1 / 0)  # type: ignore[arg-type,return-value]
    wires.outlet().send([Release("a"), Release("b"), Release("c")])
    assert done.wait(10) and ticked.wait(10)
    order: list[int] = []
    for i in range(100):
        loop.call_soon(lambda i=i: order.append(i))  # type: ignore[misc]
    loop.close()
    assert order == list(range(100))
    assert heard == [Release("a"), Release("b"), Release("c")]
    assert "ZeroDivisionError" in caplog.text
    with pytest.raises(BackendError, match="closed"):
        loop.call_soon(lambda: None)
    loop.close()


def test_a_handler_may_close_its_own_inbox(wires: Wires) -> None:
    loop, inbox = SocketLoop("test"), wires.inbox()
    heard: list[ToScheduler] = []

    def hear(message: ToScheduler) -> None:
        heard.append(message)
        loop.unwatch(inbox)

    loop.watch(inbox, hear)
    wires.outlet().send([Release("a"), Release("b")])
    loop.start()
    end = time.monotonic() + 10
    while not heard and time.monotonic() < end:
        time.sleep(0.01)
    loop.close()
    assert heard == [Release("a")]


def test_a_handler_may_close_the_other_inboxes_that_have_something(wires: Wires) -> None:
    loop, ended = SocketLoop("test"), threading.Event()
    inboxes = [wires.inbox(f"in{number}") for number in range(2)]
    heard: list[ToScheduler] = []

    def hear(message: ToScheduler) -> None:
        heard.append(message)
        for inbox in inboxes:
            loop.unwatch(inbox)

    for inbox in inboxes:
        loop.watch(inbox, hear)
        wires.outlet(inbox.endpoint).send([Release("a")])
    for inbox in inboxes:
        assert inbox.wait(10)
    loop.start()
    loop.call_soon(ended.set)
    assert ended.wait(10)
    loop.call_soon(ended.clear)  # it still turns
    loop.close()
    assert heard == [Release("a")] and not ended.is_set()
