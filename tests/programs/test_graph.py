"""Laws of request graphs: what they say about a program, and that JSON keeps all of it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from branchline.runtime.core.sampling_params import Constraint, SamplingParams
from branchline.runtime.errors import ProgramError
from branchline.runtime.programs.graph import END, GraphBuilder, RequestGraph
from branchline.runtime.programs.protocol import (
    AppendText,
    ArgRef,
    BeginRole,
    Cancel,
    Close,
    Drop,
    EndRole,
    Fork,
    Generate,
    Join,
    NodeStats,
    Op,
    ReadLane,
    Select,
    SetVariable,
    VarRef,
)

SAMPLING = SamplingParams(temperature=0.0, max_tokens=8)


def tip_graph() -> GraphBuilder:
    """Role, text with an argument, a generation, two branches that use it, a join."""
    builder = GraphBuilder("tip", ["topic"])
    ops: list[Op] = [
        BeginRole(0, 0, "system"),
        AppendText(0, 1, ("You are terse.",)),
        EndRole(0, 2),
        BeginRole(0, 3, "user"),
        AppendText(0, 4, ("A tip about ", ArgRef("topic"), ", please.")),
        EndRole(0, 5),
        Generate(lane=0, node=6, name="tip", sampling=SAMPLING),
        Fork(0, 7, (1, 2)),
        AppendText(1, 8, ("More on ", VarRef("tip", 1))),
        Generate(lane=1, node=9, name="more", sampling=SAMPLING),
        Select(lane=2, node=10, name="good", choices=("yes", "no")),
        Join(0, 11, (1, 2), "append"),
        AppendText(0, 12, (VarRef("more", 1),)),
        Close(),
    ]
    for op in ops:
        builder.add(op)
    return builder


class CharTokenizer:
    """One id a character; special text is lower case moved by 1000."""

    eos_ids = frozenset({0})
    bos_id = None
    vocab_size = 3000

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        return [ord(char) + (1000 if special else 0) for char in text]

    def decode(self, ids: object, *, skip_special: bool = True) -> str:
        raise AssertionError("graphs decode nothing")


class Turns:
    def begin(self, history: object, role: str) -> str:
        return f"<{role}>"

    def end(self, history: object, role: str) -> str:
        return "</>"


def test_edges_follow_lanes_values_and_joins() -> None:
    graph = tip_graph().build()
    edges = {(edge.src, edge.dst, edge.kind, edge.name) for edge in graph.edges}
    assert (5, 6, "sequence", "") in edges
    assert (7, 8, "sequence", "") in edges and (7, 10, "sequence", "") in edges
    assert (6, 8, "data", "tip") in edges and (9, 12, "data", "more") in edges
    assert (9, 11, "data", "") in edges and (10, 11, "data", "") in edges
    assert graph.is_static
    assert [node.kind for node in graph.nodes][:3] == ["role", "append", "role"]


def test_a_text_has_one_edge_for_each_variable_it_reads_however_many() -> None:
    builder = GraphBuilder("many")
    count = 20_000
    for node in range(count):
        builder.add(SetVariable(0, node, f"v{node}", "x"))
    reads = tuple([VarRef(f"v{node}") for node in range(count)])
    builder.add(AppendText(0, count, (*reads, *reads)))
    begun = time.thread_time()
    data = [edge.src for edge in builder.build().edges if edge.kind == "data"]
    assert data == list(range(count))
    assert time.thread_time() - begun < 5, "not each with each"


def test_lane_tree_and_shared_prefix() -> None:
    graph = tip_graph().build()
    lanes = {lane.id: lane for lane in graph.lanes()}
    assert lanes[0].parent is None and lanes[1].parent == 0 and lanes[2].fork_node == 7
    assert graph.prefix_nodes(9) == (0, 1, 2, 3, 4, 5, 6, 7, 8)
    assert graph.shared_prefix(9, 10) == (0, 1, 2, 3, 4, 5, 6, 7)
    assert graph.shared_prefix(6, 9) == (0, 1, 2, 3, 4, 5)


def test_constant_prefix_stops_at_the_first_argument() -> None:
    graph = tip_graph().build()
    prefix = graph.constant_prefix(turns=Turns(), tokenizer=CharTokenizer())
    assert prefix.nodes == (0, 1, 2, 3, 4)
    assert prefix.text == "<system>You are terse.</><user>A tip about "
    assert prefix.ops[-1] == AppendText(0, 4, ("A tip about ",))
    tokenizer = CharTokenizer()
    expected: list[int] = []
    for piece, special in (
        ("<system>", True),
        ("You are terse.", False),
        ("</>", True),
        ("<user>", True),
        ("A tip about ", False),
    ):
        expected += tokenizer.encode(piece, special=special)
    assert prefix.token_ids == tuple(expected[:-1])
    assert graph.constant_prefix().text == "You are terse.A tip about "
    assert graph.constant_prefix().token_ids is None


def test_constant_prefix_stops_at_the_first_value() -> None:
    builder = GraphBuilder("p")
    builder.add(AppendText(0, 0, ("a", "b")))
    builder.add(AppendText(0, 1, ("c",)))
    builder.add(Generate(lane=0, node=2, name="x", sampling=SAMPLING))
    builder.add(AppendText(0, 3, ("d",)))
    prefix = builder.build().constant_prefix(tokenizer=CharTokenizer())
    assert (prefix.text, prefix.nodes, prefix.token_ids) == ("abc", (0, 1), (97, 98, 99))


def test_ops_bind_arguments_and_close() -> None:
    ops = tip_graph().build().ops({"topic": 3})
    assert ops[4] == AppendText(0, 4, ("A tip about ", "3", ", please."))
    assert ops[-1] == Close()
    assert AppendText(1, 8, ("More on ", VarRef("tip", 1))) in ops


@pytest.mark.parametrize(
    ("arguments", "named"), [({}, "topic"), ({"topic": "x", "tone": "y"}, "tone")]
)
def test_ops_refuse_missing_and_unknown_arguments(arguments: dict[str, str], named: str) -> None:
    with pytest.raises(ProgramError, match=named):
        tip_graph().build().ops(arguments)


def test_dynamic_graph_does_not_run_and_names_the_node() -> None:
    builder = tip_graph()
    builder.dynamic(12, on=[6])
    builder.dynamic(None, on=[9])
    graph = builder.build()
    assert not graph.is_static
    assert {(e.src, e.dst, e.name) for e in graph.edges if e.kind == "dynamic"} == {
        (6, 12, "tip"),
        (9, END, "more"),
    }
    with pytest.raises(ProgramError, match=r"node 12 depends on the value of node 6 \(tip\)"):
        graph.ops({"topic": "x"})
    assert RequestGraph.from_json(graph.to_json()) == graph


def test_ops_without_work_are_no_nodes() -> None:
    builder = GraphBuilder("p")
    for op in (Drop((1,)), Cancel((1,)), ReadLane(0, 5), Close()):
        builder.add(op)
    assert builder.build().nodes == ()


@pytest.mark.parametrize(
    ("op", "named"),
    [
        (AppendText(4, 1, ("x",)), "lane"),
        (AppendText(0, 1, (VarRef("who"),)), "who"),
        (AppendText(0, 1, (ArgRef("what"),)), "what"),
        (Join(0, 1, (9,)), "9"),
        (Fork(0, 1, (0,)), "lane that exists"),
    ],
)
def test_build_names_what_is_not_there(op: Op, named: str) -> None:
    builder = GraphBuilder("p")
    builder.add(op)
    with pytest.raises(ProgramError, match=named):
        builder.build()


def test_node_numbers_are_unique_and_dynamic_edges_need_nodes() -> None:
    builder = GraphBuilder("p")
    builder.add(AppendText(0, 0, ("x",)))
    with pytest.raises(ProgramError, match="node number"):
        builder.add(AppendText(0, 0, ("y",)))
    builder.dynamic(0, on=[8])
    with pytest.raises(ProgramError, match="8 -> 0"):
        builder.build()


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda data: data["nodes"][1]["op"].pop("lane"), r"\$\.nodes\[1\]\.op"),
        (lambda data: data["nodes"][0]["op"].update(type="jump"), "jump"),
        (lambda data: data.update(extra=1), "extra"),
        (lambda data: data.update(version=99), "99"),
        (lambda data: data["edges"].pop(0), "edges"),
        (lambda data: data["nodes"][4]["op"].update(lane="zero"), r"\$\.nodes\[4\]"),
        (lambda data: data["nodes"][4]["op"].update(lane=77), "77"),
    ],
)
def test_bad_json_says_where(change: object, where: str) -> None:
    data = json.loads(tip_graph().build().to_json())
    assert callable(change)
    change(data)
    with pytest.raises(ProgramError, match=where):
        RequestGraph.from_json(json.dumps(data))
    with pytest.raises(ProgramError, match="not a request graph"):
        RequestGraph.from_json(b"\xff{")


TEXT = st.text(max_size=12)


@st.composite
def graphs(draw: st.DrawFn) -> RequestGraph:
    """Any well-formed graph: lanes fork, values flow, some decisions are dynamic."""
    args = draw(st.lists(st.sampled_from("abc"), unique=True))
    builder = GraphBuilder(draw(TEXT), args)
    known: dict[int, list[str]] = {0: []}
    values: list[int] = []
    for node in range(draw(st.integers(0, 14))):
        lane = draw(st.sampled_from(sorted(known)))
        kind = draw(st.sampled_from(["text", "gen", "select", "set", "fork", "join", "role"]))
        if kind == "text":
            parts = [
                TEXT,
                *([st.sampled_from(args).map(ArgRef)] if args else []),
                *(
                    [st.sampled_from(known[lane]).map(lambda n, i=lane: VarRef(n, i))]
                    * bool(known[lane])
                ),
            ]
            builder.add(AppendText(lane, node, tuple(draw(st.lists(st.one_of(parts), max_size=4)))))
        elif kind == "role":
            builder.add(draw(st.sampled_from([BeginRole(lane, node, "user"), EndRole(lane, node)])))
        elif kind == "fork":
            children = (max(known) + 1, max(known) + 2)
            builder.add(Fork(lane, node, children))
            known.update({child: list(known[lane]) for child in children})
        elif kind == "join":
            others = [other for other in known if other != lane]
            builder.add(
                Join(lane, node, tuple(others[:2]), draw(st.sampled_from(["gather", "append"])))
            )
        else:
            name = draw(st.sampled_from("xyz"))
            sampling = SamplingParams(
                stop=tuple(draw(st.lists(TEXT, max_size=2))),
                logit_bias=draw(st.none() | st.dictionaries(st.integers(0, 9), st.floats(-5, 5))),
                constraint=draw(st.none() | st.just(Constraint(kind="regex", text="a+"))),
            )
            ops: dict[str, Op] = {
                "gen": Generate(lane=lane, node=node, name=name, sampling=sampling, stream=True),
                "select": Select(lane=lane, node=node, name=name, choices=("a", "b"), seed=3),
                "set": SetVariable(lane, node, name, draw(TEXT)),
            }
            builder.add(ops[kind])
            known[lane].append(name)
            values.append(node)
            builder.values(node, draw(TEXT))
        if draw(st.booleans()):
            builder.stats(NodeStats(node=node, start_s=0.25, tokens=draw(st.integers(0, 99))))
        if values and draw(st.booleans()) and values[-1] < node:
            builder.dynamic(node, on=values[-1:])
    return builder.build()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(graphs())
def test_json_round_trip(graph: RequestGraph) -> None:
    assert RequestGraph.from_json(graph.to_json()) == graph


@settings(max_examples=30, deadline=None, derandomize=True)
@given(graphs())
def test_mermaid_has_every_node_and_no_raw_markup(graph: RequestGraph) -> None:
    text = graph.to_mermaid()
    for node in graph.nodes:
        assert f"n{node.id}" in text
    for line in text.splitlines():
        if line.lstrip().startswith("n") and '"' in line and "-->" not in line:
            label = line[line.index('"') + 1 : line.rindex('"')]
            assert '"' not in label and "<" not in label


def test_html_is_written_and_safe_against_script_ends(tmp_path: Path) -> None:
    builder = GraphBuilder("p")
    builder.add(AppendText(0, 0, ("</script><script>alert(1)</script><!--", "\u2028")))
    graph = builder.build()
    page = graph.to_html(tmp_path / "trace.html")
    assert (tmp_path / "trace.html").read_text(encoding="utf-8") == page
    assert "alert(1)</script>" not in page and "<!--\\u2028" not in page
    start = page.index('id="graph"')
    start = page.index(">", start) + 1
    embedded = page[start : page.index("</script>", start)]
    assert RequestGraph.from_json(embedded) == graph
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in page
