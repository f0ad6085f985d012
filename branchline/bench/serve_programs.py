"""`branchline bench serve-programs`: programs that run on the server, and the same as requests.

The same program text runs over `bl.Endpoint` (ops go up, events come down, the executor sits next
to the cache) and over `bl.OpenAI` (each value is a request that carries the whole text again), on
one `branchline serve`, through a proxy that adds delay to every byte.
"""

from __future__ import annotations

import sys
from contextlib import closing
from typing import Any, TextIO

import branchline as bl
from branchline.bench.proxy import DelayProxy
from branchline.bench.served import served
from branchline.bench.shapes import fixed, words
from branchline.runtime.bench.environment import header
from branchline.runtime.bench.measure import Series, json_line, repeat, spread
from branchline.runtime.bench.report import Column, table
from branchline.runtime.errors import InvalidRequest

COLUMNS = (
    Column("program"),
    Column("at once", right=True),
    Column("Endpoint s", right=True),
    Column("spread", right=True),
    Column("OpenAI s", right=True),
    Column("spread", right=True),
    Column("faster", right=True),
    Column("bytes", right=True),
    Column("bytes as requests", right=True),
)


@bl.function
def steps(s: bl.State, seed: int) -> Any:
    """A long context, then twelve short answers one after another, the next asked at once."""
    s += f"Notes: {words(250, seed)}\n"
    for number in range(12):
        s += f"Point {number}:" + fixed(f"point_{number}", 3) + "\n"
    return s["point_11"]


@bl.function
def agent(s: bl.State, seed: int) -> Any:
    """Eight rounds in which Python reads a short answer before it can go on."""
    s += f"Task: {words(120, seed)}\n"
    for number in range(8):
        s += f"Action {number}:" + fixed(f"action_{number}", 3)
        s += f"\nObservation: {words(12, seed + len(s[f'action_{number}']))}\n"
    s += "Answer:" + fixed("answer", 4)
    return s["answer"]


@bl.function
def checks(s: bl.State, seed: int) -> Any:
    """A long text, eight questions about it at once, one of three words each, then a verdict."""
    s += f"Text: {words(250, seed)}\n"
    with s.fork(8) as branches:
        for number, branch in enumerate(branches):
            branch += f"Question {number}: {words(6, number)}? Answer:"
            branch += bl.gen("answer", bl.choices([" yes", " no", " unclear"]), temperature=0.0)
    s += f"Answers: {', '.join(s['answer'])}\nVerdict:" + fixed("verdict", 3)
    return s["verdict"]


PROGRAMS: dict[str, bl.Program] = {program.name: program for program in (steps, agent, checks)}


def serve_programs(
    settings: dict[str, Any],
    *,
    names: list[str] | None = None,
    at_once: int = 64,
    delay_s: float = 0.005,
    repeats: int = 3,
    stream: TextIO = sys.stdout,
) -> list[dict[str, Any]]:
    """Run each program `at_once` times at once both ways; print a table and JSON lines.

    Args:
        delay_s: added to each direction of the network, seconds.

    Raises:
        InvalidRequest: an unknown program.
    """
    if names == ["list"]:
        for program in PROGRAMS.values():
            print(f"{program.name:<18}{(program.__doc__ or '').strip()}", file=stream)
        return []
    for name in names or ():
        if name not in PROGRAMS:
            raise InvalidRequest(
                "not a program of this benchmark", value=name, hint=f"Known: {', '.join(PROGRAMS)}."
            )
    found = []
    with (
        served(settings) as server,
        DelayProxy(server.url, delay_s) as proxy,
        closing(bl.Endpoint(server.url, server.admin_key)) as direct,
    ):
        info = direct.info()
        print(header(info), file=stream)
        for name in names or list(PROGRAMS):
            found.append(_compare(PROGRAMS[name], proxy, direct, at_once, repeats))
            print(f"  {name} done", file=sys.stderr)
    title = f"programs over a network with {1000 * delay_s:g} ms added delay, median of {repeats}"
    table(title, COLUMNS, [_row(item) for item in found], stream)
    for item in found:
        print(json_line(model=str(info.get("model")), delay_s=delay_s, **item), file=stream)
    return found


def _compare(
    program: bl.Program, proxy: DelayProxy, direct: bl.Endpoint, at_once: int, repeats: int
) -> dict[str, Any]:
    series: dict[str, Series] = {}
    passed: dict[str, int] = {}
    texts: dict[str, list[Any]] = {}
    for kind in ("endpoint", "openai"):
        backend: bl.Endpoint | bl.OpenAI = (
            bl.Endpoint(proxy.url)
            if kind == "endpoint"
            else bl.OpenAI(direct.model, proxy.url + "/v1", server="branchline")
        )

        def run(round_: int, backend: bl.Endpoint | bl.OpenAI = backend) -> list[Any]:
            seeds = [1000 * round_ + number for number in range(at_once)]
            states = program.run_batch([{"seed": seed} for seed in seeds], backend=backend)
            return [state.result for state in states]

        before = proxy.passed_bytes
        series[kind] = repeat(program.name, run, repeats=repeats, before=direct.flush_cache)
        passed[kind] = (proxy.passed_bytes - before) // (repeats + 1)
        texts[kind] = series[kind].samples[-1].result
        backend.close()
    return {
        "work": program.name,
        "at_once": at_once,
        "s_endpoint": series["endpoint"].median_s,
        "all_s_endpoint": series["endpoint"].wall,
        "s_openai": series["openai"].median_s,
        "all_s_openai": series["openai"].wall,
        "faster": series["openai"].median_s / series["endpoint"].median_s,
        "bytes_endpoint": passed["endpoint"],
        "bytes_openai": passed["openai"],
        "same_answers": sum(a == b for a, b in zip(*texts.values(), strict=True)),
    }


def _row(item: dict[str, Any]) -> list[str]:
    return [
        item["work"],
        str(item["at_once"]),
        f"{item['s_endpoint']:.3f}",
        f"{spread(item['all_s_endpoint']):.0%}",
        f"{item['s_openai']:.3f}",
        f"{spread(item['all_s_openai']):.0%}",
        f"{item['faster']:.2f} x",
        f"{item['bytes_endpoint']:,}",
        f"{item['bytes_openai']:,}",
    ]
