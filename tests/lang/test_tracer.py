"""Tracing: a graph without a model, and never a wrong one."""

from __future__ import annotations

import ast
import copy
import json
import re
import sys
import textwrap
from typing import Any, Literal

import pytest

import branchline as bl
from branchline.lang.errors import ProgramError
from branchline.runtime.programs.graph import END
from branchline.runtime.programs.protocol import AppendText, ArgRef, VarRef


def trace(body: Any, *args: Any, **kwargs: Any) -> bl.RequestGraph:
    return bl.function(body).trace(*args, **kwargs)


def dynamic(graph: bl.RequestGraph) -> list[tuple[int, int]]:
    return [(edge.src, edge.dst) for edge in graph.edges if edge.kind == "dynamic"]


@bl.function
def debate(s: bl.State, claim: str, sides: tuple[str, ...] = ("For", "Against")) -> Any:
    s += bl.system("Be fair.")
    s += f"Claim: {claim}\n"
    with s.fork(2) as views:
        for view, side in zip(views, sides, strict=True):
            view += f"{side}: " + bl.gen("view", max_tokens=24)
    s += f"For: {s['view'][0]}\nAgainst: {s['view'][1]}\nSo it is"
    s += bl.select("verdict", [" true", " false"])
    return s["verdict"]


def test_a_trace_has_the_nodes_of_a_run() -> None:
    traced = debate.trace(claim="c")
    run = debate.run(claim="c", backend=bl.Mock("x")).graph
    assert [node.kind for node in traced.nodes] == [node.kind for node in run.nodes]
    assert [node.id for node in traced.nodes] == [node.id for node in run.nodes]
    assert [e for e in traced.edges if e.kind == "sequence"] == [
        e for e in run.edges if e.kind == "sequence"
    ]
    assert traced.is_static
    assert bl.RequestGraph.from_json(traced.to_json()) == traced


def test_a_generated_text_in_a_text_is_a_data_edge() -> None:
    graph = debate.trace(claim="c")
    op = next(n.op for n in graph.nodes if isinstance(n.op, AppendText) and len(n.op.parts) > 3)
    assert op.parts == (
        "For: ", VarRef("view", lane=1), "\nAgainst: ", VarRef("view", lane=2), "\nSo it is",
    )  # fmt: skip


def test_an_argument_left_out_is_a_parameter_of_the_graph() -> None:
    graph = debate.trace()
    assert graph.args == ("claim", "sides")
    ops = graph.ops({"claim": "tea is good"})
    assert any(isinstance(op, AppendText) and "tea is good" in op.parts for op in ops)
    constant = debate.trace(claim="c").constant_prefix()
    assert "Claim: c" in constant.text
    assert "Claim: c" not in graph.constant_prefix().text


@pytest.mark.parametrize(
    "use",
    [
        lambda x: f"a {x} b",
        lambda x: "a " + x + " b",
        lambda x: f"a {x} b",
        lambda x: "a %s b" % x,  # noqa: UP031
        lambda x: "".join(["a ", x, " b"]),
        lambda x: "a " + str(x) + " b",
    ],
)
def test_ways_to_put_a_value_into_a_text(use: Any) -> None:
    def body(s: bl.State, word: str) -> None:
        s += bl.gen("x")
        s += use(s["x"])
        s += use(word)

    graph = trace(body)
    assert graph.is_static
    parts = [node.op.parts for node in graph.nodes if isinstance(node.op, AppendText)]
    assert parts == [("a ", VarRef("x"), " b"), ("a ", ArgRef("word"), " b")]


@pytest.mark.parametrize(
    "use",
    [
        lambda x: bool(x),
        lambda x: not x,
        lambda x: x == "yes",
        lambda x: x != "yes",
        lambda x: x in ("yes", "no"),
        lambda x: "y" in x,
        lambda x: x.startswith("y"),
        lambda x: x.strip().lower() == "y",
        lambda x: int(x) > 3,
        lambda x: float(x) > 3,
        lambda x: len(x) > 3,
        lambda x: x > 3,
        lambda x: x + 1 > 3,
        lambda x: list(range(x)),
        lambda x: list(x),
        lambda x: {"yes": 1}.get(x),
        lambda x: x.split(),
        lambda x: x.find("a"),
        lambda x: [1, 2, 3][x],
        lambda x: x.value.name == "a",
    ],
)
def test_what_python_learns_from_a_value_is_a_dynamic_edge(use: Any) -> None:
    def body(s: bl.State) -> None:
        s += bl.gen("x")
        use(s["x"])
        s += "after"

    graph = trace(body)
    assert dynamic(graph) == [(0, 1)]
    assert not graph.is_static
    with pytest.raises(ProgramError, match="depends on the value"):
        graph.ops()


