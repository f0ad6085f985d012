"""A TCP proxy on loopback that adds delay to every byte, as a network between two machines does.

Bytes keep their order and none are lost, unless `cut` is called: then every connection breaks
without a goodbye. Knows nothing of what passes.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from urllib.parse import urlsplit

CHUNK = 64 * 1024

# How long connections may take to see that they were broken, seconds, before they are cancelled.
GRACE_S = 2.0


class DelayProxy:
    """Stands before the server at `url`; its own address is `self.url`.

    Args:
        delay_s: added to each direction, seconds.

    Attributes:
        connections: accepted so far.
        passed_bytes: in both directions.
    """

    def __init__(self, url: str, delay_s: float = 0.0) -> None:
        parts = urlsplit(url)
        self._target = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._delay_s = delay_s
        self._open: set[asyncio.StreamWriter] = set()
        self.connections = 0
        self.passed_bytes = 0
        self.refusing = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="branchline-proxy", daemon=True
        )
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def __enter__(self) -> DelayProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def cut(self, *, refuse: bool = False) -> None:
        """Break every connection; with `refuse`, break new ones as well until further notice."""
        self.refusing = refuse
        asyncio.run_coroutine_threadsafe(self._cut(), self._loop).result(10)

    def close(self) -> None:
        """End everything and wait for it."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._accept, "127.0.0.1", 0)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self.refusing:
            writer.transport.abort()
            return
        try:
            there, back = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        self._open |= {writer, back}
        try:
            # Cancelled when the proxy ends: the server of streams would report it as a failure.
            with suppress(asyncio.CancelledError):
                await asyncio.gather(self._pass(reader, back), self._pass(there, writer))
        finally:
            self._open -= {writer, back}
            writer.transport.abort()
            back.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Move bytes one way; each chunk leaves `delay_s` after it came."""
        line: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=256)
        clock = asyncio.get_running_loop().time

        async def leave() -> None:
            while True:
                moment, data = await line.get()
                if (wait := moment - clock()) > 0:
                    await asyncio.sleep(wait)
                if not data:
                    writer.write_eof()
                    return
                writer.write(data)
                await writer.drain()

        leaving = asyncio.create_task(leave())
        try:
            with suppress(ConnectionError, OSError):
                while data := await reader.read(CHUNK):
                    self.passed_bytes += len(data)
                    await line.put((clock() + self._delay_s, data))
                await line.put((clock() + self._delay_s, b""))
                await leaving
        finally:
            leaving.cancel()
            with suppress(asyncio.CancelledError, ConnectionError, OSError):
                await leaving

    async def _cut(self) -> None:
        for writer in list(self._open):
            writer.transport.abort()

    async def _end(self) -> None:
        """Let every connection see its end: one cancelled before it began would stay open."""
        self.refusing = True
        me = asyncio.current_task()
        deadline = self._loop.time() + GRACE_S
        while others := [task for task in asyncio.all_tasks() if task is not me]:
            await self._cut()
            if self._loop.time() > deadline:
                for task in others:
                    task.cancel()
            await asyncio.wait(others, timeout=0.02)
        self._server.close()  # only now: it forgets a connection that is just being accepted
        await asyncio.sleep(0)  # what was aborted last is closed in the loop's next turn
