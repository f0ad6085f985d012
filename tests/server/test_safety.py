"""Bounds and what happens to those who leave: every limit is a clear 4xx in the family's form."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from dataclasses import fields
from typing import Any

import aiohttp
import pytest

from branchline.runtime.engine import Engine
from branchline.runtime.errors import ProgramError
from branchline.runtime.server.context import make_context
from branchline.runtime.server.limits import Limits
from branchline.runtime.tokenizer.chat import ChatTemplate
from branchline.runtime.tokenizer.template_time import run_bounded
from tests.server.spelled import spelled_server
from tests.server.waiting import wait_for
from tests.support.http_server import RunningServer, serve, serve_engine

CHAT = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
DEEP: Any = {"type": "object"}
for _ in range(10):
    DEEP = {"type": "object", "properties": {"a": DEEP}}

REFUSED: dict[str, tuple[Limits, str, Any, int]] = {
    "max_body_bytes": (Limits(max_body_bytes=100), "/v1/chat/completions", {"x": "y" * 200}, 413),
    "max_prompt_tokens": (Limits(max_prompt_tokens=5), "/generate", {"text": "abcdef"}, 400),
    "max_prompts": (Limits(max_prompts=2), "/v1/completions", {"prompt": ["a", "b", "c"]}, 400),
    "max_messages": (
        Limits(max_messages=2),
        "/v1/messages",
        {"max_tokens": 1, "messages": [{"role": "user", "content": "x"}] * 3},
        400,
    ),
    "max_tools": (
        Limits(max_tools=1),
        "/v1/chat/completions",
        {**CHAT, "tools": [TOOL, TOOL]},
        400,
    ),
    "max_n": (Limits(max_n=2), "/v1/chat/completions", {**CHAT, "n": 3}, 400),
    "max_sequences": (
        Limits(max_sequences=3),
        "/generate",
        {"text": ["a", "b"], "sampling_params": {"n": 2}},
        400,
    ),
    "max_stops": (Limits(max_stops=1), "/v1/chat/completions", {**CHAT, "stop": ["a", "b"]}, 400),
    "max_logprobs": (
        Limits(max_logprobs=1),
        "/generate",
        {"text": "x", "return_logprob": True, "top_logprobs_num": 2},
        400,
    ),
    "max_logit_bias": (
        Limits(max_logit_bias=1),
        "/v1/completions",
        {"prompt": "x", "logit_bias": {"1": 1, "2": 1}},
        400,
    ),
    "max_schema_bytes": (
        Limits(max_schema_bytes=10),
        "/v1/chat/completions",
        {**CHAT, "regex": "a" * 11},
        400,
    ),
    "max_schema_depth": (
        Limits(max_schema_depth=8),
        "/v1/responses",
        {"input": "x", "text": {"format": {"type": "json_schema", "schema": DEEP}}},
        400,
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_beyond_a_limit_is_refused(engine: Engine, name: str) -> None:
    limits, path, body, status = REFUSED[name]
    with serve_engine(engine, limits=limits) as server:
        answer = server.post(path, body)
        assert answer.status == status, answer.raw
        error = answer.json["error"]
        assert error["message"]
        if status == 400:
            assert f"--limit {name}=" in error["message"]
        if path == "/v1/messages":
            assert answer.json["type"] == "error"


def test_every_limit_is_tested() -> None:
    elsewhere = {"max_open_requests", "idle_timeout_s", "total_timeout_s", "template_timeout_s"}
    elsewhere |= {
        "max_adapters",
        "max_adapter_bytes",
        "max_adapter_requests",
        "max_adapter_waiting",
    }  # test_adapters
    bounds = {item.name for item in fields(Limits) if "help" in item.metadata}
    assert bounds == set(REFUSED) | elsewhere


def test_open_requests_are_bounded_and_the_client_may_come_again() -> None:
    with spelled_server(lambda prompt, index: "x", limits=Limits(max_open_requests=1)) as it:
        it.port.endless = True
        first = threading.Thread(target=lambda: it.server.post("/generate", {"text": "x"}))
        first.start()
        wait_for(lambda: bool(it.port.requests))
        for path, body in (("/generate", {"text": "y"}), ("/v1/chat/completions", CHAT)):
            refused = it.server.post(path, body)
            assert (refused.status, refused.headers["Retry-After"]) == (429, "1")
        assert it.server.get("/health").status == 200
        it.port.call_soon(lambda: it.port.abort(it.port.requests[0].id))
        first.join(10)
        it.port.endless = False
        assert it.server.post("/generate", {"text": "y"}).status == 200


def test_nothing_runs_longer_than_the_total_time(engine: Engine) -> None:
    with serve_engine(engine, limits=Limits(total_timeout_s=0.05)) as server:
        body = {"text": "x", "sampling_params": {"max_new_tokens": 2000, "ignore_eos": True}}
        answer = server.post("/generate", body)
        assert (answer.status, answer.json["error"]["code"]) == (408, "DeadlineExceeded")


def test_a_body_that_does_not_come_is_not_waited_for(engine: Engine) -> None:
    with serve_engine(engine, limits=Limits(idle_timeout_s=0.2)) as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as client:
            client.sendall(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{")
            assert b" 408 " in client.recv(4096).split(b"\r\n")[0]


def test_a_reader_that_stops_reading_is_given_up() -> None:
    with spelled_server(lambda prompt, index: "x" * 60, limits=Limits(idle_timeout_s=0.3)) as it:
        it.port.cut = lambda text: ["y" * 200_000 for _ in text]
        host, port = it.server.url.removeprefix("http://").split(":")
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect((host, int(port)))
            body = json.dumps({"prompt": "x", "stream": True, "max_tokens": 9}).encode()
            head = (
                f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            it.port.endless = True
            client.sendall(head.encode() + body)
            assert it.port.aborted.wait(10)
        wait_for(lambda: not len(it.server.context.running))


def test_a_stream_that_has_nothing_to_say_for_long_is_not_given_up() -> None:
    def slow(prompt: str, index: int) -> str:
        time.sleep(0.5)
        return "late"

    with spelled_server(slow, limits=Limits(idle_timeout_s=0.1)) as it:
        answer = it.server.post("/v1/completions", {"prompt": "x", "stream": True})
        texts = [event["choices"][0]["text"] for event in answer.events if event != "[DONE]"]
        assert "".join(texts) == "late" and answer.events[-1] == "[DONE]"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", {"text": "x" * 40}),
        ("/v1/completions", {"prompt": "x" * 40}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x" * 40}]}),
        ("/v1/responses", {"input": "x" * 40}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "x" * 40}]}),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_memory(
    server: RunningServer, engine: Engine, path: str, body: dict[str, Any], stream: bool
) -> None:
    """The engine frees the request's rows in the step after it hears of the abort."""
    names = {"/generate": "sampling_params", "/v1/responses": "max_output_tokens"}
    most: Any = {"max_new_tokens": 1900, "ignore_eos": True} if path == "/generate" else 1900
    sent = {**body, names.get(path, "max_tokens"): most, "stream": stream}
    if path in ("/v1/completions", "/v1/chat/completions"):
        sent["ignore_eos"] = True
    aborted = engine.core.info()["scheduler"]["aborted"]

    def busy() -> int:
        found: int = engine.core.info()["scheduler"]["unfinished"]
        return found

    def all_free() -> bool:
        cache = engine.core.info()["cache"]
        free: int = cache["free_tokens"] + cache["cached_tokens"]
        return free == cache["capacity_tokens"]

    async def leave() -> None:
        async with aiohttp.ClientSession() as session:
            asking = asyncio.create_task(session.post(server.url + path, json=sent))
            while not busy():
                if asking.done():  # it was over before anybody looked: ask again
                    (await asking).close()
                    asking = asyncio.create_task(session.post(server.url + path, json=sent))
                await asyncio.sleep(0.002)
            if stream:
                response = await asking
                await response.content.read(1)
                response.close()
            else:
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)

    asyncio.run(leave())
    wait_for(lambda: engine.core.info()["scheduler"]["aborted"] > aborted or not busy())
    # A request that was sent twice may come yet, and a row in flight is free when its step is over.
    wait_for(lambda: not busy() and engine.core.info()["scheduler"]["running"] == 0 and all_free())

    async def status() -> int:
        few: Any = {"max_new_tokens": 3} if path == "/generate" else 3
        short = {**body, names.get(path, "max_tokens"): few}
        url = server.url + path
        async with aiohttp.ClientSession() as session, session.post(url, json=short) as answer:
            return answer.status

    assert asyncio.run(status()) == 200, "others are served as before"
    wait_for(lambda: not len(server.context.running))


def test_a_template_has_its_time_and_no_more(engine: Engine) -> None:
    forever = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    chat = ChatTemplate(forever)
    context = make_context(
        engine.core,
        engine.tokenizer,
        chat=chat,
        limits=Limits(template_timeout_s=0.2),
    )
    with serve(context) as server:
        start = time.monotonic()
        answer = server.post("/v1/chat/completions", CHAT)
        assert time.monotonic() - start < 10
        assert answer.status == 400
        assert "took longer than 0.2 s" in answer.json["error"]["message"]
    with pytest.raises(ProgramError, match="longer"):
        run_bounded(lambda: chat.render([]), 0.05)
    assert run_bounded(lambda: ChatTemplate("a").render([]), 1.0) == "a"


def test_a_template_cannot_reach_out_of_its_sandbox(engine: Engine) -> None:
    for text in ("{{ messages.__class__.__mro__ }}", "{{ messages.append(1) }}"):
        context = make_context(engine.core, engine.tokenizer, chat=ChatTemplate(text))
        with serve(context) as server:
            answer = server.post("/v1/chat/completions", CHAT)
            assert answer.status == 400, answer.raw
