"""Laws of how programs end: failures, cancels, drops, closing, abandoning, whole graphs."""

from __future__ import annotations

import threading

import pytest

from branchline.runtime.errors import BackendError, ProgramError, from_wire
from branchline.runtime.programs.executor import Executor
from branchline.runtime.programs.graph import GraphBuilder
from branchline.runtime.programs.protocol import (
    AppendText,
    ArgRef,
    BeginRole,
    Cancel,
    Close,
    Closed,
    Drop,
    EndRole,
    Event,
    Fork,
    Join,
    JoinReady,
    NodeFailed,
    OpenProgram,
    ReadLane,
    TextDelta,
    ValueReady,
    VarRef,
)
from tests.programs.helpers import SAMPLING, Program, gen, plain, rig, text
from tests.support.scripted_port import ScriptedPort

# ---- failures


def test_first_error_fails_later_values_and_forks_of_its_lane_only() -> None:
    port, executor = rig(
        ScriptedPort(lambda r: BackendError("no luck") if r.name == "bad" else f"<{r.name}>")
    )
    program = Program(executor)
    program.send(text(0, "q"), Fork(0, 1, (1, 2)), gen(2, "bad", lane=1), gen(3, "fine", lane=2))
    program.send(gen(4, "after", lane=1), Fork(1, 5, (3,)), gen(6, "child", lane=3))
    program.send(Join(0, 7, (1, 2)), Close())
    port.run()
    assert program.values() == {"fine": "<fine>"}
    assert program.failures() == {2: "BackendError", 4: "BackendError", 6: "BackendError"}
    errors = [event.error for event in program.all(NodeFailed)]
    assert errors[0] == errors[1] == errors[2]
    assert errors[0]["variable"] == "bad" and errors[0]["program"] == "name-p"
    assert program.all(JoinReady) == [JoinReady(0, 7)]
    closed = program.all(Closed)[0]
    assert closed.error is not None and "no luck" in str(from_wire(closed.error))
    assert port.leases == {}


def test_join_append_of_a_failed_branch_fails_the_parent() -> None:
    port, executor = rig(ScriptedPort(lambda r: BackendError("no luck")))
    program = Program(executor)
    program.send(text(0, "q"), Fork(0, 1, (1,)), gen(2, "x", lane=1), Join(0, 3, (1,), "append"))
    program.send(gen(4, "y"), Close())
    port.run()
    assert program.failures() == {2: "BackendError", 3: "BackendError", 4: "BackendError"}


def test_errors_at_submit_and_bad_ops_fail_their_node() -> None:
    port, executor = rig(ScriptedPort(max_context=4))
    long = Program(executor, "long")
    long.send(text(0, "a b c d e"), gen(1, "x"), Close())
    roles = Program(executor, "roles")
    roles.send(BeginRole(0, 0, "wizard"), gen(1, "x"), Close())
    nested = Program(executor, "nested")
    nested.send(BeginRole(0, 0, "user"), BeginRole(0, 1, "user"), Close())
    unopened = Program(executor, "unopened")
    unopened.send(EndRole(0, 0), Close())
    lanes = Program(executor, "lanes")
    lanes.send(gen(0, "x", lane=7), Fork(0, 1, (0,)), Join(0, 2, (9,)), Close())
    refs = Program(executor, "refs")
    refs.send(AppendText(0, 0, (VarRef("nothing"),)), gen(1, "x"), Close())
    args = Program(executor, "args")
    args.send(AppendText(0, 0, (ArgRef("a"),)), Close())
    surrogate = Program(executor, "surrogate")
    surrogate.send(text(0, "\ud800"), gen(1, "x"), Close())
    port.run()
    assert long.failures() == {1: "InvalidRequest"}
    assert roles.failures() == {0: "InvalidRequest", 1: "InvalidRequest"}
    assert nested.failures() == {1: "ProgramError"}
    assert unopened.failures() == {0: "ProgramError"}
    assert lanes.failures() == {0: "ProgramError", 1: "ProgramError", 2: "ProgramError"}
    assert refs.failures() == {0: "ProgramError", 1: "ProgramError"}
    assert args.failures() == {0: "ProgramError"}
    assert surrogate.failures() == {1: "BackendError"}
    for program in (long, roles, nested, unopened, lanes, refs, args, surrogate):
        assert program.closed


