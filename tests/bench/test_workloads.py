"""Workloads are the same for every engine and every run; repeats never share a prompt."""

from __future__ import annotations

import io
import random

import msgspec
import pytest

from branchline.runtime.bench.measure import Sample, Series, json_line, repeat
from branchline.runtime.bench.report import Column, table
from branchline.runtime.bench.workloads import WORKLOADS, chosen, prompts
from branchline.runtime.errors import InvalidRequest


def reference_prompts(n: int, lo: int, hi: int, vocab: int, seed: int) -> list[list[int]]:
    r = random.Random(seed)
    return [[r.randrange(100, vocab - 100) for _ in range(r.randint(lo, hi))] for _ in range(n)]


@pytest.mark.parametrize(("n", "lo", "hi", "seed"), [(1, 128, 128, 0), (5, 3, 90, 61)])
def test_prompts_are_the_published_generator_s(n: int, lo: int, hi: int, seed: int) -> None:
    assert prompts(n, lo, hi, seed) == reference_prompts(n, lo, hi, 49_000, seed)


@pytest.mark.parametrize("name", WORKLOADS)
def test_workload_has_the_shape_it_states(name: str) -> None:
    ids, lengths = WORKLOADS[name].make(1)
    assert len(ids) == len(lengths)
    assert WORKLOADS[name].about.startswith(f"{len(ids)} × ")
    assert (ids, lengths) == WORKLOADS[name].make(1)
    assert ids != WORKLOADS[name].make(2)[0]


def test_shared_workload_shares_exactly_its_prefix() -> None:
    ids, _ = WORKLOADS["shared32"].make(3)
    first = ids[0]
    assert all(prompt[:1024] == first[:1024] for prompt in ids)
    assert len({tuple(prompt[1024:]) for prompt in ids}) == 32
    assert {len(prompt) for prompt in ids} == {1056}


def test_mixed_workload_has_the_published_output() -> None:
    assert sum(WORKLOADS["mixed256"].make(1)[1]) == 135_953


def test_unknown_workload_names_the_known_ones() -> None:
    with pytest.raises(InvalidRequest, match=r"decode9.*decode1"):
        chosen(["decode1", "decode9"])


def test_default_workloads_are_those_of_a_cpu() -> None:
    assert [item.name for item in chosen(None)] == ["decode", "ttft1024", "batch16", "shared32"]


def test_repeat_warms_up_once_and_calls_before_each_run() -> None:
    seen: list[str] = []
    series = repeat(
        "x", lambda round_: seen.append(str(round_)), repeats=3, before=lambda: seen.append("f")
    )
    assert seen == ["f", "0", "f", "1", "f", "2", "f", "3"]
    assert len(series.samples) == 3


def test_median_and_spread() -> None:
    series = Series("x", [Sample(wall, 2 * wall, None) for wall in (1.0, 4.0, 2.0)])
    assert series.median_s == 2.0
    assert series.median_cpu_s == 4.0
    assert series.spread == 1.5


def test_json_line_is_one_document() -> None:
    line = json_line(model="m", s=0.123456, all_s=[0.11111, 0.2], out_tok=7)
    assert "\n" not in line
    assert msgspec.json.decode(line) == {
        "model": "m",
        "s": 0.1235,
        "all_s": [0.1111, 0.2],
        "out_tok": 7,
    }


def test_table_never_cuts_a_cell() -> None:
    stream = io.StringIO()
    long = "a" * 90
    table("title", (Column("name"), Column("value", right=True)), [[long, "1.0"]], stream)
    assert long in stream.getvalue()
