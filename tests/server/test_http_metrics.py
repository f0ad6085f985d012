"""/metrics over HTTP: what requests and programs leave there."""

from __future__ import annotations

import json
import logging

import pytest
from prometheus_client.parser import text_string_to_metric_families

from branchline.runtime.observability.logs import JsonFormatter
from branchline.runtime.observability.metrics import PREFIX
from tests.support.http_server import RunningServer


def value(server: RunningServer, name: str, **labels: str) -> float:
    """A sample's value; 0 where there is none yet."""
    answer = server.request("GET", "/metrics")
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    for family in text_string_to_metric_families(answer.raw.decode()):
        for sample in family.samples:
            if sample.name == PREFIX + name and labels.items() <= sample.labels.items():
                return float(sample.value)
    return 0.0


def test_a_completion_is_counted_as_an_http_request_and_as_tokens(server: RunningServer) -> None:
    before = {
        name: value(server, name) for name in ("generation_tokens_total", "prompt_tokens_total")
    }
    seen = value(server, "http_requests_total", route="/v1/completions", status="200")
    body = {"prompt": "hello", "max_tokens": 4, "ignore_eos": True}
    answer = server.post("/v1/completions", body).json
    assert value(server, "generation_tokens_total") == before["generation_tokens_total"] + 4
    usage = answer["usage"]["prompt_tokens"]
    assert value(server, "prompt_tokens_total") == before["prompt_tokens_total"] + usage
    assert value(server, "http_requests_total", route="/v1/completions", status="200") == seen + 1
    assert value(server, "http_requests_active", route="/v1/completions") == 0


def test_failures_are_counted_by_status_and_unknown_paths_share_a_label(
    server: RunningServer,
) -> None:
    labels = {"route": "/v1/completions", "status": "400", "method": "POST"}
    before = value(server, "http_requests_total", **labels)
    server.post("/v1/completions", {"prompt": 3.5})
    assert value(server, "http_requests_total", **labels) == before + 1
    before = value(server, "http_requests_total", route="unknown", status="404")
    server.request("GET", "/no/such/path/as/this")
    server.request("GET", "/nor/this")
    assert value(server, "http_requests_total", route="unknown", status="404") == before + 2
    assert b"/no/such" not in server.request("GET", "/metrics").raw


def test_the_engines_own_numbers_are_there(server: RunningServer) -> None:
    info = server.context.port.info()
    assert value(server, "max_total_num_tokens") == info["cache"]["capacity_tokens"]
    assert value(server, "num_running_reqs") == 0
    assert value(server, "steps_total") > 0


def test_log_lines_of_a_request_carry_its_id(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(JsonFormatter("http").format(record))

    def broken(client: object) -> str:
        raise RuntimeError("a bug")

    handler = Keep()
    logger = logging.getLogger("branchline.runtime.server")
    logger.addHandler(handler)
    try:
        monkeypatch.setattr(type(server.context.client), "new_id", broken)
        body = {"prompt": "hello"}
        server.request("POST", "/v1/completions", body, headers={"x-request-id": "mine-1"})
    finally:
        logger.removeHandler(handler)
    found = [json.loads(line) for line in lines]
    assert found and all(line["request_id"] == "mine-1" for line in found)
