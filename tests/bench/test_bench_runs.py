"""The benchmarks run to the end on a tiny scale and report what they promise."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from branchline.bench.programs import programs
from branchline.bench.shapes import SHAPES, words
from branchline.runtime.bench.adapters import adapters
from branchline.runtime.bench.offline import offline, run_workload
from branchline.runtime.bench.processes import processes
from branchline.runtime.bench.scheduler import scheduler
from branchline.runtime.bench.workloads import Workload
from branchline.runtime.engine import Engine
from branchline.runtime.errors import InvalidRequest
from tests.support.tiny_engine import write_tiny_model


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of an engine over a tiny model that takes the ids and lengths of the workloads."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    model = write_tiny_model(folder, vocab_size=49152, max_position_embeddings=4096)
    return {"model": str(model), "load_format": "dummy", "kv_tokens": 9000, "threads": 1}


def last_lines(stream: io.StringIO, count: int) -> list[dict[str, Any]]:
    return [msgspec.json.decode(line) for line in stream.getvalue().splitlines()[-count:]]


def test_offline_reports_every_run(default_model: Path) -> None:
    stream = io.StringIO()
    settings = {"model": str(default_model)}
    offline(settings, workloads=["decode"], repeats=1, stream=stream)
    (line,) = last_lines(stream, 1)
    assert line["work"] == "decode"
    assert line["out_tok"] == 128
    assert len(line["all_s"]) == 1
    assert line["cpu_s"] > 0


def test_what_is_timed_begins_when_the_prompts_are_there(default_model: Path) -> None:
    def make(round_: int) -> tuple[list[list[int]], list[int]]:
        time.sleep(0.5)
        return [[5 + round_, 6, 7]], [1]

    with Engine(str(default_model), kv_tokens=512, context_length=128) as engine:
        series = run_workload(engine, Workload("slow to make", "", make), 2)
    assert len(series.wall) == 2 and max(series.wall) < 0.4


def test_workload_beyond_the_context_is_said_and_not_run(default_model: Path) -> None:
    stream = io.StringIO()
    settings = {"model": str(default_model), "context_length": 512}
    offline(settings, workloads=["ttft4096"], repeats=1, stream=stream)
    (line,) = last_lines(stream, 1)
    assert "4097 tokens" in line["skipped"]


def test_scheduler_reports_overhead_and_cost(settings: dict[str, Any]) -> None:
    stream = io.StringIO()
    found = scheduler(settings, queued=[8], repeats=1, stream=stream)
    step, queue = last_lines(stream, 2)
    assert 0.0 < step["overhead"] < 1.0
    assert queue["queued"] == 8
    assert len(found) == 2


def test_processes_are_compared_with_none(settings: dict[str, Any]) -> None:
    stream = io.StringIO()
    found = processes(settings, streams=4, requests=3, repeats=1, stream=stream)
    here, there = last_lines(stream, 2)
    assert (here["engine"], there["engine"]) == ("in process", "processes")
    assert len(found) == 2
    assert all(line["tok_per_s"] > 0 and line["ttft_s"] <= line["e2e_s"] for line in found)


@pytest.mark.parametrize("name", ["multi_chain", "classification"])
def test_program_shapes_report_tokens_and_reuse(name: str, settings: dict[str, Any]) -> None:
    stream = io.StringIO()
    programs(settings, names=[name], at_once=2, repeats=1, stream=stream)
    one, two = last_lines(stream, 2)
    assert (one["at_once"], two["at_once"]) == (1, 2)
    assert one["out_tok"] == SHAPES[name].total or not SHAPES[name].total
    assert one["cached_tok"] >= 0.95 * one["reusable_tok"]
    assert two["steps"] <= 1.5 * one["steps"] + 4


def test_overhead_compares_programs_with_bare_requests(settings: dict[str, Any]) -> None:
    stream = io.StringIO()
    programs(settings, names=["plain"], at_once=2, repeats=1, stream=stream)
    (line,) = last_lines(stream, 1)
    assert line["work"] == "overhead"
    assert line["at_once"] == 2
    share = line["cpu_s_programs"] / line["cpu_s_requests"]
    assert line["overhead"] == pytest.approx(share - 1.0, abs=0.01)


def test_unknown_shape_names_the_known_ones() -> None:
    with pytest.raises(InvalidRequest, match="multi_chain"):
        programs({}, names=["nothing"])


def test_words_are_as_many_as_asked_and_stable() -> None:
    assert len(words(60, 3).split()) == 60
    assert words(60, 3) == words(60, 3) != words(60, 4)


def test_adapters_are_compared_with_the_base_model(tmp_path: Path) -> None:
    stream = io.StringIO()
    settings = {
        "model": str(write_tiny_model(tmp_path / "m")),
        "load_format": "dummy",
        "kv_tokens": 8192,
        "threads": 1,
    }
    found = adapters(settings, registered=9, distinct=3, at_once=4, repeats=1, stream=stream)
    lines = last_lines(stream, len(found))
    assert [line["work"] for line in lines] == [
        "base",
        "1 adapter",
        "3 adapters",
        "half base, half adapters",
        "load",
        "start",
    ]
    assert all(line["tok_s"] > 0 for line in lines[:4])
    assert lines[4]["first_token_ms"] > 0 and lines[4]["gap_ms"] > 0
    assert lines[4]["copy_ms"] > 0
    assert lines[5]["loaded"] == 9 and lines[5]["evictions"] >= 8
    with pytest.raises(InvalidRequest, match="do not fit into the batch"):
        adapters(settings, registered=2, distinct=3, at_once=4)
