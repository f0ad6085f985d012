"""The serving benchmark runs, its loops keep their load, and its soak finds what is wrong."""

from __future__ import annotations

import asyncio
import io
import json
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from branchline.bench.serve import serve
from branchline.bench.serve_overhead import against_engine, compare
from branchline.bench.serve_work import WORK
from branchline.bench.served import served
from branchline.bench.soak import Watch, growth, judge, soak
from branchline.bench.soak_clients import Tally
from branchline.cli.main import main
from branchline.runtime.bench.latency import Timing
from branchline.runtime.bench.loops import Call, closed_loop, open_loop
from branchline.runtime.errors import BackendError, InvalidRequest
from tests.support.tiny_engine import write_tiny_model


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    model: Path = write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")
    return {"model": str(model), "load_format": "dummy", "kv_tokens": 16384, "threads": 1}


def test_every_workload_is_answered_and_reported(settings: dict[str, Any]) -> None:
    out = io.StringIO()
    found = serve(settings, at_once=4, requests=4, repeats=2, stream=out)
    lines = [json.loads(line) for line in out.getvalue().splitlines()[-4:]]
    assert [line["work"] for line in lines] == ["shared-prefix", "chat", "json", "programs"]
    for line, item in zip(lines, found, strict=True):
        assert (line["requests"], line["failed"], line["load"]) == (8, 0, "closed")
        assert len(item["all_tok_per_s"]) == 2
        assert 0 < item["ttft_s_p50"] <= item["e2e_s_p50"] <= item["e2e_s_p99"]
        assert item["out_tok"] > 0
    assert found[0]["out_tok"] == 4 * 32, "lengths are fixed"


def test_requests_arrive_at_the_rate(settings: dict[str, Any]) -> None:
    out = io.StringIO()
    found = serve(settings, names=["shared-prefix"], rate=50.0, requests=5, repeats=1, stream=out)
    assert json.loads(out.getvalue().splitlines()[-1])["rate"] == 50.0
    assert (found[0]["requests"], found[0]["failed"]) == (5, 0)


def test_the_same_work_is_measured_with_and_without_a_server(settings: dict[str, Any]) -> None:
    out = io.StringIO()
    report = against_engine(settings, streams=2, requests=3, repeats=1, stream=out)
    line = json.loads(out.getvalue().splitlines()[-1])
    assert line["throughput"] == pytest.approx(report["throughput"], abs=1e-3)
    assert len(report["all_tok_per_s_engine"]) == 2, "before and after the server"
    assert report["throughput"] > 0


def test_the_comparison_is_with_both_runs_of_the_engine() -> None:
    def run(ttft_s: float, *rates: float) -> dict[str, Any]:
        return {"ttft_s": ttft_s, "all_tok_per_s": list(rates)}

    report = compare(run(0.010, 100.0, 100.0), run(0.013, 99.0), run(0.012, 120.0, 120.0))
    assert report["throughput"] == pytest.approx(99 / 110)
    assert report["ttft_added_s"] == pytest.approx(0.002)
    assert report["drift"] == pytest.approx(20 / 110)


def test_a_closed_loop_keeps_so_many_open() -> None:
    open_now, most = 0, 0

    async def call(timing: Timing) -> int:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        await asyncio.sleep(0)
        open_now -= 1
        return 2

    calls: list[Call] = [call] * 20
    timings, _ = asyncio.run(closed_loop(calls, 3))
    assert most == 3
    assert [one.tokens for one in timings] == [2] * 20


def test_an_open_loop_waits_for_nobody_and_counts_from_when_a_request_was_due() -> None:
    started: list[float] = []

    async def stalls(timing: Timing) -> int:
        started.append(timing.begin_s)
        if len(started) == 1:
            time.sleep(0.05)  # the client itself is held up: what was due meanwhile starts late
        else:
            await asyncio.sleep(0)
        return 1

    async def fails(timing: Timing) -> int:
        raise BackendError("no")

    timings, _ = asyncio.run(open_loop([stalls, stalls, fails], [0.0, 0.01, 0.02]))
    first, second, third = timings
    assert second.begin_s - first.begin_s == pytest.approx(0.01)
    assert second.first_s - second.begin_s >= 0.035
    assert not first.failed and "no" in third.failed


def test_a_server_is_gone_after_its_block_and_says_why_it_does_not_start(
    settings: dict[str, Any],
) -> None:
    with pytest.raises(ZeroDivisionError), served(settings) as server:
        pids = server.processes()
        assert {"http", "scheduler", "detokenizer"} <= set(pids.values())
        raise ZeroDivisionError
    assert not [pid for pid in pids if psutil.pid_exists(pid)]
    with pytest.raises(BackendError, match="did not start"), served({"kv_tokens": -1}):
        pass


def test_growth_is_what_comes_after_the_warm_up() -> None:
    warming = [(float(i), 100.0 + 10 * i) for i in range(10)]
    flat = [(float(i), 200.0 + i % 3) for i in range(10, 100)]
    leaking = [(float(i), 200.0 + 0.5 * (i - 10)) for i in range(10, 100)]
    assert growth(warming + flat, 10.0)["flat"]
    found = growth(warming + leaking, 10.0)
    assert not found["flat"]
    assert found["mb_per_min"] == pytest.approx(30.0)
    with pytest.raises(InvalidRequest, match="longer"):
        growth(warming, 10.0)


def test_a_replaced_process_is_seen() -> None:
    watch = Watch()
    watch.add(0.0, {"http": (1, 50.0), "scheduler": (2, 50.0)})
    watch.add(1.0, {"http": (1, 50.0), "scheduler": (3, 50.0)})
    assert watch.replaced == ["scheduler"]


def test_anything_wrong_fails_the_soak() -> None:
    books = dict.fromkeys(("pages_leaked", "pages_kept_by_flush", "leases", "violations"), 0)
    memory = {"http": {"flat": True}}
    assert judge(Tally(), books, memory, [])["passed"]
    assert not judge(Tally(lost=["gone"]), books, memory, [])["passed"]
    assert not judge(Tally(), books, {"http": {"flat": False}}, [])["passed"]
    assert not judge(Tally(), books, memory, ["scheduler"])["passed"]
    for name in books:
        assert not judge(Tally(), books | {name: 1}, memory, [])["passed"], name


def test_a_short_soak_loses_nothing(settings: dict[str, Any]) -> None:
    out = io.StringIO()
    report = soak(settings | {"kv_tokens": 8192}, seconds=5, at_once=8, stream=out)
    checks = report["checks"] | {"memory flat": True}  # five seconds are too short to say
    assert all(checks.values()), out.getvalue()
    assert report["ended"] > 0 and report["left"] > 0
    assert json.loads(out.getvalue().splitlines()[-1])["pages_leaked"] == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_long_soak_passes(settings: dict[str, Any]) -> None:
    out = io.StringIO()
    assert soak(settings, seconds=600, at_once=32, stream=out)["passed"], out.getvalue()


@pytest.mark.parametrize(
    "flags",
    [
        ["--rate", "5", "--soak-s", "60"],
        ["--rate", "5", "--at-once", "4"],
        ["--against-engine", "--soak-s", "60"],
        ["--soak-s", "1"],
        ["--rate", "-1"],
        ["--workload", "nope"],
    ],
)
def test_what_cannot_be_meant_is_refused(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "serve", *flags]) == 2
    assert "hint" in capsys.readouterr().err


def test_workloads_are_listed() -> None:
    out = io.StringIO()
    assert serve({}, names=["list"], stream=out) == []
    assert all(name in out.getvalue() for name in WORK)
