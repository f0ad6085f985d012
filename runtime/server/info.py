"""What is here, and whether it answers: /health, /v1/models."""

from __future__ import annotations

import time
from typing import Any

from aiohttp import web

from branchline.runtime.server.adapters import Served
from branchline.runtime.server.context import ServerContext
from branchline.runtime.server.keys import Access
from branchline.runtime.server.wire import json_response

ACCESS = {"/health": Access.OPEN, "/ping": Access.OPEN}


def routes(context: ServerContext) -> list[web.RouteDef]:
    """Routes of this module."""
    family = _Info(context)
    return [
        web.get("/health", family.health),
        web.get("/ping", family.health),
        web.get("/v1/models", family.models),
        web.get("/v1/models/{model:.+}", family.model),
    ]


class _Info:
    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._created = int(time.time())

    async def health(self, request: web.Request) -> web.Response:
        """200 when requests are answered, 503 with the reason when not."""
        self._context.check_ready()
        return web.Response()

    async def models(self, request: web.Request) -> web.Response:
        """The list, in the form that the asking SDK reads."""
        models = [Served(name) for name in self._context.model_names]
        models += [Served(info.name, info.name) for info in self._context.adapters.all()]
        if _is_anthropic(request):
            cards = [self._anthropic_card(model.name) for model in models]
            ends = {"first_id": models[0].name, "last_id": models[-1].name, "has_more": False}
            return json_response({"data": cards, **ends})
        return json_response({"object": "list", "data": [self._card(model) for model in models]})

    async def model(self, request: web.Request) -> web.Response:
        """One of the list."""
        model = self._context.choose(request.match_info["model"])
        card = self._anthropic_card(model.name) if _is_anthropic(request) else self._card(model)
        return json_response(card)

    def _card(self, model: Served) -> dict[str, Any]:
        context = self._context
        return {
            "id": model.name,
            "object": "model",
            "created": self._created,
            "owned_by": "branchline",
            "root": model.adapter or context.port.model_name,
            "parent": context.model_name if model.adapter else None,
            "max_model_len": context.port.max_context,
        }

    def _anthropic_card(self, name: str) -> dict[str, Any]:
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._created))
        return {"id": name, "type": "model", "display_name": name, "created_at": moment}


def _is_anthropic(request: web.Request) -> bool:
    return "anthropic-version" in request.headers
