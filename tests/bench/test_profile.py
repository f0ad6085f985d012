"""Profiles: idle time is what no piece of work covers; phases are the scheduler's own counters."""

from __future__ import annotations

import io
import random
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from branchline.runtime.bench.profile import PHASES, covered, profiled, show_profile
from branchline.runtime.engine import Engine

SPANS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)), max_size=12)


@given(SPANS)
def test_covered_counts_every_moment_once(drawn: list[tuple[int, int]]) -> None:
    spans = [(start, start + length) for start, length in drawn]
    moments = {moment for start, end in spans for moment in range(start, end)}
    assert covered(spans) == len(moments)
    random.Random(0).shuffle(spans)
    assert covered(spans) == len(moments)


def test_a_profile_reports_steps_and_phases(default_model: Path) -> None:
    with Engine(str(default_model), kv_tokens=9000, device="cpu") as engine:
        found = profiled(engine, lambda: engine.generate([1, 2, 3], max_tokens=4, ignore_eos=True))
    assert found["steps"] >= 4
    assert found["wall_s"] > 0.0
    assert all(found[phase] >= 0.0 for phase in PHASES)
    stream = io.StringIO()
    show_profile("work", found, stream)
    assert f"{found['steps']} steps" in stream.getvalue()
