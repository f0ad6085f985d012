"""`POST /v1/embeddings`: a vector for each text, in OpenAI's form; and how routes embed at all.

Invariants: vectors come in the order of what was sent, each as if it had been sent alone; base64
and lists of numbers bring the same float32 values; a client that leaves ends all of it.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
from aiohttp import web

from branchline.runtime.core.messages import EmbedRequest, Pooling
from branchline.runtime.core.outputs import EmbedResult
from branchline.runtime.server.context import ServerContext
from branchline.runtime.server.generation import deadline_of, response_id
from branchline.runtime.server.limits import check
from branchline.runtime.server.openai_types import Prompt
from branchline.runtime.server.prompts import Prompts, prompts_of
from branchline.runtime.server.wire import CALLER, json_response, read_body


class EmbeddingFields(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What routes over embeddings share.

    Attributes:
        pooling: "last": the last token's hidden state; "mean": the average over all tokens, which
            takes nothing of the text from the prefix cache.
    """

    model: str | None = None
    pooling: Pooling = "last"
    priority: int | None = None
    rid: str | None = None
    request_id: str | None = None
    cache_salt: str | None = None
    deadline_s: float | None = None
    user: str | None = None


class EmbeddingsRequest(EmbeddingFields, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/embeddings`.

    Attributes:
        dimensions: only the first so many numbers, scaled anew.
        normalize: scale vectors to length 1.
    """

    input: Prompt
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    normalize: bool | None = None


BODIES: dict[str, type[Any]] = {"/v1/embeddings": EmbeddingsRequest}


def routes(context: ServerContext) -> list[web.RouteDef]:
    """Routes of this module."""
    return [web.post("/v1/embeddings", _Embeddings(context).handle)]


class Embedder:
    """Embeds what a route was sent.

    Args:
        prefix: of the ids of its answers.
    """

    def __init__(self, context: ServerContext, prefix: str) -> None:
        self._context = context
        self._prompts = Prompts(context)
        self._prefix = prefix

    async def embed(
        self,
        request: web.Request,
        body: EmbeddingFields,
        texts: Mapping[str, str | list[int]],
        adapter: str,
        *,
        normalize: bool = True,
        dimensions: int | None = None,
    ) -> tuple[str, list[EmbedResult]]:
        """(id of the answer, a vector for each of `texts`).

        Args:
            texts: texts or ids, by what the client calls them.
            adapter: that reads them; "" = the model itself.

        Raises:
            InvalidRequest: more than the limits allow, or nothing to embed.
        """
        context, limits, caller = self._context, self._context.limits, request[CALLER]
        check("max_prompts", "the number of texts", len(texts), limits.max_prompts)
        deadline = deadline_of(limits, body.deadline_s)
        prompts = await self._prompts.ids(texts.values(), names=texts)
        asked = [
            EmbedRequest(
                id=context.client.new_id(),
                prompt_ids=ids,
                pooling=body.pooling,
                normalize=normalize,
                dimensions=dimensions,
                namespace=caller.namespace(body.cache_salt or ""),
                priority=body.priority or 0,
                deadline=deadline,
                adapter=adapter,
            )
            for ids in prompts
        ]
        name = response_id(self._prefix, body.rid, body.request_id)
        with context.running.named(name, caller, [item.id for item in asked]):
            return name, await context.client.embed(*asked)


def usage_of(results: Sequence[EmbedResult]) -> dict[str, Any]:
    """The `usage` object."""
    count = sum(result.meta.prompt_tokens for result in results)
    cached = sum(result.meta.cached_tokens for result in results)
    details = {"cached_tokens": cached}
    return {"prompt_tokens": count, "total_tokens": count, "prompt_tokens_details": details}


class _Embeddings:
    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._embedder = Embedder(context, "embd-")

    async def handle(self, request: web.Request) -> web.Response:
        """A vector for each text."""
        body = await read_body(request, EmbeddingsRequest, self._context.limits)
        served = self._context.choose(body.model)
        given = prompts_of(body.input, "input")
        names = ["input"] if len(given) == 1 else [f"input[{i}]" for i in range(len(given))]
        name, results = await self._embedder.embed(
            request,
            body,
            dict(zip(names, given, strict=True)),
            served.adapter,
            normalize=body.normalize is not False,
            dimensions=body.dimensions,
        )
        write = _base64 if body.encoding_format == "base64" else list
        data = [
            {"object": "embedding", "index": index, "embedding": write(result.embedding)}
            for index, result in enumerate(results)
        ]
        head = {"id": name, "object": "list", "model": served.name}
        return json_response({**head, "data": data, "usage": usage_of(results)})


def _base64(values: Sequence[float]) -> str:
    """Little-endian float32, as OpenAI's clients read it."""
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode("ascii")
