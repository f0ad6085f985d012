"""`/v1/tokenize` and `/v1/detokenize`: ids of texts and conversations, and back."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from aiohttp import web

from branchline.runtime.server.context import ServerContext
from branchline.runtime.server.errors import Refused
from branchline.runtime.server.fields import Json
from branchline.runtime.server.limits import check
from branchline.runtime.server.openai_chat import message_of
from branchline.runtime.server.openai_types import ChatMessage
from branchline.runtime.server.prompts import Conversation, Prompts
from branchline.runtime.server.wire import json_response, read_body


class TokenizeRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Texts, or one conversation."""

    prompt: str | list[str] | None = None
    messages: list[ChatMessage] | None = None
    model: str | None = None
    add_special_tokens: bool = True
    return_token_strs: bool = False
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: Json | None = None
    tools: list[Json] | None = None


class DetokenizeRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Ids of one text or of several."""

    tokens: list[int | list[int]]
    model: str | None = None
    skip_special_tokens: bool = True


BODIES: dict[str, type[Any]] = {
    "/v1/tokenize": TokenizeRequest,
    "/tokenize": TokenizeRequest,
    "/v1/detokenize": DetokenizeRequest,
    "/detokenize": DetokenizeRequest,
}


def routes(context: ServerContext) -> list[web.RouteDef]:
    """Routes of this module."""
    family = _Tokens(context)
    return [
        web.post(path, handler)
        for name, handler in (("tokenize", family.tokenize), ("detokenize", family.detokenize))
        for path in (f"/v1/{name}", f"/{name}")
    ]


class _Tokens:
    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._prompts = Prompts(context)

    async def tokenize(self, request: web.Request) -> web.Response:
        """Ids, and how many."""
        body = await read_body(request, TokenizeRequest, self._context.limits)
        self._context.choose(body.model)
        if (body.prompt is None) == (body.messages is None):
            raise Refused(400, "send either prompt or messages", param="prompt")
        several = isinstance(body.prompt, list)
        groups = await self._ids(body)
        counts = [len(ids) for ids in groups]
        names: list[list[str]] | None = None
        if body.return_token_strs:
            text = self._context.tokenizer.token_text
            names = await asyncio.to_thread(lambda: [list(map(text, ids)) for ids in groups])
        return json_response(
            {
                "tokens": groups if several else groups[0],
                "count": counts if several else counts[0],
                "max_model_len": self._context.port.max_context,
                "token_strs": names if several or names is None else names[0],
            }
        )

    async def _ids(self, body: TokenizeRequest) -> list[list[int]]:
        if body.messages is not None:
            prompt = await self._prompts.chat(
                Conversation(
                    messages=[
                        message_of(message, f"messages[{i}]")
                        for i, message in enumerate(body.messages)
                    ],
                    tools=body.tools,
                    add_generation_prompt=body.add_generation_prompt,
                    continue_final=body.continue_final_message,
                    variables=body.chat_template_kwargs or {},
                )
            )
            return [prompt.ids]
        texts = body.prompt if isinstance(body.prompt, list) else [body.prompt or ""]
        limit = self._context.limits.max_prompts
        check("max_prompts", "the number of prompts", len(texts), limit)
        return await self._prompts.ids(texts, start=body.add_special_tokens, bounded=False)

    async def detokenize(self, request: web.Request) -> web.Response:
        """Text of ids."""
        body = await read_body(request, DetokenizeRequest, self._context.limits)
        self._context.choose(body.model)
        nested = [item for item in body.tokens if isinstance(item, list)]
        flat = [item for item in body.tokens if isinstance(item, int)]
        if nested and flat:
            raise Refused(400, "tokens mixes ids and lists of ids", param="tokens")
        texts = await asyncio.to_thread(
            lambda: [
                self._context.tokenizer.decode(ids, skip_special=body.skip_special_tokens)
                for ids in nested or [flat]
            ]
        )
        return json_response({"text": texts if nested else texts[0]})
