"""A branchline server as a backend: programs run there, next to its cache.

One connection carries all programs of an endpoint; what crosses it is what is new. When it breaks,
the endpoint connects again and every program goes on where it was, as long as the server's lease
lasts; after that they end with a retryable error. A thread of its own owns the socket.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
import weakref
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from os import PathLike
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import aiohttp
import msgspec

from branchline.lang.backends.base import Backend
from branchline.lang.backends.link import Link, LinkStats, closed_error
from branchline.lang.backends.loop_thread import LoopThread
from branchline.lang.backends.refusals import error_of, words_of
from branchline.lang.backends.sent_adapter import adapter_form
from branchline.lang.errors import (
    BackendError,
    BranchlineError,
    Cancelled,
    InvalidRequest,
    UnsupportedFeature,
    from_wire,
    wrap,
)
from branchline.lang.sampling import DEFAULT_NAMES, check_names
from branchline.runtime.core.adapters import AdapterInfo
from branchline.runtime.programs import wire
from branchline.runtime.programs.wire import Hello, Refused, Welcome

if TYPE_CHECKING:
    from branchline.runtime.programs.protocol import OpenProgram, Session, Sink

logger = logging.getLogger(__name__)

PATH = "/v1/programs/live"
HEARTBEAT_S = 20.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 2.0
MAX_MESSAGE_BYTES = 256 * 1024 * 1024


class Endpoint(Backend):
    """Programs on a branchline server.

    Args:
        url: of the server, `http://host:port`.
        api_key: sent as a bearer token; None = none.
        timeout_s: seconds to reach the server, here and when `info` or `flush_cache` ask it.
        sampling_defaults: weakest layer of sampling options of programs that run here.

    Attributes:
        features: what the server can do.
        model: name of the server's model.
        server: name and version of the server.

    Raises:
        InvalidRequest: not a URL.
        BackendError: the server cannot be reached, or refuses; retryable where that may pass.
        UnsupportedFeature: the server speaks another version of the protocol.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        timeout_s: float = 10.0,
        sampling_defaults: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = "endpoint"
        self.url = _checked(url)
        self.sampling_defaults = dict(sampling_defaults or {})
        check_names(self.sampling_defaults, DEFAULT_NAMES, "sampling_defaults")
        self._thread = LoopThread("branchline-endpoint")
        self._line = _Line(self.url, api_key, timeout_s, self._thread)
        try:
            welcome = self._thread.run(self._line.begin())
        except BaseException:
            self._thread.stop()
            raise
        self.features = frozenset(welcome.features)
        self.model, self.server = welcome.model, welcome.server
        self._close = weakref.finalize(self, self._line.close, wait=False)
        self._close.atexit = False  # `LoopThread` ends in order then

    def open(self, program: OpenProgram, sink: Sink) -> Session:
        """Start a program; see `ProgramBackend`. BackendError when the endpoint is closed."""
        return self._line.open(program, sink)

    def flush_cache(self) -> None:
        """Have the server forget all cached prefixes that nothing uses; where it has keys, that
        needs its admin key.
        """
        self._ask("POST", "/flush_cache")

    def info(self) -> dict[str, Any]:
        """What runs on the server."""
        return {"backend": self.name, "url": self.url, **self._ask("GET", "/get_server_info")}

    # ---- adapters, as the engine has them; the server's admin key is needed to change them

    def adapters(self) -> list[AdapterInfo]:
        """Those that programs here may name."""
        found = self._ask("GET", "/get_server_info").get("loaded_adapters", [])
        return msgspec.convert(found, list[AdapterInfo])

    def load_adapter(
        self, name: str, source: str | PathLike[str], *, pin: bool = False
    ) -> AdapterInfo:
        """Send an adapter to the server; waits until programs can name it.

        Under a name that is taken it becomes the next version.

        Args:
            source: a folder of this machine, in PEFT's format, or the name of one that comes with
                the package.
            pin: keep it on the server's device.

        Raises:
            AdapterError: it cannot be read or loaded; nothing has changed.
        """
        with ExitStack() as stack:
            form = adapter_form(stack, name, source, pin=pin)
            return _loaded(self._ask("POST", "/load_lora_adapter", data=form))

    def unload_adapter(self, name: str, *, drain: bool = False) -> AdapterInfo:
        """Have the server forget an adapter.

        Args:
            drain: wait for the requests that use it, and take no more; else they are a reason to
                refuse.

        Raises:
            AdapterNotFound, AdapterInUse: it stays as it is.
        """
        body = {"lora_name": name, "drain": drain}
        return _loaded(self._ask("POST", "/unload_lora_adapter", json=body))

    def stats(self) -> LinkStats:
        """Counts of this side: bytes, frames, connections, programs."""
        return self._line.link.stats()

    def close(self) -> None:
        """End all programs and the connection. May be called again."""
        if self._close.detach() is not None:
            self._line.close()

    def _ask(self, method: str, path: str, **body: Any) -> dict[str, Any]:
        if not self._close.alive:
            raise closed_error()
        return self._thread.run(self._line.ask(method, path, **body))


