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
from tests.server.spelled import Spelled, spelled_server

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


@pytest.fixture(scope="module")
def spelled() -> Iterator[Spelled]:
    """Answers at once."""
    with spelled_server(lambda prompt, index: "ok") as made:
        yield made


def test_every_body_has_a_good_example(spelled: Spelled) -> None:
    assert set(GOOD) == set(BODIES)
    for path, body in GOOD.items():
        assert spelled.server.post(path, body).status == 200, path


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_no_body_is_an_internal_error(spelled: Spelled, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(GOOD)))
    names = [item.encode_name for item in msgspec.structs.fields(BODIES[path])]
    changes = data.draw(st.dictionaries(st.sampled_from(names), VALUES, max_size=3))
    answer = spelled.server.post(path, {**GOOD[path], **changes})
    assert answer.status < 500, (path, changes, answer.raw)
    if answer.status != 200:
        error = answer.json["error"]
        assert error["message"], (path, changes)


@settings(max_examples=60, deadline=None)
@given(raw=st.binary(max_size=60), path=st.sampled_from(sorted(GOOD)))
def test_bytes_are_refused(spelled: Spelled, raw: bytes, path: str) -> None:
    answer = spelled.server.request("POST", path, data=raw)
    assert answer.status in (200, 400), answer.raw


def test_the_description_says_what_bodies_are_allowed(spelled: Spelled) -> None:
    document = spelled.server.get("/openapi.json").json
    routes = {
        route.path.replace(":.+}", "}")
        for family in FAMILIES
        for route in family.routes(spelled.server.context)
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
