"""Runs the application until it is told to stop: listen, refuse what is new, drain, leave.

Invariant: once told to stop, nothing new is begun, and what runs gets its time; being told twice
ends the waiting. Knows no processes: whether requests can run is the context's `health`.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import Protocol

from aiohttp import web

from branchline.runtime.errors import BackendError, InvalidRequest
from branchline.runtime.server.app import make_runner
from branchline.runtime.server.context import ServerContext
from branchline.runtime.server.wire import Handler

OPEN_PATHS = frozenset({"/health", "/ping", "/metrics"})
POLL_S = 0.05


class CallServer(Protocol):
    """Serves calls of another kind."""

    async def stop(self, grace_s: float) -> None:
        """Take no more calls; those that run have `grace_s` seconds to end, or fewer if told so
        once more.
        """


class Stopping:
    """How far the server is told to stop. On one event loop.

    Attributes:
        asked: no new work; finish what runs.
        now: wait for nothing more.
        failed: it stops since it cannot go on.
    """

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.now = asyncio.Event()
        self.failed = False

    def ask(self) -> None:
        """Stop when what runs is done."""
        self.asked.set()

    def insist(self) -> None:
        """Asked for the first time as `ask`; then stop at once."""
        if self.asked.is_set():
            self.now.set()
        self.asked.set()

    def fail(self) -> None:
        """The engine is lost: nothing that runs will ever be done."""
        self.failed = True
        self.now.set()
        self.asked.set()


class Entrance:
    """Lets requests in until it is closed, and knows how many are inside."""

    def __init__(self, app: web.Application) -> None:
        self.inside = 0
        self.closed = False

        @web.middleware
        async def enter(request: web.Request, handler: Handler) -> web.StreamResponse:
            return await self._enter(request, handler)

        # The innermost: refusals are then written as each family of routes writes errors.
        app.middlewares.append(enter)

    async def _enter(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path in OPEN_PATHS:
            return await handler(request)
        if self.closed:
            raise BackendError(
                "the server is stopping", retryable=True, hint="Send it to another server."
            )
        # A socket stays open as long as its client likes; its programs are counted instead.
        counts = request.headers.get("Upgrade", "").lower() != "websocket"
        self.inside += counts
        try:
            return await handler(request)
        finally:
            self.inside -= counts


async def run(
    app: web.Application,
    context: ServerContext,
    stopping: Stopping,
    *,
    entrance: Entrance,
    host: str,
    port: int,
    drain_timeout_s: float,
    listening: Callable[[str], None],
    calls: CallServer | None = None,
) -> bool:
    """Serve until told to stop and drained.

    Args:
        listening: called with the URL once requests are taken.
        calls: serves beside HTTP, has been started, and is stopped with it.

    Returns:
        Whether everything that ran could finish.

    Raises:
        InvalidRequest: it cannot listen there.
    """
    runner = make_runner(app, drain_s=0.5)
    await runner.setup()
    ending: list[asyncio.Task[None]] = []
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise _cannot_listen(host, port, error) from error
        at = runner.addresses[0][1]
        listening(f"http://{f'[{host}]' if ':' in host else host}:{at}")
        await stopping.asked.wait()
        entrance.closed = True
        if calls is not None:  # it is `_drained` that sees whether they had time enough
            ending.append(asyncio.create_task(calls.stop(drain_timeout_s + 1.0)))
        return await _drained(context, entrance, stopping, drain_timeout_s)
    finally:
        if calls is not None:
            await asyncio.gather(calls.stop(1.0), *ending)
        await runner.cleanup()


async def check_address(host: str, port: int) -> None:
    """Raise what `run` would where it cannot listen, before anybody loads a model in vain."""
    try:
        server = await asyncio.get_running_loop().create_server(asyncio.Protocol, host, port)
    except OSError as error:
        raise _cannot_listen(host, port, error) from error
    server.close()
    await server.wait_closed()


def _cannot_listen(host: str, port: int, error: OSError) -> InvalidRequest:
    why = os.strerror(error.errno) if error.errno else str(error)  # asyncio's repeats the address
    return InvalidRequest(
        f"cannot listen at {host}:{port}: {why}",
        hint="Choose another host or port; port 0 is any free one.",
    )


async def _drained(
    context: ServerContext, entrance: Entrance, stopping: Stopping, timeout_s: float
) -> bool:
    end = time.monotonic() + timeout_s
    while entrance.inside or len(context.running) or context.executor.stats().programs_open:
        if stopping.now.is_set() or time.monotonic() >= end:
            return False
        await asyncio.sleep(POLL_S)
    return True
