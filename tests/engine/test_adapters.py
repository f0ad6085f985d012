"""Adapters beside everything else an engine does: each output is what it is alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from branchline.runtime.core.adapters import AdapterFiles
from branchline.runtime.core.messages import GenerateRequest
from branchline.runtime.core.sampling_params import Constraint, SamplingParams
from branchline.runtime.engine import Engine
from branchline.runtime.errors import (
    AdapterDamaged,
    AdapterInUse,
    AdapterMismatch,
    AdapterNotFound,
    AdapterTooLarge,
    AdapterUnsupported,
    InvalidRequest,
    UnsupportedFeature,
)
from branchline.runtime.loading.load import open_checkpoint
from branchline.runtime.loading.safetensors import SafetensorsCheckpoint
from tests.support.eagle_oracle import write_head
from tests.support.peft_adapters import EVERYTHING, LINEARS, write_adapter
from tests.support.tiny_engine import tiny_engine, write_tiny_weights

NAMES = ("", "a", "b", "c", "d")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_weights(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def folders(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Four adapters; those of "c" and "d" change the embedding and the (tied) head, too."""
    folder, spec = tmp_path_factory.mktemp("adapters"), SafetensorsCheckpoint(base).spec
    return {
        name: str(
            write_adapter(
                folder / name,
                spec,
                rank=2 + index,
                targets=EVERYTHING if name in "cd" else LINEARS,
                seed=index,
                strength=0.6,
            )
        )
        for index, name in enumerate("abcd")
    }


@pytest.fixture(scope="module")
def engine(base: Path, folders: dict[str, str]) -> Iterator[Engine]:
    """Fewer slots than adapters, small steps, and so little memory that requests are retracted."""
    with Engine(
        str(base),
        kv_tokens=200,
        context_length=160,
        max_step_tokens=32,
        adapter_slots=2,
        adapters=folders,
        threads=1,
    ) as made:
        yield made


def requests() -> list[dict[str, Any]]:
    """Kinds of requests, each for every adapter and the base model."""
    kinds: list[dict[str, Any]] = [
        {"prompt": "Once upon a time, in a land far away", "max_tokens": 60, "temperature": 0.0},
        {"prompt": "x" * 70, "max_tokens": 50, "temperature": 0.8, "seed": 3},
        {
            "prompt": "The answer is",
            "max_tokens": 12,
            "temperature": 0.0,
            "constraint": Constraint(kind="regex", text="[a-c]{3} forced text [0-9]+"),
        },
        {
            "prompt": "The words are",
            "max_tokens": 60,
            "temperature": 0.6,
            "seed": 2,
            "constraint": Constraint(kind="regex", text="(one|two|three)(, (one|two|three)){9}"),
        },
        {"prompt": "Once upon a time", "max_tokens": 6, "temperature": 0.7, "seed": 1, "n": 2},
        {"prompt": "Say", "max_tokens": 5, "temperature": 0.0, "logprobs": 2},
    ]
    return [{**kind, "adapter": name} for kind in kinds for name in NAMES]


def ids_of(results: Any) -> list[list[int]]:
    return [r.token_ids for r in (results if isinstance(results, list) else [results])]


@pytest.fixture(scope="module")
def alone(engine: Engine) -> list[list[list[int]]]:
    return [
        ids_of(asyncio.run(engine.agenerate(**({"ignore_eos": True} | request))))
        for request in requests()
    ]


def test_the_adapters_say_different_things(alone: list[list[list[int]]]) -> None:
    for first in range(0, 2 * len(NAMES), len(NAMES)):
        said = {tuple(ids[0]) for ids in alone[first : first + len(NAMES)]}
        assert len(said) == len(NAMES)


def test_together_each_request_says_what_it_says_alone(
    engine: Engine, alone: list[list[list[int]]]
) -> None:
    engine.flush_cache()
    before = engine.info()

    async def everything() -> list[Any]:
        jobs = [engine.agenerate(**({"ignore_eos": True} | request)) for request in requests()]
        return await asyncio.gather(*jobs)

    for _ in range(2):  # cold, then with what the cache has kept
        assert [ids_of(found) for found in asyncio.run(everything())] == alone
    after = engine.info()
    assert after["adapters"]["evictions"] > before["adapters"]["evictions"]
    assert after["scheduler"]["retractions"] > before["scheduler"]["retractions"]
    assert all(info.running == 0 for info in engine.adapters())