class RuntimeEndpoint(Endpoint):
    """`Endpoint` under the name and with the arguments it has in SGLang's language.

    Args:
        verify: a certificate of one's own; none can be given.
        chat_template_name: has no effect: turns are by the template of the server's model.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        verify: str | None = None,
        chat_template_name: str | None = None,
        **options: Any,
    ) -> None:
        if verify is not None:
            raise UnsupportedFeature(
                "an endpoint takes no certificate of its own",
                value=verify,
                hint="Add it to the system's certificates, or set SSL_CERT_FILE.",
            )
        super().__init__(base_url, api_key, **options)

    def get_model_name(self) -> str:
        """`model`."""
        return self.model

    def get_server_info(self) -> dict[str, Any]:
        """`info`."""
        return self.info()


class _Line:
    """The socket's side of an endpoint; all coroutines run on its thread.

    Must not refer to the endpoint: an endpoint that nobody holds closes its line.
    """

    def __init__(self, url: str, api_key: str | None, timeout_s: float, thread: LoopThread) -> None:
        self.link = Link(self._wake)
        self._url = url
        self._headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._timeout_s = timeout_s
        self._thread = thread
        thread.on_stop = self._leave
        self._http: aiohttp.ClientSession | None = None
        self._work = asyncio.Event()
        self._waking = False
        self._lock = threading.RLock()
        self._lease_s = 0.0

    # ---- any thread

    def open(self, program: OpenProgram, sink: Sink) -> Session:
        return self.link.open(program, sink)

    def close(self, *, wait: bool = True) -> None:
        """Say goodbye to the server, end every program."""
        ended = Cancelled("the endpoint was closed", hint="Make a new Endpoint.")
        self.link.fail(ended, closed=closed_error())
        self._thread.stop(wait=wait)

    def _wake(self) -> None:
        with self._lock:
            if self._waking:
                return
            self._waking = True
        with suppress(BackendError, RuntimeError):  # stopped: there is nobody to wake
            self._thread.call_soon(self._woken)

    def _woken(self) -> None:
        self._waking = False
        self._work.set()

    # ---- the thread of the socket

    async def begin(self) -> Welcome:
        """Connect for the first time, and go on in a task."""
        self._http = aiohttp.ClientSession(headers=self._headers)
        try:
            socket, welcome = await self._connect()
        except BaseException:
            await self._http.close()
            raise
        self._task = asyncio.get_running_loop().create_task(self._keep(socket, welcome))
        return welcome

    async def ask(self, method: str, path: str, **body: Any) -> dict[str, Any]:
        """One HTTP request of its own; the object it answers, {} for another answer.

        Args:
            body: `json` or `data` of aiohttp; such a request may take its time.
        """
        assert self._http is not None
        total = None if body else self._timeout_s
        timeout = aiohttp.ClientTimeout(total=total, sock_connect=self._timeout_s)
        url = self._url + path
        try:
            async with self._http.request(method, url, timeout=timeout, **body) as answer:
                if answer.status != 200:
                    raise await _refusal(answer, self._url + path)
                if answer.content_type != "application/json":
                    return {}
                found = await answer.json()
                return found if isinstance(found, dict) else {}
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _unreachable(self._url, error) from error

    async def _connect(self) -> tuple[aiohttp.ClientWebSocketResponse, Welcome]:
        assert self._http is not None
        try:
            async with asyncio.timeout(self._timeout_s):
                socket = await self._http.ws_connect(
                    self._url + PATH, heartbeat=HEARTBEAT_S, max_msg_size=MAX_MESSAGE_BYTES
                )
                try:
                    await socket.send_bytes(wire.encode([Hello(wire.VERSION, _client_name())]))
                    return socket, _greeting(await socket.receive(), self._url)
                except BaseException:
                    await socket.close()
                    raise
        except aiohttp.WSServerHandshakeError as error:
            raise _handshake_error(error, self._url) from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _unreachable(self._url, error) from error

    async def _keep(self, socket: aiohttp.ClientWebSocketResponse, welcome: Welcome) -> None:
        """Hold a connection as long as there is an endpoint."""
        try:
            while True:
                self._lease_s = welcome.lease_s
                await self._converse(socket, welcome)
                if _is_cancelled():  # while `_converse` waited for its writer to end
                    return
                socket, welcome = await self._again()
        except Exception as error:
            self._broke(error)

    async def _converse(self, socket: aiohttp.ClientWebSocketResponse, welcome: Welcome) -> None:
        """Read and write until the connection ends."""
        self.link.connected(welcome)
        writer = asyncio.get_running_loop().create_task(self._write(socket))
        try:
            async for message in socket:
                if message.type is not aiohttp.WSMsgType.BINARY:
                    break
                self.link.receive(message.data)
        except wire.WireError as error:  # a new connection begins from what both are sure of
            logger.warning("connecting to %s again: %s", self._url, error)
        finally:
            self.link.disconnected()
            writer.cancel()
            with suppress(asyncio.CancelledError, ConnectionError, aiohttp.ClientError):
                await writer
            code = aiohttp.WSCloseCode.OK if _is_cancelled() else 4000
            with suppress(ConnectionError, aiohttp.ClientError):
                await socket.close(code=code)

    async def _write(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        try:
            while True:
                self._work.clear()
                while (frame := self.link.collect()) is not None:
                    await socket.send_bytes(frame)
                await self._work.wait()
        except (ConnectionError, aiohttp.ClientError):  # the reader sees it, too
            raise
        except Exception as error:  # it does not see this, and would wait on
            self._broke(error)

    def _broke(self, error: Exception) -> None:
        """A bug must not leave programs waiting: end them all, and take no others."""
        logger.error("the line to %s ended by an internal error", self._url, exc_info=error)
        self.link.fail(wrap(error), closed=wrap(error))

    async def _again(self) -> tuple[aiohttp.ClientWebSocketResponse, Welcome]:
        """A new connection, as soon as there is one and somebody wants it."""
        end = time.monotonic() + self._lease_s
        pause = FIRST_PAUSE_S
        while True:
            while not self.link.has_programs:
                self._work.clear()
                await self._work.wait()
                end = time.monotonic() + self._lease_s
            try:
                return await self._connect()
            except BranchlineError as error:
                if time.monotonic() + pause >= end or not error.retryable:
                    self.link.fail(error)
                    pause = FIRST_PAUSE_S
            await asyncio.sleep(pause * (1.0 + random.random()) / 2.0)
            pause = min(2.0 * pause, LONGEST_PAUSE_S)

    async def _leave(self) -> None:
        """Close the connection in order, so that the server frees everything at once."""
        task: asyncio.Task[None] | None = getattr(self, "_task", None)
        try:
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        finally:
            if self._http is not None:
                await self._http.close()


def _is_cancelled() -> bool:
    """Whether somebody wants the running task to end."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _checked(url: str) -> str:
    parts = urlsplit(url if isinstance(url, str) else "")
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise InvalidRequest(
            "not the URL of a server", value=url, hint="Write Endpoint('http://host:port')."
        )
    return url.rstrip("/")