def test_reference_into_a_failed_lane_passes_its_error_on() -> None:
    port, executor = rig(ScriptedPort(lambda r: BackendError("no luck")))
    program = Program(executor)
    program.send(text(0, "q"), Fork(0, 1, (1,)), gen(2, "x", lane=1))
    program.send(AppendText(0, 3, (VarRef("x", 1),)), gen(4, "y"), Close())
    port.run()
    assert program.failures() == {2: "BackendError", 3: "BackendError", 4: "BackendError"}


def test_partial_text_and_meta_come_with_a_deadline() -> None:
    port, executor = rig()
    program = Program(executor)
    program.send(text(0, "q"), gen(1, "x", deadline_s=2.0), gen(2, "y"), Close())
    port.pump()
    port.now = 3.0
    port.finish("p/0/1", "half")
    port.run()
    failed = program.all(NodeFailed)
    assert [event.error["code"] for event in failed] == ["DeadlineExceeded"] * 2
    assert failed[0].text == "half" and failed[0].meta is not None
    assert failed[0].meta.finish_reason == "deadline"


def test_program_deadline_stops_later_nodes_unsubmitted() -> None:
    port, executor = rig()
    program = Program(executor, deadline_s=5.0)
    program.send(text(0, "q"), gen(1, "x"))
    port.run()
    port.now = 6.0
    program.send(gen(2, "y"), Close())
    port.run()
    assert program.failures() == {2: "DeadlineExceeded"}
    assert len(port.requests) == 1


# ---- cancel, drop, close, abandon


def test_cancel_aborts_in_the_same_slice_and_releases() -> None:
    port, executor = rig()
    program = Program(executor)
    program.send(text(0, "q"), Fork(0, 1, (1, 2)), gen(2, "a", lane=1), gen(3, "b", lane=2))
    program.send(gen(4, "a2", lane=1))
    port.pump()
    port.finish("p/1/2")
    assert "p/1" in port.leases
    program.send(Cancel((1,), "first one wins"), Close())
    port.pump()
    assert port.running["p/1/4"].aborted and "p/1" not in port.leases
    assert not port.running["p/2/3"].aborted
    port.run()
    assert program.failures() == {4: "Cancelled"}
    assert "first one wins" in program.all(NodeFailed)[0].error["message"]
    assert program.values() == {"a": "<a>", "b": "<b>"}
    assert program.all(Closed)[0].error is None  # what a program cancels itself is no failure


def test_cancel_of_waiting_and_unborn_lanes_ends_them_at_once() -> None:
    port, executor = rig()
    program = Program(executor)
    program.send(text(0, "q"), gen(1, "x"), Fork(0, 2, (1,)), gen(3, "a", lane=1))
    program.send(Join(0, 4, (1,)), gen(5, "y"))
    port.pump()
    program.send(Cancel((1,)))
    port.pump()
    assert program.failures() == {3: "Cancelled"}
    port.finish("p/0/1")
    port.pump()
    assert program.all(JoinReady) == [JoinReady(0, 4)]
    other = Program(executor, "other")
    other.send(text(0, "q"), Fork(0, 1, (1,)), gen(2, "a", lane=1), Join(0, 3, (1,)), gen(4, "y"))
    port.pump()
    other.send(Cancel((0,)), Close())
    port.pump()
    assert other.failures() == {3: "Cancelled", 4: "Cancelled"} and not other.closed
    program.send(Close())
    port.run()
    assert other.values() == {"a": "<a>"} and other.closed and program.closed


def test_a_value_that_arrives_after_cancel_is_no_value() -> None:
    port, executor = rig()
    program = Program(executor)
    program.send(text(0, "q"), gen(1, "x", stream=True))
    port.pump()
    program.send(Cancel((0,)), Close())
    port.pump()
    port.delta("p/0/1", "late")
    port.running["p/0/1"].aborted = False
    port.run()
    assert program.failures() == {1: "Cancelled"} and program.all(TextDelta) == []


