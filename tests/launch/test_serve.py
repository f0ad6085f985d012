"""`branchline serve` as an operator meets it: a process, a URL, signals, an exit status."""

from __future__ import annotations

import gzip
import http.client
import http.server
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.waiting import until

pytestmark = pytest.mark.timeout(240)


class Served:
    """A running server and what it has printed."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._connections: list[http.client.HTTPConnection] = []
        self.host, self.port = "", 0
        assert process.stdout is not None
        for line in process.stdout:
            self.lines.append(line.rstrip())
            found = re.match(r"serving at http://(.+):(\d+)", line)
            if found:
                self.host, self.port = found[1], int(found[2])
                break
        assert self.port, self.lines

    def request(
        self, method: str, path: str, body: Any = None
    ) -> tuple[int, http.client.HTTPResponse]:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        self._connections.append(connection)
        headers = {"content-type": "application/json"}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        return response.status, response

    def health(self) -> int:
        status, response = self.request("GET", "/health")
        response.read()
        return status

    def stream(self, max_tokens: int) -> http.client.HTTPResponse:
        body = {"prompt": "Once", "max_tokens": max_tokens, "stream": True, "ignore_eos": True}
        status, response = self.request("POST", "/v1/completions", body | {"temperature": 0})
        assert status == 200
        return response

    def close(self) -> None:
        for connection in self._connections:
            connection.close()

    def children(self) -> list[psutil.Process]:
        return _children(self.process.pid)

    def child(self, role: str) -> psutil.Process:
        return next(one for one in self.children() if role in " ".join(one.cmdline()))


def _children(pid: int) -> list[psutil.Process]:
    found: list[psutil.Process] = psutil.Process(pid).children(recursive=True)
    return found


@contextmanager
def serving(settings: dict[str, Any], *flags: str) -> Iterator[Served]:
    command = [sys.executable, "-m", "branchline", "serve", "--port", "0", *flags]
    for name, value in settings.items():
        command += ["--" + name.replace("_", "-"), str(value)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    served = None
    try:
        served = Served(process)
        yield served
    finally:
        children = [] if process.poll() is not None else _children(process.pid)
        process.kill()
        process.wait()
        if served is not None:
            served.close()
        assert process.stdout is not None
        process.stdout.close()
        psutil.wait_procs(children, 20)
        assert not [one for one in children if one.is_running()]


def test_serve_restarts_a_dead_scheduler_and_drains_when_told_to_stop(
    settings: dict[str, Any],
) -> None:
    with serving(settings) as served:
        assert any("kv_tokens = 8192" in line for line in served.lines), "decisions are printed"
        assert served.health() == 200
        loaded = psutil.Process(served.process.pid).memory_maps()
        assert not [one.path for one in loaded if "libtorch" in one.path]

        lost = served.stream(1900)
        assert lost.readline().startswith(b"data: ")
        served.child("scheduler_process").kill()
        until(lambda: served.health() == 503)
        assert b"scheduler process ended" in lost.read()
        waiting: list[int] = []

        def wait() -> None:
            body = {"prompt": "Waiting", "max_tokens": 3}
            status, response = served.request("POST", "/v1/completions", body)
            response.read()
            waiting.append(status)

        thread = threading.Thread(target=wait)
        thread.start()
        until(lambda: served.health() == 200)
        thread.join(60)
        assert waiting == [200]

        running = served.stream(1900)
        assert running.readline().startswith(b"data: ")
        served.process.send_signal(signal.SIGTERM)
        until(lambda: served.health() == 503, 5)
        refused, response = served.request("POST", "/v1/completions", {"prompt": "x"})
        assert refused == 503 and b"stopping" in response.read()
        assert running.read().rstrip().endswith(b"[DONE]")
        children = served.children()
        assert served.process.wait(20) == 0
        assert served.process.stdout is not None
        assert served.process.stdout.read().strip() == "stopped"
        assert not [one for one in children if one.is_running()]


@pytest.mark.slow
def test_a_second_interrupt_waits_for_nothing(settings: dict[str, Any]) -> None:
    long = {**settings, "kv_tokens": 400_000, "context_length": 2048}
    with serving(long) as served:
        streams = [served.stream(2000) for _ in range(12)]
        assert all(stream.readline() for stream in streams)
        served.child("detokenizer_process").suspend()  # nothing will ever be finished
        served.process.send_signal(signal.SIGINT)
        until(lambda: served.health() == 503, 5)
        assert served.process.poll() is None
        begin = time.monotonic()
        served.process.send_signal(signal.SIGINT)
        assert served.process.wait(20) == 1
        assert time.monotonic() - begin < 10


@pytest.mark.slow
def test_draining_ends_when_its_time_is_over(settings: dict[str, Any]) -> None:
    with serving(settings, "--drain-timeout-s", "0.5") as served:
        stream = served.stream(1900)
        assert stream.readline()
        served.child("detokenizer_process").suspend()
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(30) == 1


@pytest.mark.slow
def test_a_server_that_cannot_go_on_says_so_by_its_status(settings: dict[str, Any]) -> None:
    with serving(settings, "--max-restarts", "0") as served:
        served.child("scheduler_process").kill()
        assert served.process.wait(30) == 1


@pytest.mark.parametrize("flag", ["--port", "--grpc-port"])
def test_a_port_in_use_is_an_error_before_any_model_is_looked_for(flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = [sys.executable, "-m", "branchline", "serve", "--port", "0", flag, str(port)]
        words += ["--model", "no-such-model"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2
    assert f"cannot listen at 127.0.0.1:{port}: Address already in use" in done.stderr
    assert "hint: " in done.stderr and "loading" not in done.stdout


def test_serve_is_watched_by_metrics_spans_and_json_logs_and_speaks_grpc(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    spans = _Collector()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", spans.url)
    with spans, serving(settings, "--grpc-port", "0", "--log-format", "json") as served:
        at = next(line for line in served.lines if line.startswith("gRPC at ")).split()[-1]
        with grpc.insecure_channel(at) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            answer = health.Check(health_pb2.HealthCheckRequest(), timeout=30)
            assert answer.status == health_pb2.HealthCheckResponse.ServingStatus.Value("SERVING")
        body = {"prompt": "Once", "max_tokens": 3, "ignore_eos": True}
        status, response = served.request("POST", "/v1/completions", body)
        response.read()
        assert status == 200
        text = served.request("GET", "/metrics")[1].read().decode()
        assert re.search(r"branchline:generation_tokens_total\{.*\} 3\.0", text)
        assert "branchline:max_total_num_tokens{" in text
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(60) == 0
    assert b"generate" in spans.body()


class _Collector:
    """Takes spans, as an OTLP collector does."""

    def __init__(self) -> None:
        self._bodies: list[bytes] = []
        bodies = self._bodies

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers["content-length"]))
                gzipped = self.headers.get("content-encoding") == "gzip"
                bodies.append(gzip.decompress(data) if gzipped else data)
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> None:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def body(self) -> bytes:
        return b"".join(self._bodies)
