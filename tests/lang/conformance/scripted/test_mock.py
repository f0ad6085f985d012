"""The mock keeps an engine's rules, through the real executor."""

from __future__ import annotations

import enum
import math
import threading
import time
from typing import Any

import pytest

import branchline as bl
from branchline.lang.errors import BackendError, ConstraintError, InvalidOption, InvalidRequest


class Answer(enum.Enum):
    YES = "yes"


def value(replies: Any, expression: Any = None, **options: Any) -> Any:
    @bl.function
    def program(s: bl.State) -> Any:
        s += "Q:"
        s += expression or bl.gen("x", **options)
        return s["x"]

    return program.run(backend=bl.Mock(replies)).result


@pytest.mark.parametrize(
    ("replies", "wanted"),
    [
        ("text", "text"),
        (["a", "b"], "a"),
        ({"x": "named"}, "named"),
        ({"x": ["in a list"]}, "in a list"),
        ({"x": lambda name, text: f"{name} after {text}"}, "x after Q:"),
        (lambda name, text: {"x": "deep"}, "deep"),
        (7, "7"),
        (Answer.YES, "yes"),
    ],
)
def test_ways_to_script_replies(replies: Any, wanted: str) -> None:
    assert value(replies) == wanted


@pytest.mark.parametrize(
    ("replies", "error", "says"),
    [
        ({"y": "other"}, BackendError, "no reply"),
        ([], BackendError, "used up"),
        (ValueError("mine"), BackendError, "mine"),
        (bl.DeadlineExceeded("late"), bl.DeadlineExceeded, "late"),
        (lambda name, text: 1 / 0, BackendError, "ZeroDivisionError"),
        (object(), InvalidRequest, "not a reply"),
    ],
)
def test_replies_that_fail_fail_their_variable(replies: Any, error: Any, says: str) -> None:
    with pytest.raises(error, match=says) as caught:
        value(replies)
    assert caught.value.variable == "x"
    assert caught.value.program == "program"


@pytest.mark.parametrize(
    ("options", "wanted", "reason"),
    [
        ({}, "one. two\nthree", "stop"),
        ({"stop": "\n"}, "one. two", "stop"),
        ({"stop": ["\n", "."]}, "one", "stop"),
        ({"stop_regex": "[.\n]"}, "one", "stop"),
        ({"stop": ["\n", ". "], "keep_stop": True}, "one. ", "stop"),
        ({"stop_regex": "t.o", "keep_stop": True}, "one. two", "stop"),
        ({"max_tokens": 5}, "one. ", "length"),
        ({"max_tokens": 4, "stop": "."}, "one", "stop"),
        ({"max_tokens": 3, "stop": "."}, "one", "length"),
    ],
    ids=str,
)
def test_stops_and_lengths(options: dict[str, Any], wanted: str, reason: str) -> None:
    @bl.function
    def program(s: bl.State) -> None:
        s += bl.gen("x", **options)

    state = program.run(backend=bl.Mock("one. two\nthree"))
    assert (state["x"], state.meta("x").finish_reason) == (wanted, reason)


def test_a_cut_keeps_whole_characters() -> None:
    assert value("aé", max_tokens=2) == "a"


def test_a_reply_against_its_constraint_is_an_error() -> None:
    for expression in (bl.gen("x", int), bl.gen("x", bl.choices(["a"])), bl.gen("x", regex="b+")):
        with pytest.raises(ConstraintError, match="does not match"):
            value("no", expression)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        *(("deadline_s", value) for value in (0, -1.0, math.nan, math.inf, "1", True)),
        *(("priority", value) for value in ("high", 1.5, 2**40)),
    ],
)
def test_when_to_run_is_checked_where_it_is_said(name: str, wrong: Any) -> None:
    for expression in (bl.gen("x", **{name: wrong}), bl.select("x", ["a"], **{name: wrong})):
        with pytest.raises(InvalidRequest, match=name):
            value("a", expression)

    @bl.function
    def program(s: bl.State) -> str:
        return "done"

    with pytest.raises(InvalidRequest, match=name):
        program.run(backend=bl.Mock("a"), **{name: wrong})


@pytest.mark.parametrize(
    ("reply", "where"), [('{"n":1}', " at character 5"), ('{"n": 1', ": it is cut short")]
)
def test_of_a_structure_it_says_where(reply: str, where: str) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    with pytest.raises(ConstraintError, match=f"json_schema constraint{where}"):
        value(reply, bl.gen("x", schema))


