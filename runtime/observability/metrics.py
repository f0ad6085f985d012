"""Prometheus metrics of one server. Invariant: every metric that is exposed stands in a table here.

The names behind the prefix are those that dashboards of this field know already. Counters and
histograms are fed as requests end; gauges and the scheduler's own counters are read from the engine
when somebody scrapes. Knows no requests: who feeds it says what happened, in numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from branchline.runtime.observability.window import Window

PREFIX = "branchline:"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Kind = Literal["counter", "gauge", "histogram"]

SHORT = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Bounds of times between tokens, seconds."""

LONG = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Bounds of times of whole requests, seconds."""


class Instrument(NamedTuple):
    """A metric that is fed.

    Attributes:
        name: without the prefix.
        labels: beside `model_name`.
        bounds: upper bounds of a histogram's buckets.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()


class Reading(NamedTuple):
    """A metric that is read from the engine's `info()` when it is scraped.

    Attributes:
        path: keys from the top of `info()` to the number.
    """

    name: str
    kind: Kind
    help: str
    path: tuple[str, ...]


INSTRUMENTS = (
    Instrument(
        "time_to_first_token_seconds",
        "histogram",
        "from submission to the first token",
        ("adapter",),
        LONG,
    ),
    Instrument(
        "inter_token_latency_seconds",
        "histogram",
        "between two deltas of a streamed output, by token",
        ("adapter",),
        SHORT,
    ),
    Instrument(
        "request_time_per_output_token_seconds",
        "histogram",
        "from the first token to the end, by token after the first",
        ("adapter",),
        SHORT,
    ),
    Instrument(
        "e2e_request_latency_seconds",
        "histogram",
        "from submission to the end of a request",
        ("adapter",),
        LONG,
    ),
    Instrument(
        "queue_time_seconds", "histogram", "from submission to admission", ("adapter",), LONG
    ),
    Instrument(
        "num_requests_total", "counter", "requests ended, by reason", ("adapter", "finish_reason")
    ),
    Instrument(
        "num_refused_requests_total", "counter", "requests refused at once, by error", ("error",)
    ),
    Instrument("prompt_tokens_total", "counter", "tokens of prompts", ("adapter",)),
    Instrument("cached_tokens_total", "counter", "of those, found in the cache", ("adapter",)),
    Instrument("generation_tokens_total", "counter", "tokens of outputs", ("adapter",)),
    Instrument("forced_tokens_total", "counter", "of those, forced by a constraint", ("adapter",)),
    Instrument("spec_drafted_tokens_total", "counter", "tokens drafters proposed", ("adapter",)),
    Instrument("spec_accepted_tokens_total", "counter", "of those, kept", ("adapter",)),
    Instrument("num_programs_total", "counter", "programs ended, by outcome", ("outcome",)),
    Instrument("programs_running", "gauge", "programs open now"),
    Instrument(
        "program_latency_seconds", "histogram", "from opening a program to its end", (), LONG
    ),
    Instrument(
        "http_requests_total", "counter", "HTTP requests answered", ("route", "method", "status")
    ),
    Instrument("http_requests_active", "gauge", "HTTP requests being answered", ("route",)),
)

READINGS = (
    Reading("num_running_reqs", "gauge", "requests being computed", ("scheduler", "running")),
    Reading("num_queue_reqs", "gauge", "requests that wait", ("scheduler", "waiting")),
    Reading("steps_total", "counter", "steps of the model", ("scheduler", "steps")),
    Reading("step_tokens_total", "counter", "tokens of those steps", ("scheduler", "step_tokens")),
    Reading(
        "num_aborted_requests_total", "counter", "requests ended early", ("scheduler", "aborted")
    ),
    Reading(
        "num_retracted_requests_total",
        "counter",
        "times a running request gave its memory back",
        ("scheduler", "retractions"),
    ),
    Reading(
        "audit_repairs_total",
        "counter",
        "breaches of the memory laws that were found and repaired",
        ("scheduler", "audit_repairs"),
    ),
    Reading(
        "cache_hit_rate", "gauge", "share of prompt tokens found cached", ("cache", "hit_rate")
    ),
    Reading("evicted_tokens_total", "counter", "tokens evicted", ("cache", "evicted")),
    Reading(
        "max_total_num_tokens", "gauge", "tokens the cache holds", ("cache", "capacity_tokens")
    ),
    Reading("kv_available_tokens", "gauge", "tokens free in the cache", ("cache", "free_tokens")),
    Reading("kv_evictable_tokens", "gauge", "tokens kept for reuse", ("cache", "cached_tokens")),
    Reading("leases", "gauge", "prefixes held for programs", ("cache", "leases")),
    Reading(
        "num_grammar_queue_reqs", "gauge", "constraints being compiled", ("grammar", "compiling")
    ),
    Reading("grammar_cached", "gauge", "compiled constraints kept", ("grammar", "cached")),
    Reading("lora_adapters", "gauge", "adapters that requests may name", ("adapters", "loaded")),
    Reading("lora_pool_slots_total", "gauge", "adapter slots of the device", ("adapters", "slots")),
    Reading(
        "lora_pool_slots_used",
        "gauge",
        "of those, with an adapter in them",
        ("adapters", "slots_used"),
    ),
    Reading("lora_host_bytes", "gauge", "adapters in host memory", ("adapters", "host_bytes")),
    Reading("lora_loads_total", "counter", "adapters put into a slot", ("adapters", "loads")),
    Reading("lora_load_seconds_total", "counter", "seconds that took", ("adapters", "load_s")),
    Reading(
        "lora_evictions_total", "counter", "adapters put out of a slot", ("adapters", "evictions")
    ),
    Reading("startup_time_seconds", "gauge", "from start to ready", ("start_s",)),
)