@pytest.mark.parametrize("kv_tokens", [9000, 200])
@pytest.mark.parametrize("speculative", ["ngram", "draft", "eagle"])
def test_guesses_are_checked_by_the_adapted_model(
    base: Path,
    folders: dict[str, str],
    alone: list[list[list[int]]],
    tmp_path: Path,
    speculative: str,
    kv_tokens: int,
) -> None:
    """Trees of guesses beside grammars, more adapters than slots, and, with little memory, rows
    that are retracted."""
    drafts = {"draft": str(base), "eagle": str(tmp_path / "head")}
    write_head(tmp_path / "head", 3, 260, hidden=64, draft_vocab=90, layers=[0, 0, 1])
    options: dict[str, Any] = {
        "adapter_slots": 2,
        "adapters": folders,
        "context_length": 160,
        "max_step_tokens": 32,
        "speculative_tokens": 8,
        "speculative_draft": drafts.get(speculative),
        "threads": 1,
    }
    with Engine(str(base), kv_tokens=kv_tokens, speculative=speculative, **options) as engine:

        async def everything() -> list[Any]:
            jobs = [engine.agenerate(**({"ignore_eos": True} | request)) for request in requests()]
            return await asyncio.gather(*jobs)

        results = asyncio.run(everything())
        again = asyncio.run(everything())  # with what the cache has kept, guesses included
        info = engine.info()
    assert [ids_of(found) for found in results] == alone
    assert [ids_of(found) for found in again] == alone
    assert info["adapters"]["evictions"] > 0
    assert (info["scheduler"]["retractions"] > 0) == (kv_tokens == 200)
    metas = [found.meta for found in results if not isinstance(found, list)]
    assert any(meta.adapter and meta.drafted_tokens for meta in metas)


def test_what_a_request_of_one_adapter_cached_is_no_use_to_another(engine: Engine) -> None:
    engine.flush_cache()
    prompt, options = "A prompt of its own, long enough", {"temperature": 0.0, "max_tokens": 2}
    counts = []
    for name in ("a", "", "b", "a", ""):
        counts.append(engine.generate(prompt, adapter=name, **options).meta.cached_tokens)
    assert counts[:3] == [0, 0, 0]
    assert min(counts[3:]) > 20


def test_vectors_and_scores_are_the_adapters_own(engine: Engine) -> None:
    vectors = {name: tuple(engine.embed("some text", adapter=name).embedding) for name in NAMES}
    assert len(set(vectors.values())) == len(NAMES)
    scores = {name: engine.score("It is", [" so", " not"], adapter=name) for name in NAMES}
    assert len({str(s.token_logprobs) for s in scores.values()}) == len(NAMES)
    for name in NAMES:
        assert tuple(engine.embed("some text", adapter=name).embedding) == vectors[name]


def begun(engine: Engine, adapter: str, outputs: list[Any]) -> str:
    """Submit a long request, on the loop thread; its id."""
    sampling = SamplingParams(max_tokens=100, temperature=0.0, ignore_eos=True)
    ids = engine.tokenizer.encode("Once", special=True)
    request = GenerateRequest(id="long", prompt_ids=ids, sampling=sampling, adapter=adapter)
    engine.core.submit(request, outputs.append)
    return request.id