@pytest.mark.parametrize(
    "method",
    [
        "token_length_normalized",
        "greedy_token_selection",
        "unconditional_likelihood_normalized",
        "total",
    ],
)
@pytest.mark.parametrize("wanted", ["b", "a long choice indeed", "ab"])
def test_the_scripted_choice_wins_by_every_method(method: Any, wanted: str) -> None:
    choices = ["ab", "b", "a long choice indeed"]
    assert value(wanted, bl.select("x", choices, method=method)) == wanted
    assert value(f" {wanted} ", bl.gen("x", choices=choices, choices_method=method)) == wanted


def test_a_select_without_a_reply_is_deterministic_and_its_meta_complete() -> None:
    @bl.function
    def program(s: bl.State) -> Any:
        s += "Q:" + bl.select("x", ["a", "b", "c"])
        return s["x"], s.meta("x").choices

    (first, choices), (second, _) = (program.run(backend=bl.Mock({})).result for _ in range(2))
    assert first == second
    assert [choice.text for choice in choices] == ["a", "b", "c"]
    assert sum(choice.probability for choice in choices) == pytest.approx(1)
    assert all(choice.logprob == sum(choice.token_logprobs) for choice in choices)
    assert max(choices, key=lambda choice: choice.probability).text == first


def test_deadlines_and_latency() -> None:
    @bl.function
    def program(s: bl.State) -> None:
        s += bl.gen("x", deadline_s=0.05)

    begin = time.perf_counter()
    with pytest.raises(bl.DeadlineExceeded):
        program.run(backend=bl.Mock("a", latency_s=5))
    assert time.perf_counter() - begin < 2
    assert program.run(backend=bl.Mock("a", latency_s=0.01))["x"] == "a"


def test_closing_ends_programs_and_refuses_new_ones() -> None:
    @bl.function
    def program(s: bl.State) -> Any:
        s += bl.gen("x")
        threading.Timer(0.05, mock.close).start()
        return s["x"]

    mock = bl.Mock("a", latency_s=20)
    begin = time.perf_counter()
    with pytest.raises(bl.Cancelled, match="closed"):
        program.run(backend=mock)
    assert time.perf_counter() - begin < 3
    with pytest.raises(BackendError, match="closed"):
        program.run(backend=mock)
    mock.close()


def test_after_closing_values_stay_and_texts_are_an_error_and_nothing_hangs() -> None:
    @bl.function
    def program(s: bl.State) -> None:
        s += "a" + bl.gen("x")

    mock = bl.Mock("b")
    state = program.run(backend=mock)
    mock.close()
    assert state["x"] == "b"
    with pytest.raises(BackendError, match="closed"):
        state.text()


def test_settings_are_checked() -> None:
    with pytest.raises(InvalidRequest):
        bl.Mock("a", latency_s=-1)
    with pytest.raises(InvalidOption):
        bl.Mock("a", sampling_defaults={"temprature": 1})
    mock = bl.Mock("a")
    assert mock.info()["model"] == "mock"
    mock.flush_cache()


def test_which_backend_is_used() -> None:
    @bl.function
    def program(s: bl.State) -> Any:
        s += bl.gen("x")
        return s["x"]

    @bl.function
    def outer(s: bl.State) -> Any:
        with bl.Mock("inner"):
            inside = program.run().result
        return program.run().result, inside, program.run(backend=bl.Mock("given")).result

    bl.set_default_backend(bl.Mock("default"))
    try:
        assert program.run().result == "default"
        with bl.Mock("scoped") as scoped:
            assert program.run().result == "scoped"
            with bl.Mock("deeper"):
                assert program.run().result == "deeper"
            assert program.run().result == "scoped"
            assert outer.run().result == ("scoped", "inner", "given")
        assert program.run(backend=scoped).result == "scoped"
        assert outer.run(backend=bl.Mock("own")).result == ("own", "inner", "given")
        assert [s.result for s in outer.run_batch([{}], backend=bl.Mock("own"))] == [
            ("own", "inner", "given")
        ]
        assert program.run().result == "default"
    finally:
        bl.set_default_backend(None)
    with pytest.raises(InvalidRequest, match="not a backend"):
        bl.set_default_backend("http://x")  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="not a backend"):
        program.run(backend="x")


