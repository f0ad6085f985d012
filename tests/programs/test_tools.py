"""Tools in lanes: where they are declared, what the engine is asked, what the program hears."""

from __future__ import annotations

import pytest

from branchline.runtime.errors import ProgramError
from branchline.runtime.programs.protocol import (
    BeginRole,
    CallMade,
    Close,
    DeclareTools,
    EndRole,
    Fork,
    Op,
    ReadLane,
    TextDelta,
    ToolCall,
    ToolReply,
    ValueReady,
)
from branchline.runtime.responses import (
    DECLARED,
    FORMATS,
    ToolSpec,
    ToolUse,
    render_declaration,
    tool_constraint,
)
from tests.programs.helpers import Program, gen, rig, text
from tests.support.scripted_port import ScriptedPort, SimpleTurns

ADD = ToolSpec(name="add", parameters={"properties": {"a": {"type": "integer"}}})
SUB = ToolSpec(name="sub")
TOLD = render_declaration([ADD], DECLARED)
CALL = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'


class NativeTurns(SimpleTurns):
    """A template that takes tools."""

    tool_format = FORMATS["hermes"]

    def __init__(self, tools: tuple[ToolSpec, ...] = ()) -> None:
        self._names = ",".join(tool.name for tool in tools)

    def begin(self, history: object, role: str) -> str:
        opening = super().begin(history, role)  # type: ignore[arg-type]
        return opening if history or not self._names else f"[{self._names}]{opening}"

    def with_tools(self, tools: object) -> NativeTurns:
        return NativeTurns(tuple(tools))  # type: ignore[arg-type]


class UserTurns(SimpleTurns):
    """A template without a system turn."""

    def begin(self, history: object, role: str) -> str:
        if role == "system":
            raise ProgramError("the template has no system turn")
        return super().begin(history, role).rpartition("<|end|>\n")[2]  # type: ignore[arg-type]


def lane_text(*ops: Op, turns: SimpleTurns | None = None, each: bool = False) -> str:
    """Text of lane 0 after some ops and `Close`; `each`: sent one by one."""
    port = ScriptedPort(lambda request: f"<{request.name}>")
    if turns is not None:
        port.turns = turns
    _, executor = rig(port)
    program = Program(executor)
    for group in [[op] for op in ops] if each else [list(ops)]:
        program.send(*group)
        port.pump()
        port.run()
    program.send(ReadLane(0, 99), Close())
    port.run()
    assert not program.failures()
    return program.lane(0).text


def turn(node: int, role: str, *inside: Op) -> list[Op]:
    return [BeginRole(0, node, role), *inside, EndRole(0, node + 1)]


SYSTEM = turn(0, "system", text(2, "Be nice."))
USER = turn(3, "user", text(5, "hi"))
ANSWER = turn(10, "assistant", DeclareTools(0, 12, (ADD,)), gen(13, "x"))


@pytest.mark.parametrize("each", [False, True])
def test_a_template_declares_tools_in_the_first_turn(each: bool) -> None:
    found = lane_text(*SYSTEM, *USER, *ANSWER, turns=NativeTurns(), each=each)
    assert found == (
        "[add]<|turn|>system\nBe nice.<|end|>\n<|turn|>user\nhi<|end|>\n"
        "<|turn|>assistant\n<x><|end|>\n"
    )


@pytest.mark.parametrize("each", [False, True])
def test_without_such_a_template_the_system_turn_begins_with_them(each: bool) -> None:
    found = lane_text(*SYSTEM, *USER, *ANSWER, each=each)
    assert found.startswith(f"<|turn|>system\n{TOLD}\n\nBe nice.<|end|>\n<|turn|>user\nhi<|end|>")


def test_where_no_system_turn_is_they_get_one() -> None:
    assert lane_text(*USER, *ANSWER).startswith(
        f"<|turn|>system\n{TOLD}<|end|>\n<|turn|>user\nhi<|end|>"
    )


def test_where_there_can_be_no_system_turn_the_user_s_begins_with_them() -> None:
    assert lane_text(*USER, *ANSWER, turns=UserTurns()).startswith(
        f"<|turn|>user\n{TOLD}\n\nhi<|end|>\n<|turn|>assistant\n"
    )


@pytest.mark.parametrize("turns", [NativeTurns(), SimpleTurns()])
@pytest.mark.parametrize("each", [False, True])
def test_tools_that_come_later_get_a_turn_before_the_one_that_opens(
    turns: SimpleTurns, each: bool
) -> None:
    first = turn(6, "assistant", gen(8, "w"))
    told = render_declaration([ADD], turns.tool_format)
    found = lane_text(*USER, *first, *ANSWER, turns=turns, each=each)
    assert found.endswith(
        f"<w><|end|>\n<|turn|>system\n{told}<|end|>\n<|turn|>assistant\n<x><|end|>\n"
    )


