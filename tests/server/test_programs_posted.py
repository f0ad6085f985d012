"""`POST /v1/programs`: a graph as JSON, for clients of any language."""

from __future__ import annotations

import asyncio
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import aiohttp
import pytest

import branchline as bl
from branchline.runtime.engine import Engine
from branchline.runtime.programs.graph import RequestGraph
from branchline.runtime.programs.remote_program import ProgramLimits
from tests.server.waiting import wait_until_idle
from tests.support.http_server import RunningServer, serve_engine


@bl.function(temperature=0.0, max_tokens=6, ignore_eos=True)
def notes(s: bl.State, topic: str) -> None:
    s += f"On {topic}:" + bl.gen("first")
    with s.fork(2) as branches:
        branches[0] += " a" + bl.gen("note")
        branches[1] += " b" + bl.gen("note")
    s += " in short " + bl.select("verdict", ["good", "bad"])


GRAPH: dict[str, Any] = json.loads(notes.trace().to_json())


def test_the_result_is_that_of_the_same_graph_over_an_endpoint(server: RunningServer) -> None:
    answer = server.post("/v1/programs", {"graph": GRAPH, "arguments": {"topic": "tea"}})
    assert answer.status == 200, answer.raw
    endpoint = bl.Endpoint(server.url)
    state = bl.run_graph(notes.trace(), {"topic": "tea"}, backend=endpoint)
    found = answer.json
    assert found["variables"] == {name: state[name] for name in ("first", "note", "verdict")}
    assert found["text"] == state.text()
    assert found["usage"]["output_tokens"] == state.usage.output_tokens
    assert (found["object"], found["name"]) == ("program", "notes")
    verdict = next(node for node in found["nodes"] if node["name"] == "verdict")
    assert [choice["text"] for choice in verdict["choices"]] == ["good", "bad"]
    endpoint.close()


def test_events_come_before_the_result(server: RunningServer) -> None:
    body = {"graph": _streaming(GRAPH), "arguments": {"topic": "tea"}, "stream": True}
    events = server.post("/v1/programs", body).events
    assert events[-1]["type"] == "result"
    for name in ("first", "note"):
        values = [e for e in events if e["type"] == "value" and e["name"] == name]
        for value in values:
            pieces = [e["text"] for e in events if e["type"] == "delta" and _same(e, value)]
            assert "".join(pieces) == value["texts"][0]
    notes = [e["texts"][0] for e in events if e["type"] == "value" and e["name"] == "note"]
    assert sorted(events[-1]["variables"]["note"]) == sorted(notes) and len(notes) == 2


def _same(event: dict[str, Any], other: dict[str, Any]) -> bool:
    return bool(event["node"] == other["node"])


def _streaming(graph: dict[str, Any]) -> dict[str, Any]:
    copy = json.loads(json.dumps(graph))
    for node in copy["nodes"]:
        if node["op"]["type"] == "gen":
            node["op"]["stream"] = True
    return dict(copy)


@pytest.mark.parametrize("stream", [False, True])
def test_a_trace_is_the_graph_with_what_each_node_did(server: RunningServer, stream: bool) -> None:
    body = {"graph": GRAPH, "arguments": {"topic": "tea"}, "stream": stream, "trace": "graph"}
    answer = server.post("/v1/programs", body)
    result = answer.events[-1] if stream else answer.json
    traced = RequestGraph.from_json(json.dumps(result["trace"]))
    endpoint = bl.Endpoint(server.url)
    state = bl.run_graph(notes.trace(), {"topic": "tea"}, backend=endpoint)
    endpoint.close()
    assert [node.op for node in traced.nodes] == [node.op for node in state.graph.nodes]
    assert [node.values for node in traced.nodes] == [node.values for node in state.graph.nodes]
    assert traced.edges == state.graph.edges
    reported = [node.stats is not None for node in traced.nodes]
    assert any(reported) and reported == [node.stats is not None for node in state.graph.nodes]


def test_a_trace_can_be_a_page(server: RunningServer) -> None:
    body = {"graph": GRAPH, "arguments": {"topic": "</script>"}, "trace": "html"}
    page = server.post("/v1/programs", body).json["trace"]
    assert page.startswith("<!doctype html>") and page.count("</script>") == 2
    assert "trace" not in server.post("/v1/programs", body | {"trace": None}).json


@bl.function
def dynamic(s: bl.State) -> None:
    s += "a" + bl.gen("x")
    if s["x"] == "b":
        s += "c"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"graph": json.loads(dynamic.trace().to_json())}, "depends on the value"),
        ({"graph": GRAPH}, "missing argument"),
        ({"graph": GRAPH, "arguments": {"topic": "a", "b": "c"}}, "unknown argument"),
        ({"graph": {"nodes": 3}}, "not a request graph"),
        ({"graph": GRAPH, "argument": {}}, "unknown field 'argument'"),
        ({}, "graph"),
    ],
)
def test_what_cannot_run_is_a_400_that_says_why(
    server: RunningServer, body: dict[str, Any], says: str
) -> None:
    answer = server.post("/v1/programs", body)
    assert answer.status == 400 and says in answer.json["error"]["message"]


def test_failures_have_a_status_and_the_errors_own_fields(engine: Engine) -> None:
    with serve_engine(engine, program_limits=ProgramLimits(max_program_ops=3)) as small:
        answer = small.post("/v1/programs", {"graph": GRAPH, "arguments": {"topic": "a"}})
    assert answer.status == 400 and "--limit max_program_ops=" in answer.json["error"]["hint"]
    with serve_engine(engine) as server:
        body = {"graph": GRAPH, "arguments": {"topic": "a " * 3000}}
        answer = server.post("/v1/programs", body)
        assert answer.status == 400 and answer.json["error"]["variable"] == "first"
        body = {"graph": GRAPH, "arguments": {"topic": "a"}, "deadline_s": 1e-6}
        assert server.post("/v1/programs", body).status == 408
        events = server.post("/v1/programs", {**body, "stream": True}).events
        assert events[-1]["error"]["code"] == "DeadlineExceeded"


def test_a_client_that_leaves_frees_everything(engine: Engine, server: RunningServer) -> None:
    @bl.function
    def story(s: bl.State) -> None:
        s += "Once" + bl.gen("x", max_tokens=1500, ignore_eos=True)

    async def leave() -> None:
        async with aiohttp.ClientSession() as http:
            request = http.post(
                server.url + "/v1/programs", json={"graph": json.loads(story.trace().to_json())}
            )
            task = asyncio.ensure_future(request.__aenter__())
            while not engine.info()["scheduler"]["unfinished"]:
                await asyncio.sleep(0.005)
            task.cancel()

    before = engine.info()["scheduler"]["aborted"]
    asyncio.run(leave())
    wait_until_idle(engine, 5.0)
    assert engine.info()["scheduler"]["aborted"] == before + 1


def test_the_page_of_programs_names_every_limit_and_its_default() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "programs.md").read_text("utf-8")
    rows = {
        line.split("|")[1].strip(): line.split("|")[2]
        for line in page.splitlines()
        if line.startswith(("| `max_", "| `program_"))
    }
    for item in fields(ProgramLimits):
        shown = rows.pop(f"`{item.name}`")
        value = float(shown.replace(",", "").split()[0]) * (1 << 20 if "MiB" in shown else 1)
        assert value == item.default, item.name
        assert item.metadata["help"]
    assert rows == {}
