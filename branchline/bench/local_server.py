"""A server of its own process, for benchmarks: `python -m branchline.bench.local_server SETTINGS`.

SETTINGS is a JSON object of engine settings. Prints the server's URL and serves on a free port of
loopback until its standard input ends, which also happens when its parent is gone.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def local_server(settings: dict[str, Any]) -> Iterator[str]:
    """The URL of a server in a process of its own; it ends with the block."""
    command = [sys.executable, "-m", "branchline.bench.local_server", json.dumps(settings)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        url = process.stdout.readline().strip()
        if not url:
            raise RuntimeError(f"the server did not start: exit status {process.wait()}")
        try:
            yield url
        finally:
            process.stdin.close()


async def _serve(settings: dict[str, Any]) -> None:
    from aiohttp import web

    from branchline.runtime.engine import Engine
    from branchline.runtime.server.app import create_app, make_runner
    from branchline.runtime.server.context import make_context
    from branchline.runtime.server.keys import Keys

    with Engine(**settings) as engine:
        context = make_context(engine.core, engine.tokenizer, keys=Keys(admin=(ADMIN_KEY,)))
        runner = make_runner(create_app(context), drain_s=1.0)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        await runner.cleanup()
        context.executor.close()


ADMIN_KEY = "bench"
"""Opens `flush_cache` between runs; the server listens on loopback alone."""

if __name__ == "__main__":
    asyncio.run(_serve(json.loads(sys.argv[1])))
