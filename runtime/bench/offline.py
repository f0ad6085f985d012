"""`branchline bench offline`: fixed workloads of token ids through an engine in this process.

Greedy, `ignore_eos`, prefix cache on and flushed before each run: what is timed is `generate` from
the call to the last token. Knows the engine only by its public methods.
"""

from __future__ import annotations

import statistics
import sys
from typing import Any, TextIO

import msgspec

from branchline.runtime.bench.environment import header
from branchline.runtime.bench.measure import Series, json_line, peak_memory_mb, repeat
from branchline.runtime.bench.profile import profiled, show_profile
from branchline.runtime.bench.report import Column, table
from branchline.runtime.bench.workloads import Workload, chosen
from branchline.runtime.core.outputs import GenerateResult
from branchline.runtime.core.sampling_params import Constraint, SamplingParams
from branchline.runtime.engine import Engine

COLUMNS = (
    Column("workload"),
    Column("shape"),
    Column("wall s", right=True),
    Column("spread", right=True),
    Column("CPU s", right=True),
    Column("out tok/s", right=True),
    Column("decode tok/s", right=True),
    Column("TTFT s", right=True),
)


def generate(
    engine: Engine, ids: list[list[int]], lengths: list[int], schema: dict[str, Any] | None = None
) -> list[GenerateResult]:
    """Continue every prompt greedily, all at once: by exactly its length, or by a JSON document of
    at most that length."""
    constraint = None
    if schema is not None:
        constraint = Constraint(kind="json_schema", text=msgspec.json.encode(schema).decode())
    sampling = [
        SamplingParams(
            temperature=0.0, max_tokens=length, ignore_eos=schema is None, constraint=constraint
        )
        for length in lengths
    ]
    results: list[GenerateResult] = engine.generate(ids, sampling)
    return results


def run_workload(
    engine: Engine, workload: Workload, repeats: int, *, profile: bool = False
) -> Series:
    """Warm up once, time `repeats` runs; `extra` holds tokens and rates.

    Args:
        profile: run once more and look at where the time goes.
    """
    context = int(engine.info()["max_context"])

    ids, lengths = workload.make(0)
    longest = max(len(prompt) + out for prompt, out in zip(ids, lengths, strict=True))
    if longest > context:
        series = Series(workload.name)
        series.extra["skipped"] = f"{longest} tokens, the context holds {context}"
        return series
    # made ahead: drawing 30,000 ids takes as long as 30 steps of a small model
    works = [workload.make(round_) for round_ in range(repeats + 1 + profile)]

    def run(round_: int) -> list[GenerateResult]:
        return generate(engine, *works[round_], workload.schema)

    series = repeat(workload.name, run, repeats=repeats, before=engine.flush_cache)
    _figures(series, sum(lengths), exact=workload.schema is None)
    if profile:
        engine.flush_cache()
        series.extra["profile"] = profiled(engine, lambda: run(repeats + 1))
    return series


def _figures(series: Series, wanted: int, *, exact: bool) -> None:
    """Fill in the rates; the output must be complete, or the time means nothing."""
    results: list[GenerateResult] = series.samples[-1].result
    out_tok = sum(len(result.token_ids) for result in results)
    if out_tok > wanted or (exact and out_tok < wanted) or any(r.error for r in results):
        errors = [result.error for result in results if result.error]
        raise AssertionError(f"{series.name}: {out_tok} tokens instead of {wanted}: {errors[:1]}")
    decode = [
        (len(result.token_ids) - 1) / (result.meta.latency_s - result.meta.ttft_s)
        for sample in series.samples
        for result in sample.result
        if len(result.token_ids) > 1 and result.meta.latency_s > result.meta.ttft_s
    ]
    series.extra = {
        "out_tok": out_tok,
        "tok_s": out_tok / series.median_s,
        "tok_cpu_s": out_tok / series.median_cpu_s,
        "decode_tok_s": statistics.median(decode) if decode else None,
        "ttft_s": statistics.median(
            result.meta.ttft_s for sample in series.samples for result in sample.result
        ),
        "forced_tok": sum(result.meta.forced_tokens for result in results),
        "cached_tok": sum(result.meta.cached_tokens for result in results),
        "prompt_tok": sum(result.meta.prompt_tokens for result in results),
    }


def _row(workload: Workload, series: Series) -> list[str]:
    if not series.samples:
        return [workload.name, workload.about, "-", "-", "-", "-", "-", series.extra["skipped"]]
    extra = series.extra
    decode = extra["decode_tok_s"]
    return [
        workload.name,
        workload.about,
        f"{series.median_s:.3f}",
        f"{series.spread:.0%}",
        f"{series.median_cpu_s:.3f}",
        f"{extra['tok_s']:.1f}",
        f"{decode:.1f}" if decode and len(series.samples[0].result) == 1 else "-",
        f"{extra['ttft_s']:.3f}",
    ]


def offline(
    settings: dict[str, Any],
    *,
    workloads: list[str] | None = None,
    repeats: int = 3,
    profile: bool = False,
    stream: TextIO = sys.stdout,
) -> list[Series]:
    """Run the workloads and print the table, then one JSON line for each.

    Args:
        settings: the engine's.
        workloads: names; None = those that suit a CPU, "gpu" = those that suit a GPU.
        profile: run each once more under a profiler, not timed.

    Raises:
        InvalidRequest: an unknown workload or setting.
    """
    selected = chosen(workloads)
    engine = Engine(**settings)
    try:
        info = engine.info()
        print(header(info), file=stream)
        series = []
        for workload in selected:
            series.append(run_workload(engine, workload, repeats, profile=profile))
            print(f"  {workload.name} done", file=sys.stderr)
    finally:
        engine.close()
    rows = [_row(workload, item) for workload, item in zip(selected, series, strict=True)]
    table(f"offline, median of {repeats}", COLUMNS, rows, stream)
    print(f"peak memory {peak_memory_mb():.0f} MB", file=stream)
    for item in series:
        if "profile" in item.extra:
            show_profile(item.name, item.extra["profile"], stream)
    for item in series:
        timing: dict[str, Any] = {}
        if item.samples:
            timing = {"s": item.median_s, "all_s": item.wall, "cpu_s": item.median_cpu_s}
        print(
            json_line(model=str(info.get("model")), work=item.name, **timing, **item.extra),
            file=stream,
        )
    return series
