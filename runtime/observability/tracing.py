"""OpenTelemetry spans of programs and requests, sent by OTLP over HTTP. Off unless asked for.

A program's span opens with it and closes with it; a request's is made when it ends, with the times
it had, below its program's span. Invariant: tracing never delays and never fails what it watches;
spans wait in a bounded queue and are dropped when nobody takes them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from branchline.runtime.errors import InvalidRequest

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

Attributes = Mapping[str, str | int | float]


class Tracer:
    """Spans of one server.

    Args:
        endpoint: where spans go, as `http://host:4318`.
        exporter: takes the spans instead, for tests.

    Raises:
        InvalidRequest: the packages are not installed.
    """

    def __init__(self, endpoint: str, *, exporter: SpanExporter | None = None) -> None:
        try:
            from opentelemetry import trace
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ModuleNotFoundError as error:
            raise InvalidRequest(
                "traces need packages that are not installed",
                value=error.name,
                hint="Install them: pip install 'branchline[tracing]'.",
            ) from error
        self._trace = trace
        self._provider = TracerProvider(resource=Resource.create({"service.name": "branchline"}))
        sink = exporter or OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
        self._provider.add_span_processor(BatchSpanProcessor(sink))
        self._tracer = self._provider.get_tracer("branchline")
        self._programs: dict[str, Span] = {}

    def program_opened(self, program_id: str, name: str) -> None:
        """Open a program's span."""
        self._programs[program_id] = self._tracer.start_span(
            f"program {name}" if name else "program",
            attributes={"branchline.program_id": program_id},
        )

    def program_closed(self, program_id: str, error: str) -> None:
        """Close a program's span. error: what ended it; "" = nothing did."""
        span = self._programs.pop(program_id, None)
        if span is None:
            return
        if error:
            span.set_status(self._trace.Status(self._trace.StatusCode.ERROR, error))
        span.end()

    def request(
        self, request_id: str, program_id: str, started_ns: int, attributes: Attributes
    ) -> None:
        """A request has ended just now. started_ns: when it began, nanoseconds since the epoch."""
        program = self._programs.get(program_id)
        context = None if program is None else self._trace.set_span_in_context(program)
        span = self._tracer.start_span(
            "generate",
            context=context,
            start_time=started_ns,
            attributes={"branchline.request_id": request_id, **attributes},
        )
        span.end(time.time_ns())

    def close(self) -> None:
        """Send what waits."""
        self._provider.shutdown()
