"""Adapters on a real engine: what a program, a route and the engine itself say is the same.

A random model whose tokens are bytes, and random adapters strong enough to change what it says.
Oracle: the engine's own `generate`, one prompt at a time, with nothing in the cache.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import branchline as bl
from branchline.lang.errors import AdapterInUse, AdapterNotFound
from branchline.runtime.config.model_spec import from_hf_config
from branchline.runtime.server.context import make_context
from branchline.runtime.server.keys import Keys
from tests.support.http_server import RunningServer, serve
from tests.support.peft_adapters import write_adapter
from tests.support.tiny_engine import write_tiny_model

GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 12, "ignore_eos": True}
NAMES = ("", "one", "two")
ADMIN = {"x-api-key": "key"}
PROMPT = "Once upon a time there was"
Backend = bl.Engine | bl.Endpoint | bl.OpenAI


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters of the tiny model by name, and what is wrong with others."""
    folder = tmp_path_factory.mktemp("adapters")
    spec = from_hf_config(_config(folder))
    for seed, name in enumerate(("one", "two", "three"), 1):
        write_adapter(folder / name, spec, seed=seed)
    write_adapter(folder / "large", spec, rank=64)
    write_adapter(folder / "other", spec, config={"r": 8})
    write_adapter(folder / "cut", spec)
    weights = folder / "cut" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return folder


def _config(folder: Path) -> dict[str, Any]:
    model = write_tiny_model(folder / "model")
    found: dict[str, Any] = json.loads((model / "config.json").read_text())
    return found


def make_engine(folders: Path, **settings: Any) -> bl.Engine:
    return bl.Engine(
        str(folders / "model"),
        load_format="dummy",
        kv_tokens=8192,
        threads=1,
        dtype="float32",
        max_adapter_rank=16,
        adapters={name: str(folders / name) for name in NAMES[1:]},
        **settings,
    )


@pytest.fixture(scope="module")
def engine(folders: Path) -> Iterator[bl.Engine]:
    made = make_engine(folders)
    yield made
    made.close()


@pytest.fixture(scope="module")
def server(engine: bl.Engine, folders: Path) -> Iterator[RunningServer]:
    inner = engine._engine
    context = make_context(
        inner.core,
        inner.tokenizer,
        model_names=("tiny",),
        keys=Keys((), ("key",)),
        adapter_dirs=[str(folders)],
    )
    with serve(context) as running:
        yield running


@pytest.fixture(scope="module", params=["engine", "endpoint", "openai"])
def backend(
    request: pytest.FixtureRequest, engine: bl.Engine, server: RunningServer
) -> Iterator[Backend]:
    made: dict[str, Callable[[], Backend]] = {
        "engine": lambda: engine,
        "endpoint": lambda: bl.Endpoint(server.url, "key"),
        "openai": lambda: bl.OpenAI("tiny", f"{server.url}/v1"),
    }
    found = made[request.param]()
    yield found
    if found is not engine:
        found.close()


def alone(engine: bl.Engine, prompt: str, adapter: str) -> str:
    """What the engine writes by itself."""
    engine.flush_cache()
    return str(engine.generate(prompt, adapter=adapter, **GREEDY).text)


def test_branches_of_one_prompt_are_written_by_their_adapters(
    engine: bl.Engine, backend: Backend
) -> None:
    @bl.function(**GREEDY)
    def program(s: bl.State) -> Any:
        s += PROMPT
        with s.fork(6) as branches:
            for number, branch in enumerate(branches):
                with branch.adapter(NAMES[number % 3]):
                    branch += bl.gen("x")
        return s["x"]

    expected = [alone(engine, PROMPT, name) for name in NAMES]
    assert len(set(expected)) == 3
    for _ in range(2):  # without and with what the first run has cached
        state = program.run(backend=backend)
        assert state.result == expected * 2
        assert [meta.adapter for meta in state.meta("x")] == list(NAMES) * 2


