"""The gRPC server: the engine's calls, reflection, and the standard health service.

Invariants: as over HTTP, a call that is cancelled ends its request, a failure has one status and
the error's own text, keys are asked for the same way (metadata `authorization: Bearer KEY` or
`x-api-key`). It listens on loopback unless told otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from branchline.runtime.core.messages import EmbedRequest, GenerateRequest, ScoreRequest
from branchline.runtime.core.outputs import GenerateDelta, GenerateResult
from branchline.runtime.errors import (
    AdapterError,
    AdapterNotFound,
    BranchlineError,
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    QueueFull,
    UnsupportedFeature,
    wrap,
)
from branchline.runtime.server.context import ServerContext
from branchline.runtime.server.errors import Refused, failure_of, log_failure
from branchline.runtime.server.grpc_api import branchline_pb2 as pb
from branchline.runtime.server.grpc_api import convert
from branchline.runtime.server.keys import Access, Caller

SERVICE: str = pb.DESCRIPTOR.services_by_name["Engine"].full_name
HEALTH_PERIOD_S = 0.5
MAX_REQUEST_ID = 128

Call = grpc.aio.ServicerContext[Any, Any]
M = TypeVar("M", pb.GenerateRequest, pb.ScoreRequest, pb.EmbedRequest)
R = TypeVar("R", GenerateRequest, ScoreRequest, EmbedRequest)


class EngineService:
    """Answers the calls of `branchline.proto`."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._requests = convert.Requests(context)

    async def generate(
        self, message: pb.GenerateRequest, call: Call
    ) -> AsyncIterator[pb.GenerateResponse]:
        """`Generate`."""
        async with (
            self._running(message, call, self._requests.generate) as (request, name),
            contextlib.aclosing(self._context.client.run(request)) as outputs,
        ):
            async for output in outputs:
                _, _, index = output.request_id.partition("#")
                if isinstance(output, GenerateDelta):
                    yield convert.delta_response(output, int(index or 0), name)
                elif isinstance(output, GenerateResult):
                    yield convert.result_response(output, int(index or 0), name)

    async def score(self, message: pb.ScoreRequest, call: Call) -> pb.ScoreResponse:
        """`Score`."""
        async with self._running(message, call, self._requests.score) as (request, name):
            [result] = await self._context.client.score(request)
            return convert.score_response(result, name)

    async def embed(self, message: pb.EmbedRequest, call: Call) -> pb.EmbedResponse:
        """`Embed`."""
        async with self._running(message, call, self._requests.embed) as (request, name):
            [result] = await self._context.client.embed(request)
            return convert.embed_response(result, name)

    async def abort(self, message: pb.AbortRequest, call: Call) -> pb.AbortResponse:
        """`Abort`: a caller ends requests of its own key alone."""
        async with _failures(call):
            for engine_id in self._context.running.ids(message.request_id, self._caller(call)):
                self._context.client.abort(engine_id)
            return pb.AbortResponse()

    async def info(self, message: pb.InfoRequest, call: Call) -> pb.InfoResponse:
        """`Info`."""
        async with _failures(call):
            self._caller(call)
            return pb.InfoResponse(json=json.dumps(self._context.port.info(), default=str))

    def _caller(self, call: Call) -> Caller:
        headers = {str(key): str(value) for key, value in call.invocation_metadata() or ()}
        headers["Authorization"] = headers.pop("authorization", "")
        return self._context.keys.identify(headers, Access.NORMAL)

    @contextlib.asynccontextmanager
    async def _running(
        self,
        message: M,
        call: Call,
        make: Callable[[M, Caller, float | None], Awaitable[R]],
    ) -> AsyncIterator[tuple[R, str]]:
        """The engine's request, and the client's name for it, by which it can be ended."""
        async with _failures(call):
            caller = self._caller(call)
            name = message.request_id or uuid.uuid4().hex
            if len(name) > MAX_REQUEST_ID:
                raise InvalidRequest(
                    "the request id is too long", value=len(name), hint=f"At most {MAX_REQUEST_ID}."
                )
            request = await make(message, caller, call.time_remaining())
            with self._context.running.named(name, caller, [request.id]):
                yield request, name


