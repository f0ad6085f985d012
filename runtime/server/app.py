"""The web application: route families, and what holds for all of them.

Invariants: every answer carries the request's id; every failure is in its route family's own
format; a route without a mark asks for a normal key; at most `max_open_requests` are worked on.
Knows the families, none of their bodies.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec
from aiohttp import web
from aiohttp.typedefs import Middleware

from branchline.runtime.errors import QueueFull
from branchline.runtime.server import (
    adapter_routes,
    admin,
    anthropic_messages,
    embeddings,
    http_metrics,
    info,
    native,
    openai_chat,
    openai_completions,
    openai_responses,
    overview,
    page,
    programs,
    rerank,
    score,
    tokens,
)
from branchline.runtime.server.context import ServerContext
from branchline.runtime.server.errors import (
    ErrorBody,
    anthropic_body,
    failure_of,
    headers_of,
    log_failure,
    native_body,
    openai_body,
)
from branchline.runtime.server.keys import Access
from branchline.runtime.server.openapi import Described, describe, document
from branchline.runtime.server.wire import CALLER, REQUEST_ID, Handler

CONTEXT = web.AppKey("context", ServerContext)
_CLIENT_ID = re.compile(r"[\w.:+-]{1,128}", re.ASCII)


class Family(NamedTuple):
    """Routes whose clients read the same kind of error.

    Attributes:
        access: of the routes that ask for something else than a normal key, by path.
        bodies: structs of the JSON bodies, by path.
        forms: schemas of forms that are taken as well, by path.
        described: its routes are for programs, and stand in /openapi.json.
    """

    routes: Callable[[ServerContext], list[web.RouteDef]]
    error_body: ErrorBody
    access: Mapping[str, Access] = {}
    bodies: Mapping[str, type[Any]] = {}
    forms: Mapping[str, dict[str, Any]] = {}
    described: bool = True


FAMILIES: tuple[Family, ...] = (
    Family(info.routes, openai_body, info.ACCESS),
    Family(http_metrics.routes, openai_body, http_metrics.ACCESS),
    Family(programs.routes, native_body, bodies=programs.BODIES),
    Family(openai_completions.routes, openai_body, bodies=openai_completions.BODIES),
    Family(openai_chat.routes, openai_body, bodies=openai_chat.BODIES),
    Family(openai_responses.routes, openai_body, bodies=openai_responses.BODIES),
    Family(embeddings.routes, openai_body, bodies=embeddings.BODIES),
    Family(rerank.routes, openai_body, bodies=rerank.BODIES),
    Family(score.routes, openai_body, bodies=score.BODIES),
    Family(tokens.routes, openai_body, bodies=tokens.BODIES),
    Family(anthropic_messages.routes, anthropic_body, bodies=anthropic_messages.BODIES),
    Family(native.routes, native_body, bodies=native.BODIES),
    Family(overview.routes, native_body),
    Family(page.routes, openai_body, page.ACCESS, described=False),
    Family(admin.routes, native_body, admin.ACCESS, admin.BODIES),
    Family(
        adapter_routes.openai_routes,
        openai_body,
        adapter_routes.ACCESS,
        adapter_routes.OPENAI_BODIES,
        {f"/v1{adapter_routes.LOAD}": adapter_routes.FORM},
    ),
    Family(
        adapter_routes.sglang_routes,
        native_body,
        adapter_routes.ACCESS,
        adapter_routes.SGLANG_BODIES,
        {adapter_routes.LOAD: adapter_routes.FORM},
    ),
)


def create_app(context: ServerContext, families: tuple[Family, ...] = FAMILIES) -> web.Application:
    """The application; run it with `make_runner`."""
    bodies: dict[str, ErrorBody] = {}
    access: dict[str, Access] = {"/openapi.json": Access.OPEN}
    routes: list[web.RouteDef] = []
    described: list[Described] = []
    for family in families:
        found = family.routes(context)
        routes += found
        bodies.update({route.path: family.error_body for route in found})
        access.update(family.access)
        if family.described:
            asked = context.keys.asked
            levels = {path: asked(level).value for path, level in family.access.items()}
            described += describe(found, family.bodies, family.forms, levels)
    description = msgspec.json.encode(document(described, keys_needed=context.keys.needed))

    async def openapi(request: web.Request) -> web.Response:
        return web.Response(body=description, content_type="application/json")

    app = web.Application(
        client_max_size=context.limits.max_body_bytes,
        middlewares=[_Gate(context, bodies, access).middleware()],
    )
    app[CONTEXT] = context
    app.add_routes([*routes, web.get("/openapi.json", openapi)])
    app.on_response_prepare.append(_name_response)
    app.on_shutdown.append(_shut_down)
    return app


def make_runner(app: web.Application, drain_s: float = 60.0) -> web.AppRunner:
    """A runner under which a client that leaves ends the work that was done for it.

    Args:
        drain_s: seconds that running requests get when it is cleaned up.
    """
    return web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=drain_s)


class _Gate:
    """What happens around every handler."""

    def __init__(
        self, context: ServerContext, bodies: dict[str, ErrorBody], access: dict[str, Access]
    ) -> None:
        self._context = context
        self._bodies = bodies
        self._access = access
        self._open = 0

    def middleware(self) -> Middleware:
        """For `web.Application`."""

        @web.middleware
        async def gate(request: web.Request, handler: Handler) -> web.StreamResponse:
            return await self._run(request, handler)

        return gate

    async def _run(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        resource = request.match_info.route.resource
        path = "" if resource is None else resource.canonical
        name = request[REQUEST_ID] = _request_id(request)
        with http_metrics.counted(self._context.metrics, request.method, path, name) as served:
            response = await self._answer(request, path, handler)
            served.status = response.status
            return response

    async def _answer(
        self, request: web.Request, path: str, handler: Handler
    ) -> web.StreamResponse:
        try:
            access = self._access.get(path, Access.NORMAL)
            request[CALLER] = self._context.keys.identify(request.headers, access)
            if access is Access.OPEN:
                return await handler(request)
            return await self._counted(request, handler)
        except Exception as error:
            body = self._bodies.get(path) or _body_of_unknown(request.path)
            return _error_response(error, body, request[REQUEST_ID])

    async def _counted(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        most = self._context.limits.max_open_requests
        if self._open >= most:
            raise QueueFull(
                "too many requests are being worked on",
                value=self._open,
                hint="Try again later, or start the server with --limit max_open_requests=….",
            )
        self._open += 1
        try:
            return await handler(request)
        finally:
            self._open -= 1


def _error_response(error: Exception, body: ErrorBody, request_id: str) -> web.Response:
    failure = failure_of(error)
    log_failure(failure, request_id, error)
    return web.Response(
        body=msgspec.json.encode(body(failure, request_id)),
        status=failure.status,
        headers=headers_of(failure),
        content_type="application/json",
    )


def _body_of_unknown(path: str) -> ErrorBody:
    """The format for a path that no family has: what its client most likely reads."""
    return anthropic_body if path.startswith("/v1/messages") else openai_body


def _request_id(request: web.Request) -> str:
    """The client's own id where it is short and plain, else a new one."""
    given = request.headers.get("x-request-id", "")
    return given if _CLIENT_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"


async def _shut_down(app: web.Application) -> None:
    for hook in app[CONTEXT].on_shutdown:
        await hook()


async def _name_response(request: web.Request, response: web.StreamResponse) -> None:
    request_id = request.get(REQUEST_ID)
    if request_id is not None:
        response.headers["x-request-id"] = request_id
        response.headers["request-id"] = request_id
