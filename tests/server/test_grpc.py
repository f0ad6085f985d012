"""The gRPC server, met by a client over a loopback port."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import msgspec
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from branchline.runtime.core.outputs import GenerateResult, RequestMeta
from branchline.runtime.core.sampling_params import Constraint
from branchline.runtime.engine import Engine
from branchline.runtime.server.context import ServerContext, make_context
from branchline.runtime.server.grpc_api import branchline_pb2 as pb
from branchline.runtime.server.grpc_api.convert import result_response
from branchline.runtime.server.grpc_api.service import SERVICE, GrpcServer
from branchline.runtime.server.keys import Keys
from branchline.runtime.server.limits import Limits
from branchline.runtime.server.prompts import Prompts
from tests.server.waiting import wait_until_idle
from tests.support.adapter_port import AdaptedEngine

FOLDER = Path(pb.__file__).parent


def context_of(engine: Engine, **options: Any) -> ServerContext:
    return make_context(engine.core, engine.tokenizer, model_names=("tiny",), **options)


@asynccontextmanager
async def channel_to(context: ServerContext) -> AsyncIterator[grpc.aio.Channel]:
    server = GrpcServer(context, "127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            yield channel
    finally:
        await server.stop(0.5)


def talk(context: ServerContext, what: Callable[[grpc.aio.Channel], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        async with channel_to(context) as channel:
            return await what(channel)

    return asyncio.run(run())


def generate_call(channel: grpc.aio.Channel) -> Any:
    return channel.unary_stream(
        f"/{SERVICE}/Generate",
        request_serializer=pb.GenerateRequest.SerializeToString,
        response_deserializer=pb.GenerateResponse.FromString,
    )


def unary_call(channel: grpc.aio.Channel, name: str, answer: Any) -> Any:
    return channel.unary_unary(
        f"/{SERVICE}/{name}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=answer.FromString,
    )


def request(text: str = "hello", *, stream: bool = False, **sampling: Any) -> pb.GenerateRequest:
    params = pb.SamplingParams(**{"temperature": 0.0, "max_tokens": 8, **sampling})
    return pb.GenerateRequest(prompt=pb.Prompt(text=text), sampling=params, stream=stream)


async def collect(channel: grpc.aio.Channel, message: pb.GenerateRequest, **options: Any) -> Any:
    return [item async for item in generate_call(channel)(message, **options)]


def failure(context: ServerContext, message: pb.GenerateRequest, **options: Any) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        talk(context, lambda channel: collect(channel, message, **options))
    return caught.value


def test_a_result_is_the_engines_own(engine: Engine) -> None:
    (answer,) = talk(context_of(engine), lambda channel: collect(channel, request(logprobs=2)))
    expected = engine.generate("hello", temperature=0.0, max_tokens=8, logprobs=2)
    assert answer.result.text == expected.text
    assert list(answer.result.token_ids) == expected.token_ids
    assert answer.result.meta.prompt_tokens == expected.meta.prompt_tokens
    assert [item.logprob for item in answer.result.logprobs] == pytest.approx(
        [item.logprob for item in expected.logprobs]
    )
    assert [len(item.top) for item in answer.result.logprobs] == [2] * len(expected.logprobs)


@pytest.mark.parametrize("matched", [None, "stop", 7])
def test_the_meta_data_lose_nothing_on_the_wire(matched: str | int | None) -> None:
    values = dict.fromkeys(RequestMeta.__struct_fields__, 3)
    words = {"finish_reason": "stop", "model": "m", "adapter": "a", "grammar": "g: why"}
    meta = RequestMeta(**{**values, **words, "matched": matched})
    output = GenerateResult(request_id="r", text="", token_ids=[], meta=meta)
    sent = result_response(output, 0, "r").result.meta
    found = {field.name: value for field, value in sent.ListFields()}
    for name in ("matched_text", "matched_id"):
        if name in found:
            found["matched"] = found.pop(name)
    expected = msgspec.structs.asdict(meta)
    assert found == {name: value for name, value in expected.items() if value is not None}


def test_a_stream_joins_to_its_result_for_each_of_n(engine: Engine) -> None:
    message = request(stream=True, n=3, temperature=1.0, seed=4, max_tokens=12)
    answers = talk(context_of(engine), lambda channel: collect(channel, message))
    results = {item.index: item.result for item in answers if item.HasField("result")}
    assert sorted(results) == [0, 1, 2]
    for index, result in results.items():
        deltas = [a.delta for a in answers if a.index == index and a.HasField("delta")]
        assert "".join(delta.text for delta in deltas) == result.text


def test_ids_work_as_text_does_and_unset_fields_have_the_engines_defaults(engine: Engine) -> None:
    ids = engine.tokenizer.encode("hello", special=True)
    message = pb.GenerateRequest(
        prompt=pb.Prompt(tokens=pb.TokenIds(ids=ids)), sampling=pb.SamplingParams(seed=3)
    )
    (answer,) = talk(context_of(engine), lambda channel: collect(channel, message))
    assert answer.result.text == engine.generate("hello", seed=3).text


def test_a_prompt_begins_as_over_http(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.tokenizer, "add_bos", True)
    monkeypatch.setattr(engine.tokenizer, "bos_id", 258)
    context = context_of(engine)
    (answer,) = talk(context, lambda channel: collect(channel, request()))
    expected = asyncio.run(Prompts(context).ids(["hello"]))
    assert expected == [[258, *b"hello"]]
    assert answer.result.text == engine.generate(expected[0], temperature=0.0, max_tokens=8).text
    assert answer.result.meta.prompt_tokens == 6


@pytest.mark.parametrize("stream", [False, True])
def test_what_a_constraint_forces_is_marked(engine: Engine, stream: bool) -> None:
    shape = "(yes|no): certainly"
    message = request(stream=stream, constraint=pb.Constraint(regex=shape), max_tokens=30)
    answers = talk(context_of(engine), lambda channel: collect(channel, message))
    same = {
        "temperature": 0.0,
        "max_tokens": 30,
        "constraint": Constraint(kind="regex", text=shape),
    }
    expected = engine.generate("hello", **same).forced
    assert expected and list(answers.pop().result.forced) == expected
    if stream:
        assert [place for answer in answers for place in answer.delta.forced] == expected


def test_constraints_hold(engine: Engine) -> None:
    message = request(constraint=pb.Constraint(choices=pb.Choices(texts=["yes", "no"])))
    (answer,) = talk(context_of(engine), lambda channel: collect(channel, message))
    assert answer.result.text in ("yes", "no")


def test_scores_are_the_engines_own(engine: Engine) -> None:
    message = pb.ScoreRequest(
        prompt=pb.Prompt(text="hello"), choices=[pb.Prompt(text=" a"), pb.Prompt(text=" bc")]
    )
    answer = talk(
        context_of(engine), lambda channel: unary_call(channel, "Score", pb.ScoreResponse)(message)
    )
    expected = engine.score("hello", [" a", " bc"]).token_logprobs
    assert [list(choice.token_logprobs) for choice in answer.choices] == [
        pytest.approx(values) for values in expected
    ]


@pytest.mark.parametrize(
    ("message", "status", "word"),
    [
        (request(temperature=-1.0), "INVALID_ARGUMENT", "temperature"),
        (request(""), "INVALID_ARGUMENT", "empty"),
        (pb.GenerateRequest(), "INVALID_ARGUMENT", "not set"),
        (request(n=10_000), "INVALID_ARGUMENT", "limit"),
        (request("x" * 30), "INVALID_ARGUMENT", "limit"),
        (request(n=6), "INVALID_ARGUMENT", "max_sequences"),
        (request(prompt_logprobs=4), "INVALID_ARGUMENT", "max_logprobs"),
        (
            request(constraint=pb.Constraint(json_schema="{")),
            "INVALID_ARGUMENT",
            "JSON",
        ),
        (
            request(constraint=pb.Constraint(regex="a", whitespace="compact")),
            "INVALID_ARGUMENT",
            "whitespace",
        ),
        (
            pb.GenerateRequest(prompt=pb.Prompt(tokens=pb.TokenIds(ids=[10**6]))),
            "INVALID_ARGUMENT",
            "vocabulary",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_requests_name_what_is_wrong(
    engine: Engine, message: pb.GenerateRequest, status: str, word: str
) -> None:
    limits = Limits(max_prompt_tokens=20, max_sequences=5, max_logprobs=3)
    error = failure(context_of(engine, limits=limits), message)
    assert error.code() is grpc.StatusCode[status]
    assert word in error.details()


def test_keys_are_asked_for(engine: Engine) -> None:
    context = context_of(engine, keys=Keys(normal=("right",)))
    assert failure(context, request()).code() is grpc.StatusCode.UNAUTHENTICATED
    metadata = (("authorization", "Bearer right"),)
    (answer,) = talk(context, lambda channel: collect(channel, request(), metadata=metadata))
    assert answer.result.meta.output_tokens


def test_the_calls_deadline_ends_the_request(engine: Engine) -> None:
    message = request(max_tokens=400, ignore_eos=True, n=100, temperature=1.0)
    error = failure(context_of(engine), message, timeout=0.1)
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    wait_until_idle(engine)


def test_nothing_runs_longer_than_the_servers_total_time(engine: Engine) -> None:
    message = request(max_tokens=400, ignore_eos=True, n=100, temperature=1.0)
    error = failure(context_of(engine, limits=Limits(total_timeout_s=0.05)), message)
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    wait_until_idle(engine)


def test_a_client_that_leaves_ends_its_request(engine: Engine) -> None:
    async def leave(channel: grpc.aio.Channel) -> None:
        call = generate_call(channel)(request(stream=True, max_tokens=400, ignore_eos=True))
        await call.read()
        call.cancel()

    before = engine.info()["scheduler"]["aborted"]
    talk(context_of(engine), leave)
    wait_until_idle(engine)
    assert engine.info()["scheduler"]["aborted"] == before + 1


def test_abort_ends_a_request_of_the_same_key_alone(engine: Engine) -> None:
    keys = Keys(normal=("one", "two"))

    async def abort(channel: grpc.aio.Channel) -> str:
        message = request(stream=True, max_tokens=400, ignore_eos=True)
        message.request_id = "mine"
        call = generate_call(channel)(message, metadata=(("x-api-key", "one"),))
        await call.read()
        end = unary_call(channel, "Abort", pb.AbortResponse)
        await end(pb.AbortRequest(request_id="mine"), metadata=(("x-api-key", "two"),))
        await call.read()
        await end(pb.AbortRequest(request_id="mine"), metadata=(("x-api-key", "one"),))
        last = await call.read()
        while not last.HasField("result"):
            last = await call.read()
        return str(last.result.meta.finish_reason)

    assert talk(context_of(engine, keys=keys), abort) == "abort"


def test_health_and_reflection(engine: Engine) -> None:
    sick = [""]

    async def ask(channel: grpc.aio.Channel) -> tuple[list[int], list[str]]:
        stub = health_pb2_grpc.HealthStub(channel)
        statuses = []
        for reason in ("", "restarting"):
            sick[0] = reason
            await asyncio.sleep(0.7)
            statuses.append((await stub.Check(health_pb2.HealthCheckRequest())).status)
        reflected = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        )
        names = [
            service.name
            async for answer in reflected
            for service in answer.list_services_response.service
        ]
        return statuses, names

    statuses, names = talk(context_of(engine, health=lambda: sick[0]), ask)
    statuses_of = health_pb2.HealthCheckResponse.ServingStatus
    assert statuses == [statuses_of.SERVING, statuses_of.NOT_SERVING]
    assert {SERVICE, "grpc.health.v1.Health"} <= set(names)


def test_calls_name_adapters() -> None:
    engine = AdaptedEngine("sql")
    context = make_context(engine, engine.tokenizer, model_names=("tiny",))  # type: ignore[arg-type]
    sql = {"adapter": "sql"}
    asked = pb.GenerateRequest(prompt=pb.Prompt(text="q"), **sql)
    (answer,) = talk(context, lambda channel: collect(channel, asked))
    assert answer.result.meta.adapter == "sql"
    for name, message, kind in (
        ("Score", pb.ScoreRequest(choices=[pb.Prompt(text="a")], **sql), pb.ScoreResponse),
        ("Embed", pb.EmbedRequest(**sql), pb.EmbedResponse),
    ):
        message.prompt.text = "q"
        found = talk(context, lambda c, n=name, m=message, k=kind: unary_call(c, n, k)(m))
        assert found.meta.adapter == "sql"
    assert [one.adapter for one in engine.requests] == ["sql"] * 3
    refused = failure(context, pb.GenerateRequest(prompt=pb.Prompt(text="q"), adapter="sequel"))
    assert refused.code() is grpc.StatusCode.NOT_FOUND and "sequel" in refused.details()


def test_info_is_the_engines(engine: Engine) -> None:
    answer = talk(
        context_of(engine),
        lambda channel: unary_call(channel, "Info", pb.InfoResponse)(pb.InfoRequest()),
    )
    assert json.loads(answer.json)["vocab_size"] == engine.info()["vocab_size"]


def test_the_generated_module_is_what_the_proto_says(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{FOLDER}"]
    outputs = [f"--python_out={tmp_path}", f"--pyi_out={tmp_path}", "branchline.proto"]
    subprocess.run([*command, *outputs], check=True)
    made = (tmp_path / "branchline_pb2.pyi").read_text()
    assert made == (FOLDER / "branchline_pb2.pyi").read_text()
    line = "DESCRIPTOR = "
    descriptors = [
        next(text for text in path.read_text().splitlines() if text.startswith(line))
        for path in (tmp_path / "branchline_pb2.py", FOLDER / "branchline_pb2.py")
    ]
    assert descriptors[0] == descriptors[1]
