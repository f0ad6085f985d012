"""Live programs over real sockets: broken connections, wrong clients, and what is left behind."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest

import branchline as bl
from branchline.bench.proxy import DelayProxy
from branchline.lang.backends.link import Link
from branchline.lang.errors import BackendError
from branchline.runtime.core.sampling_params import SamplingParams
from branchline.runtime.engine import Engine
from branchline.runtime.programs import wire
from branchline.runtime.programs.protocol import AppendText, Generate, OpenProgram
from branchline.runtime.programs.remote_program import ProgramLimits
from branchline.runtime.server.keys import Keys
from tests.server.waiting import wait_for, wait_until_idle
from tests.support.http_server import RunningServer, serve_engine


def unfinished(engine: Engine) -> int:
    return int(engine.info()["scheduler"]["unfinished"])


@bl.function(temperature=0.0)
def story(s: bl.State, tokens: int = 60) -> str:
    s += "Once upon a time" + bl.gen("x", max_tokens=tokens, ignore_eos=True)
    return s["x"]


BEGIN_STORY = """
import os, sys, branchline as bl
@bl.function
def story(s):
    s += 'Once' + bl.gen('x', max_tokens=1500, ignore_eos=True)
endpoint = bl.Endpoint(sys.argv[1])
stream = story.stream(backend=endpoint)
next(stream)
"""


def exit_status_of(code: str, url: str) -> int:
    """How a process that runs `code` against this server ends."""
    command = [sys.executable, "-c", code, url]
    return subprocess.run(command, timeout=60, check=False).returncode


@pytest.fixture
def quick(engine: Engine) -> Iterator[RunningServer]:
    """A server that forgets clients soon."""
    with serve_engine(engine, program_limits=ProgramLimits(program_lease_s=0.6)) as running:
        yield running


def test_a_program_survives_broken_connections(engine: Engine, server: RunningServer) -> None:
    with DelayProxy(server.url) as proxy:
        endpoint = bl.Endpoint(proxy.url)
        pieces: list[str] = []
        for event in story.stream(tokens=300, backend=endpoint):
            if isinstance(event, bl.TextDelta):
                pieces.append(event.text)
                if len(pieces) % 40 == 10:
                    proxy.cut()
            else:
                last = event
        assert isinstance(last, bl.Done)
        direct = engine.generate(
            "Once upon a time", temperature=0.0, max_tokens=300, ignore_eos=True
        )
        assert "".join(pieces) == last.state["x"] == direct.text
        assert endpoint.stats().connections > 2
        assert last.state.text() == "Once upon a time" + direct.text
        endpoint.close()
    wait_until_idle(engine)


def test_a_batch_survives_broken_connections(engine: Engine, server: RunningServer) -> None:
    with DelayProxy(server.url) as proxy:
        endpoint = bl.Endpoint(proxy.url)
        cutter = threading.Timer(0.1, proxy.cut)
        cutter.start()
        states = story.run_batch([{"tokens": 20 + n} for n in range(24)], backend=endpoint)
        cutter.join()
        texts = [state.result for state in states]
        assert all(texts[-1].startswith(text) for text in texts)
        endpoint.close()
    wait_until_idle(engine)


def test_a_client_that_dies_frees_its_memory_when_its_lease_is_over(
    engine: Engine, quick: RunningServer
) -> None:
    assert exit_status_of(BEGIN_STORY + "os._exit(7)\n", quick.url) == 7
    wait_until_idle(engine, 5.0)


def test_a_process_that_ends_says_goodbye(engine: Engine, server: RunningServer) -> None:
    assert exit_status_of(BEGIN_STORY, server.url) == 0
    wait_until_idle(engine, ProgramLimits().program_lease_s / 3)


def test_a_client_that_closes_frees_its_memory_at_once(
    engine: Engine, server: RunningServer
) -> None:
    endpoint = bl.Endpoint(server.url)
    stream = story.stream(tokens=1500, backend=endpoint)
    next(stream)
    begin = time.monotonic()
    endpoint.close()
    wait_until_idle(engine, 5.0)
    assert time.monotonic() - begin < ProgramLimits().program_lease_s / 3
    with pytest.raises(bl.Cancelled, match="closed"):
        list(stream)
    with pytest.raises(BackendError, match="closed"):
        story.run(backend=endpoint)
    endpoint.close()


def test_a_server_that_is_gone_ends_programs_with_a_retryable_error(
    engine: Engine, quick: RunningServer
) -> None:
    with DelayProxy(quick.url) as proxy:
        endpoint = bl.Endpoint(proxy.url)
        begun = threading.Event()

        @bl.function
        def program(s: bl.State) -> str:
            s += "Once" + bl.gen("x", max_tokens=1500, ignore_eos=True)
            begun.set()
            return s["x"]

        def cut() -> None:
            assert begun.wait(10)
            wait_for(lambda: unfinished(engine) > 0)
            proxy.cut(refuse=True)

        cutter = threading.Thread(target=cut)
        cutter.start()
        with pytest.raises(BackendError) as caught:
            program.run(backend=endpoint)
        cutter.join()
        assert caught.value.retryable and "cannot be reached" in str(caught.value)
        proxy.refusing = False
        assert story.run(tokens=3, backend=endpoint).result, "it connects again when it is there"
        endpoint.close()
    wait_until_idle(engine)


def test_a_bug_while_writing_ends_programs_instead_of_leaving_them_waiting(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = bl.Endpoint(server.url)
    assert story.run(backend=endpoint, tokens=4).result

    def broken(link: Link) -> bytes | None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Link, "collect", broken)
    failures: list[BaseException] = []

    def run() -> None:
        try:
            story.run(backend=endpoint)
        except bl.BranchlineError as error:
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), "it waits for ever"
    assert "a bug" in str(failures[0])
    monkeypatch.undo()
    endpoint.close()


def test_many_programs_share_one_connection_and_send_what_is_new(server: RunningServer) -> None:
    @bl.function(temperature=0.0, max_tokens=2, ignore_eos=True)
    def long(s: bl.State, words: int) -> None:
        s += "word " * words
        for step in range(10):
            s += "go on" + bl.gen(f"x{step}")
            s[f"x{step}"]

    costs = {}
    for words in (10, 300):
        endpoint = bl.Endpoint(server.url)
        states = long.run_batch([{"words": words}] * 4, backend=endpoint)
        stats = endpoint.stats()
        assert stats.connections == 1
        costs[words] = stats.bytes_up + stats.bytes_down
        assert len(states) == 4
        endpoint.close()
    new = 4 * len("word ") * (300 - 10)
    assert costs[300] - costs[10] < 1.1 * new + 500, "a text crosses once, not once a step"


def test_an_endpoint_nobody_holds_ends_its_thread(server: RunningServer) -> None:
    def names() -> int:
        return sum(thread.name == "branchline-endpoint" for thread in threading.enumerate())

    gc.collect()
    wait_for(lambda: names() == 0)
    assert story.run(tokens=2, backend=bl.Endpoint(server.url)).result
    gc.collect()
    wait_for(lambda: names() == 0)


# ---- the beginning


def test_who_may_connect(engine: Engine) -> None:
    with serve_engine(engine, keys=Keys(normal=("secret",))) as server:
        with pytest.raises(BackendError, match="401") as caught:
            bl.Endpoint(server.url)
        assert "api_key" in caught.value.hint and not caught.value.retryable
        endpoint = bl.Endpoint(server.url, api_key="secret")
        assert story.run(tokens=2, backend=endpoint).result
        endpoint.close()


@pytest.mark.parametrize("url", ["localhost:1", "ftp://host", "", "http://"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(bl.InvalidRequest):
        bl.Endpoint(url)


def test_a_server_that_is_not_there_or_not_ours_is_said_so() -> None:
    with pytest.raises(BackendError, match="cannot be reached") as caught:
        bl.Endpoint("http://127.0.0.1:9", timeout_s=2.0)
    assert caught.value.retryable and "ssl" not in str(caught.value)


def test_what_the_server_refuses_is_told_in_its_own_words(engine: Engine) -> None:
    with serve_engine(engine, keys=Keys(("user",), ("root",))) as server:
        endpoint = bl.RuntimeEndpoint(server.url, "user")
        with pytest.raises(BackendError, match="HTTP 403: this is for admins") as caught:
            endpoint.flush_cache()
        assert "{" not in str(caught.value)
        endpoint.close()


def test_an_endpoint_flushes_the_cache_of_a_server_without_keys(
    server: RunningServer, engine: Engine
) -> None:
    endpoint = bl.RuntimeEndpoint(base_url=server.url)
    for flush in (endpoint.flush_cache, lambda: bl.flush_cache(endpoint)):
        engine.generate("A text that is kept", max_tokens=2)
        assert engine.info()["cache"]["cached_tokens"] > 0
        flush()
        assert engine.info()["cache"]["cached_tokens"] == 0
    endpoint.close()


async def _talk(url: str, *frames: bytes | str) -> list[aiohttp.WSMessage]:
    """Send frames, then read until the server closes."""
    async with aiohttp.ClientSession() as http, http.ws_connect(url + "/v1/programs/live") as line:
        for frame in frames:
            await (line.send_str(frame) if isinstance(frame, str) else line.send_bytes(frame))
        got = []
        async with asyncio.timeout(10):
            while True:
                got.append(await line.receive())
                if got[-1].type is not aiohttp.WSMsgType.BINARY:
                    return got


HELLO = wire.encode([wire.Hello(wire.VERSION, "test")])


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        (["text"], 1003),
        ([b"\xc1"], 1002),
        ([HELLO, bytes(range(64))], 1002),
        ([HELLO, HELLO], 1002),
        ([wire.encode([wire.Hello(99, "future")])], 1008),
    ],
)
def test_clients_that_speak_something_else_are_sent_away(
    server: RunningServer, frames: list[Any], code: int
) -> None:
    last = asyncio.run(_talk(server.url, *frames))[-1]
    assert last.type is aiohttp.WSMsgType.CLOSE and last.data == code
    assert server.get("/health").status == 200


def test_a_client_of_another_version_learns_both_versions(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hello = wire.Hello
    monkeypatch.setattr(
        "branchline.lang.backends.endpoint.Hello", lambda version, name: hello(version + 1, name)
    )
    with pytest.raises(bl.UnsupportedFeature, match=r"version 1 .*version 2"):
        bl.Endpoint(server.url)


# ---- limits


def test_limits_of_programs_are_the_servers(engine: Engine) -> None:
    limits = ProgramLimits(max_program_ops=6, max_program_text_bytes=40)
    with serve_engine(engine, program_limits=limits) as server:
        endpoint = bl.Endpoint(server.url)

        @bl.function(max_tokens=1, temperature=0.0)
        def many(s: bl.State) -> None:
            for number in range(6):
                s += "a" + bl.gen(f"x{number}")

        @bl.function(max_tokens=1)
        def long(s: bl.State) -> None:
            s += "word " * 100 + bl.gen("x")

        with pytest.raises(bl.InvalidRequest, match="--limit max_program_ops="):
            many.run(backend=endpoint)
        with pytest.raises(bl.InvalidRequest, match="--limit max_program_text_bytes="):
            long.run(backend=endpoint)
        assert story.run(tokens=2, backend=endpoint).result
        endpoint.close()
    wait_until_idle(engine)


def test_a_reader_that_never_reads_loses_its_program_and_nobody_elses(engine: Engine) -> None:
    """Small bounds stand for long texts; the client's socket takes nothing."""
    limits = ProgramLimits(max_program_unread_bytes=5_000)

    async def begin(url: str) -> None:
        sampling = SamplingParams(max_tokens=1500, ignore_eos=True)
        parts = [
            OpenProgram(program_id="slow"),
            AppendText(0, 0, ("Once",)),
            Generate(lane=0, node=1, name="x", sampling=sampling, stream=True),
        ]
        item = wire.Item(1, 1, 0, wire.msgspec.Raw(wire.encode(parts)))
        async with aiohttp.ClientSession() as http:
            line = await http.ws_connect(url + "/v1/programs/live")
            await line.send_bytes(HELLO)
            await line.send_bytes(wire.encode([wire.Attach(1, "slow"), item]))
            # Nothing is acknowledged from here on.
            await asyncio.to_thread(wait_for, lambda: unfinished(engine) > 0)
            # The program ends although its client is still connected.
            await asyncio.to_thread(wait_until_idle, engine)
            await line.close()

    with serve_engine(engine, program_limits=limits) as server:
        endpoint = bl.Endpoint(server.url)
        asyncio.run(begin(server.url))
        assert story.run(tokens=2, backend=endpoint).result
        endpoint.close()


