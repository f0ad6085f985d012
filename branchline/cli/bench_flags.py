"""Flags of `branchline bench`: one table, a line for each benchmark. Imports nothing heavy."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

from branchline.cli.options import add_engine_flags


class Flag(NamedTuple):
    """One argument of a parser: its name, and what `add_argument` takes beside it."""

    name: str
    about: dict[str, Any]


def _number(
    name: str, text: str, default: float | None = None, *, kind: type = int, metavar: str = "N"
) -> Flag:
    shown = text if default is None else f"{text} (default {default:g})"
    return Flag(name, {"type": kind, "default": default, "metavar": metavar, "help": shown})


def _switch(name: str, text: str) -> Flag:
    return Flag(name, {"action": "store_true", "help": text})


def _workload(more: str) -> Flag:
    about = f'may be repeated; "list" names them; {more}'
    return Flag("--workload", {"action": "append", "metavar": "NAME", "help": about})


ALL = _workload("default: all")
REPEATS = _number("--repeats", "timed runs", 3)

BENCHES: dict[str, tuple[str, tuple[Flag, ...]]] = {
    "offline": (
        "fixed workloads of token ids through the engine",
        (
            _workload('default: those that suit a CPU; "gpu": those that suit a GPU'),
            _switch("--profile", "once more under a profiler: where time goes"),
        ),
    ),
    "programs": (
        "whole programs: time, forwards per token, reuse of the cache",
        (ALL, _number("--at-once", "programs at once", 16)),
    ),
    "grammar": (
        "constrained beside free text, compile and mask times, JSON Schemas",
        (
            _number("--at-once", "requests at once", 16),
            Flag(
                "--schemas",
                {
                    "metavar": "FILE.jsonl",
                    "help": 'JSON lines with "id", "schema" and maybe "tests"; default: a small '
                    "fixed set",
                },
            ),
            _switch("--isolation", "also time a stream beside hostile constraints"),
        ),
    ),
    "serve": (
        "load on a server of its own: latency, throughput, soak",
        (
            ALL,
            _number(
                "--rate",
                "open loop: R requests a second, arriving at random (Poisson)",
                kind=float,
                metavar="R",
            ),
            _number("--at-once", "closed loop: N requests always open (default 64)"),
            _number("--requests", "of one round", 128),
            _switch(
                "--against-engine",
                "what HTTP costs: the same ids on an engine in this process and on the server",
            ),
            _number(
                "--soak-s",
                "saturate the server for S seconds, with clients that leave; then check for leaks",
                kind=float,
                metavar="S",
            ),
        ),
    ),
    "serve-programs": (
        "programs on a server beside the same work as OpenAI requests",
        (
            ALL,
            _number("--at-once", "programs at once", 64),
            _number(
                "--delay-ms",
                "delay added to each direction of the network",
                5.0,
                kind=float,
                metavar="MS",
            ),
        ),
    ),
    "adapters": (
        "many adapters in one batch beside the base model, and what loading one costs",
        (
            _number("--registered", "adapters that are loaded", 1000),
            _number("--distinct", "of them in one batch", 64),
            _number("--at-once", "requests of the batch", 64),
            _number("--rank", "of the adapters", 16),
            _number("--prompt", "tokens that each request begins with", 16),
            Flag(
                "--targets",
                {
                    "choices": ("all", "attention"),
                    "default": "all",
                    "help": "linear layers that they change (default all)",
                },
            ),
        ),
    ),
    "speculative": (
        "guessing ahead beside plain decoding: speed and accept length by task",
        (
            Flag(
                "--drafters",
                {
                    "nargs": "+",
                    "default": ["ngram"],
                    "metavar": "NAME",
                    "help": "values of --speculative to measure (default ngram); again: a second "
                    "engine without, which shows how far two that do the same are apart",
                },
            ),
            Flag(
                "--tasks",
                {"nargs": "+", "metavar": "TASK", "help": "of the prompts; default: all"},
            ),
            Flag(
                "--batches",
                {
                    "type": int,
                    "nargs": "+",
                    "default": [1, 4, 16, 64],
                    "metavar": "N",
                    "help": "outputs at once (default 1 4 16 64)",
                },
            ),
            Flag(
                "--temperatures",
                {
                    "type": float,
                    "nargs": "+",
                    "default": [0.0, 0.8],
                    "metavar": "T",
                    "help": "of sampling (default 0 0.8)",
                },
            ),
            _number("--outputs", "of a run at least, where fewer are made at once", 4),
            _number("--tokens", "of an output at most", 128),
            Flag(
                "--prompts",
                {
                    "metavar": "FILE.jsonl",
                    "help": 'lines of "task" and "text"; default: assets/speculative/heldout.jsonl',
                },
            ),
        ),
    ),
    "start": ("process start to first token, and peak memory", ()),
    "scheduler": (
        "overhead of a step, cost per queued request",
        (
            Flag(
                "--queued",
                {
                    "type": int,
                    "nargs": "+",
                    "default": [100, 1000, 10_000],
                    "metavar": "N",
                    "help": "requests that wait (default 100 1000 10000)",
                },
            ),
        ),
    ),
    "processes": (
        "an engine in processes of its own against one in this process",
        (_number("--streams", "at once", 64),),
    ),
}


def add_benches(
    parser: argparse.ArgumentParser, command: Callable[[Any, str, str], argparse.ArgumentParser]
) -> None:
    """Add every benchmark. command: makes the parser of one, of its name and what it does."""
    actions = parser.add_subparsers(dest="action", metavar="WHAT", required=True)
    for name, (about, flags) in BENCHES.items():
        action = command(actions, name, about)
        for flag in (REPEATS, *flags):
            action.add_argument(flag.name, **flag.about)
        add_engine_flags(action)
        action.set_defaults(target=f"branchline.cli.bench:{name.replace('-', '_')}")