def test_drop_releases_when_the_lane_is_done_and_refuses_more() -> None:
    port, executor = rig()
    program = Program(executor)
    program.send(text(0, "q"), Fork(0, 1, (1,)), gen(2, "a", lane=1), gen(3, "b", lane=1))
    program.send(Drop((1,)))
    port.pump()
    port.finish("p/1/2")
    port.pump()
    assert "p/1" in port.leases
    port.finish("p/1/3")
    port.pump()
    assert "p/1" not in port.leases and program.values() == {"a": "<a>", "b": "<b>"}
    program.send(gen(4, "c", lane=1), Fork(0, 5, (1,)), Close())
    port.run()
    assert program.failures() == {4: "ProgramError", 5: "ProgramError"}
    assert "dropped" in program.all(NodeFailed)[0].error["message"]


def test_lanes_can_be_read_after_close_but_nothing_else_is_taken() -> None:
    port, executor = rig()
    program = Program(executor)
    program.send(text(0, "hi"), gen(1, "x"), text(2, " bye"), Close())
    port.run()
    assert program.closed
    program.send(ReadLane(0, 3))
    port.run()
    assert program.lane(0).text == "hi<x> bye" and program.closed
    with pytest.raises(ProgramError, match="closed"):
        program.send(gen(4, "y"))


def test_leases_last_until_close_is_answered() -> None:
    port, executor = rig()
    program = Program(executor)
    program.send(text(0, "hi"), gen(1, "x"))
    port.run()
    assert port.leases == {"p/0": plain(port, "hi", "<x>")}
    program.send(Close())
    port.run()
    assert port.leases == {} and program.closed


def test_abandon_frees_everything_and_says_nothing_more() -> None:
    port, executor = rig()
    program = Program(executor)
    program.send(text(0, "q"), gen(1, "x"), gen(2, "y"))
    port.pump()
    port.finish("p/0/1")
    program.session.abandon()
    port.pump()
    seen = len(program.events)
    assert port.running["p/0/2"].aborted and port.leases == {}
    program.send(gen(3, "z"), Close())
    port.run()
    assert len(program.events) == seen and executor.stats().programs_open == 0


def test_a_failing_sink_ends_its_program_only(caplog: pytest.LogCaptureFixture) -> None:
    port, executor = rig()

    def bad(events: list[Event]) -> None:
        raise RuntimeError("broken sink")

    session = executor.open(OpenProgram(program_id="bad"), bad)
    session.send([text(0, "q"), gen(1, "x"), gen(2, "y")])
    good = Program(executor, "good")
    good.send(text(0, "q"), gen(1, "x"), Close())
    port.run()
    assert good.closed and "broken sink" in caplog.text
    assert port.leases == {} and executor.stats().programs_open == 0


def test_a_bug_in_one_program_ends_that_program_only(caplog: pytest.LogCaptureFixture) -> None:
    port, executor = rig()
    program = Program(executor, "odd")
    good = Program(executor, "good")
    program.send(text(0, "q"), gen(1, "x"), gen(2, "y"))
    good.send(text(0, "q"), gen(1, "x"), Close())
    port.pump()

    def broken(lane_id: str, ids: object, namespace: str, adapter: str) -> None:
        raise RuntimeError("lost the tree")

    hold, port.hold = port.hold, broken  # type: ignore[method-assign,assignment]
    port.finish("odd/0/1")
    port.hold = hold  # type: ignore[method-assign]
    port.run()
    assert program.failures() == {2: "BackendError"} and program.closed
    assert good.values() == {"x": "<x>"} and good.closed
    assert "lost the tree" in caplog.text and port.leases == {}


def test_closing_the_executor_ends_every_program() -> None:
    port, executor = rig()
    programs = [Program(executor, str(index)) for index in range(3)]
    for program in programs:
        program.send(text(0, "q"), gen(1, "x"))
    port.pump()
    executor.close()
    port.pump()
    for program in programs:
        assert program.failures() == {1: "Cancelled"} and program.closed
        error = program.all(Closed)[0].error
        assert error is not None and error["program"] == program.all(NodeFailed)[0].error["program"]
    assert len({program.all(Closed)[0].error["program"] for program in programs}) == 3  # type: ignore[index]
    port.run()


