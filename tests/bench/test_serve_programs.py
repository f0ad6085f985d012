"""The benchmark of served programs runs, and its proxy delays what it is told to."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import socket
import sys
import time
import warnings
from contextlib import closing, suppress
from pathlib import Path

import pytest

from branchline.bench.proxy import DelayProxy
from branchline.bench.serve_programs import PROGRAMS, serve_programs
from branchline.runtime.errors import InvalidRequest
from tests.support.tiny_engine import write_tiny_model


def test_both_ways_give_the_same_answers(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "tiny")
    out = io.StringIO()
    found = serve_programs(
        {"model": str(model), "load_format": "dummy", "kv_tokens": 16384, "threads": 1},
        names=["checks"],
        at_once=2,
        delay_s=0.001,
        repeats=1,
        stream=out,
    )
    assert [item["work"] for item in found] == ["checks"]
    assert found[0]["same_answers"] == 2, "the work compared is the same"
    assert 0 < found[0]["bytes_endpoint"] < found[0]["bytes_openai"]
    line = json.loads(out.getvalue().strip().splitlines()[-1])
    assert line["faster"] == pytest.approx(found[0]["faster"], rel=1e-2)


def test_unknown_programs_are_refused_and_known_ones_listed() -> None:
    with pytest.raises(InvalidRequest, match="nope"):
        serve_programs({}, names=["nope"])
    out = io.StringIO()
    assert serve_programs({}, names=["list"], stream=out) == []
    assert all(name in out.getvalue() for name in PROGRAMS)


def test_the_proxy_delays_both_ways_keeps_order_and_can_break() -> None:
    async def talk() -> tuple[float, bytes, bytes]:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            # Also when the loop ends first: a writer left open is reported by whatever runs then.
            with closing(writer):
                while data := await reader.read(100):
                    writer.write(data)

        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        with DelayProxy(f"http://127.0.0.1:{port}", 0.03) as proxy:
            there = int(proxy.url.rsplit(":", 1)[1])
            reader, writer = await asyncio.open_connection("127.0.0.1", there)
            begin = time.perf_counter()
            for number in range(50):
                writer.write(b"%02d" % number)
            got = await reader.readexactly(100)
            spent = time.perf_counter() - begin
            await asyncio.to_thread(proxy.cut)
            try:
                rest = await reader.read()
            except ConnectionError:
                rest = b""
            writer.close()
        server.close()
        return spent, got, rest

    spent, got, rest = asyncio.run(talk())
    assert spent >= 0.06
    assert got == b"".join(b"%02d" % number for number in range(50)) and rest == b""


def test_a_proxy_that_closes_while_clients_come_leaves_nothing_open(
    recwarn: pytest.WarningsRecorder,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as target:
        for _ in range(20):
            proxy = DelayProxy(f"http://127.0.0.1:{target.getsockname()[1]}")
            there = ("127.0.0.1", int(proxy.url.rsplit(":", 1)[1]))
            clients = [socket.create_connection(there) for _ in range(8)]
            proxy.close()
            for client in clients:
                client.settimeout(5)
                with client, suppress(ConnectionError):
                    assert client.recv(1) == b"", "the client is told"
        with pytest.MonkeyPatch.context() as patch:
            seen: list[object] = []
            patch.setattr(sys, "unraisablehook", seen.append)
            warnings.simplefilter("error")
            gc.collect()
        assert not seen and not recwarn.list
