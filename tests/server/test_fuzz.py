"""Any body at all gets an answer below 500 in its family's form; the description is a true one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import branchline as bl
from branchline.runtime.server import page
from branchline.runtime.server.app import FAMILIES
from branchline.runtime.server.context import make_context
from branchline.runtime.server.keys import Keys
from tests.server.spelled import spelled_server
from tests.support.adapter_port import AdaptedEngine
from tests.support.http_server import Answer, RunningServer, serve

BODIES = {path: kind for family in FAMILIES for path, kind in family.bodies.items()}


@bl.function
def greet(s: bl.State) -> None:
    s += "Hello, " + bl.gen("name", max_tokens=4)


GOOD: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "x"},
    "/v1/programs": {"graph": json.loads(greet.trace().to_json())},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}]},
    "/v1/responses": {"input": "x"},
    "/v1/embeddings": {"input": "x"},
    "/v1/rerank": {"query": "x", "documents": ["y"]},
    "/rerank": {"query": "x", "documents": [{"text": "y"}]},
    "/v1/score": {"query": "x", "items": ["y"], "label_token_ids": [1]},
    "/v1/tokenize": {"prompt": "x"},
    "/tokenize": {"prompt": "x"},
    "/v1/detokenize": {"tokens": [1]},
    "/detokenize": {"tokens": [1]},
    "/v1/messages": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 5},
    "/v1/messages/count_tokens": {"messages": [{"role": "user", "content": "x"}]},
    "/generate": {"text": "x"},
    "/abort_request": {"rid": "x"},
    "/v1/load_lora_adapter": {"lora_name": "x", "lora_path": "x", "load_inplace": True},
    "/load_lora_adapter": {"lora_name": "x", "lora_path": "x", "load_inplace": True},
    "/load_lora_adapter_from_tensors": {
        "lora_name": "x",
        "config_dict": {},
        "serialized_tensors": "eHk=",
        "load_inplace": True,
    },
    "/v1/unload_lora_adapter": {"lora_name": "one"},
    "/unload_lora_adapter": {"lora_name": "two"},
}
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**65), 2**65),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=12),
    st.sampled_from(["auto", "json_schema", "text", "user", "<|end|>", "{", "Qzvx0xvzQ", "\x00"]),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.sampled_from(["type", "name", "role", "content", "text", "schema", "function", "x"]),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=8,
)


class Servers:
    """One that answers at once, and for its routes one that has adapters."""

    def __init__(self, spelled: RunningServer, adapted: RunningServer) -> None:
        self.spelled = spelled
        self._adapted = adapted

    def post(self, path: str, body: Any = None, data: bytes | None = None) -> Answer:
        server = self._adapted if "lora" in path else self.spelled
        headers = {"x-api-key": "key", "content-type": "application/json"}
        return server.request("POST", path, body, data=data, headers=headers)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    engine = AdaptedEngine("one", "two")
    folder = tmp_path_factory.mktemp("adapters")
    (folder / "x").mkdir()
    context = make_context(
        engine,
        engine.tokenizer,  # type: ignore[arg-type]
        keys=Keys((), ("key",)),
        adapter_dirs=[str(folder)],
    )
    with spelled_server(lambda prompt, index: "ok") as spelled, serve(context) as adapted:
        yield Servers(spelled.server, adapted)


def test_every_body_has_a_good_example(servers: Servers) -> None:
    assert set(GOOD) == set(BODIES)
    for path, body in GOOD.items():
        assert servers.post(path, body).status == 200, path


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_no_body_is_an_internal_error(servers: Servers, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(GOOD)))
    names = [item.encode_name for item in msgspec.structs.fields(BODIES[path])]
    changes = data.draw(st.dictionaries(st.sampled_from(names), VALUES, max_size=3))
    answer = servers.post(path, {**GOOD[path], **changes})
    assert answer.status < 500, (path, changes, answer.raw)
    if answer.status != 200:
        error = answer.json["error"]
        assert error["message"], (path, changes)


@settings(max_examples=60, deadline=None)
@given(raw=st.binary(max_size=60), path=st.sampled_from(sorted(GOOD)))
def test_bytes_are_refused(servers: Servers, raw: bytes, path: str) -> None:
    answer = servers.post(path, data=raw)
    assert answer.status in (200, 400), answer.raw


def test_the_description_says_what_bodies_are_allowed(servers: Servers) -> None:
    document = servers.spelled.get("/openapi.json").json
    routes = {
        route.path.replace(":.+}", "}")
        for family in FAMILIES
        for route in family.routes(servers.spelled.context)
    }
    assert set(document["paths"]) == routes - set(page.paths())
    for path, body in GOOD.items():
        request = document["paths"][path]["post"]["requestBody"]
        schema = {
            **request["content"]["application/json"]["schema"],
            "components": document["components"],
        }
        validator = jsonschema.Draft202012Validator(schema)
        assert validator.is_valid(body), path
        assert not validator.is_valid({**body, "colour": 1}), path