def test_without_turns_they_are_text() -> None:
    found = lane_text(text(0, "Q"), DeclareTools(0, 1, (ADD,)), gen(2, "x"))
    assert found == f"{TOLD}\n\nQ<x>"
    later = lane_text(text(0, "Q"), gen(1, "w"), DeclareTools(0, 2, (ADD,)), gen(3, "x"))
    assert later == f"Q<w>{TOLD}\n\n<x>"


def test_tools_are_declared_once() -> None:
    again = turn(20, "assistant", DeclareTools(0, 22, (ADD,)), gen(23, "y"))
    more = turn(30, "assistant", DeclareTools(0, 32, (ADD, SUB)), gen(33, "z"))
    found = lane_text(*USER, *ANSWER, *again, *more)
    assert found.count(TOLD) == 1
    assert found.count(render_declaration([SUB], DECLARED)) == 1


def test_a_branch_knows_its_parent_s_tools() -> None:
    port, executor = rig()
    program = Program(executor)
    program.send(*USER, DeclareTools(0, 6, (ADD,)), Fork(0, 7, (1,)))
    program.send(DeclareTools(1, 8, (ADD,)), BeginRole(1, 9, "assistant"), ReadLane(1, 10), Close())
    port.run()
    assert program.lane(1).text.count(TOLD) == 1


def test_tools_inside_a_turn_that_has_begun_are_refused() -> None:
    port, executor = rig()
    program = Program(executor)
    program.send(*USER, BeginRole(0, 6, "assistant"), text(7, "Let me see: "), gen(8, "w"))
    program.send(DeclareTools(0, 9, (ADD,)), gen(10, "x"), Close())
    port.run()
    assert program.failures() == {9: "ProgramError", 10: "ProgramError"}
    error = next(e for e in program.events if getattr(e, "node", 0) == 9).error  # type: ignore[union-attr]
    assert "first thing in its turn" in error["hint"]


def test_what_is_held_back_comes_with_a_read_a_fork_and_the_end() -> None:
    port, executor = rig()
    program = Program(executor)
    program.send(*USER, BeginRole(0, 6, "assistant"))
    port.pump()
    program.send(ReadLane(0, 7))
    port.pump()
    assert program.lane(0).text.endswith("<|turn|>user\nhi<|end|>\n<|turn|>assistant\n")
    program.send(Close())
    port.pump()
    assert program.closed
    other = Program(executor, "q")
    other.send(*turn(0, "critic"), Close())
    port.pump()
    assert other.closed and other.failures() == {0: "InvalidRequest"}


def test_an_output_is_constrained_and_read() -> None:
    port, executor = rig(ScriptedPort(lambda request: f"Well. {CALL}\n{CALL}\n"))
    program = Program(executor)
    use = ToolUse(tools=(ADD, SUB), choice="required")
    program.send(text(0, "q"), gen(1, "x", tools=use), Close())
    port.run()
    request = port.requests[0]
    expected = tool_constraint(DECLARED, use.tools, "required", True)
    assert request.sampling.constraint == expected  # type: ignore[union-attr]
    (value,) = program.all(ValueReady)
    calls = tuple(ToolCall(f"call_0_1_{i}", "add", '{"a": 1}') for i in range(2))
    assert value.replies == (ToolReply("Well. ", calls),)
    assert value.texts == (f"Well. {CALL}\n{CALL}\n",)


def test_a_stream_has_text_and_calls_apart() -> None:
    port, executor = rig()
    program = Program(executor)
    program.send(text(0, "q"), gen(1, "x", tools=ToolUse(tools=(ADD,)), stream=True), Close())
    port.pump()
    whole = f"Well. {CALL} so <"
    for char in whole:
        port.delta("p/0/1", char)
    port.finish("p/0/1", whole)
    port.pump()
    kinds = [e for e in program.events if isinstance(e, (TextDelta, CallMade))]
    before = [e.text for e in kinds if isinstance(e, TextDelta)]
    assert "".join(before) == "Well.  so <"
    (call,) = program.all(CallMade)
    (value,) = program.all(ValueReady)
    assert value.replies[0].calls == (call.call,)
    assert value.replies[0].text == "Well.  so <"


def test_an_output_that_was_cut_in_a_call_says_so() -> None:
    port, executor = rig(ScriptedPort(lambda request: CALL + CALL[:40]))
    program = Program(executor)
    program.send(text(0, "q"), gen(1, "x", tools=ToolUse(tools=(ADD,))), Close())
    port.run()
    reply = program.all(ValueReady)[0].replies[0]
    assert reply.cut
    assert len(reply.calls) == 1
    assert reply.text == CALL[:40]
