"""Spans of programs and requests, as an exporter gets them."""

from __future__ import annotations

import time

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from branchline.runtime.observability.tracing import Tracer


def spans(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


def test_a_request_stands_below_its_program_with_its_own_times() -> None:
    exporter = InMemorySpanExporter()
    tracer = Tracer("http://127.0.0.1:4318", exporter=exporter)
    began = time.time_ns() - 1_000_000
    tracer.program_opened("p1", "tip")
    tracer.request("p1/0/1", "p1", began, {"branchline.cached_tokens": 3})
    tracer.program_closed("p1", "")
    tracer.program_closed("p1", "twice")
    tracer.close()
    found = spans(exporter)
    program, request = found["program tip"], found["generate"]
    assert request.parent is not None and program.context is not None
    assert request.parent.span_id == program.context.span_id
    assert request.start_time == began and (request.end_time or 0) > began
    assert (request.attributes or {})["branchline.cached_tokens"] == 3
    assert program.status.status_code is StatusCode.UNSET


def test_a_failed_program_has_its_error_and_a_lone_request_no_parent() -> None:
    exporter = InMemorySpanExporter()
    tracer = Tracer("http://127.0.0.1:4318", exporter=exporter)
    tracer.program_opened("p2", "")
    tracer.program_closed("p2", "DeadlineExceeded")
    tracer.request("r1", "", time.time_ns(), {})
    tracer.close()
    found = spans(exporter)
    assert found["program"].status.status_code is StatusCode.ERROR
    assert found["program"].status.description == "DeadlineExceeded"
    assert found["generate"].parent is None
