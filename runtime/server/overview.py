"""`GET /v1/overview`: what the server is doing right now, in one small answer for a dashboard.

Invariants: the answer's size does not depend on how much runs or is cached; a caller sees the names
of its own programs alone, and the text of cached prompts is shown only where no API keys keep
callers apart. It waits for the engine for a bounded time, so that it answers when the engine does
not.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from aiohttp import web

from branchline.runtime.core.prefixes import CachedPrefix
from branchline.runtime.errors import BranchlineError
from branchline.runtime.programs.view import ProgramView
from branchline.runtime.server.context import ServerContext
from branchline.runtime.server.keys import Caller
from branchline.runtime.server.wire import CALLER, json_response

WAIT_S = 1.0
SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
COUNTERS = ("steps", "step_tokens", "sampled_tokens", "finished", "aborted", "failed")
GUESSES = ("drafts", "drafted_tokens", "accepted_tokens")
ADAPTERS = ("loaded", "slots", "slots_used", "loads", "evictions")
"""Of the scheduler, beside what runs and waits; a client takes differences for rates."""
CACHE = ("hit_rate", "queried", "matched", "evicted", "capacity_tokens", "free_tokens")
_REQUESTS = ("running", "waiting", *COUNTERS, *GUESSES)

Json = dict[str, Any]


def routes(context: ServerContext) -> list[web.RouteDef]:
    """Routes of this module."""
    return [web.get("/v1/overview", _Overview(context).handle)]


class _Overview:
    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._started = time.monotonic()

    async def handle(self, request: web.Request) -> web.Response:
        """What there is to show; `engine` is null where it did not answer in time."""
        context, caller = self._context, request[CALLER]
        facts = context.port.info()
        now = time.monotonic()
        return json_response(
            {
                "model": context.model_name,
                "status": context.health() or "ready",
                "clock_s": now,
                "uptime_s": now - self._started,
                "restarts": facts.get("processes", {}).get("restarts", 0),
                "requests": _chosen(facts.get("scheduler", {}), _REQUESTS),
                "cache": _chosen(facts.get("cache", {}), (*CACHE, "cached_tokens", "leases")),
                "adapters": _chosen(facts.get("adapters", {}), ADAPTERS),
                "programs": {
                    "open": context.executor.stats().programs_open,
                    "opened": context.executor.stats().programs_opened,
                },
                "latency": {
                    name: self._latency(metric)
                    for name, metric in (
                        ("ttft_s", "time_to_first_token_seconds"),
                        ("itl_s", "inter_token_latency_seconds"),
                    )
                },
                "engine": await self._engine(caller),
            }
        )

    def _latency(self, metric: str) -> Json:
        values = self._context.metrics.recent(metric).quantiles(list(SHARES.values()))
        return dict(zip(SHARES, values, strict=False))

    async def _engine(self, caller: Caller) -> Json | None:
        """What only the loop threads know."""
        context = self._context
        try:
            async with asyncio.timeout(WAIT_S):
                running = await context.client.ask(context.executor.running)
                prefixes = await context.client.prefixes()
        except (TimeoutError, BranchlineError):
            return None
        return {
            "programs": [_program(view, caller) for view in running],
            "prefixes": [self._prefix(node) for node in prefixes],
        }

    def _prefix(self, node: CachedPrefix) -> Json:
        shown: Json = {name: getattr(node, name) for name in _NODE}
        if not self._context.keys.needed:
            shown["text"] = self._context.tokenizer.decode(node.token_ids, skip_special=False)
        return shown


_NODE = ("parent", "tokens", "end", "hits", "locks", "children")


def _program(view: ProgramView, caller: Caller) -> Json:
    return {
        "name": view.name if caller.owns(view.namespace) else "",
        "age_s": view.age_s,
        "lanes": view.lanes,
        "tokens": view.tokens,
    }


def _chosen(facts: Json, names: tuple[str, ...]) -> Json:
    """What an engine does not know (a scripted one, or one that starts) is left out."""
    return {name: facts[name] for name in names if name in facts}
