"""A traced graph, run without its function: the values the function would have seen."""

from __future__ import annotations

from typing import Any

import pytest

import branchline as bl
from branchline.lang.errors import ProgramError
from branchline.runtime.programs.graph import RequestGraph


@bl.function(max_tokens=40)
def debate(s: bl.State, claim: str, sides: int = 2) -> Any:
    s += bl.system("Be brief.") + bl.user(f"Is this so: {claim}?")
    s["kind"] = "debate"
    with s.fork(sides) as branches:
        for number, branch in enumerate(branches):
            branch += bl.assistant(f"View {number}: " + bl.gen("view"))
    s += bl.assistant(f"They say {s['view'][0]}. So: " + bl.select("verdict", ["yes", "no"]))
    for _ in range(2):
        s += bl.user(bl.gen("more", append=True))


REPLIES = {"view": "it depends", "verdict": "no", "more": "and on"}


def test_a_graph_gives_what_its_function_gives() -> None:
    graph = RequestGraph.from_json(debate.trace().to_json())
    assert graph.is_static and graph.args == ("claim", "sides")
    ran = bl.run_graph(graph, {"claim": "it rains", "sides": 2}, backend=bl.Mock(REPLIES))
    state = debate.run("it rains", backend=bl.Mock(REPLIES))
    for name in state.names:
        assert ran[name] == state[name], name
    assert sorted(ran.names) == sorted(state.names)
    assert ran.text() == state.text() and ran.tokens() == state.tokens()
    assert ran.messages() == state.messages()
    assert ran.meta("verdict").choices == state.meta("verdict").choices
    assert ran.usage == state.usage
    assert [n.values for n in ran.graph.nodes] == [n.values for n in state.graph.nodes]


def test_branches_that_are_appended_are_in_the_messages() -> None:
    @bl.function
    def program(s: bl.State) -> None:
        s += bl.user_begin()
        forks = s.fork(2)
        forks += bl.gen("x")
        forks.join("append")
        s += bl.user_end()

    ran = bl.run_graph(program.trace(), backend=bl.Mock("a"))
    assert ran.messages() == [{"role": "user", "content": "aa"}] and ran["x"] == ["a", "a"]


def test_what_a_graph_cannot_do_is_said_before_anything_runs() -> None:
    @bl.function
    def dynamic(s: bl.State) -> None:
        s += bl.gen("x")
        if s["x"] == "a":
            s += bl.gen("y")

    backend = bl.Mock("a")
    with pytest.raises(ProgramError, match="depends on the value"):
        bl.run_graph(dynamic.trace(), backend=backend)
    with pytest.raises(ProgramError, match="missing argument"):
        bl.run_graph(debate.trace(), backend=backend)
    with pytest.raises(ProgramError, match="unknown argument"):
        bl.run_graph(debate.trace(), {"claim": "a", "nope": 1}, backend=backend)


def test_the_first_error_of_a_graph_is_raised_and_names_its_place() -> None:
    replies = {"view": ValueError("no"), "verdict": "no", "more": "x"}
    with pytest.raises(bl.BackendError, match="no") as caught:
        bl.run_graph(debate.trace(), {"claim": "c"}, backend=bl.Mock(replies))
    assert (caught.value.program, caught.value.variable) == ("debate", "view")
