"""Adapters of a server: their names wherever a model is named, loading, and what is refused."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

import branchline as bl
from branchline.lang.errors import AdapterNotFound, InvalidRequest, QueueFull
from branchline.runtime.core.adapters import AdapterFiles
from branchline.runtime.errors import (
    AdapterDamaged,
    AdapterMismatch,
    AdapterTooLarge,
    AdapterUnsupported,
)
from branchline.runtime.server.context import make_context
from branchline.runtime.server.keys import Keys
from branchline.runtime.server.limits import Limits
from tests.server.waiting import wait_for
from tests.support.adapter_port import AdaptedEngine
from tests.support.http_server import Answer, RunningServer, serve

ADMIN = {"x-api-key": "admin-key"}
LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"


@contextmanager
def serving(engine: AdaptedEngine, **options: Any) -> Iterator[RunningServer]:
    options = {"model_names": ("m", "m2"), "keys": Keys((), ("admin-key",)), **options}
    with serve(make_context(engine, engine.tokenizer, **options)) as server:  # type: ignore[arg-type]
        yield server


@pytest.fixture
def engine() -> AdaptedEngine:
    return AdaptedEngine("sql", "org/json:v2")


@pytest.fixture
def server(engine: AdaptedEngine) -> Iterator[RunningServer]:
    with serving(engine) as running:
        yield running


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for name in ("allowed/one", "allowed/two", "other/secret", "allowed-too/three"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "allowed/link").symlink_to(tmp_path / "other/secret")
    return tmp_path


@pytest.fixture
def loading(engine: AdaptedEngine, folders: Path) -> Iterator[RunningServer]:
    with serving(engine, adapter_dirs=[str(folders / "allowed")]) as running:
        yield running


def load(server: RunningServer, path: str = LOAD, **body: Any) -> Answer:
    return server.post(path, body, headers=ADMIN)


def said(answer: Answer) -> str:
    return str(answer.json["error"]["message"])


MESSAGES = [{"role": "user", "content": "q"}]
ROUTES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {"prompt": "q"}),
    ("/v1/chat/completions", {"messages": MESSAGES}),
    ("/v1/responses", {"input": "q"}),
    ("/v1/messages", {"messages": MESSAGES, "max_tokens": 4}),
    ("/v1/score", {"query": "q", "items": ["a"], "label_token_ids": [5]}),
    ("/v1/embeddings", {"input": "q"}),
    ("/v1/rerank", {"query": "q", "documents": ["a"]}),
]


@pytest.mark.parametrize(("path", "body"), ROUTES, ids=[path for path, _ in ROUTES])
def test_every_route_with_a_model_takes_an_adapter(
    server: RunningServer, engine: AdaptedEngine, path: str, body: dict[str, Any]
) -> None:
    named = [("m", ""), ("sql", "sql"), ("org/json:v2", "org/json:v2"), ("m2:sql", "sql")]
    for model, adapter in named:
        engine.requests.clear()
        answer = server.post(path, {**body, "model": model})
        assert {request.adapter for request in engine.requests} == {adapter}
        assert answer.status == 200 and answer.json["model"] == model
    refused = server.post(path, {**body, "model": "sequel"})
    assert refused.status == 404
    for word in ("sequel", "m, m2, sql, org/json:v2"):
        assert word in said(refused)


@pytest.mark.parametrize(
    ("fields", "adapter"),
    [
        ({"lora_path": "sql"}, "sql"),
        ({"model": "m", "lora_path": "sql"}, "sql"),
        ({"model": "sql", "lora_path": "sql"}, "sql"),
        ({"model": "m", "lora_path": ""}, ""),
        ({"model": "m", "lora_path": None}, ""),
        ({"model": "default"}, ""),
        ({"model": "sql", "lora_path": "org/json:v2"}, 400),
        ({"model": "sql", "lora_path": ""}, 400),
        ({"lora_path": "sequel"}, 404),
        ({"lora_path": "m"}, 404),
        ({"model": "m:"}, 404),
        ({"model": "m:sequel"}, 404),
        ({"model": "x:sql"}, 404),
        ({"model": "SQL"}, 404),
    ],
)
def test_model_and_lora_path_name_one_adapter(
    server: RunningServer, engine: AdaptedEngine, fields: dict[str, Any], adapter: str | int
) -> None:
    answer = server.post("/v1/completions", {"prompt": "q", **fields})
    if isinstance(adapter, int):
        assert answer.status == adapter and not engine.requests
    else:
        assert answer.status == 200
        assert [request.adapter for request in engine.requests] == [adapter]


def test_prompts_of_one_native_request_may_differ(
    server: RunningServer, engine: AdaptedEngine
) -> None:
    body = {"text": ["a", "b", "c"], "lora_path": ["sql", None, "org/json:v2"]}
    assert server.post("/generate", body).status == 200
    assert [request.adapter for request in engine.requests] == ["sql", "", "org/json:v2"]
    one = server.post("/generate", {"text": ["a", "b"], "lora_path": "sql"})
    assert one.status == 200
    assert [request.adapter for request in engine.requests[3:]] == ["sql", "sql"]
    assert server.post("/generate", {"text": "a", "lora_path": "sequel"}).status == 404


def test_models_are_listed_with_their_adapters(server: RunningServer) -> None:
    cards = {card["id"]: card for card in server.get("/v1/models").json["data"]}
    assert list(cards) == ["m", "m2", "sql", "org/json:v2"]
    assert [card["parent"] for card in cards.values()] == [None, None, "m", "m"]
    assert server.get("/v1/models/org/json:v2").json == cards["org/json:v2"]
    assert server.get("/v1/models/m:sql").json["parent"] == "m"
    assert server.get("/v1/models/sequel").status == 404
    anthropic = server.get("/v1/models", headers={"anthropic-version": "2023-06-01"}).json
    assert [card["id"] for card in anthropic["data"]] == list(cards)
    assert anthropic["last_id"] == "org/json:v2"
    told = server.get("/get_server_info").json["loaded_adapters"]
    assert [one["name"] for one in told] == ["sql", "org/json:v2"]


# ---- loading


@pytest.mark.parametrize("prefix", ["/v1", ""])
def test_an_adapter_is_loaded_used_replaced_and_unloaded(
    loading: RunningServer, engine: AdaptedEngine, folders: Path, prefix: str
) -> None:
    path, away = f"{prefix}/load_lora_adapter", f"{prefix}/unload_lora_adapter"
    folder = str(folders / "allowed/one")
    done = load(loading, path, lora_name="new", lora_path=folder, pinned=True)
    assert done.status == 200, done.raw
    assert done.json["success"] is True and done.json["loaded_adapters"]["new"] == folder
    told = done.json["adapter"]
    assert (told["name"], told["version"], told["pinned"]) == ("new", 1, True)
    assert engine.sources == [folder]
    assert loading.post("/v1/completions", {"prompt": "q", "model": "new"}).status == 200
    again = load(loading, path, lora_name="new", lora_path="two")
    assert again.status == 409 and "load_inplace" in said(again) and len(engine.sources) == 1
    second = load(loading, path, lora_name="new", lora_path="two", load_inplace=True)
    assert second.json["adapter"]["version"] == 2
    assert engine.sources[1] == str(folders / "allowed/two")
    gone = load(loading, away, lora_name="new")
    assert gone.status == 200 and "new" not in gone.json["loaded_adapters"]
    assert loading.post("/v1/completions", {"prompt": "q", "model": "new"}).status == 404
    assert load(loading, away, lora_name="new").status == 404


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("two", 200),
        ("./one", 200),
        ("missing", 400),
        ("smollm2-135m-sql", 400),  # a name is for the operator
        ("../other/secret", 403),
        ("link", 403),
        ("../allowed-too/three", 403),
        ("", 403),
        (".", 403),
        ("/etc", 403),
        ("one/../..", 403),
        ("a\0b", 400),
        ("x" * 5000, 400),
    ],
)
def test_a_path_is_read_below_the_allowed_folders_alone(
    loading: RunningServer, engine: AdaptedEngine, folders: Path, path: str, status: int
) -> None:
    answer = load(loading, lora_name="new", lora_path=path)
    assert answer.status == status, answer.raw
    if status == 200:
        assert Path(str(engine.sources[0])).is_relative_to(folders / "allowed")
    else:
        assert engine.sources == [] and len(engine.adapters()) == 2
    absolute = load(loading, lora_name="abs", lora_path=str(folders / "allowed" / "one"))
    assert absolute.status == 200


def test_without_allowed_folders_no_path_is_read(
    server: RunningServer, engine: AdaptedEngine
) -> None:
    answer = load(server, lora_name="new", lora_path="/tmp")
    assert answer.status == 403 and "--adapter-dirs" in said(answer) and not engine.sources


def test_a_folder_that_is_none_is_said_at_the_start(engine: AdaptedEngine, tmp_path: Path) -> None:
    with (
        pytest.raises(InvalidRequest, match="no folder"),
        serving(engine, adapter_dirs=[str(tmp_path / "none")]),
    ):
        pass


@pytest.mark.parametrize("path", [LOAD, UNLOAD, "/load_lora_adapter", "/unload_lora_adapter",
                                  "/load_lora_adapter_from_tensors"])  # fmt: skip
def test_loading_is_for_admins(engine: AdaptedEngine, path: str) -> None:
    body = {"lora_name": "sql", "lora_path": "x"}
    for keys, headers in (
        (Keys(), {}),
        (Keys((), ("admin-key",)), {}),
        (Keys(("k",), ("admin-key",)), {"x-api-key": "k"}),
    ):
        with serving(engine, keys=keys) as server:
            assert server.post(path, body, headers=headers).status == 403
    assert not engine.sources and len(engine.adapters()) == 2


@pytest.mark.parametrize(
    ("name", "words"),
    [("m2", "name of the model"), ("", "cannot be called so"), ("a b", "cannot be called so"),
     ("@x", "cannot be called so"), ("x" * 129, "cannot be called so")],
)  # fmt: skip
def test_names_that_cannot_be(
    loading: RunningServer, engine: AdaptedEngine, name: str, words: str
) -> None:
    answer = load(loading, lora_name=name, lora_path="one")
    assert answer.status == 400 and words in said(answer) and not engine.sources


def test_an_adapter_called_as_the_model_stops_the_start() -> None:
    with (
        pytest.raises(InvalidRequest, match="name of the model"),
        serving(AdaptedEngine("m")),
    ):
        pass


@pytest.mark.parametrize(
    "error",
    [
        AdapterTooLarge("rank 512 is more than the 64 of a slot", hint="Raise max_adapter_rank."),
        AdapterMismatch("q_proj is 32 wide, the model's is 64"),
        AdapterDamaged("adapter_model.safetensors is cut short"),
        AdapterUnsupported("DoRA is not supported"),
    ],
)
def test_what_is_wrong_with_an_adapter_is_said_and_nothing_changes(
    loading: RunningServer, engine: AdaptedEngine, error: Any
) -> None:
    engine.failures = {"bad": error, "sql": error}
    for name, replace in (("bad", False), ("sql", True)):
        answer = load(loading, lora_name=name, lora_path="one", load_inplace=replace)
        assert (answer.status, said(answer)) == (400, str(error))
        native = load(
            loading, "/load_lora_adapter", lora_name=name, lora_path="one", load_inplace=replace
        )
        assert native.status == 400 and native.json["error"]["code"] == type(error).__name__
    assert [info.version for info in engine.adapters()] == [1, 1]
    assert loading.post("/v1/completions", {"prompt": "q", "model": "sql"}).status == 200


def test_a_name_is_loaded_once_at_a_time_whatever_its_client_does(
    loading: RunningServer, engine: AdaptedEngine
) -> None:
    engine.held = True

    async def leave() -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=0.3)) as session:
            with pytest.raises(TimeoutError):
                body = {"lora_name": "new", "lora_path": "one"}
                await session.post(loading.url + LOAD, json=body, headers=ADMIN)

    asyncio.run(leave())
    again = load(loading, lora_name="new", lora_path="one", load_inplace=True)
    assert again.status == 409 and "being loaded" in said(again)
    [finish] = engine.waiting
    engine.call_soon(finish)
    wait_for(lambda: len(engine.adapters()) == 3)
    engine.held = False
    assert load(loading, lora_name="new", lora_path="one", load_inplace=True).status == 200


def test_there_are_no_more_adapters_than_allowed(engine: AdaptedEngine, folders: Path) -> None:
    options = {"adapter_dirs": [str(folders)], "limits": Limits(max_adapters=3)}
    with serving(engine, **options) as server:
        assert load(server, lora_name="new", lora_path="allowed/one").status == 200
        more = load(server, lora_name="more", lora_path="allowed/one")
        assert more.status == 400 and "max_adapters" in said(more)
        replaced = load(server, lora_name="new", lora_path="allowed/two", load_inplace=True)
        assert replaced.status == 200


# ---- sending


def send(server: RunningServer, **fields: bytes | str) -> Answer:
    async def post() -> Answer:
        form = aiohttp.FormData()
        for name, value in fields.items():
            if isinstance(value, bytes):
                form.add_field(name, io.BytesIO(value), filename=name)
            else:
                form.add_field(name, value)
        async with (
            aiohttp.ClientSession() as session,
            session.post(server.url + LOAD, data=form, headers=ADMIN) as response,
        ):
            return Answer(response.status, response.headers.copy(), await response.read())

    return asyncio.run(post())


def test_an_adapter_can_be_sent_as_a_form(server: RunningServer, engine: AdaptedEngine) -> None:
    told = server.get("/openapi.json").json["paths"][LOAD]["post"]["requestBody"]["content"]
    assert list(told) == ["application/json", "multipart/form-data"]
    weights = b"w" * (9 << 20)  # more than other bodies may have
    answer = send(server, lora_name="new", config=b"{}", weights=weights, pinned="true")
    assert answer.status == 200, answer.raw
    assert answer.json["adapter"]["pinned"] is True
    assert engine.sources == [AdapterFiles(config=b"{}", weights=weights)]
    assert send(server, lora_name="new", config=b"{}", weights=b"w").status == 409
    second = send(server, lora_name="new", config=b"{}", weights=b"w", load_inplace="true")
    assert second.json["adapter"]["version"] == 2


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"config": b"{}", "weights": b"w"}, 400, "no lora_name"),
        ({"lora_name": "new", "weights": b"w"}, 400, "no config"),
        ({"lora_name": "new", "config": b"{}"}, 400, "no weights"),
        ({"lora_name": "new", "config": b"{}", "weights": b"w", "x": "y"}, 400, "unknown field"),
        ({"lora_name": "new", "config": b"{}", "weights": b"w", "pinned": "on"}, 400, "a switch"),
        ({"lora_name": "new", "config": b"{}", "weights": b"w" * 101}, 413, "max_adapter_bytes"),
        ({"lora_name": "new", "config": b" " * 2_000_000, "weights": b"w"}, 413, "config"),
        ({"lora_name": "n" * 2000, "config": b"{}", "weights": b"w"}, 413, "lora_name"),
    ],
)
def test_forms_that_are_not_taken(
    engine: AdaptedEngine, fields: dict[str, Any], status: int, words: str
) -> None:
    with serving(engine, limits=Limits(max_adapter_bytes=100)) as server:
        answer = send(server, **fields)
    assert answer.status == status and words in said(answer) and not engine.sources


def test_a_damaged_form_is_the_clients_fault(server: RunningServer, engine: AdaptedEngine) -> None:
    kind = {"Content-Type": "multipart/form-data; boundary=x", **ADMIN}
    name = b"--x\r\nContent-Disposition: form-data; name=lora_name\r\n\r\na\r\n"
    for data in (b"", b"no form", name[:-4], name + name + b"--x--\r\n"):
        answer = server.request("POST", LOAD, data=data, headers=kind)
        assert answer.status == 400, answer.raw
    bare = {"Content-Type": "multipart/form-data", **ADMIN}
    assert server.request("POST", LOAD, data=b"x", headers=bare).status == 400
    assert not engine.sources


def test_tensors_can_be_sent_in_base64(server: RunningServer, engine: AdaptedEngine) -> None:
    path = "/load_lora_adapter_from_tensors"
    body = {"lora_name": "new", "config_dict": {"r": 8}}
    tensors = base64.b64encode(b"weights").decode()
    assert load(server, path, **body, serialized_tensors=tensors).status == 200
    (files,) = engine.sources
    assert isinstance(files, AdapterFiles) and files.weights == b"weights"
    assert json.loads(files.config) == {"r": 8}
    refused = load(server, path, lora_name="b", config_dict={}, serialized_tensors="no base64!")
    assert refused.status == 400 and len(engine.sources) == 1


# ---- in use


def test_an_adapter_in_use_stays_unless_it_is_drained(folders: Path) -> None:
    engine = AdaptedEngine("sql", latency_s=0.4)
    with serving(engine) as server:

        async def both(body: dict[str, Any]) -> tuple[int, int]:
            async with aiohttp.ClientSession() as session:
                ask = {"prompt": "q", "model": "sql"}
                running = asyncio.ensure_future(
                    session.post(f"{server.url}/v1/completions", json=ask)
                )
                count = len(engine.requests)
                while len(engine.requests) == count:
                    await asyncio.sleep(0.01)
                away = await session.post(server.url + UNLOAD, json=body, headers=ADMIN)
                return (await running).status, away.status

        assert asyncio.run(both({"lora_name": "sql"})) == (200, 409)
        assert len(engine.adapters()) == 1
        assert asyncio.run(both({"lora_name": "sql", "drain": True})) == (200, 200)
        assert engine.adapters() == []


def test_an_adapter_has_no_more_requests_than_its_quota() -> None:
    engine = AdaptedEngine("sql", "json", latency_s=0.4)
    limits = Limits(max_adapter_requests=2, max_adapter_waiting=0)
    with serving(engine, limits=limits) as server:

        async def ask(session: aiohttp.ClientSession, model: str) -> int:
            body = {"prompt": "q", "model": model, "n": 2}
            async with session.post(f"{server.url}/v1/completions", json=body) as answer:
                text = await answer.text()
                if answer.status == 429:
                    assert "max_adapter_requests" in text and answer.headers["Retry-After"]
                return answer.status

        async def burst() -> list[int]:
            async with aiohttp.ClientSession() as session:
                models = ["sql"] * 4 + ["json"] * 2 + ["m"] * 4
                return sorted(await asyncio.gather(*(ask(session, model) for model in models)))

        assert asyncio.run(burst()) == [200] * 8 + [429] * 2
        assert asyncio.run(burst()) == [200] * 8 + [429] * 2  # all of it was given back
        with bl.Endpoint(server.url) as backend:
            failed = crowd.run(backend=backend).result
            backend.close()
        assert [type(one) for one in failed].count(QueueFull) == 1
        refused = server.post("/v1/completions", {"prompt": "q", "model": "sql", "max_tokens": -1})
        assert refused.status == 400
        assert asyncio.run(burst()) == [200] * 8 + [429] * 2


@bl.function(adapter="sql")
def crowd(s: bl.State) -> Any:
    s += "q"
    with s.fork(3, on_error="keep") as branches:
        branches += bl.gen("x")
    return s["x"]


# ---- programs, metrics


def test_programs_over_the_wire_name_adapters(server: RunningServer, engine: AdaptedEngine) -> None:
    @bl.function
    def program(s: bl.State) -> None:
        with s.adapter("sql"):
            s += "q" + bl.gen("x") + bl.select("y", ["a", "b"])
        s += bl.gen("z")

    with bl.Endpoint(server.url) as backend:
        assert "adapter" in backend.features
        state = program.run(backend=backend)
        with pytest.raises(AdapterNotFound, match="sequel"):
            program.run(backend=backend, adapter="sequel")
        backend.close()
    assert [state.meta(name).adapter for name in "xyz"] == ["sql", "sql", ""]
    graph = json.loads(program.trace().to_json())
    posted = server.post("/v1/programs", {"graph": graph})
    assert posted.status == 200
    assert [request.adapter for request in engine.requests[-3:]] == ["sql", "sql", ""]


def test_metrics_tell_adapters_apart(server: RunningServer) -> None:
    for model in ("sql", "sql", "m"):
        body = {"prompt": "q", "model": model, "stream": True}
        assert server.post("/v1/completions", body).status == 200
    deadline = time.monotonic() + 10
    wanted = ('adapter="sql"', 'adapter="base"')
    while time.monotonic() < deadline:
        lines = server.get("/metrics").raw.decode().splitlines()
        ended = [line for line in lines if line.startswith("branchline:num_requests_total{")]
        if all(any(word in line for line in ended) for word in wanted):
            break
    counts = {word: next(line for line in ended if word in line).split()[-1] for word in wanted}
    assert counts == {wanted[0]: "2.0", wanted[1]: "1.0"}
