"""Tools: what the model is told, what a program gets, and what a tool is called with."""

from __future__ import annotations

import asyncio
import datetime
import json
import threading
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge

import branchline as bl
from branchline.lang.tools import Call, read_docstring, result_text
from branchline.runtime.programs.graph import RequestGraph
from branchline.runtime.programs.protocol import Generate


class Unit(Enum):
    C = "celsius"
    F = "fahrenheit"


@dataclass
class Place:
    city: str
    country: str = "DE"


@bl.tool
def weather(place: Place, day: datetime.date, unit: Unit = Unit.C, *, days: int = 1) -> str:
    """Weather of a place.

    More about it,
    in two lines.

    Args:
        place: where, with
            its country.
        day: first day.
        days (int): how many.

    Returns:
        A text.
    """
    return f"{place.city}/{place.country} {day:%d.%m.} {unit.name} x{days}"


@bl.tool(name="div", description="Divides 1.")
def divide(by: Annotated[int, Ge(0)]) -> float:
    return 1 / by


@bl.tool
async def later(seconds: float = 0.0) -> str:
    """Waits."""
    await asyncio.sleep(seconds)
    return "waited"


SEARCH: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "search",
        "description": "Finds.",
        "parameters": {
            "type": "object",
            "properties": {"q": {"type": "string"}, "top": {"type": "integer"}},
            "required": ["q"],
        },
    },
}


def call_text(name: str, **arguments: Any) -> str:
    written = json.dumps(arguments, ensure_ascii=False)
    return f'<tool_call>{{"name": "{name}", "arguments": {written}}}</tool_call>'


WEATHER = call_text("weather", place={"city": "Köln"}, day="2026-05-04", unit="fahrenheit")


@bl.function
def ask(s: Any, tools: Any, choice: Any = "auto", parallel: bool = True) -> Any:
    s += bl.user("Well?")
    s += bl.assistant(bl.call("reply", tools, choice=choice, parallel=parallel))
    return s["reply"]


def one_call(text: str, tools: Any) -> Call:
    (found,) = ask.run(tools, backend=bl.Mock(text)).result.calls
    return found


@dataclass
class Even:
    n: int

    def __post_init__(self) -> None:
        if self.n % 2:
            raise ValueError("odd")


def half(even: Even) -> int:
    return even.n // 2


# ---- what the model is told


def test_a_signature_and_a_docstring_are_the_spec() -> None:
    spec = weather.spec
    assert (spec.name, spec.description) == (
        "weather",
        "Weather of a place. More about it, in two lines.",
    )
    assert "maximum" in spec.schema["properties"]["days"]
    assert "pattern" in spec.schema["properties"]["day"]
    fields = spec.shown["properties"]
    assert list(fields) == ["place", "day", "unit", "days"]
    assert spec.parameters["required"] == ["place", "day"]
    assert fields["place"]["description"] == "where, with its country."
    assert fields["days"]["description"] == "how many."
    assert fields["unit"] == {"enum": ["celsius", "fahrenheit"]}
    assert "description" not in fields["unit"]
    assert fields["day"] == {"type": "string", "format": "date", "description": "first day."}
    assert "maximum" not in fields["days"]


def test_a_tool_is_still_its_function() -> None:
    assert weather(Place("Rom", "IT"), datetime.date(2026, 1, 2)) == "Rom/IT 02.01. C x1"
    assert repr(weather) == "<tool weather>"
    assert weather.__doc__ == weather.spec.description


@pytest.mark.parametrize(
    ("text", "about", "notes"),
    [
        ("", "", {}),
        ("One line.", "One line.", {}),
        (
            "A.\n\n:param x: ex.\n:param int y: why:\n    not\n:return: z",
            "A.",
            {"x": "ex.", "y": "why: not"},
        ),
        (
            "A.\n\nArgs:\n    x: has: colon\n    y:\n      below\n\nRaises:\n    E: no",
            "A.",
            {"x": "has: colon", "y": "below"},
        ),
    ],
)
def test_docstrings_are_read_in_the_usual_forms(
    text: str, about: str, notes: dict[str, str]
) -> None:
    assert read_docstring(text) == (about, notes)


