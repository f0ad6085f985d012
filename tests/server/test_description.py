"""Requests drawn from the server's own description get the answers that it describes.

The description allows bodies that cannot be run (an empty prompt) and says that these get a 4XX. So
it is not checked that every valid body is accepted; that invalid ones are refused is.
"""

from __future__ import annotations

from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import APIOperation, Case, GenerationMode
from schemathesis.checks import positive_data_acceptance
from schemathesis.schemas import BaseSchema

from branchline.runtime.engine import Engine
from branchline.runtime.server.keys import Keys
from tests.server.waiting import wait_for
from tests.support.http_server import RunningServer, serve_engine

OPEN = Keys(admin=("admin-key",))
CLOSED = Keys(normal=("normal-key",), admin=("admin-key",))
HEADERS = {"Authorization": "Bearer admin-key"}


def operations(schema: BaseSchema) -> list[APIOperation[Any, Any, Any, Any]]:
    """All of them; one that schemathesis cannot read raises."""
    return [found.ok() for found in schema.get_all_operations()]


def check(served: RunningServer, *, examples: int, repeatable: bool) -> dict[str, set[int]]:
    """Send `examples` requests to each route, valid and invalid ones; path -> statuses seen."""
    seen: dict[str, set[int]] = {}
    schema = schemathesis.openapi.from_url(served.url + "/openapi.json")
    chosen = settings(
        max_examples=examples,
        deadline=None,
        derandomize=repeatable,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    with requests.Session() as session:

        def run(operation: APIOperation[Any, Any, Any, Any], mode: GenerationMode) -> None:
            @chosen
            @given(case=operation.as_strategy(generation_mode=mode))
            def one(case: Case) -> None:
                response = case.call(session=session, headers=HEADERS, timeout=30)
                seen.setdefault(operation.path, set()).add(response.status_code)
                case.validate_response(
                    response,
                    headers=HEADERS,
                    excluded_checks=[positive_data_acceptance],
                    transport_kwargs={"session": session},
                )

            one()

        for operation in operations(schema):
            run(operation, GenerationMode.POSITIVE)
            if operation.body:  # there is something to make invalid
                run(operation, GenerationMode.NEGATIVE)
    return seen


def idle(served: RunningServer) -> dict[str, Any]:
    """The cache's counters once nothing runs."""
    port = served.context.port
    wait_for(lambda: not port.info()["scheduler"]["unfinished"], 20.0)
    counters: dict[str, Any] = port.info()["cache"]
    return counters


def check_books(served: RunningServer, seen: dict[str, set[int]]) -> None:
    assert set(seen) == set(served.get("/openapi.json").json["paths"]), "every route was asked"
    assert 200 in seen["/v1/detokenize"]
    cache = idle(served)
    assert cache["free_tokens"] + cache["cached_tokens"] == cache["capacity_tokens"]
    assert cache["violations"] == 0


def test_answers_are_as_described(engine: Engine) -> None:
    with serve_engine(engine, keys=CLOSED) as served:
        check_books(served, check(served, examples=4, repeatable=True))


def test_a_key_is_described_where_one_is_asked_for(engine: Engine) -> None:
    for keys in (OPEN, CLOSED):
        with serve_engine(engine, keys=keys) as served:
            paths = served.get("/openapi.json").json["paths"]
            for path in ("/flush_cache", "/health", "/v1/models", "/model_info"):
                described = "security" in paths[path]["get"]
                assert described == (served.get(path).status in (401, 403)), path


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("keys", [OPEN, CLOSED], ids=["without keys", "with keys"])
def test_answers_to_many_requests_are_as_described(engine: Engine, keys: Keys) -> None:
    with serve_engine(engine, keys=keys) as served:
        seen = check(served, examples=150, repeatable=False)
        check_books(served, seen)
        assert all(200 in seen[path] for path in ("/v1/completions", "/generate", "/v1/messages"))
