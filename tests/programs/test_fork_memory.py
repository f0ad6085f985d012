"""Forks: what branches hold is bounded; a graph's scopes are those of copies, without copies."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from branchline.runtime.errors import ProgramError, from_wire
from branchline.runtime.programs import lane_table
from branchline.runtime.programs.graph import GraphBuilder
from branchline.runtime.programs.graph_links import MAX_DEPTH, Scopes
from branchline.runtime.programs.graph_values import root_variables
from branchline.runtime.programs.protocol import (
    AppendText,
    Close,
    Closed,
    Drop,
    Fork,
    JoinReady,
    SetVariable,
    VarRef,
)
from tests.programs.helpers import Program, gen, rig, text

# ---- what branches hold


def test_branches_that_hold_too_much_end_their_own_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane_table, "MAX_COPIED", 300)
    port, executor = rig()
    greedy, other = Program(executor, "greedy"), Program(executor, "other")
    greedy.send(text(0, "x" * 150), Fork(0, 1, tuple(range(1, 9))))
    greedy.send(*[gen(node + 10, "x", lane=node) for node in range(1, 9)], Close())
    other.send(text(0, "x" * 150), Fork(0, 1, (1, 2)), gen(2, "a", lane=1), Close())
    port.run()
    failed = greedy.all(Closed)[0].error
    assert failed is not None
    error = from_wire(failed)
    assert isinstance(error, ProgramError) and "8 branches of" in str(error)
    assert greedy.values() == {} and len(greedy.failures()) >= 8, "no branch waits for ever"
    assert other.values() and other.all(Closed)[0].error is None


def test_what_dropped_branches_held_may_be_held_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane_table, "MAX_COPIED", 250)
    port, executor = rig()
    program = Program(executor)
    program.send(text(0, "x" * 150))
    for turn in range(1, 10):
        lanes = (2 * turn, 2 * turn + 1)
        program.send(Fork(0, turn, lanes), Drop(lanes))
        port.run()
    program.send(Close())
    port.run()
    assert program.all(Closed)[0].error is None


def test_a_fork_that_fails_fails_its_branches(monkeypatch: pytest.MonkeyPatch) -> None:
    port, executor = rig()
    program = Program(executor)

    def broken(table: object, lane: object, op: object) -> list[object]:
        raise KeyError("bug")

    monkeypatch.setattr(lane_table.LaneTable, "fork", broken)
    program.send(text(0, "q"), Fork(0, 1, (1,)), gen(2, "x", lane=1), Close())
    port.run()
    assert 2 in program.failures() and program.closed
    assert not program.all(JoinReady)


# ---- scopes


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.sampled_from("abc"))))
def test_scopes_are_those_of_copies(moves: list[tuple[int, int, str]]) -> None:
    scopes = Scopes()
    copies: dict[int, dict[str, int]] = {0: {}}
    began: dict[int, set[str]] = {0: set()}
    for node, (kind, place, name) in enumerate(moves):
        lane = place % len(copies)
        if kind:
            scopes.define(lane, name, node)
            copies[lane][name] = node
        else:
            child = len(copies)
            scopes.fork(lane, child)
            copies[child] = dict(copies[lane])
            began[child] = set(copies[lane])
        for each, copy in copies.items():
            assert {n: scopes.find(each, n) for n in "abc"} == {n: copy.get(n) for n in "abc"}
            assert {n for n in "abc" if scopes.inherits(each, n)} == began[each]


def test_a_graph_takes_memory_by_its_size_however_it_forks() -> None:
    builder = GraphBuilder("wide")
    for node in range(1000):
        builder.add(SetVariable(0, node, f"v{node}", "x"))
    builder.add(Fork(0, 1000, tuple(range(1, 4001))))
    builder.add(AppendText(4000, 1001, (VarRef("v999", 0), VarRef("v0", 4000))))
    tracemalloc.start()
    graph = builder.build()
    found = root_variables([node.op for node in graph.nodes], lambda op: op.name, list)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == 1000
    assert {(e.src, e.name) for e in graph.edges if e.kind == "data"} == {(999, "v999"), (0, "v0")}
    assert peak < 30e6, "copies of the variables alone would take 150 MB"


def test_branches_nested_too_deep_are_refused() -> None:
    builder = GraphBuilder("deep")
    for depth in range(MAX_DEPTH + 1):
        builder.add(Fork(depth, depth, (depth + 1,)))
    with pytest.raises(ProgramError, match=f"more than {MAX_DEPTH} deep"):
        builder.build()