def test_functions_that_cannot_be_tools_are_refused_by_name() -> None:
    def bare(x) -> None: ...  # type: ignore[no-untyped-def]

    def many(*xs: int) -> None: ...

    def odd(x: complex) -> None: ...

    with pytest.raises(bl.InvalidRequest, match="a parameter of tool 'bare' has no type"):
        bl.tool(bare)
    with pytest.raises(bl.InvalidRequest, match="cannot be given by name"):
        bl.tool(many)
    with pytest.raises(bl.UnsupportedConstraint, match="x"):
        bl.tool(odd)


def test_the_model_is_told_before_the_first_turn_and_once() -> None:
    @bl.function
    def twice(s: Any) -> Any:
        s += bl.system("Be brief.")
        with s.user():
            s += "Well?"
        for _ in range(2):
            with s.assistant():
                s += bl.call("step", [divide, SEARCH], append=True)
        return s.text()

    text = twice.run(backend=bl.Mock("Done.")).result
    assert text.count('"name": "search"') == text.count('"name": "div"') == 1
    assert text.startswith("<|turn|>system\nYou can call these tools")
    assert "\n\nBe brief.<|end|>\n<|turn|>user\nWell?" in text


def test_a_plain_text_program_is_told_too() -> None:
    @bl.function
    def plain(s: Any) -> Any:
        s += "Q: 1/2?\n" + bl.call("x", [divide])
        return s.text()

    text = plain.run(backend=bl.Mock("A")).result
    assert text.startswith("You can call these tools")
    assert text.endswith("\n\nQ: 1/2?\nA")


# ---- what a program gets


def test_arguments_are_instances() -> None:
    found = one_call(WEATHER, [weather])
    assert found.name == "weather"
    assert found.arguments == {
        "place": Place("Köln"),
        "day": datetime.date(2026, 5, 4),
        "unit": Unit.F,
    }
    assert found.run() == "Köln/DE 04.05. F x1"
    assert found.id.startswith("call_")


def test_tools_may_be_dicts_functions_or_alone() -> None:
    found = one_call(call_text("search", q="x", top=3), SEARCH)
    assert found.arguments == {"q": "x", "top": 3}
    with pytest.raises(bl.ProgramError, match="described only"):
        found.run()

    def double(x: int) -> int:
        return 2 * x

    assert one_call(call_text("double", x=4), double).run() == 8


def test_text_and_calls_are_told_apart() -> None:
    div = call_text("div", by=4)
    reply = ask.run([divide, weather], backend=bl.Mock(f"Let me see. {div}\n{div} so")).result
    assert (reply.text, str(reply)) == ("Let me see.  so", "Let me see.  so")
    assert [call.run() for call in reply.calls] == [0.25, 0.25]
    assert len({call.id for call in reply.calls}) == 2
    assert ask.run([divide], backend=bl.Mock("Just text.")).result.calls == []


def test_gen_takes_tools_as_call_does() -> None:
    @bl.function
    def program(s: Any) -> Any:
        s += bl.gen("x", tools=[divide], tool_choice="required", parallel=False, max_tokens=200)
        return s["x"].calls[0].run()

    state = program.run(backend=bl.Mock(call_text("div", by=2)))
    assert state.result == 0.5
    node = next(n.op for n in state.graph.nodes if isinstance(n.op, Generate))
    assert node.tools is not None and node.sampling.max_tokens == 200
    assert (node.tools.choice, node.tools.parallel) == ("required", False)
    for options in ({"regex": "a"}, {"choices": ["a"]}, {"type": int}):
        with pytest.raises(bl.InvalidRequest, match="one constraint"):
            bl.gen("x", tools=[divide], **options)
    with pytest.raises(bl.InvalidRequest, match="tool_choice without tools"):
        bl.gen("x", tool_choice="required")


