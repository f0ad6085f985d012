"""Bodies in and out: JSON read by a schema, with errors that name the field; JSON and events sent.

Invariant: nothing of a body is used before all of it has been read and checked against its type;
a client that stops reading or sending is given up after the idle time. Knows no routes.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from branchline.runtime.server.errors import ErrorBody, Refused, failure_of, log_failure
from branchline.runtime.server.keys import Caller
from branchline.runtime.server.limits import Limits

logger = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
T = TypeVar("T")

CALLER = web.RequestKey("caller", Caller)
"""Who sent a request; set before its handler runs."""
REQUEST_ID = web.RequestKey("request_id", str)
"""The id that its answer carries."""

_PLACE = re.compile(r"^(?P<what>.*) - at `\$\.?(?P<path>.*)`$", re.DOTALL)
_UNKNOWN = re.compile(r"^Object contains unknown field `(?P<name>.*)`$", re.DOTALL)


async def read_body(request: web.Request, kind: type[T], limits: Limits) -> T:
    """The request's JSON body.

    Raises:
        Refused: it is no JSON, or not of this type (names the field); 408, it came too slowly.
    """
    try:
        async with asyncio.timeout(limits.idle_timeout_s):
            raw = await request.read()
    except TimeoutError:
        raise Refused(408, "the body did not arrive in time") from None
    return decode(raw, kind)


def decode(raw: bytes, kind: type[T]) -> T:
    """A value of `kind` from JSON text; Refused: see `read_body`."""
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refused(400, f"the body is not valid JSON: {error}") from error
    except RecursionError as error:
        raise Refused(400, "the body's JSON is nested too deeply") from error


def _invalid(text: str) -> Refused:
    found = _PLACE.match(text)
    what, path = (found["what"], found["path"]) if found else (text, "")
    unknown = _UNKNOWN.match(what)
    if unknown:
        param = f"{path}.{unknown['name']}" if path else unknown["name"]
        return Refused(
            400,
            f"unknown field {param!r}",
            param=param,
            code="unknown_parameter",
            hint="Leave it out; docs/routes.md lists the fields of every route.",
        )
    if what.startswith("Expected `null`"):
        return Refused(
            400, f"{path} is not supported", param=path, hint="Leave it out, or send null."
        )
    shown = f"{path}: {what}" if path else what
    return Refused(400, shown, param=path)


def json_response(value: Any, status: int = 200) -> web.Response:
    """`value` (structs and plain data) as JSON."""
    return web.Response(
        body=msgspec.json.encode(value), status=status, content_type="application/json"
    )


class EventStream:
    """Server-sent events on one response; see `event_stream`."""

    def __init__(self, request: web.Request, idle_s: float) -> None:
        self._request = request
        self._idle_s = idle_s
        self._loop = asyncio.get_running_loop()
        self._writes_since: float | None = None
        self._given_up = False
        # One timer a stream: one for each event costs as much as the event.
        self._timer = self._loop.call_later(idle_s, self._look)
        self.response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream; charset=utf-8",
                "Cache-Control": "no-cache",
                "X-Accel-Buffering": "no",
            }
        )

    async def send(self, value: Any, event: str = "") -> None:
        """One event: `value` as JSON, under a name if the family's clients want one.

        Raises:
            ConnectionResetError: the client has left, or takes nothing.
        """
        await self.send_raw(msgspec.json.encode(value), event)

    async def send_raw(self, data: bytes, event: str = "") -> None:
        """`send` for text that is encoded already; it holds no line break."""
        head = b"event: %s\ndata: " % event.encode() if event else b"data: "
        await self._watched(self.response.write(head + data + b"\n\n"))

    async def finish(self) -> None:
        """The end of the answer. Raises ConnectionResetError as `send` does."""
        await self._watched(self.response.write_eof())

    def close(self) -> None:
        """Nothing more is sent."""
        self._timer.cancel()

    async def _watched(self, write: Awaitable[None]) -> None:
        self._writes_since = self._loop.time()
        await write
        self._writes_since = None
        if self._given_up:
            raise ConnectionResetError("the client does not read")

    def _look(self) -> None:
        """Give the client up if it has taken nothing for the idle time; else look again then."""
        now = self._loop.time()
        due = self._idle_s + (now if self._writes_since is None else self._writes_since)
        if due > now:
            self._timer = self._loop.call_at(due, self._look)
            return
        self._given_up = True
        if self._request.transport is not None:
            self._request.transport.abort()


@asynccontextmanager
async def event_stream(
    request: web.Request, limits: Limits, error_body: ErrorBody, error_event: str = ""
) -> AsyncIterator[EventStream]:
    """An answer of server-sent events; the handler returns `.response` after the block.

    The head goes out on entry. A failure inside the block becomes an event in the family's own
    format; a client that leaves ends the block quietly.
    """
    events = EventStream(request, limits.idle_timeout_s)
    try:
        await events.response.prepare(request)
        try:
            yield events
        except ConnectionResetError:
            raise
        except Exception as error:
            failure = failure_of(error)
            log_failure(failure, request[REQUEST_ID], error)
            await events.send(error_body(failure, request[REQUEST_ID]), error_event)
        await events.finish()
    except ConnectionResetError:
        logger.debug("the client of request %s has left", request[REQUEST_ID])
    finally:
        events.close()