class Metrics:
    """The metrics of one server.

    Args:
        model_name: value of the label `model_name` on all of them.
        info: the engine's facts, as `EnginePort.info`; called at each scrape.
    """

    def __init__(self, model_name: str, info: Callable[[], Mapping[str, Any]]) -> None:
        self.registry = CollectorRegistry()
        self._model_name = model_name
        self._made: dict[str, Counter | Gauge | Histogram] = {
            item.name: self._make(item) for item in INSTRUMENTS
        }
        self._labelled_ones: dict[tuple[Any, ...], Counter | Gauge | Histogram] = {}
        self._recent = {item.name: Window() for item in INSTRUMENTS if item.kind == "histogram"}
        self.registry.register(_EngineCollector(model_name, info))

    def count(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """Add to a counter."""
        made = self._labelled(name, labels)
        assert isinstance(made, Counter), name
        made.inc(amount)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Put a value into a histogram."""
        made = self._labelled(name, labels)
        assert isinstance(made, Histogram), name
        made.observe(value)
        self._recent[name].add(value)

    def recent(self, name: str) -> Window:
        """What a histogram was given in the last minute, whatever the labels."""
        return self._recent[name]

    def change(self, name: str, amount: float, **labels: str) -> None:
        """Raise or lower a gauge."""
        made = self._labelled(name, labels)
        assert isinstance(made, Gauge), name
        made.inc(amount)

    def render(self) -> bytes:
        """All of them in Prometheus's text format."""
        return generate_latest(self.registry)

    def _make(self, item: Instrument) -> Counter | Gauge | Histogram:
        labels = ("model_name", *item.labels)
        name = PREFIX + item.name
        if item.kind == "histogram":
            return Histogram(name, item.help, labels, buckets=item.bounds, registry=self.registry)
        made = Counter if item.kind == "counter" else Gauge
        return made(name, item.help, labels, registry=self.registry)

    def _labelled(self, name: str, labels: dict[str, str]) -> Counter | Gauge | Histogram:
        key = (name, *labels.items())
        found = self._labelled_ones.get(key)
        if found is None:  # looking it up there takes longer than counting
            found = self._made[name].labels(model_name=self._model_name, **labels)
            self._labelled_ones[key] = found
        return found


class _EngineCollector(Collector):
    """Reads the engine's own numbers when somebody scrapes."""

    def __init__(self, model_name: str, info: Callable[[], Mapping[str, Any]]) -> None:
        self._model_name = model_name
        self._info = info

    def describe(self) -> Iterable[Metric]:
        """Names alone, so that registering reads nothing."""
        return [self._family(item) for item in READINGS]

    def collect(self) -> Iterable[Metric]:
        """One value for each reading that the engine has; an absent engine has none."""
        facts = self._info()
        for item in READINGS:
            value = _at(facts, item.path)
            if value is not None:
                family = self._family(item)
                family.add_metric([self._model_name], value)
                yield family

    @staticmethod
    def _family(item: Reading) -> CounterMetricFamily | GaugeMetricFamily:
        made = CounterMetricFamily if item.kind == "counter" else GaugeMetricFamily
        return made(PREFIX + item.name, item.help, labels=["model_name"])


def _at(facts: Mapping[str, Any], path: tuple[str, ...]) -> float | None:
    value: Any = facts
    for key in path:
        if not isinstance(value, Mapping) or key not in value:
            return None
        value = value[key]
    return float(value)


def table() -> str:
    """All metrics as a Markdown table, for the docs."""
    rows = [
        (item.name, item.kind, item.help, getattr(item, "labels", ()))
        for item in (*INSTRUMENTS, *READINGS)
    ]
    lines = ["| metric | kind | what | labels |", "|---|---|---|---|"]
    lines += [
        f"| `{PREFIX}{name}` | {kind} | {text} | {', '.join(labels)} |"
        for name, kind, text, labels in rows
    ]
    return "\n".join(lines)
