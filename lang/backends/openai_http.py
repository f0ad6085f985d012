"""Requests to an OpenAI-compatible server: retried where that can help, typed errors where not.

Invariant: a request is sent again only while none of its answer has been handed on, so no text is
ever seen twice; an answer that breaks off, or is not what it should be, is an error and never a
shorter answer. Knows no programs.
"""

from __future__ import annotations

import asyncio
import email.utils
import random
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import msgspec

from branchline.lang.backends.refusals import words_of
from branchline.lang.errors import BackendError, InvalidRequest

RETRIED = frozenset({408, 409, 429, 500, 502, 503, 504})
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 8.0
LONGEST_ASKED_PAUSE_S = 60.0
CONNECT_S = 10.0

Json = dict[str, Any]


class OpenAIClient:
    """JSON over HTTP, on the event loop that uses it first.

    Args:
        base_url: up to and with the version, `https://host/v1`.
        api_key: None = none.
        max_retries: new tries after the first.
        timeout_s: seconds without a byte after which the server counts as gone.
    """

    def __init__(
        self, base_url: str, api_key: str | None, *, max_retries: int, timeout_s: float
    ) -> None:
        self.base_url = base_url
        self._headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._max_retries = max_retries
        self._timeout_s = timeout_s
        self._http: aiohttp.ClientSession | None = None

    async def get(self, path: str) -> Json | None:
        """The object at `path`; None when there is no such route."""
        async with self._begin("GET", path, None, _Tries(self._max_retries)) as answer:
            return None if answer.status == 404 else await self._object(answer)

    async def post(self, path: str, body: Json) -> Json:
        """The answer to `body`."""
        tries = _Tries(self._max_retries)
        while True:
            try:
                async with self._begin("POST", path, body, tries) as answer:
                    return await self._object(answer)
            except aiohttp.ClientError as error:
                await tries.again(self._broken(error))

    async def stream(self, path: str, body: Json) -> AsyncIterator[Json]:
        """Server-sent objects up to `[DONE]`.

        Raises `BackendError` when the stream ends without it.
        """
        begun = False
        tries = _Tries(self._max_retries)
        while True:
            try:
                async with self._begin("POST", path, body, tries) as answer:
                    async for data in _events(answer):
                        if data == b"[DONE]":
                            return
                        found = self._parse(data)
                        if "error" in found:
                            raise self._said(found["error"])
                        begun = True
                        yield found
                raise self._broken("it ended without [DONE]")
            except (aiohttp.ClientError, _Broken) as error:
                if begun:
                    raise self._broken(error) from error
                await tries.again(self._broken(error))

    async def close(self) -> None:
        """Close all connections."""
        if self._http is not None:
            await self._http.close()

    # ---- inside

    def _begin(self, method: str, path: str, body: Json | None, tries: _Tries) -> _Answer:
        if self._http is None:
            self._http = aiohttp.ClientSession(
                headers=self._headers,
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=CONNECT_S, sock_read=self._timeout_s
                ),
                connector=aiohttp.TCPConnector(limit=0),
            )
        return _Answer(self, self._http, method, path, body, tries)

    async def _object(self, answer: aiohttp.ClientResponse) -> Json:
        return self._parse(await answer.read())

    def _parse(self, data: bytes) -> Json:
        try:
            return msgspec.json.decode(data, type=Json)
        except msgspec.DecodeError as error:
            raise BackendError(
                f"the server's answer is not a JSON object: {error}",
                value=data[:100].decode("utf-8", "replace"),
                hint=f"Is {self.base_url} an OpenAI-compatible server?",
            ) from error

    def _said(self, error: object) -> BackendError:
        message = error.get("message") if isinstance(error, dict) else error
        return BackendError(
            f"the server ended the answer with an error: {message}",
            hint="See the server's log.",
            retryable=True,
        )

    def _broken(self, error: object) -> _Broken:
        if isinstance(error, _Broken):
            return error
        return _Broken(
            f"the connection to the server broke: {error or type(error).__name__}",
            value=self.base_url,
            hint="Is the server there? Try again.",
            retryable=True,
        )

    async def refuse(self, answer: aiohttp.ClientResponse) -> BackendError:
        """The error of an answer that is none."""
        text = words_of(await answer.text(errors="replace"))
        kind = InvalidRequest if answer.status in (400, 413, 422) else BackendError
        return kind(
            f"the server answers HTTP {answer.status}: {text}",
            value=str(answer.url),
            hint=_HINTS.get(answer.status, "See the server's log."),
            retryable=answer.status in RETRIED,
        )


class _Broken(BackendError):
    """The connection ended before the answer did."""


class _Tries:
    """How often and after which pause a request may be sent again."""

    def __init__(self, left: int) -> None:
        self._left = left
        self._pause_s = FIRST_PAUSE_S

    async def again(self, error: BackendError, asked_s: float | None = None) -> None:
        """Wait before the next try; raises `error` when there is none, or none can help."""
        if not self._left or not error.retryable:
            raise error
        self._left -= 1
        own = self._pause_s * (1.0 + random.random()) / 2.0
        await asyncio.sleep(own if asked_s is None else asked_s)
        self._pause_s = min(2.0 * self._pause_s, LONGEST_PAUSE_S)


class _Answer:
    """`async with`: a response whose status is 200 (or 404, for a GET), after as many tries as it
    takes.
    """

    def __init__(
        self,
        client: OpenAIClient,
        http: aiohttp.ClientSession,
        method: str,
        path: str,
        body: Json | None,
        tries: _Tries,
    ) -> None:
        self._client = client
        self._request = (method, client.base_url + path)
        self._json = body
        self._http = http
        self._tries = tries
        self._answer: aiohttp.ClientResponse | None = None

    async def __aenter__(self) -> aiohttp.ClientResponse:
        while True:
            try:
                answer = await self._http.request(*self._request, json=self._json)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                await self._tries.again(self._client._broken(error))
                continue
            if answer.status == 200 or (self._json is None and answer.status == 404):
                self._answer = answer
                return answer
            async with answer:
                failure = await self._client.refuse(answer)
                asked_s = _retry_after(answer)
            await self._tries.again(failure, asked_s)

    async def __aexit__(self, *_: object) -> None:
        if self._answer is not None:
            self._answer.close()  # what was read to its end gives its connection back by itself


async def _events(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Data of server-sent events."""
    data: list[bytes] = []
    async for raw in answer.content:
        line = raw.rstrip(b"\r\n")
        if line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))
        elif not line and data:
            yield b"\n".join(data)
            data = []
    # An event without its empty line was cut: whoever reads misses the end.


def _retry_after(answer: aiohttp.ClientResponse) -> float | None:
    """Seconds the server asks to wait: a number, or the time of an HTTP date."""
    asked = answer.headers.get("Retry-After", "")
    try:
        seconds = float(asked)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(asked).timestamp() - time.time()
        except ValueError:
            return None
    return min(max(seconds, 0.0), LONGEST_ASKED_PAUSE_S)


_HINTS = {
    400: "Change what the message names.",
    401: "Give the server's key: OpenAI(model, api_key=…).",
    403: "The key may not use this model.",
    404: "Check the model's name and base_url.",
    429: "Run fewer programs at once, or raise max_retries.",
}
