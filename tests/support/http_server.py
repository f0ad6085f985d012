"""The web application on a loopback port, served from a thread of its own, as a client meets it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp
from aiohttp import web
from multidict import CIMultiDict

from branchline.runtime.engine import Engine
from branchline.runtime.server.app import create_app, make_runner
from branchline.runtime.server.context import ServerContext, make_context

T = TypeVar("T")


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: CIMultiDict[str]
    raw: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.raw)

    @property
    def events(self) -> list[Any]:
        """Data of server-sent events, parsed; "[DONE]" stays text."""
        blocks = self.raw.decode().split("\n\n")
        assert blocks.pop() == "", "a stream ends after a whole event"
        datas = [line[6:] for b in blocks for line in b.split("\n") if line.startswith("data: ")]
        return [data if data == "[DONE]" else json.loads(data) for data in datas]


@dataclass
class RunningServer:
    """A served context.

    Attributes:
        loop: the event loop that serves; `run` puts work on it.
    """

    url: str
    context: ServerContext
    loop: asyncio.AbstractEventLoop

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        data: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """One request over a connection of its own."""

        async def send() -> Answer:
            async with (
                aiohttp.ClientSession() as session,
                session.request(
                    method, self.url + path, json=body, data=data, headers=headers
                ) as response,
            ):
                return Answer(response.status, CIMultiDict(response.headers), await response.read())

        return asyncio.run(send())

    def post(self, path: str, body: Any, **options: Any) -> Answer:
        return self.request("POST", path, body, **options)

    def get(self, path: str, **options: Any) -> Answer:
        return self.request("GET", path, **options)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` on the serving loop and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)


@contextmanager
def serve(
    context: ServerContext, make_app: Callable[[ServerContext], web.Application] = create_app
) -> Iterator[RunningServer]:
    """Serve `context` until the block ends."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="test-server", daemon=True)
    thread.start()

    async def start() -> tuple[web.AppRunner, str]:
        runner = make_runner(make_app(context), drain_s=1.0)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        return runner, f"http://127.0.0.1:{port}"

    runner, url = asyncio.run_coroutine_threadsafe(start(), loop).result(30)
    try:
        yield RunningServer(url, context, loop)
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(30)
        context.executor.close()
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()


@contextmanager
def serve_engine(engine: Engine, **options: Any) -> Iterator[RunningServer]:
    """Serve an engine of this process; `options` go to `make_context`."""
    with serve(make_context(engine.core, engine.tokenizer, **options)) as server:
        yield server