def test_program_ids_are_unique_while_running() -> None:
    port, executor = rig()
    program = Program(executor)
    with pytest.raises(ProgramError, match="id is running"):
        Program(executor)
    program.send(Close())
    port.run()
    Program(executor)
    with pytest.raises(ProgramError, match="not an op"):
        Program(executor, "q").session.send(["x"])  # type: ignore[list-item]


def test_a_static_graph_runs_without_python() -> None:
    port, executor = rig()
    builder = GraphBuilder("tip", ["topic"])
    builder.add(AppendText(0, 0, ("About ", ArgRef("topic"), ": ")))
    builder.add(gen(1, "tip"))
    builder.add(Fork(0, 2, (1, 2)))
    builder.add(AppendText(1, 3, ("more on ", VarRef("tip", 1))))
    builder.add(gen(4, "more", lane=1))
    builder.add(Join(0, 5, (1, 2), "append"))
    events: list[Event] = []
    executor.run_graph(
        builder.build(), {"topic": "sleep"}, OpenProgram(program_id="g"), events.extend
    )
    port.run()
    assert [e.texts[0] for e in events if isinstance(e, ValueReady)] == ["<tip>", "<more>"]
    assert port.requests[0].prompt_ids == plain(port, "About sleep: ")
    assert isinstance(events[-1], Closed)


def test_stats_of_all_nodes_are_reported_once() -> None:
    port, executor = rig()
    program = Program(executor)
    program.send(text(0, "abcd"), gen(1, "x"), text(2, "e"), Fork(0, 3, (1,)), Close())
    port.run()
    stats = [s for e in program.all(ValueReady) for s in e.stats]
    stats += [s for e in program.all(Closed) for s in e.stats]
    assert [item.node for item in stats] == [0, 1, 2, 3]
    assert [item.tokens for item in stats] == [2, 3, 1, 0]
    assert [item.lane_tokens for item in stats] == [2, 5, 6, 6]
    assert stats[1].cached_tokens == 1 and SAMPLING.n == 1


def test_executor_takes_ops_from_many_threads() -> None:
    port, executor = rig()
    programs = [Program(executor, str(index)) for index in range(40)]

    def work(mine: list[Program]) -> None:
        for program in mine:
            for node in range(10):
                program.send(text(2 * node, f"{node}"), gen(2 * node + 1, f"x{node}"))
            program.send(Close())

    threads = [threading.Thread(target=work, args=(programs[i::4],)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    port.run()
    assert all(program.closed and len(program.values()) == 10 for program in programs)
    assert isinstance(executor, Executor) and port.leases == {}


def test_ops_sent_before_the_executor_closes_are_answered_and_later_ones_refused() -> None:
    port, executor = rig()
    program = Program(executor)
    program.send(text(0, "q"), gen(1, "x"))
    executor.close()
    with pytest.raises(BackendError, match="closed"):
        program.send(gen(2, "y"))
    with pytest.raises(BackendError, match="closed"):
        Program(executor, "late")
    port.pump()
    assert program.failures() == {1: "Cancelled"} and program.closed
    program.session.abandon()
    executor.close()
    port.run()
    assert port.leases == {}


def test_last_events_are_sent_when_the_engine_takes_no_more_calls() -> None:
    port, executor = rig()
    program, idle = Program(executor), Program(executor, "idle")
    program.send(text(0, "q"), gen(1, "x"), Close())
    port.pump()

    def closed(fn: object) -> None:
        raise BackendError("the engine is closed")

    port.call_soon = closed  # type: ignore[method-assign,assignment]
    port.finish("p/0/1", BackendError("the engine was closed"))
    assert program.failures() == {1: "BackendError"} and program.closed
    with pytest.raises(BackendError, match="closed"):
        idle.send(gen(0, "x"))
    with pytest.raises(BackendError, match="closed"):  # not only the first time
        idle.send(gen(1, "y"))
    executor.close()
    assert idle.closed