def test_the_client_half_loads_no_torch_and_no_numpy(server: RunningServer) -> None:
    code = (
        "import sys, branchline as bl\n"
        "@bl.function\n"
        "def f(s):\n"
        "    s += 'a' + bl.gen('x', max_tokens=2)\n"
        "    return s['x']\n"
        "endpoint = bl.RuntimeEndpoint(sys.argv[1])\n"
        "f.run(backend=endpoint)\n"
        "endpoint.close()\n"
        "print(sorted({'torch', 'numpy', 'transformers', 'tokenizers'} & set(sys.modules)))\n"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code, server.url],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert shown.stdout.strip() == "[]"


def test_serving_ends_soon_when_endpoints_are_only_connected(engine: Engine) -> None:
    begin = time.monotonic()
    with serve_engine(engine) as server:
        endpoint = bl.Endpoint(server.url)
        assert story.run(tokens=2, backend=endpoint).result
    assert time.monotonic() - begin < 8
    endpoint.close()


def test_a_goodbye_that_meets_the_end_of_the_connection_is_heard(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve_engine(engine) as server:
        endpoint = bl.Endpoint(server.url)
        assert story.run(tokens=2, backend=endpoint).result
        line = endpoint._line
        disconnected = line.link.disconnected

        def meet() -> None:
            disconnected()
            asyncio.get_running_loop().call_soon(line._task.cancel)

        monkeypatch.setattr(line.link, "disconnected", meet)
    wait_for(line._task.done)  # else it goes on as if nobody had said goodbye
    endpoint.close()
