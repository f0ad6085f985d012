"""Law: ten thousand programs run at once in one process, in bounded time and memory."""

from __future__ import annotations

import json
import subprocess
import sys

TEN_THOUSAND = """
import json, pathlib, resource, time
import branchline as bl

@bl.function
def program(s, number):
    s += f"Q{number}:" + bl.gen("x", max_tokens=16)
    return s["x"]

together = [0]

def reply(name, text):
    together[0] = max(together[0], mock.stats().programs_open)
    return "answer"

def peak():
    # Not ru_maxrss where it can be avoided: after a fork it begins with the parent's.
    status = pathlib.Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return next(int(line.split()[1]) for line in status.open() if line.startswith("VmHWM"))

mock = bl.Mock(reply, latency_s=1.0)
begin = time.perf_counter(), time.process_time()
states = program.run_batch(range(10_000), backend=mock)
print(json.dumps({
    "wall": time.perf_counter() - begin[0],
    "cpu": time.process_time() - begin[1],
    "right": [state.result for state in states] == ["answer"] * 10_000,
    "together": together[0],
    "kilobytes": peak(),
}))
"""


def test_ten_thousand_programs_at_once() -> None:
    """In a process of its own, so that its memory is its own."""
    run = subprocess.run(
        [sys.executable, "-c", TEN_THOUSAND], capture_output=True, text=True, check=True
    )
    found = json.loads(run.stdout)
    assert found["right"]
    assert found["together"] > 5_000, "they do not run at the same time"
    assert found["cpu"] < 5.0, found
    assert found["kilobytes"] < 1_000_000
