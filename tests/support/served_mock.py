"""`bl.Mock` behind a real server on loopback: the same scripted replies, over the wire."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from typing import Any

from aiohttp import web

import branchline as bl
from branchline.lang.backends.mock import Mock
from branchline.runtime.programs.executor import ExecutorStats
from branchline.runtime.server.app import create_app, make_runner
from branchline.runtime.server.context import make_context
from branchline.runtime.server.keys import Keys


class ServingLoop:
    """An event loop in a thread, on which any number of applications are served."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def serve(self, app: web.Application) -> tuple[web.AppRunner, str]:
        """Serve on a free port; the runner and the URL."""

        async def start() -> tuple[web.AppRunner, str]:
            runner = make_runner(app, drain_s=0.1)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            return runner, f"http://127.0.0.1:{runner.addresses[0][1]}"

        return asyncio.run_coroutine_threadsafe(start(), self._loop).result(10)

    def end(self, runner: web.AppRunner) -> None:
        """Serve no longer."""
        asyncio.run_coroutine_threadsafe(runner.cleanup(), self._loop).result(10)

    def close(self) -> None:
        """End the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


class ServedMock(bl.Endpoint):
    """Takes what `bl.Mock` takes; programs run on a server that has such a mock as its engine."""

    loop: ServingLoop
    made: list[ServedMock]

    def __init__(
        self,
        replies: Any = "",
        *,
        latency_s: float = 0.0,
        sampling_defaults: Mapping[str, Any] | None = None,
    ) -> None:
        self.mock = Mock(replies, latency_s=latency_s, sampling_defaults=sampling_defaults)
        port = self.mock._executor.port
        keys = Keys(admin=("key",))
        context = make_context(port, port.tokenizer, model_names=("mock",), keys=keys)  # type: ignore[arg-type]
        self._served = context.executor
        self._runner, url = self.loop.serve(create_app(context))
        self.made.append(self)
        super().__init__(url, "key", sampling_defaults=sampling_defaults)

    def stats(self) -> ExecutorStats:  # type: ignore[override]
        """The server's, where tests look for what programs left behind."""
        return self._served.stats()

    def tear_down(self) -> None:
        """End the client, the server and the mock."""
        self.close()
        self.loop.end(self._runner)
        self._served.close()
        self.mock.close()