@pytest.mark.parametrize(
    ("choice", "text", "fits"),
    [
        ("required", "Just text.", False),
        ("required", call_text("div", by=2), True),
        ("div", call_text("search", q="x"), False),
        (divide, call_text("div", by=2), True),
        ("none", call_text("div", by=2), False),
        ("none", "Just text.", True),
        ("auto", call_text("div", by="two"), False),
        ("auto", call_text("nothing"), False),
    ],
)
def test_a_choice_binds_the_model(choice: Any, text: str, fits: bool) -> None:
    pytest.importorskip("llguidance")
    if fits:
        ask.run([divide, SEARCH], choice, backend=bl.Mock(text))
        return
    with pytest.raises(bl.ConstraintError):
        ask.run([divide, SEARCH], choice, backend=bl.Mock(text))


def test_wrong_tools_and_choices_are_refused_where_they_are_written() -> None:
    for tools, choice, what in (
        ([divide], "sub", "no tool has the name that is chosen"),
        ([], "auto", "no tools"),
        (None, "auto", "no tools"),
        ([divide, divide], "auto", "one name"),
        ("div", "auto", "list of tools"),
        ([{"name": "x y"}], "auto", "not the name of a tool"),
        ([divide], 3, "a text or a tool"),
    ):
        with pytest.raises(bl.InvalidRequest, match=what):
            bl.call("x", tools, choice=choice)
    with pytest.raises(bl.InvalidRequest, match="no option 'regex'"):
        bl.call("x", [divide], regex="a")  # type: ignore[call-arg]


def test_a_call_that_was_cut_is_no_call() -> None:
    @bl.function
    def short(s: Any, choice: str) -> Any:
        s += bl.call("x", [divide], choice=choice, max_tokens=20)
        return s["x"]

    for choice in ("auto", "required"):
        with pytest.raises(bl.TruncatedError, match="before the tool call was complete"):
            short.run(choice, backend=bl.Mock(call_text("div", by=2)))
    assert short.run("auto", backend=bl.Mock("some text, which is long")).result.calls == []


def test_a_class_s_own_validation_is_met_by_the_reader() -> None:
    with pytest.raises(bl.ConstraintError, match="odd"):
        one_call(call_text("half", even={"n": 3}), half)
    assert one_call(call_text("half", even={"n": 4}), half).run() == 2


# ---- results


def test_a_tool_that_raises_tells_the_model() -> None:
    @bl.function
    def agent(s: Any) -> Any:
        s += bl.user("1/0?")
        s += bl.assistant(bl.call("a", [divide]))
        for found in s["a"].calls:
            s += bl.tool_result(found, found.run())
            s += bl.tool_result(found)
        s += bl.assistant(bl.gen("b"))
        return s.messages()

    mock = bl.Mock({"a": call_text("div", by=0), "b": "Cannot be."})
    messages = agent.run(backend=mock).result
    said = {"role": "tool", "content": "Error: ZeroDivisionError: division by zero"}
    assert messages[2:4] == [said, said]
    assert messages[4] == {"role": "assistant", "content": "Cannot be."}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("as it is", "as it is"),
        (3, "3"),
        (None, "null"),
        ({"a": [1, datetime.date(2026, 1, 2)]}, '{"a":[1,"2026-01-02"]}'),
        (Place("Rom"), '{"city":"Rom","country":"DE"}'),
        (ValueError("no"), "Error: ValueError: no"),
        (bl.ToolFailure(KeyError("x")), "Error: KeyError: 'x'"),
        (1j, "1j"),
    ],
)
def test_results_are_text_or_json(value: object, text: str) -> None:
    assert result_text(value) == text