@pytest.mark.parametrize(
    "use",
    [
        lambda x: x.upper(),
        lambda x: x.replace("a", "b"),
        lambda x: x[:3],
        lambda x: x.strip(),
        lambda x: f"{x:>10}",
        lambda x: f"{x!r}",
        lambda x: x + 1,
        lambda x: 2 * x,
        lambda x: x.split(",")[0],
    ],
)
def test_text_that_python_computed_from_a_value_makes_its_node_dynamic(use: Any) -> None:
    def body(s: bl.State) -> None:
        s += bl.gen("x")
        s += "before"
        s += "got " + use(s["x"])

    assert (0, 2) in dynamic(trace(body))


def test_a_branch_that_leaves_something_out_still_shows() -> None:
    def body(s: bl.State) -> str:
        s += bl.gen("x")
        if s["x"]:
            return "early"
        s += "late"
        return "late"

    assert dynamic(trace(body)) == [(0, END)]


def test_a_test_of_an_argument_that_was_left_out_is_dynamic_too() -> None:
    def body(s: bl.State, deep: bool) -> None:
        s += "a"
        if deep:
            s += "b"

    assert not trace(body).is_static
    assert trace(body, deep=True).is_static
    assert [n.kind for n in trace(body, deep=False).nodes] == ["append"]


def test_loops_on_unknown_values_end() -> None:
    def while_not(s: bl.State) -> None:
        s += bl.gen("x", append=True)
        while s["x"][-1] != "stop":
            s += bl.gen("x", append=True)

    def until(s: bl.State) -> None:
        done = False
        while not done:
            s += bl.gen("x", append=True)
            done = s["x"][-1] == "stop"

    def never(s: bl.State) -> None:
        s += bl.gen("x")
        while True:
            bool(s["x"])

    assert len(trace(while_not).nodes) < 40
    assert len(trace(until).nodes) < 40
    with pytest.raises(ProgramError, match="tested unknown values"):
        trace(never)


def test_lists_of_one_name_do_not_make_a_wrong_graph() -> None:
    def body(s: bl.State) -> None:
        s += bl.gen("x", append=True) + bl.gen("x", append=True)
        s += "first: " + s["x"][0]

    assert dynamic(trace(body)) == [(0, 2)]


def test_typed_values_and_metas_do_not_break_a_trace() -> None:
    def body(s: bl.State) -> None:
        s += bl.gen("n", int) + bl.gen("c", Literal["a", "b"])
        total = s["n"] * 2 - 1
        s += f"{total} {s.meta('n').finish_reason} {s.text()} {s.get('c')}"
        s.set("y", s["n"])
        for _ in range(s["n"]):
            s += "loop"

    graph = trace(body)
    assert not graph.is_static
    assert "generate" in {node.kind for node in graph.nodes}


def test_values_where_a_graph_holds_plain_text_are_stand_ins() -> None:
    def body(s: bl.State) -> None:
        s += bl.gen("x") + bl.gen("n", int)
        s += bl.select("y", [s["x"], f"not {s['x']}"])
        s += bl.gen(f"z_{s['x']}", stop=s["x"], regex=f"a{s['x']}", max_tokens=s["n"])
        with s.fork(s["n"]) as forks:
            forks += bl.gen("w")

    graph = trace(body)
    assert {(0, 2), (0, 3), (1, 3), (1, 4)} <= set(dynamic(graph))
    assert not graph.is_static


def test_the_text_of_a_state_is_never_taken_for_known() -> None:
    def body(s: bl.State) -> None:
        s += bl.user("a")
        s += "so far: " + s.text()

    assert not trace(body).is_static


def test_async_programs_trace() -> None:
    async def body(s: bl.State, word: str) -> None:
        s += word
        value = await s.gen("x")
        async with s.fork(2) as branches:
            branches += bl.gen("y")
        s += f"{value}{await s.aget('x')}"

    graph = trace(body)
    assert [n.kind for n in graph.nodes] == [
        "append", "generate", "fork", "generate", "generate", "join", "append",
    ]  # fmt: skip
    assert graph.is_static


def test_wrong_arguments() -> None:
    with pytest.raises(TypeError, match="clam"):
        debate.trace(clam="x")


def test_a_placeholder_in_a_running_program_is_an_error() -> None:
    kept: list[Any] = []

    @bl.function
    def program(s: bl.State) -> None:
        s += bl.gen("x")
        kept.append(s["x"])
        s += "text " + kept[0]

    program.trace()
    with pytest.raises(ProgramError, match="placeholder of a traced program"):
        program.run(backend=bl.Mock("a"))


def test_a_traced_graph_runs_without_its_function() -> None:
    graph = debate.trace()
    mock = bl.Mock({"view": "it depends", "verdict": " true"})
    done: list[Any] = []
    from branchline.runtime.programs.protocol import OpenProgram, ValueReady

    session = mock.open(OpenProgram(program_id="graph"), done.extend)
    session.send(graph.ops({"claim": "tea"}))
    import time

    while not done or type(done[-1]).__name__ != "Closed":
        time.sleep(0.01)
    assert done[-1].error is None
    values = [event.texts[0] for event in done if isinstance(event, ValueReady)]
    assert values == ["it depends", "it depends", " true"]


