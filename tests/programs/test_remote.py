"""Programs over connections that come and go: nothing is lost, doubled, or kept for ever."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from branchline.runtime.core.outputs import RequestMeta
from branchline.runtime.core.sampling_params import SamplingParams
from branchline.runtime.errors import BackendError
from branchline.runtime.programs import wire
from branchline.runtime.programs.channel import WINDOW_BYTES
from branchline.runtime.programs.protocol import (
    AppendText,
    BeginRole,
    Close,
    Closed,
    DeclareTools,
    Event,
    Fork,
    JoinReady,
    LaneContent,
    NodeFailed,
    ReadLane,
    SetVariable,
    TextDelta,
    ValueReady,
)
from branchline.runtime.programs.remote_program import ProgramLimits
from branchline.runtime.responses import ToolSpec, ToolUse
from tests.programs.helpers import gen, text
from tests.programs.wires import Wires, joined

TOOL = ToolSpec(name="f", description="d" * 80)
USE = ToolUse(tools=(TOOL,))
ACTIONS = "open send event collect up down lose_up lose_down double swap cut connect tick"


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_ops_and_events_arrive_once_and_in_order(data: st.DataObject) -> None:
    wires = Wires(ProgramLimits(program_lease_s=1e9, program_idle_s=1e9, program_total_s=1e9))
    wires.connect()
    clients, sent, told = [], {}, {}
    for step in range(data.draw(st.integers(5, 60))):
        action = data.draw(st.sampled_from(ACTIONS.split()))
        if action == "open" and len(clients) < 3:
            clients.append(wires.program(f"p{len(clients)}"))
            sent[len(clients) - 1] = []
        elif action == "send" and clients:
            at = data.draw(st.integers(0, len(clients) - 1))
            op = text(step, "x" * data.draw(st.sampled_from([1, 100])))
            clients[at].session.send([op])
            sent[at].append(op)
        elif action == "event" and wires.engine:
            name = data.draw(st.sampled_from(sorted(wires.engine)))
            event = _event(step, data.draw(st.booleans()))
            wires.engine[name].sink([event])
            told.setdefault(name, []).append(event)
        elif action == "collect":
            wires.collect()
        elif action in ("up", "down"):
            frames = wires.up if action == "up" else wires.down
            if frames:
                wires.arrive(frames)
        elif action == "lose_up" and wires.up:
            wires.up.pop()
        elif action == "lose_down" and wires.down:
            wires.down.pop(0)
        elif action == "double" and wires.up:
            wires.up.append(wires.up[0])
        elif action == "swap":
            wires.up.reverse()
            wires.down.reverse()
        elif action == "cut":
            wires.cut()
        elif action == "connect" and wires.connection is None:
            wires.connect()
        elif action == "tick":
            wires.host.tick()
    wires.connect()
    wires.pump()
    for at, client in enumerate(clients):
        engine = wires.engine[f"p{at}"]
        assert engine.ops == sent[at], "the engine saw every op once and in order"
        assert joined(client.events) == joined(told.get(f"p{at}", []))
        assert not engine.abandoned


def _event(node: int, value: bool) -> Event:
    if value:
        return ValueReady(lane=0, node=node, name="x", texts=("y",), meta=RequestMeta())
    return TextDelta(0, 7, "x", str(node))


def _begun(wires: Wires, program_id: str = "p") -> Any:
    client = wires.program(program_id)
    client.session.send([text(0, "hello"), gen(1, "x")])
    wires.pump()
    return client


def test_a_program_goes_on_after_its_connection_broke() -> None:
    wires = Wires()
    wires.connect()
    client = _begun(wires)
    engine = wires.engine["p"]
    wires.cut()
    engine.sink([_event(1, True)])
    wires.run_soon()
    wires.now = 10.0
    wires.host.tick()
    wires.connect()
    wires.pump()
    assert [type(event) for event in client.events] == [ValueReady]
    assert engine.ops == [text(0, "hello"), gen(1, "x")] and not engine.abandoned


def test_a_lease_that_ends_cancels_and_the_client_hears_so() -> None:
    wires = Wires()
    wires.connect()
    client = _begun(wires)
    wires.engine["p"].sink([TextDelta(0, 1, "x", "a")])
    wires.pump()
    wires.cut()
    wires.now = 14.0
    wires.host.tick()
    assert not wires.engine["p"].abandoned
    wires.now = 15.1
    wires.host.tick()
    assert wires.engine["p"].abandoned and len(wires.host) == 0
    wires.connect()
    wires.pump()
    assert client.closed is not None and client.closed.error is not None
    assert client.closed.error["retryable"] is True
    with pytest.raises(BackendError, match="no longer has"):
        client.session.send([text(3, "more")])


def test_a_client_that_leaves_in_order_frees_everything_at_once() -> None:
    wires = Wires()
    wires.connect()
    _begun(wires)
    wires.cut(clean=True)
    assert wires.engine["p"].abandoned and len(wires.host) == 0


@pytest.mark.parametrize("broken", [False, True])
def test_an_abandoned_program_is_forgotten_also_over_a_broken_connection(broken: bool) -> None:
    wires = Wires()
    wires.connect()
    client = _begun(wires)
    if broken:
        wires.cut()
    client.session.abandon()
    if broken:
        wires.connect()
    wires.pump()
    assert wires.engine["p"].abandoned and len(wires.host) == 0
    assert wires.link.stats().programs == 0
    wires.engine["p"].sink([_event(1, True)])
    wires.pump()
    assert client.events == []


def test_a_program_no_server_has_heard_of_costs_nothing() -> None:
    wires = Wires()
    client = wires.program("p")
    client.session.abandon()
    assert wires.link.stats().programs == 0
    wires.connect()
    wires.pump()
    assert wires.engine == {}


def test_another_tenant_cannot_take_a_program_over() -> None:
    wires = Wires(tenant="one")
    wires.connect()
    client = _begun(wires)
    wires.engine["one/p"].sink([TextDelta(0, 1, "x", "secret")])
    wires.pump()
    wires.tenant = "two"
    wires.connect()
    wires.pump()
    assert client.closed is not None and client.closed.error is not None
    assert client.closed.error["code"] == "BackendError"
    assert "two/p" not in wires.engine and not wires.engine["one/p"].abandoned
    assert wires.engine["one/p"].opened.namespace == "one"


def test_a_new_connection_takes_a_program_from_an_old_one_that_still_stands() -> None:
    wires = Wires()
    wires.connect()
    client = _begun(wires)
    old, wires.connection = wires.connection, None
    wires.connect()
    wires.pump()
    assert old is not None
    old.drop(clean=True)
    wires.engine["p"].sink([_event(1, True)])
    wires.pump()
    assert len(client.events) == 1 and not wires.engine["p"].abandoned


# ---- limits


def _closed_by(wires: Wires, client: Any) -> dict[str, Any]:
    wires.pump()
    assert client.closed is not None and client.closed.error is not None
    return dict(client.closed.error)


@pytest.mark.parametrize(
    ("limits", "ops", "flag"),
    [
        ({"max_program_ops": 3}, [text(i, "a") for i in range(4)], "program_ops"),
        ({"max_program_lanes": 3}, [Fork(0, 1, (1, 2)), Fork(0, 2, (3,))], "program_lanes"),
        ({"max_program_text_bytes": 5}, [text(0, "äää")], "program_text_bytes"),
        ({"max_program_text_bytes": 5}, [AppendText(0, 0, ("abc", "def"))], "program_text_bytes"),
        ({"max_program_text_bytes": 5}, [SetVariable(0, 0, "a" * 6, "")], "program_text_bytes"),
        ({"max_program_text_bytes": 5}, [BeginRole(0, 0, "someone")], "program_text_bytes"),
        (
            {"max_program_text_bytes": 5},
            [gen(0, "x", sampling=SamplingParams(stop=("a" * 5,)))],
            "program_text_bytes",
        ),
        ({"max_program_text_bytes": 5}, [gen(0, "x", adapter="a" * 5)], "program_text_bytes"),
        ({"max_program_text_bytes": 90}, [DeclareTools(0, 0, (TOOL,))], "program_text_bytes"),
        ({"max_program_text_bytes": 90}, [gen(0, "x", tools=USE)], "program_text_bytes"),
    ],
)
def test_a_program_beyond_a_limit_ends_with_an_error_that_names_it(
    limits: dict[str, int], ops: list[Any], flag: str
) -> None:
    wires = Wires(ProgramLimits(**limits))  # type: ignore[arg-type]
    wires.connect()
    client, other = wires.program("p"), wires.program("q")
    for op in ops:
        client.session.send([op])
    error = _closed_by(wires, client)
    assert error["code"] == "InvalidRequest" and flag in error["hint"]
    assert wires.engine["p"].abandoned and not wires.engine["q"].abandoned
    assert other.events == []


def test_too_many_programs_are_refused_and_ended_ones_make_room() -> None:
    wires = Wires(ProgramLimits(max_programs=2))
    wires.connect()
    clients = [_begun(wires, f"p{i}") for i in range(3)]
    error = _closed_by(wires, clients[2])
    assert error["code"] == "QueueFull" and error["retryable"]
    wires.engine["p0"].sink([Closed()])
    wires.pump()
    late = _begun(wires, "p3")
    assert late.events == [] and "p3" in wires.engine
    assert [type(event) for event in clients[0].events] == [Closed]


def test_a_program_that_asks_for_nothing_ends_and_one_that_waits_does_not() -> None:
    wires = Wires(ProgramLimits(program_idle_s=10.0, program_total_s=50.0))
    wires.connect()
    waiting, idle = _begun(wires, "waits"), wires.program("idle")
    idle.session.send([text(0, "hello")])
    wires.pump()
    wires.now = 11.0
    wires.host.tick()
    assert _closed_by(wires, idle)["code"] == "Cancelled"
    assert waiting.events == []
    wires.now = 51.0
    wires.host.tick()
    assert _closed_by(wires, waiting)["code"] == "DeadlineExceeded"


def test_a_read_of_a_program_the_server_has_forgotten_fails_and_its_end_stands() -> None:
    wires = Wires(ProgramLimits(program_idle_s=10.0))
    wires.connect()
    client = _begun(wires)
    client.session.send([Close()])
    wires.pump()
    wires.engine["p"].sink([_event(1, True), Closed()])
    wires.pump()
    client.session.send([ReadLane(0, 5)])
    wires.pump()
    wires.engine["p"].sink([LaneContent(0, 5, (1, 2), "text")])
    wires.pump()
    wires.now = 11.0
    client.session.send([ReadLane(0, 6)])
    wires.host.tick()
    wires.pump()
    assert [type(e) for e in client.events] == [ValueReady, Closed, LaneContent, NodeFailed]


def test_a_slow_reader_gets_everything_and_its_ops_wait_meanwhile() -> None:
    wires = Wires(ProgramLimits(max_program_unread_bytes=16 * WINDOW_BYTES))
    wires.connect()
    client = _begun(wires)
    engine = wires.engine["p"]
    pieces = ["x" * 3000 + str(i) for i in range(250)]
    for piece in pieces:
        engine.sink([TextDelta(0, 1, "x", piece)])
    wires.run_soon()
    client.session.send([text(2, "later")])
    under_way = 0
    while wires.collect():  # the client takes nothing: what is under way stays within the window
        while wires.up:
            wires.arrive(wires.up)
        under_way = sum(map(len, wires.down))
    assert under_way < 2 * WINDOW_BYTES + wire.MAX_FRAME_BYTES
    assert len(engine.ops) == 2, "what it sends is not looked at before it reads"
    wires.pump()
    assert "".join(e.text for e in client.events if isinstance(e, TextDelta)) == "".join(pieces)
    assert engine.ops[-1] == text(2, "later")


def _lagging(wires: Wires, events: list[Event]) -> Any:
    """A client that has read an event, and then not `events`."""
    client = _begun(wires)
    wires.engine["p"].sink([JoinReady(0, 0)])
    wires.pump()
    wires.engine["p"].sink(events)
    wires.run_soon()
    return client


def _send_alone(wires: Wires) -> None:
    """What the client may send arrives; it reads nothing."""
    assert wires.connection is not None
    while (frame := wires.link.collect()) is not None:
        wires.connection.receive(frame)


def test_ops_that_waited_for_a_slow_reader_open_its_window_again() -> None:
    wires = Wires()
    wires.connect()
    client = _lagging(wires, [TextDelta(0, 1, "x", "y" * 60_000)] * 10)
    ops = [text(node, "z" * 60_000) for node in range(2, 12)]
    for op in ops:
        client.session.send([op])
    _send_alone(wires)
    assert len(wires.engine["p"].ops) == 2, "all of them wait, or have no room in the window"
    wires.pump()
    assert wires.engine["p"].ops[2:] == ops


def test_ops_that_waited_go_on_when_many_small_events_become_one_small_item() -> None:
    wires = Wires()
    wires.connect()
    client = _lagging(wires, [JoinReady(0, 1)] * (2 * WINDOW_BYTES // 256))
    client.session.send([gen(2, "z")])
    _send_alone(wires)
    assert len(wires.engine["p"].ops) == 2
    wires.pump()
    assert wires.engine["p"].ops[2:] == [gen(2, "z")]


def test_a_slow_reader_can_let_go_of_its_program() -> None:
    wires = Wires()
    wires.connect()
    client = _lagging(wires, [TextDelta(0, 1, "x", "y" * 60_000)] * 10)
    client.session.send([text(2, "z")])
    client.session.abandon()
    wires.pump()
    assert wires.engine["p"].abandoned and len(wires.host) == 0


def test_what_waits_for_a_slow_reader_is_bounded_by_the_window() -> None:
    wires = Wires()
    wires.connect()
    client = _lagging(wires, [TextDelta(0, 1, "x", "y" * 60_000)] * 10)
    assert wires.connection is not None
    body = msgspec.Raw(wire.encode([text(2, "z" * 60_000)]))
    first = client.session.outgoing.last + 1
    with pytest.raises(wire.WireError, match="window"):
        for number in range(first, first + 10):
            wires.connection.receive(wire.encode([wire.Item(1, number, 0, body)]))


def test_a_reader_that_never_reads_loses_its_program_and_only_that() -> None:
    wires = Wires(ProgramLimits(max_program_unread_bytes=100_000))
    wires.connect()
    client, other = _begun(wires), _begun(wires, "q")
    for _ in range(120):
        wires.engine["p"].sink([TextDelta(0, 1, "x", "y" * 1000)])
    wires.run_soon()
    assert wires.engine["p"].abandoned and not wires.engine["q"].abandoned
    assert "does not read" in _closed_by(wires, client)["message"]
    assert other.events == []


# ---- what is no program


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xc1",
        wire.encode([wire.Ack(1, 1)]),
        wire.encode([wire.Hello(wire.VERSION), wire.Hello(wire.VERSION)]),
        wire.encode([wire.Hello(wire.VERSION), wire.Attach(1, "")]),
        wire.encode([wire.Hello(wire.VERSION), wire.Attach(1, "p"), wire.Attach(1, "q")]),
        wire.encode([wire.Hello(wire.VERSION), wire.Attach(1, "p"), wire.Ack(1, 3)]),
    ],
)
def test_frames_against_the_rules_end_the_connection(frame: bytes) -> None:
    connection = Wires().host.connect("", "", lambda: None)
    with pytest.raises(wire.WireError):
        connection.receive(frame)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_random_bytes_are_an_error_of_the_protocol_or_nothing(frame: bytes) -> None:
    connection = Wires().host.connect("", "", lambda: None)
    connection.receive(wire.encode([wire.Hello(wire.VERSION)]))
    try:
        connection.receive(frame)
    except wire.WireError as error:
        assert str(error)


def test_an_item_that_is_no_program_ends_its_program_alone() -> None:
    wires = Wires()
    wires.connect()
    client, other = _begun(wires), _begun(wires, "q")
    client.session.outgoing.put(b"\x93\x01\x02\x03")
    client.session.send([text(2, "after it")])
    assert _closed_by(wires, client)["code"] == "InvalidRequest"
    assert other.events == [] and not wires.engine["q"].abandoned


def test_another_version_is_refused_with_both_versions_named() -> None:
    connection = Wires().host.connect("", "", lambda: None)
    connection.receive(wire.encode([wire.Hello(wire.VERSION + 1, "branchline 9.9")]))
    frame = connection.collect()
    assert frame is not None and connection.refused
    (refused,) = wire.decode_down(frame)
    assert isinstance(refused, wire.Refused)
    message = refused.error["message"]
    assert f"speaks version {wire.VERSION} " in message
    assert message.endswith(f"the client version {wire.VERSION + 1}")


def test_what_crosses_is_what_is_new() -> None:
    """A long text before it makes no later step more expensive."""
    wires = Wires()
    wires.connect()
    client = wires.program("p")
    client.session.send([text(0, "long " * 20_000)])
    wires.pump()
    costs = []
    for step in range(10):
        before = wires.link.stats()
        node = 2 * step + 1
        client.session.send([text(node, "new"), gen(node + 1, f"x{step}", stream=True)])
        wires.pump()
        wires.engine["p"].sink([TextDelta(0, node + 1, f"x{step}", "answer")])
        wires.engine["p"].sink([_event(node + 1, True)])
        wires.pump()
        after = wires.link.stats()
        costs.append(after.bytes_up + after.bytes_down - before.bytes_up - before.bytes_down)
    assert max(costs) < 400
    assert max(costs) < min(costs) + 40
