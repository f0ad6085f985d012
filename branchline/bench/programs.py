"""`branchline bench programs`: program shapes, one at a time and many at once.

Beside the time it reports what a program costs the model: engine steps per generated token (a step
serves all requests in it, so below 1 when branches run together), and how many of the tokens whose
keys and values had been computed before were found in the cache.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import dataclass
from typing import Any, TextIO

import branchline as bl
from branchline.bench.shapes import PLAIN_TOKENS, PLAIN_WORDS, SHAPES, Shape, plain, words
from branchline.runtime.bench.environment import header
from branchline.runtime.bench.measure import Series, json_line, repeat
from branchline.runtime.bench.report import Column, table
from branchline.runtime.errors import InvalidRequest
from branchline.runtime.programs.graph import GraphNode, RequestGraph
from branchline.runtime.programs.protocol import AppendText

COLUMNS = (
    Column("program"),
    Column("at once", right=True),
    Column("wall s", right=True),
    Column("spread", right=True),
    Column("CPU s", right=True),
    Column("tokens", right=True),
    Column("forced", right=True),
    Column("steps / token", right=True),
    Column("cached prompt", right=True),
    Column("of reusable", right=True),
)


@dataclass(frozen=True, slots=True)
class Reuse:
    """Prompt tokens of a program that were found in the cache, and that could have been."""

    cached: int
    possible: int


def reuse(graph: RequestGraph) -> Reuse:
    """Count over the value nodes of one run, in their order.

    A token can be reused when an earlier value node had it before or as its output, in its own
    lane or with the same texts before it in another one. The last token of a generation is not
    computed until something follows it, so it does not count at its end.
    """
    nodes = {node.id: node for node in graph.nodes}
    computed: dict[tuple[object, ...], int] = {}
    cached = possible = 0
    for node in graph.nodes:
        if node.kind not in ("generate", "select") or node.stats is None:
            continue
        path: tuple[object, ...] = ()
        for item in [nodes[other] for other in graph.prefix_nodes(node.id) if other != node.id]:
            path = (*path, _content(item))
            possible += computed.get(path, 0)
            computed[path] = item.stats.tokens if item.stats else 0
        cached += node.stats.cached_tokens
        last = node.kind == "generate"
        computed.setdefault((*path, _content(node)), max(node.stats.tokens - last, 0))
    return Reuse(cached, possible)


def _content(node: GraphNode) -> object:
    """What decides the tokens of a node, whatever its lane and number."""
    if isinstance(node.op, AppendText):
        return node.op.parts
    return node.values if node.values else (node.kind, getattr(node.op, "role", node.id))


def _measure(engine: bl.Engine, shape: Shape, at_once: int, repeats: int) -> Series:
    """Time `at_once` programs of one shape; `extra` holds what they cost."""
    program: Any = shape.program
    steps: list[float] = []

    def run(round_: int) -> list[bl.State]:
        before = engine.info()["scheduler"]["steps"]
        items = [{"seed": 1000 * round_ + number} for number in range(at_once)]
        if at_once == 1:
            states = [program.run(**items[0], backend=engine)]
        else:
            states = program.run_batch(items, backend=engine)
        steps.append(engine.info()["scheduler"]["steps"] - before)
        return states

    series = repeat(shape.name, run, repeats=repeats, before=engine.flush_cache)
    states: list[bl.State] = series.samples[-1].result
    out = sum(state.usage.output_tokens for state in states)
    if shape.total and out != shape.total * at_once:
        raise AssertionError(f"{shape.name}: {out} tokens, not {shape.total} x {at_once}")
    found = [reuse(state.graph) for state in states]
    possible = sum(item.possible for item in found)
    series.extra = {
        "at_once": at_once,
        "out_tok": out,
        "path_tok": shape.path,
        "forced_tok": sum(state.usage.forced_tokens for state in states),
        "steps": statistics.median(steps[1:]),
        "cached_tok": sum(item.cached for item in found),
        "prompt_tok": sum(state.usage.prompt_tokens for state in states),
        # Between programs more can be shared than one graph knows of.
        "reusable_tok": possible if at_once == 1 else None,
    }
    return series


def executor_overhead(engine: bl.Engine, at_once: int, repeats: int) -> dict[str, Any]:
    """The same work as programs and as bare requests to the engine; what the programs add."""
    run_batch: Any = plain.run_batch

    def seeds(round_: int) -> list[int]:
        return [1000 * round_ + number for number in range(at_once)]

    def as_programs(round_: int) -> None:
        run_batch([{"seed": seed} for seed in seeds(round_)], backend=engine)

    def as_requests(round_: int) -> None:
        texts: Any = [words(PLAIN_WORDS, seed) for seed in seeds(round_)]
        engine.generate(texts, max_tokens=PLAIN_TOKENS, temperature=0.0, ignore_eos=True)

    both = [
        repeat(name, run, repeats=repeats, before=engine.flush_cache)
        for name, run in (("programs", as_programs), ("requests", as_requests))
    ]
    return {
        "at_once": at_once,
        "s_programs": both[0].median_s,
        "s_requests": both[1].median_s,
        "cpu_s_programs": both[0].median_cpu_s,
        "cpu_s_requests": both[1].median_cpu_s,
        "overhead": both[0].median_cpu_s / both[1].median_cpu_s - 1.0,
    }


def _row(series: Series) -> list[str]:
    extra = series.extra
    cached, possible = extra["cached_tok"], extra["reusable_tok"]
    return [
        series.name,
        str(extra["at_once"]),
        f"{series.median_s:.3f}",
        f"{series.spread:.0%}",
        f"{series.median_cpu_s:.3f}",
        str(extra["out_tok"]),
        str(extra["forced_tok"]),
        f"{extra['steps'] / extra['out_tok']:.2f}" if extra["out_tok"] else "-",
        f"{cached / extra['prompt_tok']:.0%}",
        f"{cached / possible:.0%}" if possible else "-",
    ]


def programs(
    settings: dict[str, Any],
    *,
    names: list[str] | None = None,
    at_once: int = 16,
    repeats: int = 3,
    stream: TextIO = sys.stdout,
) -> list[Series]:
    """Run the shapes once and `at_once` times at once; print a table and JSON lines.

    Raises:
        InvalidRequest: an unknown shape or setting.
    """
    if names == ["list"]:
        for shape in SHAPES.values():
            print(f"{shape.name:<18}{(shape.program.__doc__ or '').strip()}", file=stream)
        return []
    for name in names or ():
        if name not in SHAPES:
            hint = f"Known: {', '.join(SHAPES)}."
            raise InvalidRequest("not a program shape", value=name, hint=hint)
    selected = names or list(SHAPES)
    engine = bl.Engine(**settings)
    found: list[Series] = []
    try:
        info = engine.info()
        print(header(info), file=stream)
        for shape in [SHAPES[name] for name in selected]:
            for count in dict.fromkeys((1, at_once)):
                found.append(_measure(engine, shape, count, repeats))
            print(f"  {shape.name} done", file=sys.stderr)
        overhead = executor_overhead(engine, at_once, repeats) if "plain" in selected else {}
    finally:
        engine.close()
    table(f"programs, median of {repeats}", COLUMNS, [_row(item) for item in found], stream)
    if overhead:
        shown = f"{overhead['overhead']:+.1%} CPU time beside bare requests to the engine"
        print(f"the same work as {at_once} plain programs costs {shown}", file=stream)
    for item in found:
        line = {"s": item.median_s, "all_s": item.wall, "cpu_s": item.median_cpu_s, **item.extra}
        print(json_line(model=str(info.get("model")), work=item.name, **line), file=stream)
    if overhead:
        print(json_line(model=str(info.get("model")), work="overhead", **overhead), file=stream)
    return found
