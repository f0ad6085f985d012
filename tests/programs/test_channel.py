"""Channels: whatever connections do, items arrive once, in order, and in the end all of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from branchline.runtime.programs.channel import ACK_ITEMS, Incoming, Outgoing
from branchline.runtime.programs.wire import WireError

ACTIONS = ["put", "take", "arrive", "again", "swap", "ack", "break"]


@given(st.data())
def test_items_arrive_once_and_in_order_over_connections_that_break(data: st.DataObject) -> None:
    outgoing, incoming = Outgoing(window=data.draw(st.integers(1, 40))), Incoming()
    put: list[bytes] = []
    taken: list[bytes] = []
    flying: list[tuple[int, bytes]] = []
    for _ in range(data.draw(st.integers(0, 40))):
        action = data.draw(st.sampled_from(ACTIONS))
        if action == "put":
            put.append(bytes(data.draw(st.integers(0, 12))) + str(len(put)).encode())
            outgoing.put(put[-1])
        elif action == "take" and (item := outgoing.take()) is not None:
            flying.append(item)
        elif action == "arrive" and flying:
            _arrive(flying, incoming, taken, outgoing)
        elif action == "again" and flying:
            flying.insert(0, flying[0])
        elif action == "swap":
            flying.reverse()
        elif action == "ack":
            outgoing.acknowledge(incoming.report())
        elif action == "break":
            flying.clear()
            outgoing.rewind()
            incoming.forget_reports()
        assert taken == put[: len(taken)]
        assert outgoing.held_bytes == sum(map(len, put[outgoing.acknowledged :]))
    flying.clear()
    outgoing.acknowledge(incoming.report())
    outgoing.rewind()
    while len(taken) < len(put):
        while (item := outgoing.take()) is not None:
            flying.append(item)
        assert flying, "the window opens again with every acknowledgement"
        while flying:
            _arrive(flying, incoming, taken, outgoing)
        outgoing.acknowledge(incoming.report())
    assert taken == put and outgoing.held_bytes == 0 and outgoing.all_sent


def _arrive(
    flying: list[tuple[int, bytes]], incoming: Incoming, taken: list[bytes], outgoing: Outgoing
) -> None:
    number, body = flying.pop(0)
    try:
        if incoming.accept(number, len(body)):
            taken.append(body)
    except WireError:  # a gap: both sides begin a new connection
        flying.clear()
        outgoing.rewind()


def test_the_window_bounds_what_is_under_way() -> None:
    outgoing = Outgoing(window=10)
    for _ in range(5):
        outgoing.put(b"123456")
    assert [outgoing.take(), outgoing.take(), outgoing.take()] == [
        (1, b"123456"),
        (2, b"123456"),
        None,
    ]
    outgoing.acknowledge(1)
    assert outgoing.take() == (3, b"123456") and outgoing.take() is None
    outgoing.acknowledge(3)
    assert outgoing.held_bytes == 12


def test_an_acknowledgement_of_nothing_is_an_error_and_an_old_one_is_not() -> None:
    outgoing = Outgoing()
    outgoing.put(b"a")
    with pytest.raises(WireError):
        outgoing.acknowledge(2)
    outgoing.take()
    outgoing.acknowledge(1)
    outgoing.acknowledge(0)
    assert outgoing.acknowledged == 1


def test_acknowledgements_are_due_early_and_then_in_bulk() -> None:
    incoming = Incoming()
    assert not incoming.ack_is_due()
    incoming.accept(1, 10)
    assert incoming.ack_is_due(), "the other side learns early that it was heard"
    assert incoming.report() == 1 and not incoming.ack_is_due()
    for number in range(2, 2 + ACK_ITEMS):
        assert not incoming.ack_is_due()
        incoming.accept(number, 10)
    assert incoming.ack_is_due()
