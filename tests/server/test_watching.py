"""The watched port and watched programs: nothing is changed on the way, everything is counted."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from branchline.runtime.core.messages import GenerateRequest, ScoreRequest
from branchline.runtime.core.outputs import Output
from branchline.runtime.core.sampling_params import SamplingParams
from branchline.runtime.errors import InvalidRequest
from branchline.runtime.observability.metrics import Metrics
from branchline.runtime.observability.tracing import Tracer
from branchline.runtime.programs.executor import Executor
from branchline.runtime.programs.protocol import (
    AppendText,
    Close,
    Closed,
    Event,
    Generate,
    OpenProgram,
)
from branchline.runtime.server.metered_port import MeteredPort
from branchline.runtime.server.observed_programs import ObservedPrograms
from tests.observability.test_metrics import samples
from tests.support.scripted_port import ScriptedPort


def generate(name: str, prompt: list[int], n: int = 1) -> GenerateRequest:
    return GenerateRequest(id=name, prompt_ids=prompt, sampling=SamplingParams(n=n))


def test_outputs_pass_unchanged_and_each_final_one_is_counted_once() -> None:
    inner = ScriptedPort(lambda request: "one two three")
    metrics = Metrics("tiny", inner.info)
    port = MeteredPort(inner, metrics)
    plain: list[Output] = []
    watched: list[Output] = []
    inner.submit(generate("a", [1, 2, 3, 4], n=2), plain.append)
    inner.run()
    port.submit(generate("a", [1, 2, 3, 4], n=2), watched.append)
    inner.delta("a", "one")
    inner.delta("a", " two")
    inner.finish("a")
    assert watched[2:] == plain
    found = samples(metrics)
    assert found["num_requests_total"] == {("base", "stop"): 2.0}
    assert found["prompt_tokens_total"] == {("base",): 8.0}
    assert found["cached_tokens_total"] == {("base",): 4.0}
    tokens = sum(len(item.token_ids) for item in plain if hasattr(item, "token_ids"))
    assert found["generation_tokens_total"] == {("base",): float(tokens)}
    assert found["e2e_request_latency_seconds_count"] == {("base",): 2.0}
    assert found["inter_token_latency_seconds_count"] == {("base",): 1.0}


def test_a_failed_request_counts_as_one_but_has_no_times() -> None:
    inner = ScriptedPort(lambda request: InvalidRequest("no"))
    metrics = Metrics("tiny", inner.info)
    MeteredPort(inner, metrics).submit(generate("a", [1]), lambda output: None)
    inner.run()
    found = samples(metrics)
    assert found["num_requests_total"] == {("base", "error"): 1.0}
    assert "e2e_request_latency_seconds_count" not in found


def test_a_refused_request_raises_as_before_and_is_counted_by_its_error() -> None:
    inner = ScriptedPort(max_context=2)
    metrics = Metrics("tiny", inner.info)
    with pytest.raises(InvalidRequest):
        MeteredPort(inner, metrics).submit(generate("a", [1, 2, 3]), lambda output: None)
    assert samples(metrics)["num_refused_requests_total"] == {("InvalidRequest",): 1.0}


def test_scores_are_requests_too() -> None:
    inner = ScriptedPort()
    metrics = Metrics("tiny", inner.info)
    request = ScoreRequest(id="s", prompt_ids=[1, 2], choices=[[3]])
    MeteredPort(inner, metrics).submit(request, lambda output: None)
    inner.run()
    assert samples(metrics)["num_requests_total"] == {("base", "stop"): 1.0}


def test_programs_are_counted_timed_and_traced_with_their_requests_below() -> None:
    inner = ScriptedPort()
    metrics = Metrics("tiny", inner.info)
    exporter = InMemorySpanExporter()
    tracer = Tracer("http://127.0.0.1:4318", exporter=exporter)
    programs = ObservedPrograms(Executor(MeteredPort(inner, metrics, tracer)), metrics, tracer)
    events: list[Event] = []
    session = programs.open(OpenProgram(program_id="p", name="tip"), events.extend)
    assert samples(metrics)["programs_running"] == {(): 1.0}
    session.send(
        [
            AppendText(0, 1, ("hello",)),
            Generate(lane=0, node=2, name="x", sampling=SamplingParams()),
            Close(),
        ]
    )
    inner.run()
    left = programs.open(OpenProgram(program_id="q"), events.extend)
    left.abandon()
    left.abandon()
    tracer.close()
    assert [event for event in events if isinstance(event, Closed)]
    found = samples(metrics)
    assert found["programs_running"] == {(): 0.0}
    assert found["num_programs_total"] == {("finished",): 1.0, ("abandoned",): 1.0}
    assert found["program_latency_seconds_count"] == {(): 2.0}
    spans = {span.name: span for span in exporter.get_finished_spans()}
    parent, program = spans["generate"].parent, spans["program tip"].context
    assert parent is not None and program is not None and parent.span_id == program.span_id


def test_a_program_that_cannot_be_opened_is_counted_as_refused() -> None:
    inner = ScriptedPort()
    metrics = Metrics("tiny", inner.info)
    executor = Executor(inner)
    executor.close()
    with pytest.raises(Exception, match="closed"):
        ObservedPrograms(executor, metrics).open(OpenProgram(program_id="p"), lambda events: None)
    assert samples(metrics)["num_programs_total"] == {("refused",): 1.0}
    assert samples(metrics)["programs_running"] == {(): 0.0}