def test_async_tools_run_in_every_kind_of_program() -> None:
    @bl.function
    async def agent(s: Any) -> Any:
        s += bl.user("Wait.")
        s += bl.assistant(bl.call("a", [later, divide]))
        calls = (await s.aget("a")).calls
        with pytest.raises(bl.ProgramError, match="has not been waited for"):
            bl.tool_result(calls[0])
        return [await calls[0].run(), await calls[0].arun(), await calls[1].arun()]

    both = call_text("later") + "\n" + call_text("div", by=0)
    with pytest.warns(RuntimeWarning, match="never awaited"):
        found = asyncio.run(agent.arun(backend=bl.Mock(both))).result
    assert found[:2] == ["waited", "waited"]
    assert isinstance(found[2], bl.ToolFailure)
    assert one_call(call_text("later", seconds=0.001), later).run() == "waited"


# ---- streams, forks, graphs


def test_a_stream_tells_of_calls_as_they_are_written() -> None:
    text = f"First {call_text('div', by=2)} then {call_text('div', by=4)}"
    events = list(ask.stream([divide], backend=bl.Mock(text)))
    calls = [event for event in events if isinstance(event, bl.ToolCall)]
    assert [(e.name, e.call.name, e.call.run()) for e in calls] == [
        ("reply", "div", 0.5),
        ("reply", "div", 0.25),
    ]
    deltas = "".join(event.text for event in events if isinstance(event, bl.TextDelta))
    assert deltas == "First  then " == events[-1].state["reply"].text  # type: ignore[union-attr]
    assert events.index(calls[0]) < events.index(calls[1])


def test_text_iter_has_the_text_without_calls() -> None:
    live = ask.run([divide], stream=True, backend=bl.Mock(f"Well {call_text('div', by=2)}."))
    assert "".join(live.text_iter("reply")) == "Well ."


def test_branches_and_several_outputs_have_calls_of_their_own() -> None:
    @bl.function
    def program(s: Any) -> Any:
        s += bl.user("Q")
        with s.fork(2) as branches:
            for branch in branches:
                branch += bl.assistant(bl.call("x", [divide], n=2))
        return [[reply.calls[0].run() for reply in replies] for replies in s["x"]]

    assert program.run(backend=bl.Mock(call_text("div", by=2))).result == [[0.5, 0.5]] * 2


def test_calls_go_into_f_strings_and_lists() -> None:
    @bl.function
    def program(s: Any) -> Any:
        s += f"A: {bl.call('x', [divide])}!"
        return s["x"].calls[0].run()

    assert program.run(backend=bl.Mock(call_text("div", by=2))).result == 0.5


def test_a_trace_has_the_call_and_notes_what_depends_on_it() -> None:
    @bl.function
    def agent(s: Any, question: str) -> Any:
        s += bl.user(question)
        while True:
            s += bl.assistant(bl.call("step", [divide], append=True))
            if not s["step"][-1].calls:
                return s["step"][-1].text
            for found in s["step"][-1].calls:
                s += bl.tool_result(found)

    graph = agent.trace()
    assert [n.kind for n in graph.nodes].count("generate") == 1
    assert "tools" in {n.kind for n in graph.nodes}
    assert not graph.is_static
    assert RequestGraph.from_json(graph.to_json()) == graph
    assert "tools div" in graph.to_mermaid()


def test_programs_with_tools_run_in_batches_from_any_thread() -> None:
    states = ask.run_batch(
        [{"tools": [divide]}] * 20, backend=bl.Mock(call_text("div", by=2)), on_error="raise"
    )
    assert [state.result.calls[0].run() for state in states] == [0.5] * 20
    found: list[Any] = []
    thread = threading.Thread(
        target=lambda: found.append(ask.run([divide], backend=bl.Mock("x")).result.text)
    )
    thread.start()
    thread.join()
    assert found == ["x"]


def test_a_tool_turn_is_still_a_turn() -> None:
    @bl.function
    def program(s: Any, kind: Literal["text"] = "text") -> Any:
        s += bl.tool("by hand: " + bl.gen("x"))
        return s.messages()

    assert program.run(backend=bl.Mock("v")).result == [{"role": "tool", "content": "by hand: v"}]
