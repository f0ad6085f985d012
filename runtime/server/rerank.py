"""`POST /v1/rerank`: documents by their likeness to a query, in Jina's and Cohere's form.

Invariant: a score is the cosine between the embeddings of the query and of the document, each made
alone (a bi-encoder); no model here reads the two together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import mul
from typing import Any

import msgspec
from aiohttp import web

from branchline.runtime.server.context import ServerContext
from branchline.runtime.server.embeddings import Embedder, EmbeddingFields, usage_of
from branchline.runtime.server.errors import Refused
from branchline.runtime.server.wire import json_response, read_body

PATHS = ("/v1/rerank", "/rerank")


class Document(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A document as an object."""

    text: str


class RerankRequest(EmbeddingFields, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/rerank`.

    Attributes:
        top_n: only the best so many; None = all.
        return_documents: results bring the texts too.
    """

    query: str
    documents: list[str | Document]
    top_n: int | None = None
    return_documents: bool | None = None


BODIES: dict[str, type[Any]] = dict.fromkeys(PATHS, RerankRequest)


def routes(context: ServerContext) -> list[web.RouteDef]:
    """Routes of this module."""
    handler = _Reranking(context).handle
    return [web.post(path, handler) for path in PATHS]


class _Reranking:
    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._embedder = Embedder(context, "rerank-")

    async def handle(self, request: web.Request) -> web.Response:
        """Documents by their likeness to a query."""
        body = await read_body(request, RerankRequest, self._context.limits)
        served = self._context.choose(body.model)
        if not body.documents:
            raise Refused(400, "documents is empty", param="documents")
        if body.top_n is not None and body.top_n < 1:
            raise Refused(400, "top_n must be at least 1", value=body.top_n, param="top_n")
        texts = [item if isinstance(item, str) else item.text for item in body.documents]
        named = {f"documents[{index}]": text for index, text in enumerate(texts)}
        texts_read = {"query": body.query, **named}
        name, results = await self._embedder.embed(request, body, texts_read, served.adapter)
        query, *vectors = [result.embedding for result in results]
        scores = [_cosine(query, vector) for vector in vectors]
        order = sorted(range(len(scores)), key=lambda index: -scores[index])[: body.top_n]
        shown = [
            {"index": index, "relevance_score": scores[index]}
            | ({} if body.return_documents is False else {"document": {"text": texts[index]}})
            for index in order
        ]
        return json_response(
            {"id": name, "model": served.name, "results": shown, "usage": usage_of(results)}
        )


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """Of two vectors of length 1."""
    return max(-1.0, min(1.0, math.fsum(map(mul, one, other))))
