"""Embeddings of an engine: transformers' own hidden states, pooled, whatever runs beside them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from branchline.runtime.core.messages import EmbedRequest, Pooling
from branchline.runtime.engine import Engine
from branchline.runtime.engine_client import EngineClient
from branchline.runtime.errors import DeadlineExceeded, InvalidRequest
from tests.support.tiny_engine import write_tiny_model

TEXTS = ["a", "The quick brown fox", "jumps over the lazy dog. " * 40, "The quick brown dog"]
POOLINGS: list[Pooling] = ["last", "mean"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny byte model with weights that transformers made and saved."""
    path = write_tiny_model(tmp_path_factory.mktemp("embed") / "tiny")
    torch.manual_seed(5)
    config = transformers.LlamaConfig.from_pretrained(path, initializer_range=0.2)
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    """The same checkpoint here, in small steps, so that a long text takes several."""
    with Engine(str(folder), dtype="float32", kv_tokens=8192, max_step_tokens=128) as made:
        yield made


def reference(folder: Path, ids: list[int], pooling: Pooling) -> np.ndarray:
    """Transformers' last hidden states, pooled and scaled to length 1."""
    model = transformers.AutoModel.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.inference_mode():
        states = model(torch.tensor([ids])).last_hidden_state[0].double().numpy()
    pooled = states[-1] if pooling == "last" else states.mean(0)
    unit: np.ndarray = pooled / np.linalg.norm(pooled)
    return unit


@pytest.mark.parametrize("pooling", POOLINGS)
def test_vectors_are_those_of_transformers(engine: Engine, folder: Path, pooling: Pooling) -> None:
    for text, result in zip(TEXTS, engine.embed(TEXTS, pooling=pooling), strict=True):
        ids = engine.tokenizer.encode(text, special=True)
        expected = reference(folder, ids, pooling)
        assert len(result.embedding) == 64
        np.testing.assert_allclose(result.embedding, expected, rtol=0, atol=2e-5)
        assert result.meta.prompt_tokens == len(ids) and result.meta.output_tokens == 0
        assert result.meta.finish_reason == "stop"


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_vector_has_the_same_bits_alone_in_a_batch_and_from_the_cache(
    engine: Engine, pooling: Pooling
) -> None:
    alone = []
    for text in TEXTS:
        engine.flush_cache()
        alone.append(engine.embed(text, pooling=pooling).embedding)
    engine.flush_cache()
    results: list[Any] = []

    async def beside_generation() -> None:
        async def embed() -> None:
            results.extend(await asyncio.to_thread(engine.embed, TEXTS * 4, pooling=pooling))

        texts = [engine.agenerate(text, max_tokens=24, ignore_eos=True) for text in TEXTS]
        await asyncio.gather(*texts, embed())

    asyncio.run(beside_generation())
    assert [result.embedding for result in results] == alone * 4
    cached = engine.embed(TEXTS, pooling=pooling)
    assert [result.embedding for result in cached] == alone
    assert any(result.meta.cached_tokens for result in cached) == (pooling == "last")


def test_options_change_the_scale_and_the_length_alone(engine: Engine) -> None:
    plain = engine.embed("hello", normalize=False).embedding
    length = math.sqrt(math.fsum(value * value for value in plain))
    unit = engine.embed("hello").embedding
    assert unit == pytest.approx([value / length for value in plain], rel=1e-6)
    short = engine.embed("hello", dimensions=8).embedding
    scale = math.sqrt(math.fsum(value * value for value in plain[:8]))
    assert short == pytest.approx([value / scale for value in plain[:8]], rel=1e-6)
    ids = engine.tokenizer.encode("hello", special=True)
    assert engine.embed(ids).embedding == unit
    assert engine.embed([ids])[0].embedding == unit


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pooling": "cls"}, "Known: last, mean"),
        ({"dimensions": 65}, "Use 1 to 64"),
        ({"temperature": 0.5}, "unknown option 'temperature'"),
    ],
)
def test_what_cannot_be_done_is_refused(
    engine: Engine, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidRequest, match=words):
        engine.embed("x", **options)
    with pytest.raises(InvalidRequest, match="empty"):
        engine.embed(["x", []])


def test_a_deadline_ends_it_and_memory_comes_back(engine: Engine) -> None:
    with pytest.raises(DeadlineExceeded):
        engine.embed("x" * 2000, pooling="mean", deadline_s=-1.0)
    assert engine.core.info()["scheduler"]["unfinished"] == 0


def test_a_client_gets_vectors_in_the_order_of_its_requests(engine: Engine) -> None:
    client = EngineClient(engine.core, prefix="embed-")
    requests = [
        EmbedRequest(id=client.new_id(), prompt_ids=engine.tokenizer.encode(text)) for text in TEXTS
    ]
    found = asyncio.run(client.embed(*requests))
    assert [result.request_id for result in found] == [request.id for request in requests]
    expected = engine.embed([request.prompt_ids for request in requests])
    assert [result.embedding for result in found] == [result.embedding for result in expected]