def wait_for(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_an_abort_gives_the_slot_back(engine: Engine) -> None:
    outputs: list[Any] = []

    def one_turn() -> list[int]:
        name = begun(engine, "a", outputs)
        during = [info.running for info in engine.adapters() if info.name == "a"]
        engine.core.abort(name)
        return during

    assert engine._on_loop(one_turn) == [1]
    wait_for(lambda: bool(outputs))
    assert outputs[0].meta.finish_reason == "abort"
    assert [info.running for info in engine.adapters()] == [0] * 4


def test_unloading_in_flight_is_refused_or_drained(engine: Engine, folders: dict[str, str]) -> None:
    engine.load_adapter("gone", folders["a"])
    options: dict[str, Any] = {"max_tokens": 100, "temperature": 0.0, "ignore_eos": True}
    expected = engine.generate("Once", adapter="gone", **options).token_ids
    outputs: list[Any] = []
    answers: list[Any] = []

    def one_turn() -> None:
        begun(engine, "gone", outputs)
        engine.core.unload_adapter("gone", answers.append)
        engine.core.unload_adapter("gone", answers.append, drain=True)

    engine._on_loop(one_turn)
    assert isinstance(answers[0], AdapterInUse)
    with pytest.raises(AdapterNotFound):
        engine.generate("Once", adapter="gone")
    wait_for(lambda: len(answers) == 2)
    assert answers[1].name == "gone"
    assert outputs[0].token_ids == expected, "it ended as if nothing had been"
    assert [info.name for info in engine.adapters()] == ["a", "b", "c", "d"]


def test_a_new_version_serves_new_requests_and_the_old_one_those_it_has(
    engine: Engine, folders: dict[str, str]
) -> None:
    options: dict[str, Any] = {"max_tokens": 40, "temperature": 0.0, "ignore_eos": True}
    expected = {n: engine.generate("Once", adapter=n, **options).token_ids for n in ("a", "b")}
    assert engine.load_adapter("changing", folders["a"]).version == 1
    stream = engine.stream("Once", adapter="changing", **options)
    next(stream)
    assert engine.load_adapter("changing", folders["b"]).version == 2
    assert engine.generate("Once", adapter="changing", **options).token_ids == expected["b"]
    *_, last = stream
    assert last.token_ids == expected["a"]  # type: ignore[union-attr]
    engine.unload_adapter("changing")


def test_a_sent_adapter_is_the_one_of_the_folder(engine: Engine, folders: dict[str, str]) -> None:
    folder = Path(folders["d"])
    files = AdapterFiles(
        config=(folder / "adapter_config.json").read_bytes(),
        weights=(folder / "adapter_model.safetensors").read_bytes(),
    )
    engine.load_adapter("sent", files)
    options: dict[str, Any] = {"max_tokens": 8, "temperature": 0.0}
    first, second = (engine.generate("x", adapter=n, **options).token_ids for n in ("d", "sent"))
    assert first == second
    engine.unload_adapter("sent")


def test_errors_say_what_is_wrong_and_disturb_nobody(
    engine: Engine, base: Path, folders: dict[str, str], tmp_path: Path
) -> None:
    spec = SafetensorsCheckpoint(base).spec
    wide = write_adapter(tmp_path / "wide", spec, rank=17)
    strange = write_adapter(tmp_path / "strange", spec, config={"use_dora": True})
    broken = write_adapter(tmp_path / "broken", spec)
    (broken / "adapter_model.safetensors").write_bytes(b"{}")
    other = write_tiny_weights(tmp_path / "other", hidden_size=32)
    foreign = write_adapter(tmp_path / "foreign", SafetensorsCheckpoint(other).spec)
    stream = engine.stream("Once", max_tokens=30, temperature=0.0, ignore_eos=True, adapter="a")
    next(stream)
    for path, kind in (
        (wide, AdapterTooLarge),
        (strange, AdapterUnsupported),
        (broken, AdapterDamaged),
        (foreign, AdapterMismatch),
        (tmp_path / "nowhere", AdapterDamaged),
    ):
        with pytest.raises(kind):
            engine.load_adapter("new", str(path))
    with pytest.raises(AdapterNotFound, match="Loaded: a, b, c, d"):
        engine.generate("Once", adapter="new")
    *_, last = stream
    again = engine.generate("Once", max_tokens=30, temperature=0.0, ignore_eos=True, adapter="a")
    assert last.token_ids == again.token_ids  # type: ignore[union-attr]


def test_an_engine_without_slots_says_so(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="adapter_slots is 0"):
        tiny_engine(tmp_path / "m", adapter_slots=0, adapters={"a": "somewhere"})
    with pytest.raises(InvalidRequest, match="at most 256"):
        tiny_engine(tmp_path / "m", max_adapter_rank=257)
    with pytest.raises(InvalidRequest, match="does not have"):
        tiny_engine(tmp_path / "m", adapter_targets="q_proj, w_proj")
    with pytest.raises(AdapterDamaged, match="somewhere"):
        tiny_engine(tmp_path / "m", adapters={"a": "somewhere"})
    with tiny_engine(tmp_path / "m", adapter_slots=0) as engine:
        with pytest.raises(UnsupportedFeature, match="adapter_slots=8"):
            engine.load_adapter("a", "somewhere")
        with pytest.raises(AdapterNotFound):
            engine.generate("x", adapter="a")
        assert engine.adapters() == []


def test_matrices_are_float32_beside_float32_weights_alone(base: Path, default_model: Path) -> None:
    """Where the base is rounded, so are they: half the memory, and half of it to read."""

    def slot_bytes(model: Path, **settings: Any) -> int:
        options = {"kv_tokens": 2000, "context_length": 512, "threads": 1} | settings
        with Engine(str(model), **options) as engine:
            return int(engine.info()["adapters"]["slot_bytes"])

    for model, share in ((base, 1.0), (default_model, 0.5)):
        exact = slot_bytes(model, dtype="float32")
        assert slot_bytes(model) == pytest.approx(share * exact, rel=0.02)


def test_the_default_models_base_rows_keep_their_ids_beside_an_adapter(
    default_model: Path, tmp_path: Path
) -> None:
    """4-bit weights as the file has them; the adapter is computed beside them."""
    spec = open_checkpoint(default_model).spec
    path = write_adapter(tmp_path, spec, rank=8, strength=0.3)
    options: dict[str, Any] = {"max_tokens": 8, "temperature": 0.0, "ignore_eos": True}
    with Engine(str(default_model), kv_tokens=9000, adapters={"noise": str(path)}) as engine:
        prompt = "The capital of France is"
        expected = {n: engine.generate(prompt, adapter=n, **options) for n in ("", "noise")}
        assert expected[""].token_ids != expected["noise"].token_ids

        async def both() -> list[Any]:
            jobs = [engine.agenerate(prompt, adapter=n, **options) for n in ("", "noise") * 2]
            return await asyncio.gather(*jobs)

        engine.flush_cache()
        for name, result in zip(("", "noise") * 2, asyncio.run(both()), strict=True):
            assert result.token_ids == expected[name].token_ids
