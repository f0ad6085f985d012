"""A client of a server under load: its requests, and streams whose pieces of text are timed."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from typing import Any

import aiohttp
import msgspec

from branchline.bench.served import Served
from branchline.runtime.bench.latency import Timing
from branchline.runtime.errors import BackendError


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None

    @property
    def new_text(self) -> str:
        delta = self.delta or _Delta()
        return self.text or delta.content or delta.reasoning_content or ""


class _Usage(msgspec.Struct):
    completion_tokens: int = 0


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Chunk).decode


class Client:
    """One client with as many connections as it needs.

    Args:
        timeout_s: seconds until a request counts as lost.
    """

    def __init__(self, server: Served, timeout_s: float = 300.0) -> None:
        self._url, self._key = server.url, server.admin_key
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=timeout_s),
        )

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.close()

    async def chunks(self, path: str, body: dict[str, Any]) -> AsyncGenerator[_Chunk, None]:
        """The events of a stream. Leaving early closes the connection.

        Raises:
            BackendError: refused, ended by an error, or cut before its end.
        """
        asked = body | {"stream": True, "stream_options": {"include_usage": True}}
        response = await self._http.post(self._url + path, json=asked)
        try:
            await _check(response)
            async for line in response.content:
                if line.startswith(b"data: [DONE]"):
                    return
                if line.startswith(b"data: "):
                    chunk = _decode(line[6:])
                    if chunk.error is not None:
                        raise BackendError(f"the stream ended with an error: {chunk.error}")
                    yield chunk
            raise BackendError("the stream ended without its last event")
        finally:
            response.close()

    async def stream(self, path: str, body: dict[str, Any], timing: Timing) -> int:
        """Read a stream to its end; returns the tokens of its output. Raises BackendError."""
        tokens, unfinished = -1, set(range(body.get("n", 1)))
        async for chunk in self.chunks(path, body):
            for choice in chunk.choices:
                if choice.new_text:
                    timing.mark(time.perf_counter(), choice.index)
                if choice.finish_reason:
                    unfinished.discard(choice.index)
            if chunk.usage is not None:
                tokens = chunk.usage.completion_tokens
        if tokens < 0 or unfinished:
            raise BackendError("the stream ended without a reason or its counts")
        return tokens

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        """The whole answer. Raises BackendError when it is not 200."""
        async with self._http.post(self._url + path, json=body) as response:
            await _check(response)
            return await response.json()

    async def status(self, path: str, body: dict[str, Any]) -> int:
        """The status of the answer alone."""
        async with self._http.post(self._url + path, json=body) as response:
            await response.read()
            return response.status

    async def info(self) -> dict[str, Any]:
        """What the server says of itself."""
        async with self._http.get(self._url + "/get_server_info") as response:
            await _check(response)
            found: dict[str, Any] = await response.json()
            return found

    async def flush(self) -> None:
        """Have the server forget cached prefixes."""
        headers = {"Authorization": f"Bearer {self._key}"}
        async with self._http.post(self._url + "/flush_cache", headers=headers) as response:
            await _check(response)


async def _check(response: aiohttp.ClientResponse) -> None:
    if response.status != 200:
        raise BackendError(f"HTTP {response.status}: {(await response.text())[:300]}")
