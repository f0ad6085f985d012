"""Frames: what goes in comes out, and bytes that are none are a typed error."""

from __future__ import annotations

import random
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from branchline.runtime.core.adapters import AdapterInfo
from branchline.runtime.core.bounds import Bounds
from branchline.runtime.core.messages import EmbedRequest, GenerateRequest, ScoreRequest
from branchline.runtime.core.outputs import (
    EmbedResult,
    GenerateDelta,
    GenerateResult,
    RequestMeta,
    ScoreResult,
    TokenLogprob,
)
from branchline.runtime.core.sampling_params import Constraint, SamplingParams
from branchline.runtime.core.sequence import SequenceEnd, SequenceOpen, SequenceTokens
from branchline.runtime.errors import CorruptMessage
from branchline.runtime.ipc import messages
from branchline.runtime.ipc.codec import Codec
from branchline.runtime.ipc.messages import ToDetokenizer, ToPort, ToScheduler

SAMPLING = SamplingParams(
    stop=("\n", "✓"),
    logit_bias={3: -1.5},
    constraint=Constraint(kind="regex", text="a+"),
    stop_token_ids=(1, 2),
)
ENTRY = TokenLogprob(7, -0.25, ((7, -0.25), (8, -2.0)))
META = RequestMeta(finish_reason="length", prompt_tokens=3, seed=(1 << 63) - 1)
ERROR: dict[str, str | bool] = {"code": "BackendError", "message": "no", "retryable": True}
EXAMPLES: dict[str, list[Any]] = {
    "ToScheduler": [
        messages.Submit(GenerateRequest(id="a", prompt_ids=[1, 2], sampling=SAMPLING)),
        messages.Submit(ScoreRequest(id="b", prompt_ids=[1], choices=[[2], [3, 4]], deadline=5.5)),
        messages.Submit(GenerateRequest(id="d", prompt_ids=[1], sampling=SAMPLING, adapter="sql")),
        messages.Submit(EmbedRequest(id="c", prompt_ids=[1], pooling="mean", dimensions=7)),
        messages.Abort("a#1", "stop"),
        messages.Hold("lane", [1, 2, 3], "tenant"),
        messages.Hold("lane", [1], "", "sql"),
        messages.LoadAdapter(5, "sql", "/adapters/sql", pin=True),
        messages.UnloadAdapter(6, "sql", drain=True),
        messages.RestoreAdapters(7, [messages.KeptAdapter("sql", "/tmp/x/1", 3, sent=True)]),
        messages.Release("lane"),
        messages.Ask(3, "flush"),
        messages.Ask(4, "prefixes"),
        messages.Attach("ipc:///x"),
        messages.Stop(),
    ],
    "ToDetokenizer": [
        SequenceOpen(request_id="a", stream=True, stop=("x",), stop_regex="y", min_tokens=2),
        SequenceTokens(request_id="a", token_ids=[5, 6], logprobs=[ENTRY, ENTRY]),
        SequenceEnd(request_id="a", token_ids=[], meta=META, error=ERROR),
    ],
    "ToPort": [
        GenerateDelta(request_id="a", text="é", token_ids=[1]),
        GenerateResult(request_id="a", text="é", token_ids=[1], meta=META, logprobs=[ENTRY]),
        ScoreResult(request_id="b", token_logprobs=[[-1.0], []], meta=META, error=ERROR),
        EmbedResult(request_id="c", embedding=[0.1, -2.5e-8], meta=META),
        messages.Started(["a", "b"]),
        messages.Answer(3, {"scheduler": {"steps": 4}}),
        messages.Beat(9, True, 2, {"cache": {}}),
        messages.SchedulerLoaded(Bounds(10, 20, 30, 40), {"model": "m"}),
        messages.SchedulerLoaded(
            Bounds(10, 20, 30, 40), {}, [AdapterInfo(name="sql", version=2, targets=("q_proj",))]
        ),
        messages.DetokenizerLoaded(),
        messages.StartFailed({"code": "OutOfMemory"}),
    ],
}
UNIONS: dict[str, Any] = {
    "ToScheduler": ToScheduler,
    "ToDetokenizer": ToDetokenizer,
    "ToPort": ToPort,
}


@pytest.mark.parametrize("direction", UNIONS)
def test_every_message_of_the_schema_survives_the_way(direction: str) -> None:
    examples = EXAMPLES[direction]
    assert {type(one) for one in examples} == set(get_args(UNIONS[direction]))
    codec: Codec[Any] = Codec(UNIONS[direction], direction)
    assert codec.decode(codec.encode(examples)) == examples
    assert codec.decode(codec.encode([])) == []


@given(st.binary(max_size=200))
def test_any_bytes_are_messages_or_a_typed_error(data: bytes) -> None:
    for direction, union in UNIONS.items():
        codec: Codec[Any] = Codec(union, direction)
        try:
            found = codec.decode(data)
        except CorruptMessage as error:
            assert direction in str(error)
        else:
            assert codec.decode(codec.encode(found)) == found


def test_damaged_frames_are_messages_or_a_typed_error() -> None:
    r = random.Random(3)
    for direction, union in UNIONS.items():
        codec: Codec[Any] = Codec(union, direction)
        whole = codec.encode(EXAMPLES[direction])
        refused = 0
        for _ in range(300):
            data = bytearray(whole)
            for _ in range(r.randint(1, 4)):
                data[r.randrange(len(data))] = r.randrange(256)
            try:
                codec.decode(bytes(data[: r.randint(0, len(data))]))
            except CorruptMessage:
                refused += 1
        assert refused > 200


def test_a_message_of_another_direction_is_refused() -> None:
    codec: Codec[Any] = Codec(ToScheduler, "scheduler")
    for frame in (
        Codec[Any](ToPort, "port").encode(EXAMPLES["ToPort"]),
        msgspec.msgpack.encode([{"type": "Abort"}]),
        msgspec.msgpack.encode({"type": "Stop"}),
        b"\x93" * 100_000,
    ):
        with pytest.raises(CorruptMessage):
            codec.decode(frame)
