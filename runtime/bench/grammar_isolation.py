"""`branchline bench grammar --isolation`: what hostile constraints do to a request that has none.

One innocent stream is timed token by token: alone; beside plain requests; beside requests whose
constraints are made to hurt (`hostile_constraints`), each different from all before, so that none
comes from a cache. Plain and hostile requests come from as many threads, and each asks for a few
tokens, so the plain ones are what any other work would cost. The first use of a grammar backend
has a row of its own: the engine has been idle before, as a server is before its first request.
Knows the engine by its public methods.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TextIO

import msgspec

from branchline.runtime.bench.environment import header
from branchline.runtime.bench.hostile_constraints import corpus
from branchline.runtime.bench.measure import json_line, peak_memory_mb, share
from branchline.runtime.bench.report import Column, table
from branchline.runtime.core.outputs import GenerateDelta
from branchline.runtime.core.sampling_params import Constraint, SamplingParams
from branchline.runtime.engine import Engine
from branchline.runtime.errors import BackendError, BranchlineError

PROMPT = "A short history of the bridge:"
IDLE_S = 2.0
"""Long enough for an engine to see that it has nothing to do."""
FIRST = (
    Constraint(kind="regex", text="[a-z]+"),
    Constraint(kind="ebnf", text='root ::= "a" root | "b"'),
)
COLUMNS = (
    Column("beside"),
    Column("tokens", right=True),
    Column("ITL p50 ms", right=True),
    Column("p90", right=True),
    Column("p99", right=True),
    Column("max", right=True),
    Column("others done", right=True),
    Column("how they ended"),
)


@dataclass(slots=True)
class Company:
    """What ran beside the stream.

    Attributes:
        gaps: seconds between tokens.
        ends: how the other requests ended, by kind of error; "" = with text.
    """

    name: str
    gaps: list[float] = field(default_factory=list)
    ends: Counter[str] = field(default_factory=Counter)

    def quantile(self, part: float) -> float:
        """Milliseconds."""
        return 1e3 * share(self.gaps, part)


def varied(constraint: Constraint, number: int) -> Constraint:
    """The same trouble, a different text."""
    text = constraint.text
    if constraint.kind == "regex":
        text = f"{text}|zz{number}"
    elif constraint.kind == "ebnf":
        text = f"{text}\n# {number}"
    elif constraint.kind == "lark":
        text = f"{text}\n// {number}"
    else:
        text += " " * (number % 5000 + 1)
    return msgspec.structs.replace(constraint, text=text)


def stream_gaps(engine: Engine, tokens: int) -> list[float]:
    """Seconds between the tokens of one greedy stream, the first one aside."""
    sampling = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
    times = [
        time.perf_counter()
        for output in engine.stream(PROMPT, sampling)
        if isinstance(output, GenerateDelta)
    ]
    return [later - earlier for earlier, later in itertools.pairwise(times)][1:]


def beside(
    engine: Engine, company: Company, work: Callable[[int], None], tokens: int, threads: int
) -> None:
    """Time the stream while `threads` threads do `work` (called with distinct numbers)."""
    stop = threading.Event()
    numbers = itertools.count()

    def loop() -> None:
        while not stop.is_set():
            try:
                work(next(numbers))
                company.ends[""] += 1
            except BranchlineError as error:
                company.ends[type(error).__name__] += 1

    others = [threading.Thread(target=loop, daemon=True) for _ in range(threads)]
    for thread in others:
        thread.start()
    company.gaps += stream_gaps(engine, tokens)
    stop.set()
    for thread in others:
        thread.join()


def isolation(
    settings: dict[str, Any],
    *,
    tokens: int = 400,
    threads: int = 4,
    repeats: int = 3,
    stream: TextIO = sys.stdout,
) -> list[Company]:
    """Print the table, then one JSON line for each row.

    Args:
        settings: the engine's.
        tokens: of the innocent stream.
        threads: that send other requests.
        repeats: rounds of all rows, one after the other, so that the load of others spreads out.

    Raises:
        BackendError: the engine did not live through it.
    """
    items = corpus()
    few = SamplingParams(temperature=0.0, max_tokens=4)

    def plain(number: int) -> None:
        engine.generate(f"{number} is", few, timeout_s=60)

    def hostile(number: int) -> None:
        constraint = varied(items[number % len(items)].constraint, number)
        sampling = msgspec.structs.replace(few, constraint=constraint)
        engine.generate(f"{number} is", sampling, timeout_s=60)

    engine = Engine(**settings)
    rows = [Company(name) for name in ("nothing", "first use", "plain", "hostile")]

    def first(number: int) -> None:
        if number < len(FIRST):
            sampling = msgspec.structs.replace(few, constraint=FIRST[number])
            engine.generate("It is", sampling, timeout_s=60)
        else:
            time.sleep(0.05)

    try:
        print(header(engine.info()), file=stream)
        stream_gaps(engine, 20)
        time.sleep(IDLE_S)
        beside(engine, rows[1], first, tokens, 1)
        for _ in range(repeats):
            rows[0].gaps += stream_gaps(engine, tokens)
            beside(engine, rows[2], plain, tokens, threads)
            beside(engine, rows[3], hostile, tokens, threads)
        if len(stream_gaps(engine, 20)) < 10:
            raise BackendError("the engine did not live through it")
    finally:
        engine.close()
    _print(rows, threads, stream)
    return rows


def _print(rows: list[Company], threads: int, stream: TextIO) -> None:
    shown = [
        [
            row.name,
            str(len(row.gaps)),
            *(f"{row.quantile(part):.1f}" for part in (0.5, 0.9, 0.99, 1.0)),
            str(row.ends.total()),
            ", ".join(f"{name or 'text'} {count}" for name, count in row.ends.most_common()),
        ]
        for row in rows
    ]
    table(f"inter-token latency of one stream beside {threads} threads", COLUMNS, shown, stream)
    print(f"peak memory {peak_memory_mb():.0f} MB", file=stream)
    for row in rows:
        line = json_line(
            work="isolation",
            beside=row.name,
            itl_p50_ms=row.quantile(0.5),
            itl_p99_ms=row.quantile(0.99),
            itl_max_ms=row.quantile(1.0),
            itl_mean_ms=1e3 * statistics.fmean(row.gaps),
            others=row.ends.total(),
        )
        print(line, file=stream)
