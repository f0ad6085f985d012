"""`/v1/overview`: numbers that move, bounded lists, and nobody else's names or texts."""

from __future__ import annotations

from typing import Any

import pytest

from branchline.runtime.engine import Engine
from branchline.runtime.programs.protocol import AppendText, Fork, OpenProgram
from branchline.runtime.server import overview
from branchline.runtime.server.context import make_context
from branchline.runtime.server.keys import Access, Keys
from tests.support.http_server import RunningServer, serve, serve_engine
from tests.support.spelled_port import SpelledPort


def chat(server: RunningServer, text: str, **more: Any) -> None:
    said = {"messages": [{"role": "user", "content": text}]}
    body = {**said, "max_tokens": 5, "ignore_eos": True, "stream": True}
    assert server.post("/v1/chat/completions", body, **more).events[-1] == "[DONE]"


def test_numbers_move_with_the_work(engine: Engine) -> None:
    with serve_engine(engine) as server:
        before = server.get("/v1/overview").json
        assert before["status"] == "ready" and before["latency"]["ttft_s"] == {}
        for _ in range(2):
            chat(server, "A prompt that is asked twice.")
        after = server.get("/v1/overview").json
    grown = after["requests"]["sampled_tokens"] - before["requests"]["sampled_tokens"]
    assert grown == 10
    assert after["clock_s"] > before["clock_s"] and after["restarts"] == 0
    assert after["requests"]["running"] == after["requests"]["waiting"] == 0
    assert 0 < after["latency"]["ttft_s"]["p50"] <= after["latency"]["ttft_s"]["p99"]
    assert after["latency"]["itl_s"]["p90"] > 0
    assert after["cache"]["matched"] > before["cache"]["matched"]
    assert set(after["cache"]) >= {"hit_rate", "capacity_tokens", "free_tokens", "cached_tokens"}
    texts = [node["text"] for node in after["engine"]["prefixes"]]
    assert any("A prompt that is" in text for text in texts)


def test_running_programs_are_told_with_their_lanes(engine: Engine) -> None:
    with serve_engine(engine) as server:
        opened = OpenProgram(program_id="p", name="planner")
        session = server.context.programs.open(opened, lambda events: None)
        session.send([AppendText(0, 0, ("some text",)), Fork(0, 1, (1, 2))])
        found = []
        for _ in range(100):
            found = server.get("/v1/overview").json["engine"]["programs"]
            if found and found[0]["lanes"] == 3:
                break
        session.abandon()
        [program] = found
        assert (program["name"], program["lanes"]) == ("planner", 3)
        assert program["age_s"] > 0


def test_keys_keep_names_and_texts_apart(engine: Engine) -> None:
    keys = Keys(("one", "two"), ("root",))
    with serve_engine(engine, keys=keys) as server:
        assert server.get("/v1/overview").status == 401
        heads = {name: {"x-api-key": name} for name in ("one", "two", "root")}
        mine = keys.identify(heads["one"], Access.NORMAL).namespace("salt")
        session = server.context.programs.open(
            OpenProgram(program_id="p", name="secret plan", namespace=mine), lambda events: None
        )
        chat(server, "A secret.", headers=heads["one"])
        seen = {name: server.get("/v1/overview", headers=head).json for name, head in heads.items()}
        session.abandon()
    names = {key: [one["name"] for one in told["engine"]["programs"]] for key, told in seen.items()}
    assert names == {"one": ["secret plan"], "two": [""], "root": ["secret plan"]}
    assert all("text" not in node for told in seen.values() for node in told["engine"]["prefixes"])


def test_an_engine_that_does_not_answer_is_no_reason_to_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(overview, "WAIT_S", 0.05)
    port = SpelledPort(lambda prompt, index: "x")
    monkeypatch.setattr(port, "prefixes", lambda on_done: None)
    with serve(make_context(port, port.tokenizer)) as server:
        answer = server.get("/v1/overview").json
    port.close()
    assert answer["engine"] is None and answer["model"] == "spelled"


def test_a_scripted_engine_tells_what_it_knows() -> None:
    port = SpelledPort(lambda prompt, index: "x")
    with serve(make_context(port, port.tokenizer)) as server:
        answer = server.get("/v1/overview").json
    port.close()
    assert answer["requests"] == answer["cache"] == {}
    assert answer["engine"] == {"programs": [], "prefixes": []}
