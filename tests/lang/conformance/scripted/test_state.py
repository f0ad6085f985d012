"""The state: appending never waits, reading does, names stand for one thing."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import pytest

import branchline as bl
from branchline.lang.errors import InvalidRequest, ProgramError


def run(body: Any, replies: Any = "reply", **options: Any) -> bl.State:
    return bl.function(body).run(backend=bl.Mock(replies, **options))


def test_appending_does_not_wait_and_reading_does() -> None:
    appended = threading.Event()

    def reply(name: str, text: str) -> str:
        if not appended.wait(20):
            raise TimeoutError("appending waits for this reply")
        return f"reply to {name}"

    def body(s: bl.State) -> Any:
        for number in range(3):
            s += bl.gen(f"x{number}")
        appended.set()
        return s["x0"], s["x2"]

    assert run(body, reply, latency_s=0.05).result == ("reply to x0", "reply to x2")


def test_work_starts_before_anything_is_read() -> None:
    asked = threading.Event()

    def reply(name: str, text: str) -> str:
        asked.set()
        return "reply"

    def body(s: bl.State) -> bool:
        s += bl.gen("x")
        return asked.wait(20)

    assert run(body, reply).result


def test_everything_a_state_offers() -> None:
    def body(s: bl.State) -> None:
        s += bl.system("Be brief.")
        s += [bl.user("Hi " + "there"), bl.assistant(bl.gen("answer", logprobs=0))]
        s.set("number", 7)
        s["text"] = "set"

    state = run(body)
    assert state["answer"] == "reply"
    assert (state["number"], state["text"]) == (7, "set")
    assert ("answer" in state, "nope" in state) == (True, False)
    assert state.get("nope", 3) == 3
    assert state.messages() == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi there"},
        {"role": "assistant", "content": "reply"},
    ]
    text = state.text()
    assert text.index("Be brief.") < text.index("Hi there") < text.index("reply")
    assert len(state.tokens()) <= len(text.encode())
    meta = state.meta("answer")
    assert (meta.finish_reason, meta.output_tokens, meta.model) == ("stop", 5, "mock")
    assert len(meta.logprobs) == 5
    assert state.usage.output_tokens == 5
    assert state.usage.generations == 1
    assert state.names == ["answer", "number", "text"]


def test_an_unknown_variable_names_the_known_ones() -> None:
    def body(s: bl.State) -> None:
        s += bl.gen("first") + bl.gen("second")
        s["third"]

    with pytest.raises(KeyError) as caught:
        run(body)
    assert isinstance(caught.value, ProgramError)
    assert "first, second" in str(caught.value)
    assert "'third'" in str(caught.value)


def test_a_name_twice_is_a_name_error_unless_appended() -> None:
    def twice(s: bl.State) -> None:
        s += bl.gen("x") + bl.gen("x")

    def mixed(s: bl.State) -> None:
        s += bl.gen("x") + bl.gen("x", append=True)

    def lists(s: bl.State) -> Any:
        for _ in range(3):
            s += bl.gen("x", append=True)
        return s["x"]

    def reversed_(s: bl.State) -> None:
        s += bl.gen("x", append=True) + bl.gen("x")

    for body in (twice, reversed_):
        with pytest.raises(NameError, match="'x'"):
            run(body)
    assert run(lists, ["a", "b", "c"]).result == ["a", "b", "c"]
    assert run(mixed, ["a", "b"])["x"] == ["a", "b"]


def test_a_branch_cannot_append_to_its_parents_variable() -> None:
    def body(s: bl.State) -> None:
        s += bl.gen("x")
        with s.fork(1) as branches:
            branches[0] += bl.gen("x", append=True)

    with pytest.raises(NameError, match="shadows"):
        run(body, ["a", "b"])


def test_unnamed_expressions_are_numbered() -> None:
    def body(s: bl.State) -> Any:
        s += bl.gen() + bl.select(choices=["a", "b"]) + bl.gen()
        return s["_0"], s["_1"], s["_2"]

    assert run(body, ["x", "b", "y"]).result == ("x", "b", "y")


@pytest.mark.parametrize(
    ("value", "says"),
    [(None, "None was appended"), (5, "type int"), (b"x", "type bytes"), ([1], "type int")],
)
def test_only_text_and_expressions_can_be_appended(value: Any, says: str) -> None:
    def body(s: bl.State) -> None:
        s += value

    with pytest.raises(ProgramError, match=says):
        run(body)


@pytest.mark.parametrize(
    "option",
    [
        {"max_tokens": 0},
        {"max_tokens": -5},
        {"temperature": -0.1},
        {"temperature": "hot"},
        {"top_p": 0.0},
        {"n": 0},
        {"stop": [""]},
        {"stop": [3]},
        {"logit_bias": {"a": 1}},
        {"seed": "s"},
        {"seed": 2**64},
        {"seed": -(2**63) - 1},
    ],
    ids=str,
)
def test_a_value_out_of_range_is_refused_where_it_is_appended(option: dict[str, Any]) -> None:
    def body(s: bl.State) -> str:
        with pytest.raises(InvalidRequest) as caught:
            s += bl.gen("x", **option)
        s += "still usable"
        return str(caught.value)

    assert next(iter(option)) in run(body).result


@pytest.mark.parametrize("seed", ["s", 2**64, -(2**63) - 1, True])
def test_a_seed_of_a_select_is_a_whole_number_of_64_bits(seed: Any) -> None:
    with pytest.raises(InvalidRequest, match="seed"):
        bl.select("x", ["a", "b"], temperature=1.0, seed=seed)


def test_an_unknown_option_is_a_type_error_with_a_suggestion() -> None:
    with pytest.raises(TypeError, match="max_tokens"):
        bl.gen("x", max_token=3)  # type: ignore[call-arg]


def test_scope_names_the_text_inside() -> None:
    def body(s: bl.State) -> Any:
        s += "a"
        with s.scope("part"):
            s += "b" + bl.gen("x") + "c"
        s += "d"
        return s["part"], s.meta("part").text

    assert run(body).result == ("breplyc", "breplyc")


@pytest.mark.parametrize(
    "items",
    [
        [bl.user_begin(), bl.system_begin()],
        [bl.user_end()],
        [bl.user_begin(), bl.assistant_end()],
        [bl.user(bl.system("x"))],
    ],
)
def test_turns_come_in_pairs(items: list[bl.Expression]) -> None:
    def body(s: bl.State) -> None:
        s += items

    with pytest.raises(ProgramError, match="turn"):
        run(body)


def test_roles_by_with_and_by_begin_and_end_are_the_same() -> None:
    def by_call(s: bl.State) -> None:
        s += bl.user("a") + bl.assistant(bl.gen("x"))

    def by_with(s: bl.State) -> None:
        with s.user():
            s += "a"
        with s.assistant() as same:
            same += bl.gen("x")

    def by_ends(s: bl.State) -> None:
        s += bl.user_begin() + "a" + bl.user_end()
        s += bl.assistant_begin()
        s += bl.gen("x")
        s += bl.assistant_end()

    states = [run(body) for body in (by_call, by_with, by_ends)]
    assert len({tuple(state.tokens()) for state in states}) == 1
    assert states[0].messages() == states[1].messages() == states[2].messages()


@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
def test_every_role_can_be_begun_and_ended(role: str) -> None:
    turn, begin, end = (getattr(bl, name) for name in (role, f"{role}_begin", f"{role}_end"))

    def whole(s: bl.State) -> None:
        s += turn("a")

    def parts(s: bl.State) -> None:
        s += begin() + "a" + end()

    one, other = run(whole), run(parts)
    assert one.tokens() == other.tokens()
    assert one.messages() == other.messages() == [{"role": role, "content": "a"}]


def test_a_program_inside_a_program_uses_the_same_state() -> None:
    @bl.function(temperature=0.0, max_tokens=2)
    def inner(s: bl.State, word: str) -> str:
        s += word + bl.gen("x_" + word)
        value: str = s["x_" + word]
        return value

    def body(s: bl.State) -> Any:
        direct = inner(s, word="a")
        s += inner(word="b")
        s += "c" + bl.user(inner("d")) + bl.gen("own")
        return direct, s["x_b"], s["x_d"], s["own"]

    assert run(body, "reply").result == ("re", "re", "re", "reply")


def test_defaults_call_over_run_over_program_over_backend() -> None:
    @bl.function(max_tokens=4)
    def program(s: bl.State, mine: int | None = None) -> str:
        s += bl.gen("x") if mine is None else bl.gen("x", max_tokens=mine)
        value: str = s["x"]
        return value

    @bl.function
    def plain(s: bl.State) -> str:
        s += bl.gen("x")
        value: str = s["x"]
        return value

    backend = bl.Mock("abcdefgh", sampling_defaults={"max_tokens": 5})
    assert program.run(1, backend=backend, max_tokens=2).result == "a"
    assert program.run(backend=backend, max_tokens=2).result == "ab"
    assert program.run(backend=backend).result == "abcd"
    assert plain.run(backend=backend).result == "abcde"


def test_the_state_after_the_run_is_readable_and_takes_nothing_more() -> None:
    def body(s: bl.State) -> None:
        s += "a" + bl.gen("x")

    state = run(body)
    assert state.text() == "areply"
    with pytest.raises(ProgramError, match="has ended"):
        state += "more"
    with pytest.raises(ProgramError, match="has ended"):
        state.fork(2)


def test_a_state_may_be_read_by_other_threads() -> None:
    def body(s: bl.State) -> Any:
        s += bl.gen("x")
        found: list[Any] = []
        threads = [threading.Thread(target=lambda: found.append(s["x"])) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found

    assert run(body, latency_s=0.05).result == ["reply"] * 4


def test_a_finished_run_is_freed_without_the_garbage_collector() -> None:
    def body(s: bl.State) -> None:
        branch = s.fork(2)
        branch += bl.gen("x")
        branch.join()

    gc.collect()
    gc.disable()
    try:
        mock = bl.Mock("a")
        state = bl.function(body).run(backend=mock)
        gone = weakref.ref(state._run)
        del state
        assert gone() is None
    finally:
        gc.enable()


def test_meta_of_a_failed_variable_tells_what_there_is() -> None:
    metas: list[Any] = []

    def body(s: bl.State) -> None:
        s += bl.gen("x")
        metas.append(s.meta("x"))

    with pytest.raises(bl.BackendError):
        run(body, RuntimeError("boom"))
    assert "boom" in str(metas[0].error)
    assert metas[0].finish_reason == "error"


def test_the_graph_of_a_run_holds_values_and_stats() -> None:
    def body(s: bl.State) -> None:
        s += "a" + bl.gen("x") + bl.select("y", ["reply", "other"])

    graph = run(body).graph
    assert [node.kind for node in graph.nodes] == ["append", "generate", "select"]
    assert [node.values for node in graph.nodes[1:]] == [("reply",), ("reply",)]
    assert all(node.stats is not None for node in graph.nodes)
    assert bl.RequestGraph.from_json(graph.to_json()) == graph


def test_notebook_view_shows_text_and_never_fails() -> None:
    def body(s: bl.State) -> str:
        s += bl.user("<hi>") + bl.gen("x")
        early: str = s._repr_html_()
        return early

    state = run(body, latency_s=0.05)
    assert "&lt;hi&gt;" in state.result
    assert "reply" in state._repr_html_()


def test_defaults_of_a_program_inside_hold_over_the_backends_and_the_outer_ones() -> None:
    @bl.function(max_tokens=4)
    def inner(s: bl.State, name: str) -> None:
        s += bl.gen(name)

    @bl.function(max_tokens=6)
    def outer(s: bl.State) -> Any:
        s += bl.gen("before") + inner("by_name")
        inner(s, "direct")
        with s.fork(1) as branches:
            inner(branches[0], "branch")
        s += bl.gen("after")
        return [len(s[n]) for n in ("before", "by_name", "direct", "after")], s["branch"]

    backend = bl.Mock("abcdefgh", sampling_defaults={"max_tokens": 5})
    assert outer.run(backend=backend).result == ([6, 4, 4, 6], ["abcd"])
    assert outer.run(backend=backend, max_tokens=2).result == ([2, 2, 2, 2], ["ab"])
    assert inner.run("x", backend=backend)["x"] == "abcd"


@pytest.mark.parametrize(
    ("body", "variable"),
    [
        (lambda s: s.__iadd__(bl.gen("x", max_tokens=0)), "x"),
        (lambda s: s.__iadd__(bl.gen("x", deadline_s=-1)), "x"),
        (lambda s: s.__iadd__(bl.gen("x", complex)), "x"),
        (lambda s: s.__iadd__(bl.select("x", [])), "x"),
        (lambda s: s.__iadd__(bl.call("x", [])), "x"),
        (lambda s: s.__iadd__(bl.gen("x", regex="a", choices=["a"])), "x"),
        (lambda s: s.__iadd__(bl.gen(5)), "5"),
        (lambda s: s.__iadd__(None), ""),
        (lambda s: s.__iadd__(bl.gen("x") + 5), ""),
        (lambda s: s.fork(0), ""),
        (lambda s: s.fork(2).join("sideways"), ""),
        (lambda s: s.set("", 1), ""),
    ],
)
def test_every_error_of_a_program_says_where(body: Any, variable: str) -> None:
    @bl.function
    def named(s: bl.State) -> Any:
        return body(s)

    with pytest.raises(bl.BranchlineError) as caught:
        named.run(backend=bl.Mock("reply"))
    error = caught.value
    assert (error.program, error.variable) == ("named", variable)
    assert error.hint and "named" in str(error)
