"""What holds for every route: ids, errors, keys, bounds, health."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from branchline.runtime.engine import Engine
from branchline.runtime.errors import InvalidRequest
from branchline.runtime.server.keys import Access, Keys
from branchline.runtime.server.limits import Limits, check, check_depth
from tests.support.http_server import RunningServer, serve, serve_engine


def test_the_http_process_loads_no_torch_and_no_engine() -> None:
    code = (
        "import branchline.runtime.server.app, sys;"
        "print(sorted({'torch', 'transformers', 'branchline.runtime.engine'} & set(sys.modules)))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert shown.stdout.strip() == "[]"


def test_models_are_listed_for_both_sdks(server: RunningServer) -> None:
    name = server.context.model_name
    openai = server.get("/v1/models").json
    assert [card["id"] for card in openai["data"]] == [name]
    assert openai["data"][0]["max_model_len"] == 2048
    anthropic = server.get("/v1/models", headers={"anthropic-version": "2023-06-01"}).json
    assert (anthropic["data"][0]["type"], anthropic["first_id"]) == ("model", name)
    assert server.get(f"/v1/models/{name}").json == openai["data"][0]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/models/other", 404),
        ("GET", "/nowhere", 404),
        ("DELETE", "/v1/models", 405),
    ],
)
def test_errors_have_the_openai_form_and_the_request_id(
    server: RunningServer, method: str, path: str, status: int
) -> None:
    answer = server.request(method, path, headers={"x-request-id": "mine-1"})
    assert answer.status == status
    assert set(answer.json["error"]) == {"message", "type", "param", "code"}
    assert answer.headers["x-request-id"] == "mine-1"


def test_ids_that_are_no_plain_names_are_replaced(server: RunningServer) -> None:
    for given in ("a b", "x" * 129, "é"):
        answer = server.get("/health", headers={"x-request-id": given})
        assert answer.headers["x-request-id"].startswith("req_")


def test_health_says_why_not(server: RunningServer) -> None:
    assert server.get("/health").status == 200
    context = replace(server.context, health=lambda: "the model is loading")
    with serve(context) as waiting:
        answer = waiting.get("/health")
    assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
    assert "the model is loading" in answer.json["error"]["message"]


def test_keys_open_what_they_should(engine: Engine) -> None:
    with serve_engine(engine, keys=Keys(("normal-key",), ("admin-key",))) as server:
        assert server.get("/health").status == 200
        refused = server.get("/v1/models")
        assert (refused.status, refused.headers["WWW-Authenticate"]) == (401, "Bearer")
        for headers, status in (
            ({"Authorization": "Bearer normal-key"}, 200),
            ({"x-api-key": "normal-key"}, 200),
            ({"x-api-key": "admin-key"}, 200),
            ({"Authorization": "Bearer normal"}, 401),
            ({"Authorization": "Basic normal-key"}, 401),
            ({"x-api-key": ""}, 401),
        ):
            assert server.get("/v1/models", headers=headers).status == status


def test_admin_routes_are_closed_without_an_admin_key() -> None:
    for keys, header, opens in (
        (Keys(), {}, False),
        (Keys(("a",)), {"x-api-key": "a"}, False),
        (Keys(("a",), ("b",)), {"x-api-key": "a"}, False),
        (Keys(("a",), ("b",)), {"x-api-key": "b"}, True),
        (Keys((), ("b",)), {"x-api-key": "b"}, True),
    ):
        if opens:
            assert keys.identify(header, Access.ADMIN).is_admin
        else:
            with pytest.raises(InvalidRequest, match="for admins"):
                keys.identify(header, Access.ADMIN)


def test_different_keys_never_share_a_namespace() -> None:
    keys = Keys(("a", "b"))
    tenants = [keys.identify({"x-api-key": name}, Access.NORMAL) for name in "ab"]
    spaces = {tenant.namespace(salt) for tenant in tenants for salt in ("", "x")}
    assert len(spaces) == 4
    assert "a" not in repr(keys).removeprefix("Keys(2 keys)")


def test_a_bound_is_named_with_what_was_found() -> None:
    check("max_n", "n", 4, 4)
    check("max_prompt_tokens", "the prompt", 10**9, None)
    with pytest.raises(InvalidRequest, match=r"n is beyond.*got 5.*at most 4.*--limit max_n="):
        check("max_n", "n", 5, Limits(max_n=4).max_n)


def test_depth_counts_containers() -> None:
    check_depth("schema", {"a": [1, {"b": 2}]}, 3)
    with pytest.raises(InvalidRequest, match="depth"):
        check_depth("schema", {"a": [1, {"b": {}}]}, 3)
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(InvalidRequest):
        check_depth("schema", deep, 64)
