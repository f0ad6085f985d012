"""An engine port that is watched: metrics of every request, a span where traces are wanted.

Invariant: it adds nothing and takes nothing away; what is submitted and what comes back are the
inner port's. Knows no routes.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from branchline.runtime.core.messages import EngineRequest
from branchline.runtime.core.outputs import GenerateDelta, Output, RequestMeta
from branchline.runtime.core.protocols import EnginePort
from branchline.runtime.errors import BranchlineError
from branchline.runtime.observability.metrics import Metrics
from branchline.runtime.observability.tracing import Tracer
from branchline.runtime.server.port_around import PortAround

BASE = "base"
"""Value of the label `adapter` where there is none."""


class MeteredPort(PortAround):
    """A port whose requests are counted and timed.

    Args:
        port: does the work.
        metrics: fed as outputs arrive.
        tracer: gets a span for each request; None = no traces.
    """

    def __init__(self, port: EnginePort, metrics: Metrics, tracer: Tracer | None = None) -> None:
        super().__init__(port)
        self._metrics = metrics
        self._tracer = tracer

    def submit(self, request: EngineRequest, on_output: Callable[[Output], None]) -> None:
        """See `EnginePort.submit`."""
        watch = _Watch(request, on_output, self._metrics, self._tracer)
        try:
            self.port.submit(request, watch.take)
        except BranchlineError as error:
            self._metrics.count("num_refused_requests_total", error=type(error).__name__)
            raise


class _Watch:
    """One request, on its way."""

    def __init__(
        self,
        request: EngineRequest,
        on_output: Callable[[Output], None],
        metrics: Metrics,
        tracer: Tracer | None,
    ) -> None:
        self._request = request
        self._on_output = on_output
        self._metrics = metrics
        self._tracer = tracer
        self._adapter = request.adapter or BASE
        self._started_ns = time.time_ns()
        self._last_delta: dict[str, float] = {}

    def take(self, output: Output) -> None:
        """Count, then pass on."""
        if isinstance(output, GenerateDelta):
            self._delta(output)
        else:
            self._ended(output.request_id, output.meta, output.error)
        self._on_output(output)

    def _delta(self, output: GenerateDelta) -> None:
        now = time.monotonic()
        before = self._last_delta.get(output.request_id)
        self._last_delta[output.request_id] = now
        if before is not None and output.token_ids:
            by_token = (now - before) / len(output.token_ids)
            self._metrics.observe("inter_token_latency_seconds", by_token, adapter=self._adapter)

    def _ended(
        self, request_id: str, meta: RequestMeta, error: dict[str, str | bool] | None
    ) -> None:
        metrics, adapter = self._metrics, meta.adapter or BASE
        metrics.count("num_requests_total", adapter=adapter, finish_reason=meta.finish_reason)
        for name, amount in (
            ("prompt_tokens_total", meta.prompt_tokens),
            ("cached_tokens_total", meta.cached_tokens),
            ("generation_tokens_total", meta.output_tokens),
            ("forced_tokens_total", meta.forced_tokens),
            ("spec_drafted_tokens_total", meta.drafted_tokens),
            ("spec_accepted_tokens_total", meta.accepted_tokens),
        ):
            if amount:
                metrics.count(name, amount, adapter=adapter)
        if error is None:
            self._times(meta, adapter)
        if self._tracer is not None:
            program_id = self._request.program_id
            self._tracer.request(request_id, program_id, self._started_ns, meta_of(meta))

    def _times(self, meta: RequestMeta, adapter: str) -> None:
        observe = self._metrics.observe
        observe("e2e_request_latency_seconds", meta.latency_s, adapter=adapter)
        observe("queue_time_seconds", meta.queue_s, adapter=adapter)
        if not meta.output_tokens:
            return
        observe("time_to_first_token_seconds", meta.ttft_s, adapter=adapter)
        if meta.output_tokens > 1:
            by_token = (meta.latency_s - meta.ttft_s) / (meta.output_tokens - 1)
            observe("request_time_per_output_token_seconds", by_token, adapter=adapter)


def meta_of(meta: RequestMeta) -> dict[str, str | int | float]:
    """A request's counts and times as attributes of a span."""
    return {
        "gen_ai.response.model": meta.model,
        "gen_ai.response.finish_reasons": meta.finish_reason,
        "gen_ai.usage.input_tokens": meta.prompt_tokens,
        "gen_ai.usage.output_tokens": meta.output_tokens,
        "branchline.cached_tokens": meta.cached_tokens,
        "branchline.forced_tokens": meta.forced_tokens,
        "branchline.accepted_tokens": meta.accepted_tokens,
        "branchline.forwards": meta.forwards,
        "branchline.queue_s": meta.queue_s,
        "gen_ai.latency.time_to_first_token": meta.ttft_s,
    }