def test_a_lane_may_change_its_adapter(engine: bl.Engine, backend: Backend) -> None:
    @bl.function(**GREEDY)
    def program(s: bl.State) -> Any:
        s += PROMPT
        for name in ("one", "", "two", "one"):
            s += bl.gen("x", adapter=name, append=True)
        return s["x"]

    ids = engine._engine.tokenizer.encode(PROMPT)
    for name in ("one", "", "two", "one"):
        engine.flush_cache()
        ids += engine.generate(ids, adapter=name, **GREEDY).token_ids
    state = program.run(backend=backend)
    if "tokens" in backend.features:
        assert state.tokens() == ids
    assert state.result[0] == alone(engine, PROMPT, "one")


@pytest.mark.parametrize("name", NAMES)
def test_choices_are_scored_by_the_adapter(engine: bl.Engine, backend: Backend, name: str) -> None:
    choices = [" red", " green", " blue"]

    @bl.function
    def program(s: bl.State) -> Any:
        s += PROMPT + bl.select("x", choices, adapter=name)
        return s.meta("x").choices

    engine.flush_cache()
    expected = engine.score(PROMPT, choices, adapter=name).token_logprobs
    for choice, values in zip(program.run(backend=backend).result, expected, strict=True):
        assert choice.token_logprobs == pytest.approx(values, abs=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_constraints_hold_for_adapters(backend: Backend, name: str) -> None:
    @bl.function(temperature=0.0)
    def program(s: bl.State) -> Any:
        s += "Answer: " + bl.gen("x", regex="(yes|no), [0-9]{3}", adapter=name)
        return s["x"]

    assert bl.match(bl.regex("(yes|no), [0-9]{3}"), program.run(backend=backend).result).status == (
        "full"
    )


def test_only_its_own_prefixes_are_found_in_the_cache(engine: bl.Engine) -> None:
    @bl.function(**GREEDY)
    def program(s: bl.State) -> int:
        s += "A prefix that is long enough to be found again: " + bl.gen("x")
        return int(s.meta("x").cached_tokens)

    engine.flush_cache()
    for name in NAMES:
        assert program.run(backend=engine, adapter=name).result == 0
        assert program.run(backend=engine, adapter=name).result > 40


def test_guesses_change_nothing_of_what_adapters_write(engine: bl.Engine, folders: Path) -> None:
    @bl.function(temperature=0.0, max_tokens=120, ignore_eos=True)
    def program(s: bl.State) -> Any:
        s += "round and round and round and round and "
        with s.fork(3) as branches:
            for branch, name in zip(branches, NAMES, strict=True):
                branch += bl.gen("x", adapter=name)
        return s["x"]

    guessing = make_engine(folders, speculative="ngram")
    state = program.run(backend=guessing)
    shown = overview_of(guessing)
    guessing.close()
    assert state.result == program.run(backend=engine).result
    assert 0 < state.usage.accepted_tokens <= shown["requests"]["accepted_tokens"]
    assert shown["requests"]["drafted_tokens"] >= shown["requests"]["drafts"] > 0
    assert (shown["adapters"]["loaded"], shown["adapters"]["slots_used"]) == (2, 2)


def overview_of(engine: bl.Engine) -> Any:
    """What a dashboard is told of an engine."""
    with serve(make_context(engine._engine.core, engine._engine.tokenizer)) as server:
        return server.get("/v1/overview").json


# ---- the server


def ask(server: RunningServer, model: str) -> Any:
    return server.post("/v1/completions", {"prompt": PROMPT, "model": model, **GREEDY})


def load(server: RunningServer, name: str, path: str, **more: Any) -> Any:
    body = {"lora_name": name, "lora_path": path, **more}
    return server.post("/v1/load_lora_adapter", body, headers=ADMIN)


def test_models_of_the_server_answer_as_the_engine(
    engine: bl.Engine, server: RunningServer
) -> None:
    for model, name in (("tiny", ""), ("one", "one"), ("tiny:two", "two")):
        expected = alone(engine, PROMPT, name)
        assert ask(server, model).json["choices"][0]["text"] == expected
    body = {"text": [PROMPT] * 3, "lora_path": [None, "one", "two"]}
    params = {"temperature": 0.0, "max_new_tokens": 12, "ignore_eos": True}
    found = server.post("/generate", {**body, "sampling_params": params}).json
    assert [one["text"] for one in found] == [alone(engine, PROMPT, name) for name in NAMES]


def test_an_adapter_comes_is_replaced_and_goes_while_others_are_used(
    engine: bl.Engine, server: RunningServer, folders: Path
) -> None:
    first = alone(engine, PROMPT, "one")
    assert load(server, "new", "one").status == 200
    assert ask(server, "new").json["choices"][0]["text"] == first
    assert load(server, "new", "three").status == 409
    again = load(server, "new", "three", load_inplace=True)
    assert again.json["adapter"]["version"] == 2
    second = ask(server, "new").json["choices"][0]["text"]
    assert second == alone(engine, PROMPT, "new") and second != first
    names = [card["id"] for card in server.get("/v1/models").json["data"]]
    assert names == ["tiny", "one", "two", "new"]
    gone = server.post("/v1/unload_lora_adapter", {"lora_name": "new"}, headers=ADMIN)
    assert gone.status == 200 and ask(server, "new").status == 404
    assert ask(server, "one").json["choices"][0]["text"] == first


@pytest.mark.parametrize(
    ("path", "words"),
    [("large", "rank"), ("other", ""), ("cut", ""), ("none", ""), ("model", "")],
)
def test_one_that_cannot_be_loaded_says_why_and_disturbs_nothing(
    engine: bl.Engine, server: RunningServer, path: str, words: str
) -> None:
    before = alone(engine, PROMPT, "one")
    answer = load(server, "bad", path)
    assert answer.status == 400, answer.raw
    assert words in answer.json["error"]["message"]
    assert ask(server, "bad").status == 404
    assert ask(server, "one").json["choices"][0]["text"] == before
    assert [info.name for info in engine.adapters()] == ["one", "two"]


def test_slots_are_counted(engine: bl.Engine, server: RunningServer) -> None:
    for name in NAMES:
        alone(engine, PROMPT, name)
    lines = server.get("/metrics").raw.decode().splitlines()
    found = {line.split("{")[0]: line.split()[-1] for line in lines if "lora_" in line}
    assert found["branchline:lora_pool_slots_total"] == "8.0"
    assert found["branchline:lora_adapters"] == "2.0"
    assert found["branchline:lora_pool_slots_used"] == "2.0"
    assert float(found["branchline:lora_loads_total"]) >= 2


def test_the_engines_own_calls(engine: bl.Engine, folders: Path) -> None:
    info = engine.load_adapter("own", str(folders / "three"), pin=True)
    assert (info.name, info.version, info.rank, info.pinned) == ("own", 1, 4, True)
    stream = engine.stream(PROMPT, adapter="own", **{**GREEDY, "max_tokens": 400})
    next(stream)
    with pytest.raises(AdapterInUse):
        engine.unload_adapter("own")
    stream.close()  # type: ignore[attr-defined]
    engine.unload_adapter("own", drain=True)
    with pytest.raises(AdapterNotFound):
        engine.unload_adapter("own")
    with pytest.raises(AdapterNotFound, match="own"):
        engine.generate(PROMPT, adapter="own")


def test_an_endpoint_sends_what_the_engine_then_runs(
    engine: bl.Engine, server: RunningServer, folders: Path
) -> None:
    endpoint = bl.Endpoint(server.url, "key")
    assert endpoint.load_adapter("sent", str(folders / "one")).rank == 4
    assert alone(engine, PROMPT, "sent") == alone(engine, PROMPT, "one")
    with pytest.raises(bl.AdapterError, match="rank"):
        endpoint.load_adapter("sent", str(folders / "large"))
    assert [(one.name, one.version) for one in endpoint.adapters()][-1] == ("sent", 1)
    endpoint.unload_adapter("sent")
    endpoint.close()
