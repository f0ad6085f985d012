"""Embeddings and reranking over HTTP and gRPC, against the engine's own vectors."""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import Iterator
from typing import Any

import grpc
import openai
import pytest

from branchline.runtime.core.messages import Pooling
from branchline.runtime.engine import Engine
from branchline.runtime.server.grpc_api import branchline_pb2 as pb
from branchline.runtime.server.keys import Access, Keys
from branchline.runtime.server.limits import Limits
from tests.server.test_grpc import context_of, talk, unary_call
from tests.server.waiting import wait_until_idle
from tests.support.http_server import RunningServer, serve_engine

TEXTS = ["a small house", "the sea at night", "a big house"]
POOLINGS: list[Pooling] = ["last", "mean"]


@pytest.fixture(scope="module")
def sdk(server: RunningServer) -> Iterator[openai.OpenAI]:
    """OpenAI's own client."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def vectors(engine: Engine, texts: list[str], **options: Any) -> list[list[float]]:
    return [result.embedding for result in engine.embed(texts, **options)]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_the_sdk_gets_the_engines_vectors(
    sdk: openai.OpenAI, engine: Engine, pooling: Pooling
) -> None:
    """The SDK asks for base64 unless it is told otherwise."""
    expected = vectors(engine, TEXTS, pooling=pooling)
    more = {"extra_body": {"pooling": pooling}}
    packed = sdk.embeddings.create(model="tiny", input=TEXTS, **more)
    plain = sdk.embeddings.create(model="tiny", input=TEXTS, encoding_format="float", **more)
    for answer in (packed, plain):
        assert [item.embedding for item in answer.data] == expected
        assert [item.index for item in answer.data] == [0, 1, 2]
        assert answer.object == "list" and answer.model == "tiny"
        assert answer.usage.prompt_tokens == sum(map(len, TEXTS)) == answer.usage.total_tokens


def test_ids_and_texts_alone_or_in_lists_are_the_same(sdk: openai.OpenAI, engine: Engine) -> None:
    [expected] = vectors(engine, TEXTS[:1])
    ids = engine.tokenizer.encode(TEXTS[0], special=True)
    for given in (TEXTS[0], TEXTS[:1], ids, [ids]):
        [item] = sdk.embeddings.create(model="tiny", input=given).data
        assert item.embedding == expected


def test_base64_is_little_endian_float32(server: RunningServer, engine: Engine) -> None:
    body = {"input": TEXTS[0], "encoding_format": "base64", "normalize": False}
    [item] = server.post("/v1/embeddings", body).json["data"]
    raw = base64.b64decode(item["embedding"], validate=True)
    [expected] = vectors(engine, TEXTS[:1], normalize=False)
    assert list(struct.unpack("<64f", raw)) == expected


def test_dimensions_are_the_engines(sdk: openai.OpenAI, engine: Engine) -> None:
    [item] = sdk.embeddings.create(model="tiny", input=TEXTS[0], dimensions=5).data
    assert [item.embedding] == vectors(engine, TEXTS[:1], dimensions=5)
    assert sum(value * value for value in item.embedding) == pytest.approx(1.0)


def test_documents_come_by_their_cosine(server: RunningServer, engine: Engine) -> None:
    query, *others = vectors(engine, ["house", *TEXTS])
    scores = [sum(a * b for a, b in zip(query, other, strict=True)) for other in others]
    body: dict[str, Any] = {"query": "house", "documents": [TEXTS[0], {"text": TEXTS[1]}, TEXTS[2]]}
    for path in ("/v1/rerank", "/rerank"):
        answer = server.post(path, body).json
        found = answer["results"]
        assert [item["relevance_score"] for item in found] == pytest.approx(
            sorted(scores, reverse=True)
        )
        for item in found:
            assert item["relevance_score"] == pytest.approx(scores[item["index"]])
            assert item["document"] == {"text": TEXTS[item["index"]]}
        assert answer["model"] == "tiny"
        assert answer["usage"]["total_tokens"] == sum(map(len, ["house", *TEXTS]))
    best = server.post("/v1/rerank", {**body, "top_n": 1, "return_documents": False}).json
    assert best["results"] == [{key: found[0][key] for key in ("index", "relevance_score")}]
    assert len(server.post("/v1/rerank", {**body, "top_n": 9}).json["results"]) == 3


def test_a_document_like_the_query_is_first_and_ties_keep_their_order(
    server: RunningServer,
) -> None:
    body = {"query": "x y", "documents": ["p", "x y", "q", "x y"], "pooling": "mean"}
    found = server.post("/v1/rerank", body).json["results"]
    assert [item["index"] for item in found[:2]] == [1, 3]
    assert found[0]["relevance_score"] == pytest.approx(1.0, abs=1e-6)
    assert found[0]["relevance_score"] <= 1.0


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/v1/embeddings", {"input": []}, "input is an empty list"),
        ("/v1/embeddings", {"input": [1, "x"]}, "input mixes ids and prompts"),
        ("/v1/embeddings", {"input": ""}, "input is empty"),
        ("/v1/embeddings", {"input": ["x", []]}, "input[1] is empty"),
        ("/v1/embeddings", {"input": [[300]]}, "vocabulary"),
        ("/v1/embeddings", {"input": "x" * 3000}, "context holds"),
        ("/v1/embeddings", {"input": "x", "dimensions": 65}, "Use 1 to 64"),
        ("/v1/embeddings", {"input": "x", "dimensions": 0}, "Use 1 to 64"),
        ("/v1/embeddings", {"input": "x", "pooling": "cls"}, "pooling"),
        ("/v1/embeddings", {"input": "x", "encoding_format": "int8"}, "encoding_format"),
        ("/v1/embeddings", {"input": ["x"] * 7}, "max_prompts"),
        ("/v1/embeddings", {"input": "x", "temperature": 1}, "temperature"),
        ("/v1/rerank", {"query": "x", "documents": []}, "documents is empty"),
        ("/v1/rerank", {"query": "", "documents": ["y"]}, "query is empty"),
        ("/v1/rerank", {"query": "x", "documents": ["y", ""]}, "documents[1] is empty"),
        ("/v1/rerank", {"query": "x", "documents": ["y"], "top_n": 0}, "top_n"),
        ("/v1/rerank", {"query": "x", "documents": ["y"] * 6}, "max_prompts"),
    ],
)
def test_errors_name_what_is_wrong(engine: Engine, path: str, body: Any, words: str) -> None:
    with serve_engine(engine, limits=Limits(max_prompts=6)) as small:
        answer = small.post(path, body)
    assert answer.status == 400, answer.raw
    assert words in answer.json["error"]["message"]


def test_keys_keep_their_cached_texts_apart(engine: Engine) -> None:
    engine.flush_cache()
    body = {"input": "a text that is long enough to be cached"}
    with serve_engine(engine, keys=Keys(normal=("one", "two"))) as closed:
        cached = [
            closed.post("/v1/embeddings", body, headers={"x-api-key": key}).json["usage"][
                "prompt_tokens_details"
            ]["cached_tokens"]
            for key in ("one", "two", "one")
        ]
        assert closed.post("/v1/embeddings", body).status == 401
    assert cached == [0, 0, len(body["input"]) - 1]


def test_an_abort_by_name_and_a_deadline_are_errors(server: RunningServer, engine: Engine) -> None:
    texts = ["x" * 2000] * 40
    late = server.post("/v1/embeddings", {"input": texts, "pooling": "mean", "deadline_s": 0.01})
    assert late.status == 408, late.raw

    async def both() -> Any:
        body = {"input": texts, "pooling": "mean", "rid": "mine"}
        asked = asyncio.create_task(asyncio.to_thread(server.post, "/v1/embeddings", body))
        while not server.context.running.find("mine", server_caller()):
            await asyncio.sleep(0.001)
        await asyncio.to_thread(server.post, "/abort_request", {"rid": "mine"})
        return await asked

    answer = asyncio.run(both())
    assert answer.status == 499, answer.raw
    assert "aborted" in answer.json["error"]["message"]
    wait_until_idle(engine)


def server_caller() -> Any:
    return Keys().identify({}, Access.NORMAL)


def embed_call(engine: Engine, message: pb.EmbedRequest) -> Any:
    return talk(
        context_of(engine), lambda channel: unary_call(channel, "Embed", pb.EmbedResponse)(message)
    )


def test_grpc_gives_the_engines_vectors(engine: Engine) -> None:
    prompt = pb.Prompt(text=TEXTS[0])
    plain = embed_call(engine, pb.EmbedRequest(prompt=prompt))
    assert [list(plain.embedding)] == vectors(engine, TEXTS[:1])
    assert plain.meta.prompt_tokens == len(TEXTS[0])
    mean = pb.EmbedRequest(prompt=prompt, pooling=pb.MEAN, normalize=False, dimensions=7)
    expected = vectors(engine, TEXTS[:1], pooling="mean", normalize=False, dimensions=7)
    assert [list(embed_call(engine, mean).embedding)] == expected


@pytest.mark.parametrize(
    ("change", "words"),
    [({"dimensions": 65}, "Use 1 to 64"), ({"pooling": 9}, "LAST or MEAN"), ({}, "not set")],
)
def test_grpc_names_what_is_wrong(engine: Engine, change: dict[str, Any], words: str) -> None:
    prompt = {"prompt": pb.Prompt(text="x")} if change else {}
    with pytest.raises(grpc.RpcError) as caught:
        embed_call(engine, pb.EmbedRequest(**prompt, **change))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert words in str(caught.value.details())
