"""`branchline bench grammar`: what structure costs, in one command and one last JSON line.

Constrained throughput beside free text on the engine; compile times and masks of every backend
beside the bare packages; a set of JSON Schemas; on request the stream beside hostile constraints.
Knows only the parts.
"""

from __future__ import annotations

import sys
from typing import Any, TextIO

from branchline.runtime.bench import grammar_cost, grammar_schemas, grammar_throughput, schema_set
from branchline.runtime.bench.environment import header
from branchline.runtime.bench.grammar_isolation import isolation
from branchline.runtime.bench.measure import json_line, peak_memory_mb
from branchline.runtime.engine import Engine


def grammar(
    settings: dict[str, Any],
    *,
    schemas: str | None = None,
    at_once: int = 16,
    repeats: int = 3,
    with_isolation: bool = False,
    stream: TextIO = sys.stdout,
) -> dict[str, Any]:
    """Measure and print; returns what the last line says.

    Args:
        settings: the engine's.
        schemas: JSON lines with schemas (`schema_set.read`); None = a small set of its own.
        at_once: requests of a round.
        with_isolation: also time a stream beside hostile constraints.

    Raises:
        InvalidRequest: no such file, or no set of schemas.
    """
    samples = schema_set.own() if schemas is None else schema_set.read(schemas)
    engine = Engine(**settings)
    try:
        info = engine.info()
        print(header(info), file=stream)
        series = grammar_throughput.throughput(engine, at_once, repeats)
        tokenizer, vocab_size = engine.tokenizer, int(info["vocab_size"])
    finally:
        engine.close()
    grammar_throughput.show(series, at_once, stream)
    costs = grammar_cost.grammar_cost(tokenizer, vocab_size, repeats=repeats, stream=stream)
    times = grammar_schemas.first_masks(tokenizer, vocab_size, samples, repeats)
    verdicts = grammar_schemas.verdicts(samples)
    grammar_schemas.show(times, verdicts, len(samples), stream)
    line: dict[str, Any] = {
        "work": "grammar",
        "model": str(info["model"]),
        "at_once": at_once,
        "repeats": repeats,
        "throughput": grammar_throughput.figures(series),
        "backends": grammar_cost.figures(costs),
        **grammar_schemas.figures(times, verdicts, len(samples)),
    }
    if with_isolation:
        rows = isolation(settings, repeats=repeats, stream=stream)
        line["isolation_p99_ms"] = {row.name: round(row.quantile(0.99), 3) for row in rows}
    line["peak_mb"] = peak_memory_mb()
    print(json_line(**line), file=stream)
    return line
