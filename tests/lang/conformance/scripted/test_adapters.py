"""Adapters in programs: who writes each value, and who says so."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import branchline as bl
from branchline.lang.errors import AdapterNotFound, InvalidRequest


def run(body: Any, **options: Any) -> bl.State:
    return bl.function(body).run(backend=bl.Mock("a"), **options)


def who(state: bl.State, *names: str) -> list[str]:
    """Adapters that wrote the variables; "" = the base model."""
    return [state.meta(name).adapter for name in names]


def test_the_adapter_of_a_call_writes_its_value_and_no_other() -> None:
    def body(s: bl.State) -> None:
        s += "q" + bl.gen("x", adapter="sql") + bl.gen("y")
        s += bl.select("z", ["a", "b"], adapter="json") + bl.gen("w", choices=["a"], adapter="sql")
        s += bl.call("c", {"name": "f"}, adapter="tools")

    assert who(run(body), "x", "y", "z", "w", "c") == ["sql", "", "json", "sql", "tools"]


def test_blocks_nest_and_a_call_has_the_last_word() -> None:
    def body(s: bl.State) -> None:
        with s.adapter("outer"):
            s += "q" + bl.gen("a")
            with s.adapter("inner"):
                s += bl.gen("b") + bl.gen("c", adapter="own") + bl.gen("d", adapter="")
                with s.adapter(None):
                    s += bl.gen("e") + bl.select("f", ["a"])
                s += bl.gen("g", adapter=None)
            s += bl.gen("h")
        s += bl.gen("i")

    found = who(run(body), *"abcdefghi")
    assert found == ["outer", "inner", "own", "", "", "", "inner", "outer", ""]


def test_a_block_is_over_when_an_error_leaves_it() -> None:
    def body(s: bl.State) -> None:
        try:
            with s.adapter("sql"):
                raise KeyError("mine")
        except KeyError:
            s += "q" + bl.gen("x")

    assert who(run(body), "x") == [""]


def test_branches_inherit_and_may_differ() -> None:
    def body(s: bl.State) -> None:
        s += "q"
        with s.adapter("shared"):
            branches = s.fork(4)
        branches[0] += bl.gen("x")
        branches[1] += bl.gen("x", adapter="own")
        with branches[2].adapter("block"):
            branches[2] += bl.gen("x")
        with branches[3].adapter(""):
            branches[3] += bl.gen("x")
        branches.join()
        s += bl.gen("y")

    state = run(body)
    assert [meta.adapter for meta in state.meta("x")] == ["shared", "own", "block", ""]
    assert who(state, "y") == [""]


def test_the_nearer_default_wins() -> None:
    @bl.function(adapter="program")
    def program(s: bl.State) -> None:
        s += "q" + bl.gen("x")
        with s.adapter("block"):
            s += bl.gen("y")

    @bl.function
    def caller(s: bl.State) -> None:
        program(s)
        s += bl.gen("z")

    assert who(program.run(backend=bl.Mock("a")), "x", "y") == ["program", "block"]
    state = program.run(backend=bl.Mock("a"), adapter="run")
    assert who(state, "x", "y") == ["run", "block"]
    assert who(program.run(backend=bl.Mock("a"), adapter=""), "x") == [""]
    (state,) = program.run_batch([()], backend=bl.Mock("a"), adapter="batch")
    assert who(state, "x") == ["batch"]
    assert who(caller.run(backend=bl.Mock("a")), "x", "y", "z") == ["program", "block", ""]


def test_tasks_of_an_async_program_may_leave_their_blocks_in_any_order() -> None:
    @bl.function
    async def program(s: bl.State) -> None:
        entered = asyncio.Event()

        async def first() -> None:
            with s.adapter("first"):
                await entered.wait()

        async def second() -> None:
            with s.adapter("second"):
                entered.set()
                await asyncio.gather(one)
                await s.gen("x")

        one = asyncio.ensure_future(first())
        await asyncio.sleep(0)
        await second()
        await s.gen("y")

    assert who(program.run(backend=bl.Mock("a")), "x", "y") == ["second", ""]


def test_a_graph_says_who_writes_and_runs_the_same() -> None:
    @bl.function
    def program(s: bl.State) -> None:
        s += "q"
        with s.adapter("sql"):
            s += bl.gen("x") + bl.select("y", ["a", "b"])
        s += bl.gen("z")

    traced = program.trace()
    again = bl.RequestGraph.from_json(traced.to_json())
    assert again == traced
    assert "gen x by sql" in traced.to_mermaid() and "gen z by" not in traced.to_mermaid()
    assert who(bl.run_graph(again, backend=bl.Mock("a")), "x", "y", "z") == ["sql", "sql", ""]


def test_an_adapter_that_is_not_there_fails_what_asks_for_it_alone() -> None:
    def body(s: bl.State) -> None:
        with s.fork(2, on_error="keep") as branches:
            branches[0] += "q" + bl.gen("x", adapter="sql")
            branches[1] += "q" + bl.gen("x", adapter="sequel")

    state = bl.function(body).run(backend=bl.Mock("a", adapters=["json", "sql"]))
    good, bad = state["x"]
    assert good == "a" and isinstance(bad, AdapterNotFound)
    assert "sequel" in str(bad) and "sql" in str(bad)
    assert bad.variable == "x"


@pytest.mark.parametrize("name", [7, b"sql", ["sql"]])
def test_what_is_no_name_is_refused_where_it_is_written(name: Any) -> None:
    def block(s: bl.State) -> None:
        with s.adapter(name):
            pass

    def call(s: bl.State) -> None:
        s += "q" + bl.gen("x", adapter=name)

    for body in (block, call):
        with pytest.raises(InvalidRequest, match="adapter"):
            run(body)
    with pytest.raises(InvalidRequest, match="adapter"):
        bl.function(adapter=name)(block)
    with pytest.raises(InvalidRequest, match="adapter"):
        run(lambda s: None, adapter=name)


def test_a_name_that_a_trace_does_not_know_makes_its_nodes_dynamic() -> None:
    @bl.function
    def program(s: bl.State) -> None:
        s += "q" + bl.select("route", ["sql", "json"])
        with s.adapter(s["route"]):
            s += bl.gen("x")
            s += bl.gen("y")
        s += bl.gen("z")

    graph = program.trace()
    route = next(node.id for node in graph.nodes if node.name == "route")
    decided = {e.dst for e in graph.edges if e.kind == "dynamic" and e.src == route}
    names = {node.name for node in graph.nodes if node.id in decided}
    assert {"x", "y"} <= names and "z" not in names
    assert who(
        program.run(backend=bl.Mock({"route": "sql", "x": "1", "y": "2", "z": "3"})), "x"
    ) == ["sql"]