class GrpcServer:
    """A gRPC server over a context.

    Args:
        address: `host:port`; port 0 = any free one, told by `port` once it has started.
    """

    def __init__(self, context: ServerContext, address: str) -> None:
        self._context = context
        self._address = address
        self._server = grpc.aio.server(
            options=[("grpc.max_receive_message_length", context.limits.max_body_bytes)],
            maximum_concurrent_rpcs=context.limits.max_open_requests,
        )
        self._health = health.aio.HealthServicer()
        self._watcher: asyncio.Task[None] | None = None
        self.port = 0

    async def start(self) -> None:
        """Listen.

        Raises:
            InvalidRequest: the address cannot be listened on.
        """
        server = self._server
        server.add_generic_rpc_handlers((_handlers(EngineService(self._context)),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        try:
            self.port = server.add_insecure_port(self._address)
        except RuntimeError as error:
            raise InvalidRequest(
                "gRPC cannot listen there", value=self._address, hint="Is the port in use?"
            ) from error
        await self._tell()
        await server.start()
        self._watcher = asyncio.create_task(self._watch(), name="branchline-grpc-health")

    async def stop(self, grace_s: float) -> None:
        """See `CallServer.stop`."""
        if self._watcher is not None:
            self._watcher.cancel()
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(HEALTH_PERIOD_S)
            await self._tell()

    async def _tell(self) -> None:
        state = "NOT_SERVING" if self._context.health() else "SERVING"
        status = health_pb2.HealthCheckResponse.ServingStatus.Value(state)
        for service in ("", SERVICE):
            await self._health.set(service, status)


def _handlers(service: EngineService) -> grpc.GenericRpcHandler:
    unary: dict[str, tuple[Callable[..., Awaitable[Any]], Any, Any]] = {
        "Score": (service.score, pb.ScoreRequest, pb.ScoreResponse),
        "Embed": (service.embed, pb.EmbedRequest, pb.EmbedResponse),
        "Abort": (service.abort, pb.AbortRequest, pb.AbortResponse),
        "Info": (service.info, pb.InfoRequest, pb.InfoResponse),
    }
    methods = {
        name: grpc.unary_unary_rpc_method_handler(
            method,
            request_deserializer=asked.FromString,
            response_serializer=answered.SerializeToString,
        )
        for name, (method, asked, answered) in unary.items()
    }
    methods["Generate"] = grpc.unary_stream_rpc_method_handler(
        service.generate,
        request_deserializer=pb.GenerateRequest.FromString,
        response_serializer=pb.GenerateResponse.SerializeToString,
    )
    return grpc.method_handlers_generic_handler(SERVICE, methods)


@contextlib.asynccontextmanager
async def _failures(call: Call) -> AsyncIterator[None]:
    """Turn errors inside into the call's status."""
    try:
        yield
    except (asyncio.CancelledError, grpc.aio.AbortError, GeneratorExit):
        raise
    except Exception as error:
        known = error if isinstance(error, BranchlineError) else wrap(error)
        failure = failure_of(error)
        log_failure(failure, "grpc", error)
        await call.abort(_status(known), failure.message)


def _status(error: BranchlineError) -> grpc.StatusCode:
    if isinstance(error, Refused):
        return _REFUSALS.get(error.status, grpc.StatusCode.INVALID_ARGUMENT)
    for kind, status in _STATUSES:
        if isinstance(error, kind):
            return status
    return grpc.StatusCode.UNAVAILABLE if error.retryable else grpc.StatusCode.INTERNAL


_REFUSALS = {
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
}
_STATUSES: tuple[tuple[type[BranchlineError], grpc.StatusCode], ...] = (
    (QueueFull, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (UnsupportedFeature, grpc.StatusCode.UNIMPLEMENTED),
    (AdapterNotFound, grpc.StatusCode.NOT_FOUND),
    (AdapterError, grpc.StatusCode.FAILED_PRECONDITION),
    (InvalidRequest, grpc.StatusCode.INVALID_ARGUMENT),
    (DeadlineExceeded, grpc.StatusCode.DEADLINE_EXCEEDED),
    (Cancelled, grpc.StatusCode.CANCELLED),
)
