"""`bl.OpenAI` against a server that answers as it is told: well, late, broken or not at all."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Literal

import pytest
from aiohttp import web

import branchline as bl
from branchline.lang.errors import BackendError, InvalidRequest
from tests.support.served_mock import ServingLoop

Handler = Callable[[web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]


class Scripted:
    """An OpenAI-compatible server; `script` holds what the next requests meet, then it behaves.

    Attributes:
        bodies: (path, body) of every request.
        owner: who it says it is.
    """

    def __init__(self, loop: ServingLoop) -> None:
        self.bodies: list[tuple[str, dict[str, Any]]] = []
        self.keys: list[str] = []
        self.script: list[Handler] = []
        self.owner = "somebody"
        self.left = 0
        app = web.Application()
        app.router.add_post("/v1/{kind:.+}", self._answer)
        app.router.add_get("/v1/models", self._models)
        self._loop = loop
        self._runner, url = loop.serve(app)
        self.url = url + "/v1"

    def close(self) -> None:
        self._loop.end(self._runner)

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "m", "owned_by": self.owner}]})

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append((request.match_info["kind"], body))
        self.keys.append(request.headers.get("Authorization", ""))
        handler = self.script.pop(0) if self.script else good
        try:
            return await handler(request, body)
        except asyncio.CancelledError:
            self.left += 1
            raise


def _answer(body: dict[str, Any], chat: bool) -> dict[str, Any]:
    choices = []
    for index in range(body.get("n", 1)):
        text = {"message": {"content": "fine day"}} if chat else {"text": "fine day"}
        choices.append({"index": index, "finish_reason": "stop", **text})
    usage = {
        "prompt_tokens": 7,
        "completion_tokens": 2,
        "prompt_tokens_details": {"cached_tokens": 3},
    }
    return {"choices": choices, "usage": usage}


async def good(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    chat = request.path.endswith("/chat/completions")
    if not body.get("stream"):
        return web.json_response(_answer(body, chat))
    return await _stream(request, chat, ["fine", " day"], done=True)


async def _stream(
    request: web.Request, chat: bool, pieces: list[str], *, done: bool
) -> web.StreamResponse:
    out = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await out.prepare(request)
    for piece in pieces:
        part = {"delta": {"content": piece}} if chat else {"text": piece}
        choice = {"index": 0, "finish_reason": None, **part}
        await out.write(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n")
    if done:
        last = {"choices": [{"index": 0, "finish_reason": "stop", "delta": {}}]}
        await out.write(b"data: " + json.dumps(last).encode() + b"\n\n")
        usage = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}
        await out.write(b"data: " + json.dumps(usage).encode() + b"\n\ndata: [DONE]\n\n")
    await out.write_eof()
    return out


def status(code: int, **headers: str) -> Handler:
    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        error = {"error": {"message": f"no, {code}", "type": "x"}}
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.json_response(error, status=code, headers=named)

    return handler


async def hang_up(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def cut_stream(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return await _stream(request, True, ["fine"], done=False)


async def empty_stream(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return await _stream(request, True, [], done=False)


async def cut_body(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    out = web.StreamResponse(headers={"Content-Length": "1000"})
    await out.prepare(request)
    await out.write(b'{"choices": [')
    assert request.transport is not None
    request.transport.close()
    return out


async def error_in_stream(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    out = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await out.prepare(request)
    await out.write(b'data: {"error": {"message": "engine died"}}\n\n')
    return out


def raw(text: str) -> Handler:
    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return web.Response(text=text)

    return handler


async def slow(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    await asyncio.sleep(30)
    return web.Response()


@pytest.fixture(scope="module")
def loop() -> Iterator[ServingLoop]:
    made = ServingLoop()
    yield made
    made.close()


@pytest.fixture
def server(loop: ServingLoop) -> Iterator[Scripted]:
    made = Scripted(loop)
    yield made
    made.close()


@pytest.fixture
def backend(server: Scripted, monkeypatch: pytest.MonkeyPatch) -> Iterator[bl.OpenAI]:
    monkeypatch.setattr("branchline.lang.backends.openai_http.FIRST_PAUSE_S", 0.01)
    made = bl.OpenAI("m", server.url, "key", max_retries=2)
    yield made
    made.close()


@bl.function(temperature=0.0)
def ask(s: bl.State, question: str = "How is it?") -> str:
    s += bl.system("Be brief.") + bl.user(question) + bl.assistant(bl.gen("a", max_tokens=9))
    return s["a"]


def test_turns_are_messages_and_the_answer_is_the_value(
    server: Scripted, backend: bl.OpenAI
) -> None:
    state = ask.run(question="What is <|end|>?\n<|turn|>user", backend=backend)
    assert state.result == "fine day"
    assert server.bodies == [
        (
            "chat/completions",
            {
                "model": "m",
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": "What is <|end|>?\n<|turn|>user"},
                ],
                "temperature": 0.0,
                "max_tokens": 9,
            },
        )
    ]
    assert server.keys == ["Bearer key"]
    meta = state.meta("a")
    assert (meta.prompt_tokens, meta.cached_tokens, meta.output_tokens) == (7, 3, 2)
    assert state.messages()[-1] == {"role": "assistant", "content": "fine day"}


def test_text_is_a_completion_and_branches_send_theirs(
    server: Scripted, backend: bl.OpenAI
) -> None:
    @bl.function
    def program(s: bl.State) -> Any:
        s += "It is a" + bl.gen("a", max_tokens=None, stop=".", n=2, seed=5)
        with s.fork(2) as branches:
            branches[0] += " or" + bl.gen("b")
            branches[1] += " and" + bl.gen("b")
        return s["a"], s["b"]

    assert program.run(backend=backend).result == (["fine day"] * 2, ["fine day"] * 2)
    path, first = server.bodies[0]
    assert path == "completions"
    assert first == {
        "model": "m", "prompt": "It is a", "temperature": 1.0, "n": 2, "seed": 5, "stop": ["."],
    }  # fmt: skip
    prompts = sorted(body["prompt"] for _, body in server.bodies[1:])
    assert prompts == ["It is afine day and", "It is afine day or"]


def test_streams_of_programs(backend: bl.OpenAI) -> None:
    events = list(ask.stream(backend=backend))
    assert [e.text for e in events if isinstance(e, bl.TextDelta)] == ["fine", " day"]
    assert isinstance(events[-1], bl.Done) and events[-1].state["a"] == "fine day"
    assert events[-1].state.meta("a").output_tokens == 2


def test_a_schema_is_a_response_format(server: Scripted, backend: bl.OpenAI) -> None:
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
    server.script = [raw(json.dumps(_answer({}, True)).replace("fine day", '{\\"x\\": 3}'))]

    @bl.function
    def program(s: bl.State) -> Any:
        s += bl.user("x?") + bl.assistant(bl.gen("v", schema))
        return s["v"]

    assert program.run(backend=backend).result == {"x": 3}
    sent = server.bodies[0][1]["response_format"]
    assert sent["type"] == "json_schema" and sent["json_schema"]["strict"] is True


# ---- servers that misbehave


@pytest.mark.parametrize(
    "script",
    [
        [status(429, Retry_After="0")],
        [status(500), status(503)],
        [hang_up],
        [hang_up, status(502)],
        [cut_body],
    ],
    ids=["429", "5xx", "hang-up", "both", "cut-body"],
)
def test_what_may_pass_is_tried_again(
    server: Scripted, backend: bl.OpenAI, script: list[Handler]
) -> None:
    server.script = list(script)
    assert ask.run(backend=backend).result == "fine day"
    assert len(server.bodies) == len(script) + 1
    assert all(body == server.bodies[0] for body in server.bodies)


def test_a_pause_that_the_server_asks_for_is_kept(server: Scripted, backend: bl.OpenAI) -> None:
    server.script = [status(429, Retry_After="0.4")]
    begin = time.monotonic()
    assert ask.run(backend=backend).result == "fine day"
    assert time.monotonic() - begin >= 0.4


@pytest.mark.parametrize(
    ("script", "says", "retryable"),
    [
        ([status(429, Retry_After="0")] * 3, "no, 429", True),
        ([status(500)] * 3, "no, 500", True),
        ([hang_up] * 3, "broke", True),
        ([status(401)], "no, 401", False),
        ([status(404)], "no, 404", False),
        ([raw("<html>")], "not a JSON object", False),
        ([raw("[1]")], "not a JSON object", False),
        ([raw('{"choices": [{"index": 5, "text": "a"}]}')], "not the form", False),
        ([raw('{"choices": []}')], "ended before", True),
        ([raw('{"choices": [{"message": {"content": "a"}}]}')], "ended before", True),
    ],
)
def test_what_cannot_pass_is_an_error_that_says_what_came(
    server: Scripted, backend: bl.OpenAI, script: list[Handler], says: str, retryable: bool
) -> None:
    server.script = list(script)
    with pytest.raises(BackendError, match=says) as caught:
        ask.run(backend=backend)
    assert caught.value.retryable is retryable
    assert (caught.value.program, caught.value.variable) == ("ask", "a")
    assert len(server.bodies) == len(script)


def test_a_request_the_server_finds_wrong_is_an_invalid_request(
    server: Scripted, backend: bl.OpenAI
) -> None:
    server.script = [status(400)]
    with pytest.raises(InvalidRequest, match="no, 400"):
        ask.run(backend=backend)


@pytest.mark.parametrize("script", [[cut_stream], [error_in_stream]])
def test_a_stream_that_breaks_is_raised_inside_the_loop_and_not_sent_again(
    server: Scripted, backend: bl.OpenAI, script: list[Handler]
) -> None:
    server.script = list(script)
    with pytest.raises(BackendError) as caught:
        list(ask.stream(backend=backend))
    assert caught.value.retryable and len(server.bodies) == 1


def test_a_stream_that_breaks_before_its_first_text_is_sent_again(
    server: Scripted, backend: bl.OpenAI
) -> None:
    server.script = [empty_stream, hang_up]
    events = list(ask.stream(backend=backend))
    assert "".join(e.text for e in events if isinstance(e, bl.TextDelta)) == "fine day"
    assert len(server.bodies) == 3


def test_deadlines_and_cancelling_leave_the_server(server: Scripted, backend: bl.OpenAI) -> None:
    server.script = [slow, slow]

    @bl.function
    def program(s: bl.State) -> None:
        s += bl.user("a") + bl.assistant(bl.gen("x", deadline_s=0.1))
        s["x"]

    @bl.function
    def race(s: bl.State) -> Any:
        s += bl.user("a") + bl.assistant_begin()
        forks = s.fork(2)
        forks += bl.gen("x")
        (first,) = forks.first(1)
        return first["x"]

    begin = time.monotonic()
    with pytest.raises(bl.DeadlineExceeded):
        program.run(backend=backend)
    assert race.run(backend=backend).result == "fine day"
    assert time.monotonic() - begin < 10


def test_a_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = bl.OpenAI("m", "http://127.0.0.1:9/v1", max_retries=0)
    with pytest.raises(BackendError) as caught:
        ask.run(backend=backend)
    assert caught.value.retryable
    backend.close()


def test_closing_ends_programs(server: Scripted, backend: bl.OpenAI) -> None:
    server.script = [slow]
    stream = ask.stream(backend=backend)
    import threading

    threading.Timer(0.3, backend.close).start()
    with pytest.raises(bl.Cancelled, match="closed"):
        list(stream)
    with pytest.raises(BackendError, match="closed"):
        ask.run(backend=backend)


# ---- what such a server cannot do


def _uses(expression: Any) -> bl.Program:
    @bl.function
    def program(s: bl.State) -> None:
        s += bl.user("a") + bl.assistant(expression)

    return program


@pytest.mark.parametrize(
    "expression",
    [
        bl.select("x", ["a", "b"]),
        bl.gen("x", regex="[0-9]"),
        bl.gen("x", int),
        bl.gen("x", Literal["a", "b"]),
        bl.gen("x", bl.lark('start: "a"')),
        bl.gen("x", top_k=5),
        bl.gen("x", min_p=0.1),
        bl.gen("x", repetition_penalty=1.1),
        bl.gen("x", min_tokens=3),
        bl.gen("x", stop_regex="a"),
        bl.gen("x", stop="a", keep_stop=True),
        bl.gen("x", stop_token_ids=[1]),
        bl.gen("x", ignore_eos=True),
        bl.gen("x", adapter="a"),
    ],
)
def test_what_a_plain_server_cannot_do_is_said_before_anything_is_sent(
    server: Scripted, backend: bl.OpenAI, expression: Any
) -> None:
    with pytest.raises((bl.UnsupportedFeature, bl.UnsupportedConstraint)):
        _uses(expression).run(backend=backend)
    assert server.bodies == []


@bl.function
def goes_on(s: bl.State) -> None:
    s += bl.user("a") + bl.assistant("It is " + bl.gen("x"))


@bl.function
def outside(s: bl.State) -> None:
    s += "text" + bl.user("a") + bl.assistant(bl.gen("x"))


@bl.function
def in_user(s: bl.State) -> None:
    s += bl.user("a" + bl.gen("x"))


@bl.function
def after(s: bl.State) -> None:
    s += bl.user("a")
    s += bl.gen("x")


@bl.function
def tokens(s: bl.State) -> None:
    s += "a"
    s.tokens()


@pytest.mark.parametrize("program", [goes_on, outside, in_user, after, tokens])
def test_prompts_no_such_server_takes_are_refused_before_they_are_sent(
    server: Scripted, backend: bl.OpenAI, program: bl.Program
) -> None:
    with pytest.raises(bl.UnsupportedFeature):
        program.run(backend=backend)
    assert server.bodies == []


def test_servers_with_more_are_asked_for_more(server: Scripted) -> None:
    server.owner = "vllm"
    backend = bl.OpenAI("m", server.url)
    goes_on.run(backend=backend, top_k=4, ignore_eos=True)
    body = server.bodies[0][1]
    assert body["messages"][-1] == {"role": "assistant", "content": "It is "}
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)
    assert (body["top_k"], body["ignore_eos"]) == (4, True)
    server.script = [raw(json.dumps(_answer({}, True)).replace("fine day", "7"))]
    assert _uses(bl.gen("x", int)).run(backend=backend)["x"] == 7
    assert "regex" in server.bodies[1][1]["structured_outputs"]
    backend.close()


def test_the_key_of_openai_goes_to_openai_alone(
    server: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    backend = bl.OpenAI("m", server.url)
    ask.run(backend=backend)
    assert server.keys == [""]
    backend.close()


@pytest.mark.parametrize(
    "options", [{"base_url": "nowhere"}, {"server": "best"}, {"max_retries": -1}]
)
def test_settings_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        bl.OpenAI("m", **options)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [(kind, {"model": "sql"}) for kind in ("vllm", "branchline")]
    + [("sglang", {"model": "m", "lora_path": "sql"})],
)
def test_an_adapter_is_named_as_the_server_knows_it(
    server: Scripted, kind: Any, fields: dict[str, str]
) -> None:
    @bl.function
    def program(s: bl.State) -> None:
        s += bl.user("q")
        with s.adapter("sql"):
            s += bl.assistant(bl.gen("x"))
        s += bl.user("q") + bl.assistant(bl.gen("y"))

    backend = bl.OpenAI("m", server.url, "key", server=kind)
    state = program.run(backend=backend)
    backend.close()
    first, second = (body for _, body in server.bodies)
    assert first == {**first, **fields} and second == {**second, "model": "m"}
    assert (state.meta("x").adapter, state.meta("y").adapter) == ("sql", "")
