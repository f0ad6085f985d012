"""Looking after the engine, with SGLang's names: facts, health by generating, cache, aborts."""

from __future__ import annotations

import asyncio
import importlib.metadata
from contextlib import suppress
from typing import Any

import msgspec
from aiohttp import web

from branchline.runtime.core.messages import GenerateRequest
from branchline.runtime.core.sampling_params import SamplingParams
from branchline.runtime.errors import BackendError
from branchline.runtime.server.context import ServerContext
from branchline.runtime.server.errors import Refused
from branchline.runtime.server.keys import Access
from branchline.runtime.server.native_types import AbortBody
from branchline.runtime.server.wire import CALLER, json_response, read_body

HEALTH_TIMEOUT_S = 20.0

BODIES: dict[str, type[Any]] = {"/abort_request": AbortBody}
ACCESS = {
    "/health_generate": Access.OPEN,
    "/flush_cache": Access.SHARED,
}


def routes(context: ServerContext) -> list[web.RouteDef]:
    """Routes of this module."""
    family = _Admin(context)
    return [
        web.get("/health_generate", family.health),
        web.get("/model_info", family.model),
        web.get("/get_model_info", family.model),
        web.get("/server_info", family.server),
        web.get("/get_server_info", family.server),
        web.get("/flush_cache", family.flush),
        web.post("/flush_cache", family.flush),
        web.post("/abort_request", family.abort),
    ]


class _Admin:
    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._probe: asyncio.Task[None] | None = None

    async def health(self, request: web.Request) -> web.Response:
        """200 when a token could be generated."""
        self._context.check_ready()
        # One for all who ask meanwhile: everybody may, and it runs before all other requests.
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(self._generate())
            self._probe.add_done_callback(lambda probe: probe.cancelled() or probe.exception())
        await asyncio.shield(self._probe)
        return web.Response()

    async def _generate(self) -> None:
        client, tokenizer = self._context.client, self._context.tokenizer
        probe = GenerateRequest(
            id=client.new_id(),
            prompt_ids=[min(tokenizer.eos_ids, default=tokenizer.bos_id or 0)],
            sampling=SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True),
            priority=1 << 30,
        )
        with suppress(TimeoutError):
            async with asyncio.timeout(HEALTH_TIMEOUT_S):
                await client.results(probe)
                return
        raise BackendError(
            f"no token within {HEALTH_TIMEOUT_S:g} s", hint="Look at the log.", retryable=True
        )

    async def model(self, request: web.Request) -> web.Response:
        """What is served."""
        name = self._context.port.model_name
        return json_response(
            {
                "model_path": name,
                "tokenizer_path": name,
                "served_model_name": self._context.model_name,
                "is_generation": True,
                "preferred_sampling_params": None,
                "max_context": self._context.port.max_context,
                "vocab_size": self._context.tokenizer.vocab_size,
                "weight_version": "default",
            }
        )

    async def server(self, request: web.Request) -> web.Response:
        """Settings, decisions, counters."""
        facts = self._context.port.info()
        return json_response(
            {
                "version": importlib.metadata.version("branchline"),
                "served_model_name": self._context.model_name,
                "status": self._context.health() or "ready",
                "open_requests": len(self._context.running),
                "loaded_adapters": [
                    msgspec.structs.replace(info, path="") for info in self._context.adapters.all()
                ],
                **facts,
            }
        )

    async def flush(self, request: web.Request) -> web.Response:
        """Drop every cached prefix that nothing holds."""
        freed = await self._context.client.flush()
        return json_response({"success": True, "tokens": freed})

    async def abort(self, request: web.Request) -> web.Response:
        """End the caller's requests by name; all requests, for an admin."""
        body = await read_body(request, AbortBody, self._context.limits)
        caller = request[CALLER]
        if body.abort_all:
            self._context.keys.require_admin(caller)
            found = self._context.running.all()
        elif not body.rid:
            raise Refused(400, "rid is empty", param="rid", hint="Send rid, or abort_all.")
        else:
            found = self._context.running.find(body.rid, caller)
        for engine_id in found:
            self._context.client.abort(engine_id)
        return json_response({"aborted": len(found)})
