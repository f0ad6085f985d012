"""The page docs/metrics.md: what a server tells those who run it, from its own tables."""

from __future__ import annotations

from branchline.runtime.observability.metrics import table

HEAD = """\
# Watching a server

<!-- Written by `make docs` from runtime/observability/metrics.py: edit that instead. -->

`GET /metrics` answers in Prometheus's text format. It holds numbers alone, no text of any request
(labels name the model and its adapters), and asks for no key. A dashboard for Grafana is
`assets/deploy/grafana.json`;
`docker compose -f assets/deploy/compose.yaml up` shows it beside a server.

Spans of programs, with their requests below them, go to a collector by OTLP over HTTP when
`OTEL_EXPORTER_OTLP_ENDPOINT` names one (`pip install 'branchline[tracing]'`). Log lines are JSON
objects with `--log-format json`; a line that belongs to an HTTP request carries its id, which is
also the header `x-request-id` of the answer.

## Metrics

All have the label `model_name`.

"""


def page() -> str:
    """The whole text of the page."""
    return f"{HEAD}{table()}\n"
