"""`branchline bench start`: from process start to the first token, and how much memory it took.

Each run is a process of its own; the clock starts before the process does. `time.monotonic` is
one clock for all processes of a machine, so the child can report the moment of its first token.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from typing import Any, TextIO

import msgspec

from branchline.runtime.bench.measure import json_line, peak_memory_mb
from branchline.runtime.bench.report import Column, table
from branchline.runtime.errors import BackendError

PROMPT = "The capital of France is"
COLUMNS = (Column("moment"), Column("median", right=True), Column("all runs"))


class Started(msgspec.Struct):
    """What a child reports: moments in `time.monotonic` seconds, memory in 10^6 bytes."""

    imported: float
    ready: float
    first_token: float
    mb_first_token: float
    mb_after_work: float


def child(settings: dict[str, Any]) -> Started:
    """Body of a measured process: load, one token, then a long prompt and 64 tokens."""
    from branchline.runtime.bench.workloads import VOCABULARY, prompts
    from branchline.runtime.core.sampling_params import SamplingParams
    from branchline.runtime.engine import Engine

    imported = time.monotonic()
    engine = Engine(**settings)
    ready = time.monotonic()
    greedy = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)
    engine.generate(PROMPT, greedy)
    first_token, mb_first_token = time.monotonic(), peak_memory_mb()
    long = msgspec.structs.replace(greedy, max_tokens=64)
    vocabulary = min(VOCABULARY, int(engine.info()["vocab_size"]))
    engine.generate(prompts(1, 1024, 1024, 1, vocabulary), long)
    started = Started(imported, ready, first_token, mb_first_token, peak_memory_mb())
    engine.close()
    return started


def start(
    settings: dict[str, Any], *, repeats: int = 3, stream: TextIO = sys.stdout
) -> list[Started]:
    """Start `repeats` + 1 processes (the first warms the file cache) and print what they took.

    Raises:
        BackendError: a process failed; its own words follow.
    """
    program = (
        "import sys, msgspec; from branchline.runtime.bench.start import child; "
        "print(msgspec.json.encode(child(msgspec.json.decode(sys.argv[1]))).decode())"
    )
    command = [sys.executable, "-P", "-c", program, msgspec.json.encode(settings).decode()]
    rows: dict[str, list[float]] = {"imports done": [], "engine ready": [], "first token": []}
    found: list[Started] = []
    for round_ in range(repeats + 1):
        begin = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no output"])[-1]
            raise BackendError("the measured process failed", value=last)
        if round_:
            report = msgspec.json.decode(done.stdout.splitlines()[-1], type=Started)
            found.append(report)
            moments = (report.imported, report.ready, report.first_token)
            for name, moment in zip(rows, moments, strict=True):
                rows[name].append(moment - begin)
    shown = [
        [f"{name}, s", f"{statistics.median(times):.2f}", " ".join(f"{t:.2f}" for t in times)]
        for name, times in rows.items()
    ]
    for name in ("mb_first_token", "mb_after_work"):
        values = [float(getattr(report, name)) for report in found]
        label = "peak at first token, MB" if name == "mb_first_token" else "peak after work, MB"
        shown.append(
            [label, f"{statistics.median(values):.0f}", " ".join(f"{v:.0f}" for v in values)]
        )
    table(f"process start, {repeats} processes", COLUMNS, shown, stream)
    first = rows["first token"]
    peak = statistics.median(report.mb_after_work for report in found)
    print(
        json_line(work="start", s=statistics.median(first), all_s=first, peak_mb=peak), file=stream
    )
    return found
