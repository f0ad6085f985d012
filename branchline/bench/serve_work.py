"""The workloads of `branchline bench serve`: which request the client sends as its i-th in a round.

Texts are drawn from seeds; round i never sends what round j sent. Greedy, and of a fixed length
wherever no constraint ends the output.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import branchline as bl
from branchline.bench.serve_load import Client
from branchline.bench.serve_programs import agent, checks, steps
from branchline.bench.shapes import words
from branchline.runtime.bench.latency import Timing
from branchline.runtime.bench.loops import Call
from branchline.runtime.errors import InvalidRequest

FIXED: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True}
RECORD: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "kind": {"enum": ["person", "company", "place"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "c"]}, "maxItems": 3},
    },
    "required": ["name", "kind", "age", "tags"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go: the client for routes, the endpoint for programs."""

    client: Client
    endpoint: bl.Endpoint


@dataclass(frozen=True, slots=True)
class Work:
    """One workload.

    Attributes:
        make: target, round, number -> a call.
    """

    name: str
    about: str
    make: Callable[[Target, int, int], Call]


def shared_prefix(target: Target, round_: int, number: int) -> Call:
    """A completion over a long text that all requests of the round share."""
    body = {
        "prompt": f"{words(250, 7_000 + round_)}\n{words(20, _seed(round_, number))}",
        "max_tokens": 32,
        **FIXED,
    }
    return partial(target.client.stream, "/v1/completions", body)


def chat(target: Target, round_: int, number: int) -> Call:
    """The fourth turn of a conversation, under one of four system prompts."""
    seed = _seed(round_, number)
    messages = [{"role": "system", "content": words(60, 8_000 + number % 4)}]
    for turn in range(3):
        messages.append({"role": "user", "content": words(20, seed + turn)})
        messages.append({"role": "assistant", "content": words(30, seed + 10 + turn)})
    messages.append({"role": "user", "content": words(20, seed + 20)})
    body = {"messages": messages, "max_tokens": 64, **FIXED}
    return partial(target.client.stream, "/v1/chat/completions", body)


def json_object(target: Target, round_: int, number: int) -> Call:
    """A chat answer that is an object of a JSON Schema."""
    text = f"Describe as JSON: {words(20, _seed(round_, number))}"
    body = {
        "messages": [{"role": "user", "content": text}],
        "response_format": json_format(RECORD),
        "temperature": 0.0,
        "max_tokens": 128,
    }
    return partial(target.client.stream, "/v1/chat/completions", body)


def json_format(schema: dict[str, Any]) -> dict[str, Any]:
    """A `response_format` for a schema."""
    return {"type": "json_schema", "json_schema": {"name": "record", "schema": schema}}


def programs(target: Target, round_: int, number: int) -> Call:
    """A program on the server: steps, an agent or checks, in turn."""
    program = (steps, agent, checks)[number % 3]
    return partial(run_program, program, target.endpoint, _seed(round_, number))


async def run_program(program: bl.Program, endpoint: bl.Endpoint, seed: int, timing: Timing) -> int:
    """Run it, marking text as it streams; returns the tokens of all its values."""
    async for event in program.astream(seed=seed, backend=endpoint):
        if isinstance(event, bl.TextDelta):
            timing.mark(time.perf_counter(), (event.lane, event.name))
        elif isinstance(event, bl.Done):
            tokens: int = event.state.usage.output_tokens
    return tokens


def _seed(round_: int, number: int) -> int:
    return 1_000_000 * (round_ + 1) + 100 * number


_ALL = (
    Work("shared-prefix", "completions: 250 words shared + 20 own → 32 tokens", shared_prefix),
    Work("chat", "the fourth turn of chats, 4 system prompts → 64 tokens", chat),
    Work("json", "chat with a JSON Schema as response_format", json_object),
    Work("programs", "programs through bl.Endpoint: steps, agent, checks in turn", programs),
)
WORK = {work.name: work for work in _ALL}


def chosen(names: list[str] | None) -> list[Work]:
    """By name; all when none is named. Raises InvalidRequest for an unknown one."""
    for name in names or ():
        if name not in WORK:
            raise InvalidRequest("not a workload", value=name, hint=f"Known: {', '.join(WORK)}.")
    return [WORK[name] for name in names] if names else list(_ALL)