def test_what_a_backend_cannot_do_is_refused_before_anything_is_sent() -> None:
    class Small(bl.Mock):
        def __init__(self) -> None:
            super().__init__("a")
            self.name = "small"
            self.features = frozenset({"tokens"})

    def attempt(expression: bl.Expression) -> None:
        @bl.function
        def program(s: bl.State) -> None:
            s += expression

        program.run(backend=Small())

    for expression in (
        bl.select("x", ["a"]),
        bl.user("hi"),
        bl.gen("x", logprobs=1),
        bl.call("x", {"name": "f"}),
        bl.gen("x", adapter="mine"),
    ):
        with pytest.raises(bl.UnsupportedFeature, match="'small' does not support"):
            attempt(expression)
    with pytest.raises(bl.UnsupportedConstraint, match="cannot enforce"):
        attempt(bl.gen("x", int))


@pytest.mark.parametrize(
    ("reply", "expression", "wanted", "reason"),
    [
        ("41", bl.gen("x", int), 41, "constraint"),
        (
            '{"n": 1}',
            bl.gen("x", {"properties": {"n": {"type": "integer"}}}),
            {"n": 1},
            "constraint",
        ),
        ("abc", bl.gen("x", regex="[a-c]+", stop="c"), "ab", "stop"),
        ("abc", bl.gen("x", regex="[a-c]{3}", stop="c"), "ab", "stop"),
        ("41", bl.gen("x", int, stop="1"), 4, "stop"),
    ],
)
def test_ends_under_a_constraint_have_the_engines_names(
    reply: str, expression: Any, wanted: Any, reason: str
) -> None:
    @bl.function
    def program(s: bl.State) -> None:
        s += expression

    state = program.run(backend=bl.Mock(reply))
    assert (state["x"], state.meta("x").finish_reason) == (wanted, reason)


@pytest.mark.parametrize(
    ("reply", "expression"),
    [
        ('{"n": 1}', bl.gen("x", {"properties": {"n": {"type": "integer"}}}, stop="1")),
        ("red", bl.gen("x", bl.choices(["red", "blue"]), stop="e")),
        ("n=3", bl.gen("x", bl.seq("n=", bl.capture("k", int)), stop="=")),
    ],
)
def test_a_value_that_a_stop_cut_short_says_so(reply: str, expression: Any) -> None:
    @bl.function
    def program(s: bl.State) -> str:
        s += expression
        return str(s.meta("x").text)

    state = program.run(backend=bl.Mock(reply))
    assert reply.startswith(state.result)
    with pytest.raises(bl.TruncatedError, match="cut by the stop") as caught:
        state["x"]
    assert (caught.value.program, caught.value.variable) == ("program", "x")


def test_a_reply_that_a_stop_cuts_must_begin_a_match() -> None:
    with pytest.raises(ConstraintError, match="does not match"):
        value("xyz", bl.gen("x", regex="[a-c]+", stop="z"))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"regex": "("}, InvalidRequest),
        ({"regex": "(?=a)a"}, bl.UnsupportedConstraint),
        ({"stop_regex": "("}, InvalidRequest),
        ({"stop_regex": "(?=a)"}, InvalidRequest),
    ],
)
def test_patterns_that_an_engine_refuses_are_refused(options: dict[str, Any], error: Any) -> None:
    with pytest.raises(error):
        value("a", bl.gen("x", **options))


@pytest.mark.parametrize(
    ("options", "wanted", "matched"),
    [
        ({"stop_token_ids": [ord("c")]}, "ab", ord("c")),
        ({"stop_token_ids": [ord("c")], "min_tokens": 3}, "abcab", ord("c")),
        ({"stop_token_ids": [ord("b")], "stop": "bc"}, "a", ord("b")),
        ({"stop": "ca", "keep_stop": True}, "abca", "ca"),
        ({"stop_regex": "[c-z]"}, "ab", "c"),
        ({}, "abcabc", None),
    ],
    ids=str,
)
def test_what_ended_a_reply(options: dict[str, Any], wanted: str, matched: Any) -> None:
    @bl.function
    def program(s: bl.State) -> None:
        s += bl.gen("x", **options)

    state = program.run(backend=bl.Mock("abcabc"))
    assert (state["x"], state.meta("x").matched) == (wanted, matched)
    assert state.meta("x").finish_reason == "stop"
