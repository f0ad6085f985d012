"""Programs over HTTP: a graph posted as JSON, and any number of live ones over one WebSocket.

Invariants: the event loop that serves is the only thread that touches the host of programs; the
graph of a client that leaves ends at once, the live programs of one whose connection broke end
within the lease. What live connections say is `runtime.programs.wire`; this module only moves it.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, Literal

import msgspec
from aiohttp import WSCloseCode, WSMsgType, web

from branchline.runtime.errors import BackendError, DeadlineExceeded, from_wire
from branchline.runtime.programs import trace_view
from branchline.runtime.programs.graph import GraphBuilder, RequestGraph
from branchline.runtime.programs.graph_values import Outcome
from branchline.runtime.programs.protocol import (
    ENGINE_FEATURES,
    Close,
    Closed,
    Event,
    LaneContent,
    NodeFailed,
    Op,
    OpenProgram,
    ReadLane,
    SetVariable,
    TextDelta,
    ValueReady,
)
from branchline.runtime.programs.remote import (
    Connection,
    ProgramHost,
    ServerFacts,
    max_item_bytes,
)
from branchline.runtime.programs.remote_program import Guard
from branchline.runtime.programs.wire import WireError
from branchline.runtime.server.context import ServerContext
from branchline.runtime.server.errors import native_body
from branchline.runtime.server.patient_session import open_patiently
from branchline.runtime.server.wire import CALLER, event_stream, json_response, read_body

HEARTBEAT_S = 20.0
TICK_S = 0.5
SERVER = "branchline"


class PostedProgram(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST /v1/programs`.

    Attributes:
        graph: a request graph in the form of `RequestGraph.to_json`, without dynamic edges.
        arguments: of the program; each becomes text.
        stream: answer with server-sent events.
        deadline_s: seconds for the whole program.
        trace: the result holds what each node did: the graph with values and times ("graph"), or a
            page that shows it ("html").
    """

    graph: msgspec.Raw
    arguments: dict[str, str | int | float | bool] = {}
    stream: bool = False
    deadline_s: float | None = None
    priority: int = 0
    trace: Literal["graph", "html"] | None = None


BODIES: dict[str, type[Any]] = {"/v1/programs": PostedProgram}


def routes(context: ServerContext) -> list[web.RouteDef]:
    """Routes of this module."""
    posted, live = _Posted(context), _Live(context)
    context.on_shutdown.append(live.drain)
    return [
        web.post("/v1/programs", posted.handle),
        web.get("/v1/programs/live", live.handle),
    ]


# ---- live programs


