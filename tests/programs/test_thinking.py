"""A model that thinks first: where the section is opened, what the value leaves out."""

from __future__ import annotations

import pytest

from branchline.runtime.core.messages import GenerateRequest
from branchline.runtime.core.sampling_params import Constraint, SamplingParams
from branchline.runtime.core.section import Section
from branchline.runtime.programs.protocol import (
    BeginRole,
    Close,
    EndRole,
    ReadLane,
    ReasoningDelta,
    TextDelta,
    ValueReady,
)
from branchline.runtime.responses.reasoning import FORMATS, detect_reasoning
from tests.programs.helpers import Program as Opened
from tests.programs.helpers import gen, plain, rig, text
from tests.support.scripted_port import ScriptedPort

HYBRID = detect_reasoning("enable_thinking <think> </think>")
DIGITS = Constraint(kind="regex", text="[0-9]+")
TURN = [BeginRole(0, 0, "user"), text(1, "2+2?"), EndRole(0, 2), BeginRole(0, 3, "assistant")]


def thinking_port(*replies: str) -> ScriptedPort:
    left = list(replies)
    port = ScriptedPort(lambda request: left.pop(0), sync=True)
    port.heals = True
    port.reasoning = HYBRID
    return port


def run(port: ScriptedPort, *ops: object) -> tuple[Opened, GenerateRequest]:
    _, executor = rig(port)
    program = Opened(executor)
    program.send(*ops, ReadLane(0, 90), Close())  # type: ignore[arg-type]
    port.pump()
    assert program.closed
    request = port.requests[-1]
    assert isinstance(request, GenerateRequest)
    return program, request


def section(request: GenerateRequest) -> Section | None:
    return request.sampling.section


def sampling(constraint: Constraint | None = DIGITS) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=30, constraint=constraint)


@pytest.mark.parametrize("constraint", [DIGITS, None])
def test_the_first_output_of_an_assistant_turn_is_thought_about(
    constraint: Constraint | None,
) -> None:
    port = thinking_port("\nhm\n</think>\n\n4")
    node = gen(4, "n", sampling=sampling(constraint))
    program, request = run(port, *TURN, node, EndRole(0, 5))
    assert section(request) == Section(
        end="</think>", gap="\n\n", gap_ids=tuple(plain(port, "\n\n"))
    )
    assert request.sampling.constraint == constraint
    assert program.values() == {"n": "4"}
    (ready,) = program.all(ValueReady)
    assert ready.reasoning == ("hm",)
    lane = program.lane(0)
    assert lane.text.endswith("assistant\n<think>\nhm\n</think>\n\n4<|end|>\n")
    assert port.tokenizer.decode(lane.token_ids, skip_special=False) == lane.text
    node_stats = next(stats for stats in ready.stats if stats.node == 4)
    assert node_stats.tokens == len(plain(port, "<think>")) + ready.meta.output_tokens


def test_text_that_has_begun_and_raw_text_are_not_thought_about() -> None:
    for ops in ([*TURN, text(4, "It is ")], [text(4, "2+2=<think>")], [BeginRole(0, 0, "user")]):
        port = thinking_port("4")
        program, request = run(port, *ops, gen(5, "n", sampling=sampling(), heal=False))
        assert section(request) is None and program.values() == {"n": "4"}
        assert program.all(ValueReady)[0].reasoning == ()


def test_a_model_that_thinks_only_when_told_is_told() -> None:
    for reasoning, found in ((None, False), (True, True)):
        port = thinking_port("hm</think>4" if found else "4")
        port.reasoning = detect_reasoning("{% if thinking %}<think></think>{% endif %}")
        node = gen(5, "n", sampling=sampling(), reasoning=reasoning)
        program, request = run(port, *TURN, node)
        assert (section(request) is not None) == found and program.values() == {"n": "4"}


def test_a_second_output_of_a_turn_goes_on_behind_the_first_section() -> None:
    port = thinking_port("hm</think>\n\n4", "5")
    first, second = gen(4, "a", sampling=sampling()), gen(5, "b", sampling=sampling())
    program, request = run(port, *TURN, first, second)
    assert section(request) is None
    assert program.values() == {"a": "4", "b": "5"}


def test_reasoning_may_be_asked_for_anywhere_and_by_name() -> None:
    port = thinking_port("hm[/THINK]4")
    node = gen(5, "n", sampling=sampling(), reasoning="mistral")
    program, request = run(port, text(1, "2+2 "), node)
    found = section(request)
    assert found is not None and found.end == "[/THINK]" and found.gap_ids == ()
    assert program.lane(0).text == "2+2 [THINK]hm[/THINK]4"
    assert program.values() == {"n": "4"}


def test_reasoning_false_writes_what_the_template_writes() -> None:
    port = thinking_port("4")
    node = gen(5, "n", sampling=sampling(), reasoning=False)
    program, request = run(port, *TURN, node)
    assert section(request) is None
    assert program.lane(0).text.endswith("assistant\n<think>\n\n</think>\n\n4")


class Opening:
    """A template that always opens a section."""

    def begin(self, history: object, role: str) -> str:
        return f"<|turn|>{role}\n" + ("<think>\n" if role == "assistant" else "")

    def end(self, history: object, role: str) -> str:
        return "<|end|>\n"


@pytest.mark.parametrize(
    ("reasoning", "reply", "written"),
    [(None, "hm</think>4", "<think>\nhm</think>4"), (False, "4", "<think>\n</think>\n\n4")],
)
def test_a_section_that_the_template_opened(
    reasoning: bool | None, reply: str, written: str
) -> None:
    port = thinking_port(reply)
    port.turns = Opening()  # type: ignore[assignment]
    port.reasoning = FORMATS["think"]
    program, request = run(port, *TURN, gen(5, "n", sampling=sampling(), reasoning=reasoning))
    assert (section(request) is None) == (reasoning is False)
    assert program.values() == {"n": "4"}
    assert program.lane(0).text.endswith("assistant\n" + written)


def test_models_without_reasoning_say_so() -> None:
    port = thinking_port("4")
    port.reasoning = None
    _, executor = rig(port)
    program = Opened(executor)
    program.send(text(0, "x"), gen(1, "n", reasoning=True), Close())
    port.pump()
    assert program.failures() == {1: "UnsupportedFeature"}
    fine = Opened(executor, "q")
    fine.send(text(0, "x"), gen(1, "n", reasoning=False), Close())
    port.pump()
    assert fine.values() == {"n": "4"}


def test_markup_of_special_tokens_is_asked_for() -> None:
    port = thinking_port("hm<|end|>4")
    port.reasoning = FORMATS["think"]
    special = FORMATS["harmony"]
    _, request = run(port, *TURN, gen(4, "n", sampling=sampling(), reasoning=special.name))
    assert not request.sampling.skip_special_tokens
    port = thinking_port("hm</think>4")
    _, request = run(port, *TURN, gen(4, "n", sampling=sampling()))
    assert request.sampling.skip_special_tokens


def test_streams_tell_reasoning_from_text() -> None:
    port = ScriptedPort(lambda request: "hm\n</think>\n\n42")
    port.reasoning = HYBRID
    _, executor = rig(port)
    program = Opened(executor)
    program.send(*TURN, gen(4, "n", sampling=sampling(), stream=True), Close())
    port.pump()
    (request_id,) = port.running
    for piece in "hm\n</think>\n\n42":
        port.delta(request_id, piece)
    port.finish(request_id)
    port.pump()
    assert "".join(event.text for event in program.all(ReasoningDelta)) == "hm"
    assert "".join(event.text for event in program.all(TextDelta)) == "42"
    assert program.values() == {"n": "42"}
