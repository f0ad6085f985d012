"""Constrained beside free text on one engine, with the same prompts.

"free" writes as many tokens as are allowed; "free, as long" as many, request by request, as the
constrained run before it: that is the one to compare throughput with, since a complete output ends
early. Knows the engine by its public methods.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TextIO

from branchline.runtime.bench.measure import Sample, Series, timed
from branchline.runtime.bench.report import Column, table
from branchline.runtime.bench.schema_set import JSON32, TOOL_CALL
from branchline.runtime.bench.workloads import prompts
from branchline.runtime.core.outputs import GenerateResult
from branchline.runtime.core.sampling_params import Constraint, SamplingParams
from branchline.runtime.engine import Engine

PROMPT, MOST = 128, 120
COLUMNS = (
    Column("output"),
    Column("s", right=True),
    Column("spread", right=True),
    Column("CPU s", right=True),
    Column("tokens", right=True),
    Column("tok/s", right=True),
    Column("tok/CPU s", right=True),
    Column("forwards/token", right=True),
    Column("forced", right=True),
)


def throughput(engine: Engine, at_once: int, repeats: int) -> list[Series]:
    """Every kind of output once in each round, one after the other; round 0 is not counted."""
    bound = {
        "json32": Constraint(kind="json_schema", text=json.dumps(JSON32)),
        "json32, compact": Constraint(
            kind="json_schema", text=json.dumps(JSON32), whitespace="compact"
        ),
        "tool call": Constraint(kind="json_schema", text=json.dumps(TOOL_CALL)),
    }
    names = ["free", *(kind for name in bound for kind in (name, f"free, as long as {name}"))]
    found = {name: Series(name) for name in names}
    for round_ in range(repeats + 1):
        ids = prompts(at_once, PROMPT, PROMPT, 70 + round_)
        runs = {"free": _run(engine, ids, [MOST] * at_once, None)}
        for name, constraint in bound.items():
            runs[name] = _run(engine, ids, [MOST] * at_once, constraint)
            lengths = [max(len(result.token_ids), 1) for result in runs[name].result]
            runs[f"free, as long as {name}"] = _run(engine, ids, lengths, None)
        if round_:
            for name, sample in runs.items():
                found[name].samples.append(sample)
    for series in found.values():
        _figures(series)
    return list(found.values())


def _run(
    engine: Engine, ids: list[list[int]], lengths: list[int], constraint: Constraint | None
) -> Sample:
    engine.flush_cache()

    def request(prompt: list[int], length: int) -> Callable[[], GenerateResult]:
        sampling = SamplingParams(
            temperature=0.0,
            max_tokens=length,
            ignore_eos=constraint is None,
            constraint=constraint,
        )
        return lambda: engine.generate(prompt, sampling)

    work = [request(prompt, length) for prompt, length in zip(ids, lengths, strict=True)]
    with ThreadPoolExecutor(len(work)) as pool:

        def all_at_once() -> list[GenerateResult]:
            return [future.result() for future in [pool.submit(one) for one in work]]

        return timed(all_at_once)


def _figures(series: Series) -> None:
    results: list[GenerateResult] = [one for sample in series.samples for one in sample.result]
    tokens = sum(result.meta.output_tokens for result in results)
    series.extra = {
        "out_tok": tokens // len(series.samples),
        "tok_s": tokens / sum(series.wall),
        "tok_cpu_s": tokens / sum(sample.cpu_s for sample in series.samples),
        "forwards_per_tok": sum(result.meta.forwards for result in results) / tokens,
        "forced": sum(result.meta.forced_tokens for result in results) / tokens,
        "complete": sum(result.meta.finish_reason == "constraint" for result in results),
    }


def show(found: Sequence[Series], at_once: int, stream: TextIO) -> None:
    """Print the table."""
    rows = []
    for series in found:
        extra = series.extra
        rows.append(
            [
                series.name,
                f"{series.median_s:.3f}",
                f"{series.spread:.0%}",
                f"{series.median_cpu_s:.3f}",
                str(extra["out_tok"]),
                f"{extra['tok_s']:.0f}",
                f"{extra['tok_cpu_s']:.0f}",
                f"{extra['forwards_per_tok']:.2f}",
                f"{extra['forced']:.0%}",
            ]
        )
    table(f"{at_once} × ({PROMPT} + ≤ {MOST})", COLUMNS, rows, stream)


def figures(found: Sequence[Series]) -> dict[str, Any]:
    """For the JSON line; ratios above 1 say that a constraint is faster than free text."""
    line: dict[str, Any] = {}
    by_name = {series.name: series for series in found}
    for name, series in by_name.items():
        line[name] = {
            "s": round(series.median_s, 4),
            "spread": round(series.spread, 3),
            "cpu_s": round(series.median_cpu_s, 4),
        } | {key: round(value, 4) for key, value in series.extra.items()}
        free = by_name.get(f"free, as long as {name}")
        if free is not None:
            line[name]["throughput_to_free"] = round(series.extra["tok_s"] / free.extra["tok_s"], 3)
            line[name]["throughput_to_free_cpu"] = round(
                series.extra["tok_cpu_s"] / free.extra["tok_cpu_s"], 3
            )
            line[name]["time_to_free"] = round(series.median_s / by_name["free"].median_s, 3)
    return line