class _Live:
    """`GET /v1/programs/live`."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._limits = context.program_limits
        self._host: ProgramHost | None = None
        self._ticker: asyncio.Task[None] | None = None
        self._lines: set[_Line] = set()

    async def handle(self, request: web.Request) -> web.WebSocketResponse:
        """One connection, up to its end."""
        caller = request[CALLER]
        socket = web.WebSocketResponse(
            heartbeat=HEARTBEAT_S, max_msg_size=max_item_bytes(self._limits) + (1 << 20)
        )
        await socket.prepare(request)
        host = self._running_host()
        line = _Line(socket)
        line.connection = host.connect(caller.tenant, caller.namespace(), line.wake)
        self._lines.add(line)
        try:
            await line.serve()
        finally:
            self._lines.discard(line)
            self._tick_on(host)
        return socket

    async def drain(self) -> None:
        """Serving ends: nothing new begins, connections close when their programs are over."""
        if self._host is not None:
            self._host.drain()
        for line in list(self._lines):
            line.drain()
        if self._ticker is not None:
            self._ticker.cancel()

    def _running_host(self) -> ProgramHost:
        """The host, made on the event loop that serves."""
        if self._host is None:
            context = self._context
            self._host = ProgramHost(
                partial(open_patiently, context.programs.open),
                ServerFacts(
                    server=_server_name(),
                    model=context.model_name,
                    features=tuple(sorted(ENGINE_FEATURES)),
                ),
                limits=self._limits,
                clock=time.monotonic,
                call_soon=_caller(asyncio.get_running_loop()),
            )
        self._tick_on(self._host)
        return self._host

    def _tick_on(self, host: ProgramHost) -> None:
        """See to it that time passes for programs as long as there are any."""
        if self._ticker is None or self._ticker.done():
            self._ticker = asyncio.get_running_loop().create_task(self._tick(host))

    async def _tick(self, host: ProgramHost) -> None:
        while self._lines or len(host):
            await asyncio.sleep(TICK_S)
            host.tick()


class _Line:
    """One WebSocket and the connection it carries."""

    connection: Connection

    def __init__(self, socket: web.WebSocketResponse) -> None:
        self._socket = socket
        self._work = asyncio.Event()
        self._draining = False

    def wake(self) -> None:
        """There may be something to send."""
        self._work.set()

    def drain(self) -> None:
        """Close when no program runs any more."""
        self._draining = True
        self._work.set()

    async def serve(self) -> None:
        """Read and write until the connection ends."""
        writer = asyncio.get_running_loop().create_task(self._write())
        clean = False
        try:
            clean = await self._read()
        finally:
            self.connection.drop(clean=clean)
            writer.cancel()
            with suppress(asyncio.CancelledError, ConnectionError):
                await writer

    async def _read(self) -> bool:
        """True when the client has closed the connection in order."""
        while True:
            message = await self._socket.receive()
            if message.type is WSMsgType.BINARY:
                try:
                    self.connection.receive(message.data)
                except WireError as error:
                    note = str(error).encode()[:120]
                    await self._socket.close(code=WSCloseCode.PROTOCOL_ERROR, message=note)
                    return False
            elif message.type is WSMsgType.TEXT:
                note = b"frames of programs are binary"
                await self._socket.close(code=WSCloseCode.UNSUPPORTED_DATA, message=note)
                return False
            else:
                return message.type is WSMsgType.CLOSE and message.data == WSCloseCode.OK

    async def _write(self) -> None:
        connection = self.connection
        while True:
            self._work.clear()
            while (frame := connection.collect()) is not None:
                await self._socket.send_bytes(frame)
            if connection.refused:
                await self._socket.close(code=WSCloseCode.POLICY_VIOLATION)
            elif self._draining and not connection.running:
                await self._socket.close(code=WSCloseCode.GOING_AWAY)
            await self._work.wait()


def _caller(loop: asyncio.AbstractEventLoop) -> Callable[[Callable[[], None]], None]:
    """Runs functions on `loop`; for sinks, which must not raise."""

    def call_soon(fn: Callable[[], None]) -> None:
        try:
            loop.call_soon_threadsafe(fn)
        except RuntimeError:
            if not loop.is_closed():
                raise

    return call_soon


def _server_name() -> str:
    from importlib.metadata import version

    return f"{SERVER} {version('branchline')}"


# ---- posted graphs


class _Posted:
    """`POST /v1/programs`."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._limits = context.program_limits
        self._numbers = itertools.count()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Run a graph; its result, or its events and then its result."""
        context = self._context
        posted = await read_body(request, PostedProgram, context.limits)
        graph = RequestGraph.from_json(bytes(posted.graph))
        ops = self._ops(graph, posted.arguments)
        opened = OpenProgram(
            program_id=f"posted-{next(self._numbers)}",
            name=graph.name,
            deadline_s=posted.deadline_s,
            priority=posted.priority,
            namespace=request[CALLER].namespace(),
        )
        run = _GraphRun(graph, opened, context.model_name, _recorder(graph, ops))
        async with self._running(run, ops):
            if not posted.stream:
                async for _ in run.events():
                    pass
                return json_response(run.result(posted.trace))
            async with event_stream(request, context.limits, native_body, "error") as out:
                async for event in run.events():
                    if isinstance(event, (TextDelta, ValueReady, NodeFailed)):
                        await out.send(event)
                await out.send({"type": "result", **run.result(posted.trace)})
            return out.response

    def _ops(self, graph: RequestGraph, arguments: dict[str, Any]) -> list[Op]:
        """The graph's ops, checked against the limits, with a read of its text before the end."""
        ops = graph.ops(arguments)
        guard = Guard(self._limits)
        for op in ops:
            guard.check(op)
        last = max((node.id for node in graph.nodes), default=0)
        return [*ops[:-1], ReadLane(0, last + 1), Close()]

    @asynccontextmanager
    async def _running(self, run: _GraphRun, ops: list[Op]) -> AsyncIterator[None]:
        """Run the ops; leaving early, because the client has left too, ends the program."""
        session = open_patiently(self._context.programs.open, run.opened, run.sink)
        try:
            session.send(ops)
            async with asyncio.timeout(self._limits.program_total_s):
                yield
        except TimeoutError as error:
            raise DeadlineExceeded(
                "the program ran longer than this server allows",
                value=f"{self._limits.program_total_s} s",
                hint="Split the program, or start the server with --limit program_total_s=….",
            ) from error
        finally:
            with suppress(BackendError):  # an engine that is closed has forgotten it already
                session.abandon()


class _GraphRun:
    """Events of one posted graph, and what they come to."""

    def __init__(
        self, graph: RequestGraph, opened: OpenProgram, model: str, recorder: GraphBuilder
    ) -> None:
        self.opened = opened
        self._graph = graph
        self._model = model
        self._outcome = Outcome()
        self._recorder = recorder
        self._text = ""
        self._inbox: asyncio.Queue[list[Event]] = asyncio.Queue()
        self._call_soon = _caller(asyncio.get_running_loop())

    def sink(self, events: list[Event]) -> None:
        """Any thread."""
        self._call_soon(lambda: self._inbox.put_nowait(events))

    async def events(self) -> AsyncIterator[Event]:
        """All events up to the end; raises the program's error."""
        while True:
            for event in await self._inbox.get():
                if isinstance(event, (ValueReady, Closed)):
                    for stats in event.stats:
                        self._recorder.stats(stats)
                if isinstance(event, (ValueReady, NodeFailed)):
                    self._outcome.take(event)
                    _record(self._recorder, event)
                elif isinstance(event, LaneContent):
                    self._text = event.text
                yield event
                if isinstance(event, Closed):
                    if event.error is not None:
                        raise from_wire(event.error)
                    return

    def result(self, trace: Literal["graph", "html"] | None) -> dict[str, Any]:
        """The answer."""
        outcome = self._outcome
        traced: dict[str, Any] = {}
        if trace is not None:
            graph = self._recorder.build()
            traced["trace"] = graph if trace == "graph" else trace_view.render(graph)
        return {
            "id": self.opened.program_id,
            "object": "program",
            "name": self._graph.name,
            "model": self._model,
            "variables": outcome.variables([node.op for node in self._graph.nodes]),
            "text": self._text,
            "usage": outcome.usage(),
            "nodes": list(outcome.values.values()),
            **traced,
        }


def _recorder(graph: RequestGraph, ops: list[Op]) -> GraphBuilder:
    """A graph of what runs, arguments as the texts they are."""
    builder = GraphBuilder(graph.name, graph.args)
    for op in ops:
        builder.add(op)
        if isinstance(op, SetVariable):
            builder.values(op.node, op.text)
    return builder


def _record(builder: GraphBuilder, event: ValueReady | NodeFailed) -> None:
    if isinstance(event, ValueReady):
        builder.values(event.node, event.texts)
    else:
        builder.error(event.node, str(event.error.get("message", "")))
