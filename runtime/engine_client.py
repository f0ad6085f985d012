"""Requests on an engine port, awaited: what an event loop needs of an engine.

Invariants: the port is only touched on its own loop thread; leaving `run` before the last output,
by cancellation too, ends the request; outputs that arrive in one burst wake the event loop once.
Knows no HTTP, no programs, and not where the engine runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import weakref
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import TypeVar

from branchline.runtime.core.messages import (
    EmbedRequest,
    EngineRequest,
    GenerateRequest,
    ScoreRequest,
)
from branchline.runtime.core.outputs import (
    EmbedResult,
    GenerateDelta,
    GenerateResult,
    Output,
    ScoreResult,
)
from branchline.runtime.core.prefixes import CachedPrefix
from branchline.runtime.core.protocols import EnginePort
from branchline.runtime.core.sequence import names_of
from branchline.runtime.errors import BackendError, BranchlineError, from_wire, wrap

Item = Output | BranchlineError
Deliver = Callable[[Item], None]
T = TypeVar("T")
Reading = TypeVar("Reading", ScoreResult, EmbedResult)


class EngineClient:
    """Runs requests on `port` from any thread and any event loop.

    Args:
        port: the engine's side.
        prefix: of the ids it gives to requests; clients of one port need different ones.
    """

    def __init__(self, port: EnginePort, prefix: str = "r") -> None:
        self.port = port
        self._prefix = prefix
        self._ids = itertools.count()
        self._mailboxes: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Mailbox] = (
            weakref.WeakKeyDictionary()
        )

    def new_id(self) -> str:
        """An id that no other request of this client has."""
        return f"{self._prefix}{next(self._ids)}"

    def start(self, request: EngineRequest, deliver: Deliver) -> None:
        """Submit `request`; outputs, or the error that refused it, go to `deliver`.

        `deliver` is called on the port's loop thread.
        """
        self.start_all([request], deliver)

    def start_all(self, requests: Sequence[EngineRequest], deliver: Deliver) -> None:
        """Submit many in one turn of the loop, so that its first step sees them all."""

        def submit() -> None:
            for request in requests:
                try:
                    self.port.submit(request, deliver)
                except BranchlineError as error:
                    deliver(error)
                except Exception as error:
                    deliver(wrap(error))

        self.port.call_soon(submit)

    def abort(self, request_id: str) -> None:
        """End a request and its siblings `id#i`; unknown ids are ignored."""
        with contextlib.suppress(BackendError):  # a closed engine has ended them already
            self.port.call_soon(lambda: self.port.abort(request_id))

    async def run(self, *requests: EngineRequest) -> AsyncGenerator[Output]:
        """Outputs of all requests as they come, up to the last one.

        Close it (`contextlib.aclosing`) where the loop over it may be left early.

        Raises:
            BranchlineError: the first refusal or failure; everything else is ended.
        """
        inbox = _Inbox()
        mailbox = self._mailbox()
        left = sum(len(names_of(request)) for request in requests)
        try:
            self.start_all(requests, lambda item: mailbox.put(inbox, item))
            while left:
                output = raise_if_failed(await inbox.get())
                left -= not isinstance(output, GenerateDelta)
                yield output
        finally:
            if left:
                for request in requests:
                    self.abort(request.id)

    async def results(self, request: GenerateRequest) -> list[GenerateResult]:
        """All outputs of a request, in the order of its n sequences."""
        found: dict[str, GenerateResult] = {}
        async for output in self.run(request):
            if isinstance(output, GenerateResult):
                found[output.request_id] = output
        return [found[name] for name in names_of(request)]

    async def score(self, *requests: ScoreRequest) -> list[ScoreResult]:
        """Log-probabilities of the choices of each request; the first failure ends all of them."""
        return await self._readings(requests, ScoreResult)

    async def embed(self, *requests: EmbedRequest) -> list[EmbedResult]:
        """The vectors of the requests, in their order; the first failure ends all of them."""
        return await self._readings(requests, EmbedResult)

    async def _readings(
        self, requests: Sequence[EngineRequest], kind: type[Reading]
    ) -> list[Reading]:
        found: dict[str, Reading] = {}
        async with contextlib.aclosing(self.run(*requests)) as outputs:
            async for output in outputs:
                assert isinstance(output, kind)
                found[output.request_id] = output
        return [found[request.id] for request in requests]

    async def flush(self) -> int:
        """Drop every cached prefix that nothing holds; returns the tokens freed."""
        return await self.ask(self.port.flush)

    async def prefixes(self) -> list[CachedPrefix]:
        """The cached prefixes used most, each behind its parent."""
        return await self.ask(self.port.prefixes)

    async def ask(self, call: Callable[[Callable[[T | BranchlineError], None]], None]) -> T:
        """Make a call that answers through a callback on the port's loop thread; its answer.

        Raises:
            BranchlineError: what the callback got instead of an answer, or the call raised.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def settle(value: T | None, error: Exception | None) -> None:
            if answer.done():
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(value)  # type: ignore[arg-type]  # T may itself be None

        def answered(value: T | BranchlineError) -> None:
            if isinstance(value, BranchlineError):
                _post(loop, lambda: settle(None, value))
            else:
                _post(loop, lambda: settle(value, None))

        def run() -> None:
            try:
                call(answered)
            except Exception as error:
                failure = wrap(error)
                _post(loop, lambda: settle(None, failure))

        self.port.call_soon(run)
        return await answer

    def _mailbox(self) -> _Mailbox:
        loop = asyncio.get_running_loop()
        mailbox = self._mailboxes.get(loop)
        if mailbox is None:
            mailbox = self._mailboxes[loop] = _Mailbox(loop)
        return mailbox


class _Inbox:
    """What one `run` has not taken yet; used on its event loop alone, by one reader."""

    __slots__ = ("_items", "_waiter")

    def __init__(self) -> None:
        self._items: deque[Item] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def put(self, item: Item) -> None:
        """Add one; wakes the reader."""
        self._items.append(item)
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def get(self) -> Item:
        """The next one."""
        while not self._items:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._items.popleft()


class _Mailbox:
    """Carries outputs from the port's threads to one event loop, waking it once for a burst."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)  # the loop is this mailbox's key
        self._items: deque[tuple[_Inbox, Item]] = deque()
        self._awake = False

    def put(self, inbox: _Inbox, item: Item) -> None:
        """Any thread."""
        self._items.append((inbox, item))
        # Looked at after appending; `_deliver` clears it before it takes: nothing is left behind.
        if not self._awake:
            self._awake = True
            loop = self._loop()
            if loop is None or not _post(loop, self._deliver):
                self._items.clear()  # nobody reads any more
                self._awake = False

    def _deliver(self) -> None:
        self._awake = False
        items = self._items
        while items:
            inbox, item = items.popleft()
            inbox.put(item)


def raise_if_failed(item: Item) -> Output:
    """The output; raises the error that it is or brings."""
    if isinstance(item, BranchlineError):
        raise item
    error = None if isinstance(item, GenerateDelta) else item.error
    if error is not None:
        raise from_wire(error)
    return item


def _post(loop: asyncio.AbstractEventLoop, fn: Callable[[], None]) -> bool:
    """Run `fn` on the event loop; False when it is closed."""
    try:
        loop.call_soon_threadsafe(fn)
    except RuntimeError:
        if loop.is_closed():
            return False
        raise
    return True
