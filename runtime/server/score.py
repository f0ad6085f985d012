"""`POST /v1/score`: how likely given tokens follow a text, as SGLang's clients ask for it.

Invariant: every label of an item is scored in one forward over the item's text. Texts that share
their beginning with the query share its computation.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec
from aiohttp import web

from branchline.runtime.core.messages import ScoreRequest
from branchline.runtime.core.outputs import ScoreResult
from branchline.runtime.server.context import ServerContext
from branchline.runtime.server.errors import Refused
from branchline.runtime.server.generation import deadline_of, response_id
from branchline.runtime.server.limits import check
from branchline.runtime.server.prompts import Prompts
from branchline.runtime.server.wire import CALLER, json_response, read_body


class ScoringRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Texts (or ids) of a query and of items, and the ids of the labels.

    Attributes:
        apply_softmax: values over the labels add up to 1; else each is the label's probability.
        item_first: an item stands before the query, not behind it.
    """

    query: str | list[int]
    items: str | list[str | list[int]]
    label_token_ids: list[int]
    model: str | None = None
    apply_softmax: bool = False
    item_first: bool = False
    priority: int | None = None
    deadline_s: float | None = None
    user: str | None = None


BODIES: dict[str, type[Any]] = {"/v1/score": ScoringRequest}


def routes(context: ServerContext) -> list[web.RouteDef]:
    """Routes of this module."""
    return [web.post("/v1/score", _Scoring(context).handle)]


class _Scoring:
    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._prompts = Prompts(context)

    async def handle(self, request: web.Request) -> web.Response:
        """Probabilities of the labels behind each item."""
        context, limits, caller = self._context, self._context.limits, request[CALLER]
        body = await read_body(request, ScoringRequest, limits)
        items = [body.items] if isinstance(body.items, str) else body.items
        served = context.choose(body.model)
        if not items or not body.label_token_ids:
            name = "label_token_ids" if items else "items"
            raise Refused(400, f"{name} is empty", param=name)
        check("max_prompts", "the number of items", len(items), limits.max_prompts)
        labels = body.label_token_ids
        check("max_logit_bias", "the number of labels", len(labels), limits.max_logit_bias)
        prompts = await self._prompts.ids(_prompt(body, item) for item in items)
        asked = [
            ScoreRequest(
                id=context.client.new_id(),
                prompt_ids=ids,
                choices=[[label] for label in labels],
                namespace=caller.namespace(),
                priority=body.priority or 0,
                deadline=deadline_of(limits, body.deadline_s),
                adapter=served.adapter,
            )
            for ids in prompts
        ]
        with context.running.named(response_id("score-"), caller, [item.id for item in asked]):
            found = await context.client.score(*asked)
        count = sum(map(len, prompts))
        return json_response(
            {
                "scores": [_values(result, body.apply_softmax) for result in found],
                "model": served.name,
                "usage": {"prompt_tokens": count, "total_tokens": count, "completion_tokens": 0},
                "object": "scoring",
            }
        )


def _prompt(body: ScoringRequest, item: str | list[int]) -> str | list[int]:
    first, second = (item, body.query) if body.item_first else (body.query, item)
    if isinstance(first, str) and isinstance(second, str):
        return first + second
    if isinstance(first, list) and isinstance(second, list):
        return [*first, *second]
    raise Refused(400, "query and items are both texts or both ids", param="items")


def _values(result: ScoreResult, softmax: bool) -> list[float]:
    logprobs = [row[0] for row in result.token_logprobs]
    if not softmax:
        return [math.exp(value) for value in logprobs]
    most = max(logprobs)
    values = [math.exp(value - most) for value in logprobs]
    total = sum(values)
    return [value / total for value in values]
