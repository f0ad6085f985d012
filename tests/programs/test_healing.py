"""The seam before a constrained output: same text, no trace in the value, better ids."""

from __future__ import annotations

import msgspec
import pytest

from branchline.runtime.core.messages import GenerateRequest
from branchline.runtime.core.sampling_params import Constraint, SamplingParams
from branchline.runtime.programs.protocol import (
    BeginRole,
    Close,
    Fork,
    Join,
    ReadLane,
    TextDelta,
    ValueReady,
)
from tests.programs.helpers import Program as Opened
from tests.programs.helpers import gen, plain, rig, text
from tests.support.scripted_port import ScriptedPort

DIGITS = Constraint(kind="regex", text="[0-9]+")


def healing_port(reply: str) -> ScriptedPort:
    port = ScriptedPort(lambda request: reply, sync=True)
    port.heals = True
    return port


def constrained(constraint: Constraint = DIGITS, **more: object) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=8, constraint=constraint, **more)  # type: ignore[arg-type]


def run(port: ScriptedPort, *ops: object) -> tuple[Opened, GenerateRequest]:
    _, executor = rig(port)
    program = Opened(executor)
    program.send(*ops, Close())  # type: ignore[arg-type]
    port.pump()
    assert program.closed
    request = port.requests[0]
    assert isinstance(request, GenerateRequest)
    return program, request


def test_the_last_prompt_token_moves_into_the_constraint_and_out_of_the_value() -> None:
    port = healing_port(" 42")
    program, request = run(
        port, text(0, "it is "), gen(1, "n", sampling=constrained()), ReadLane(0, 2)
    )
    assert request.prompt_ids == plain(port, "it", " ", "is")
    assert request.sampling.constraint is not None
    assert request.sampling.constraint == Constraint(kind="regex", text="[0-9]+", prefix=" ")
    assert request.sampling.max_tokens == 9
    assert program.values() == {"n": "42"}
    lane = program.lane(0)
    meta = program.all(ValueReady)[0].meta
    assert (meta.output_tokens, len(lane.token_ids)) == (2, 4 + meta.output_tokens)
    assert lane.text == "it is 42"
    assert list(lane.token_ids) == plain(port, "it is", " 42")


KINDS = [
    Constraint(kind="choices", text='["red", "blue"]'),
    Constraint(kind="json_schema", text='{"type": "string"}'),
    Constraint(kind="lark", text='start: "red"'),
    Constraint(kind="ebnf", text='root ::= "red"'),
    Constraint(kind="regex", text="(?i)red"),
]


@pytest.mark.parametrize("colours", KINDS, ids=[f"{k.kind} {k.text[:4]}" for k in KINDS])
def test_every_kind_of_constraint_is_healed(colours: Constraint) -> None:
    port = healing_port(" red")
    program, request = run(port, text(0, "a "), gen(1, "c", sampling=constrained(colours)))
    assert request.sampling.constraint == msgspec.structs.replace(colours, prefix=" ")
    assert program.values() == {"c": "red"}


def test_streamed_text_never_shows_what_was_taken_back() -> None:
    port = ScriptedPort(lambda request: " 4217")
    port.heals = True
    _, executor = rig(port)
    program = Opened(executor)
    program.send(text(0, "it is "), gen(1, "n", sampling=constrained(), stream=True), Close())
    port.pump()
    (request_id,) = port.running
    for piece in (" ", "42", "17"):
        port.delta(request_id, piece)
    port.finish(request_id)
    port.pump()
    assert [event.text for event in program.all(TextDelta)] == ["42", "17"]
    assert program.values() == {"n": "4217"}


@pytest.mark.parametrize(
    "ops",
    [
        [text(0, "x "), gen(1, "n")],
        [text(0, "x "), gen(1, "n", sampling=constrained(stop=(" ",)))],
        [text(0, "x "), gen(1, "n", sampling=constrained(stop_regex="a"))],
        [BeginRole(0, 0, "user"), text(1, "x "), gen(2, "n", sampling=constrained())],
        [text(0, "x"), gen(1, "n", sampling=constrained())],
        [text(0, "x "), gen(1, "n", sampling=constrained(), heal=False)],
        [BeginRole(0, 0, "user"), gen(2, "n", heal=True)],
    ],
    ids=["free", "stop", "stop_regex", "chat turn", "one token", "off", "markup"],
)
def test_where_there_is_nothing_to_heal_the_prompt_stays(ops: list[object]) -> None:
    port = healing_port("7")
    program, request = run(port, *ops)
    sent = next(op for op in ops if hasattr(op, "sampling")).sampling  # type: ignore[attr-defined]
    assert request.sampling == sent
    assert program.values() == {"n": "7"}


@pytest.mark.parametrize("turn", [False, True])
def test_free_text_and_turns_are_healed_where_that_is_asked_for(turn: bool) -> None:
    port = healing_port(" 7")
    begin = [BeginRole(0, 0, "user")] if turn else []
    sampling = SamplingParams(max_tokens=8, min_tokens=2)
    program, request = run(
        port, *begin, text(1, "it "), gen(2, "n", sampling=sampling, heal=True), ReadLane(0, 3)
    )
    sent = request.sampling
    assert sent.constraint == Constraint(kind="text", text="", prefix=" ")
    assert (sent.max_tokens, sent.min_tokens) == (9, 3)
    assert program.values() == {"n": "7"}
    assert program.lane(0).text.endswith("it 7")


def test_tokens_of_the_parent_and_generated_ones_are_not_taken_back() -> None:
    port = healing_port("7")
    program, _ = run(
        port,
        text(0, "x "),
        Fork(0, 1, (1,)),
        gen(2, "a", lane=1, sampling=constrained()),
        gen(3, "b", lane=1, sampling=constrained()),
        Join(0, 4, (1,), "append"),
        ReadLane(0, 5),
    )
    prompts = [r.prompt_ids for r in port.requests]
    assert prompts == [plain(port, "x "), plain(port, "x ", "7")]
    assert program.lane(0).text == "x 77"


def test_an_output_that_never_got_past_the_seam_leaves_the_lane_as_it_was() -> None:
    port = healing_port("")
    program, _ = run(port, text(0, "it "), gen(1, "n", sampling=constrained()), ReadLane(0, 2))
    assert program.values() == {"n": ""}
    assert program.lane(0).text == "it "
    assert list(program.lane(0).token_ids) == plain(port, "it ")
    assert program.all(ValueReady)[0].texts == ("",)
