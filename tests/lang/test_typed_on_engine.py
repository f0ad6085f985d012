"""Typed values on the default model: what comes back has the structure that was asked for."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import branchline as bl
from branchline.lang.types import resolve
from tests.lang.typed_values import Movie, Point


@pytest.fixture(scope="module")
def engine(default_model: Path) -> Iterator[bl.Engine]:
    engine = bl.Engine(model=str(default_model))
    yield engine
    engine.close()


@pytest.mark.parametrize(
    "wanted",
    [
        Point,
        Movie,
        list[bool],
        int | None,
        datetime.date,
        {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]},
        bl.seq("n=", bl.capture("n", int), "; ", bl.capture("at", Point)),
        bl.lark('start: "(" start ")" | "x"\n'),
        bl.repeat(bl.regex("[ab]") | bl.choices(["no"]), 1, 3),
    ],
)
def test_a_value_that_ended_reads_back_and_matches(wanted: Any, engine: bl.Engine) -> None:
    @bl.function(temperature=0.0)
    def program(s: bl.State) -> None:
        s += 'Values: {"x": 1, "y": 2.5}\nValue: ' + bl.gen("v", wanted, max_tokens=32)

    state = program.run(backend=engine)
    text = state.meta("v").text
    found = bl.match(wanted, text)
    if state.meta("v").finish_reason == "length":
        assert found.status in ("full", "prefix")
        return
    assert found.status == "full"
    assert state["v"] == found.value
    for name in resolve(wanted).captures:
        assert state[name] == found.captures[name]