def _client_name() -> str:
    from branchline import __version__

    return f"branchline {__version__}"


def _greeting(message: aiohttp.WSMessage, url: str) -> Welcome:
    if message.type is aiohttp.WSMsgType.BINARY:
        said = wire.decode_down(message.data)
        first = said[0] if said else None
        if isinstance(first, Refused):
            raise from_wire(first.error)
        if isinstance(first, Welcome):
            if first.version == wire.VERSION:
                return first
            raise UnsupportedFeature(
                f"the server speaks version {first.version} of the program protocol, this client "
                f"version {wire.VERSION}",
                value=first.server,
                hint="Install the same release of branchline on both sides.",
            )
    raise BackendError(
        "the server does not greet as a branchline server does",
        value=url,
        hint="Is it a branchline server of this release?",
    )


def _handshake_error(error: aiohttp.WSServerHandshakeError, url: str) -> BackendError:
    hints = {
        401: "Give the server's key: Endpoint(url, api_key=…).",
        403: "The key may not run programs here.",
        404: "No branchline server answers there, or a proxy does not pass WebSockets on.",
    }
    return BackendError(
        f"the server refuses programs: HTTP {error.status}",
        value=url,
        hint=hints.get(error.status, "See the server's log."),
        retryable=error.status == 429 or error.status >= 500,
    )


def _loaded(answer: dict[str, Any]) -> AdapterInfo:
    return msgspec.convert(answer.get("adapter"), AdapterInfo)


async def _refusal(answer: aiohttp.ClientResponse, url: str) -> BranchlineError:
    said = await answer.text(errors="replace")
    if (known := error_of(said)) is not None:
        return known
    text = words_of(said)
    return BackendError(
        f"the server answers HTTP {answer.status}: {text}",
        value=url,
        hint="Give a key that may do this: Endpoint(url, api_key=…)."
        if answer.status in (401, 403)
        else "See the server's log.",
        retryable=answer.status == 429 or answer.status >= 500,
    )


def _unreachable(url: str, error: BaseException) -> BackendError:
    why = str(error) or type(error).__name__
    if isinstance(error, aiohttp.ClientConnectorError):
        why = error.os_error.strerror or why  # its own text tells of TLS that nobody asked for
    return BackendError(
        f"the server cannot be reached: {why}",
        value=url,
        hint="Is it running there? Start one: branchline serve.",
        retryable=True,
    )
