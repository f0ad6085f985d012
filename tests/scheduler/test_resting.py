"""Where nothing is guessed a drafter costs next to nothing: a worker that does nothing tells."""

from __future__ import annotations

import random

from branchline.runtime.core.drafting import DraftRow
from branchline.runtime.speculative.ngram import NgramDrafter
from tests.scheduler.harness import Bench
from tests.support.hash_model import VOCAB
from tests.support.timed_worker import TimedWorker

ROWS, PROMPT, OUTPUT = 32, 60, 80


def texts(seed: int) -> dict[int, list[int]]:
    """Of ids that hardly ever come three in a row again, by their first one."""
    r = random.Random(seed)
    return {
        first: [first, *(r.randrange(ROWS, VOCAB) for _ in range(PROMPT + OUTPUT))]
        for first in range(ROWS)
    }


def bench_of(drafter: NgramDrafter, scripts: dict[int, list[int]]) -> tuple[Bench, TimedWorker]:
    bench = Bench(tokens=8192, rows=ROWS, step_tokens=4096, drafter=drafter, pace=True)
    worker = TimedWorker(scripts, lambda rows, tokens: 0.0)
    bench.worker = bench.scheduler._worker = worker  # type: ignore[assignment]
    return bench, worker


def test_a_batch_of_which_no_row_quotes_is_hardly_asked_and_overlaps() -> None:
    asked = 0

    class Counted(NgramDrafter):
        def promising(self, row: DraftRow) -> int:
            nonlocal asked
            asked += 1
            return super().promising(row)

    scripts = texts(1)
    bench, worker = bench_of(Counted(), scripts)
    for first, ids in scripts.items():
        bench.submit(str(first), ids[:PROMPT], OUTPUT)
    bench.run()
    for first, ids in scripts.items():
        assert bench.output(str(first)) == ids[PROMPT : PROMPT + OUTPUT]
    steps = len(worker.steps)
    assert steps < OUTPUT + 10, "no more than plain decoding takes"
    assert asked < 0.3 * ROWS * steps, "each time holds up a step, which takes no time by itself"