@pytest.mark.parametrize(
    "use",
    [
        lambda x, gen: x + gen,
        lambda x, gen: gen + x,
        lambda x, gen: x + x + gen + x,
        lambda x, gen: [x, gen, x],
        lambda x, gen: f"{x}{gen}{x}",
        lambda x, gen: bl.user(x + gen) + x,
        lambda x, gen: " ".join([x, x]) + gen,
        lambda x, gen: "%s" % x + gen,  # noqa: UP031
        lambda x, gen: f"{x} " + gen,
    ],
)
def test_values_and_expressions_side_by_side(use: Any) -> None:
    @bl.function
    def program(s: bl.State, word: str) -> None:
        s += use(word, bl.gen("x"))
        s += "."
        s += use(s["x"], bl.gen("y"))

    mock = bl.Mock({"x": "one", "y": "two"})
    graph = program.trace()
    assert graph.is_static
    ran = bl.run_graph(graph, {"word": "tea"}, backend=mock)
    assert ran.text() == program.run("tea", backend=mock).text()


PATTERN = re.compile("[0-9]+")


def local(x: Any) -> Any:
    value = x
    return PATTERN.search(value)


def passed_on(x: Any) -> Any:
    return re.sub("a", "b", x)


@pytest.mark.parametrize(
    "use",
    [
        lambda x: re.search("[0-9]+", x),
        lambda x: PATTERN.search(x),
        lambda x: PATTERN.search(
            x,
        ),
        lambda x: PATTERN.findall(f"{x}"),
        lambda x: local(x),
        lambda x: re.split(",", x)[0],
        lambda x: passed_on(x),
        lambda x: textwrap.dedent(x),
        lambda x: "abc".startswith(x),
        lambda x: "abc".find(x),
        lambda x: [PATTERN.fullmatch(each) for each in [x]],
        lambda x: json.loads(x),
        lambda x: json.loads(x)["a"],
        lambda x: ast.literal_eval(x),
        lambda x: {"a": 1}[x],
        lambda x: {x},
        lambda x: [a + b for a, b in x.items()],
        lambda x: divmod(x, 3)[0],
        lambda x: (x & 1) << 2 | 5 ^ x,
        lambda x: x.split(",", 1)[1],
        lambda x: int(x, 16),
    ],
)
def test_what_reads_a_value_behind_the_language_is_a_dynamic_edge(use: Any) -> None:
    def body(s: bl.State) -> None:
        s += "Number:" + bl.gen("x")
        s += "Yes" if use(s["x"]) else "No"
        s += bl.gen("y")

    graph = trace(body)
    assert dynamic(graph), "the way depends on x"
    assert graph.nodes[1].kind == "generate"
    assert not graph.is_static


def test_patterns_in_known_texts_are_no_dynamic_edge() -> None:
    def body(s: bl.State, word: str) -> None:
        s += "Number:" + bl.gen("x")
        s += s["x"]
        s += PATTERN.sub("n", "5 tries") + "abc".removeprefix("a")
        s += copy.deepcopy(word) + "T!".replace("T", word)

    graph = trace(body)
    assert graph.is_static
    ran = bl.run_graph(graph, {"word": "tea"}, backend=bl.Mock("7"))
    assert ran.text() == "Number:77n triesbcteatea!"


def test_an_argument_that_is_appended_to_all_branches() -> None:
    def body(s: bl.State, word: str) -> None:
        forks = s.fork(2)
        forks += word
        forks += lambda index: f"{index}" + word + bl.gen("x")
        forks.join("append")

    graph = trace(body)
    assert graph.is_static
    ran = bl.run_graph(graph, {"word": "tea"}, backend=bl.Mock("."))
    assert ran.text() == "tea0tea.tea1tea."


def test_errors_that_no_value_can_be_the_reason_of_are_raised() -> None:
    def broken(s: bl.State) -> None:
        s += bl.gen("x")
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        trace(broken)

    def against_the_rules(s: bl.State) -> None:
        s += bl.gen("x")
        s += s["x"] + bl.gen("x")

    with pytest.raises(NameError):
        trace(against_the_rules)


@pytest.mark.parametrize("use", [json.loads, lambda x: json.dumps({"a": x})])
def test_an_error_of_an_unknown_value_ends_the_graph_with_a_dynamic_edge(use: Any) -> None:
    def body(s: bl.State) -> None:
        s += bl.gen("x") + bl.gen("y")
        s += f"{use(s['x'])}"

    graph = trace(body)
    assert [node.kind for node in graph.nodes] == ["generate", "generate"]
    assert dynamic(graph) == [(graph.nodes[0].id, END)]

    async def asynchronous(s: bl.State) -> None:
        s += bl.gen("x")
        if PATTERN.search(await s.aget("x")):
            s += "found"

    assert dynamic(trace(asynchronous))


def test_a_profiler_that_runs_already_goes_on() -> None:
    seen: list[str] = []
    sys.setprofile(lambda frame, event, arg: seen.append(event))
    try:
        before = sys.getprofile()
        trace(lambda s: s.__iadd__("a"))
        assert sys.getprofile() is before
    finally:
        sys.setprofile(None)
    assert seen
