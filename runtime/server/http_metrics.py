"""The route /metrics, and the counting of HTTP requests.

Invariant: labels take values from the table of routes alone, never from what a client wrote. The
numbers hold no text of any request, so that the route is open, as those who scrape expect.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web

from branchline.runtime.observability.logs import request_id
from branchline.runtime.observability.metrics import CONTENT_TYPE, Metrics
from branchline.runtime.server.context import ServerContext
from branchline.runtime.server.keys import Access

ACCESS = {"/metrics": Access.OPEN}
UNKNOWN = "unknown"
"""Label of a path that no family has."""
_METHODS = frozenset({"GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"})


def routes(context: ServerContext) -> list[web.RouteDef]:
    """Routes of this module."""

    async def metrics(request: web.Request) -> web.Response:
        """Everything that is counted, in Prometheus' text format."""
        return web.Response(body=context.metrics.render(), headers={"Content-Type": CONTENT_TYPE})

    return [web.get("/metrics", metrics)]


class Served:
    """One request, while it is answered. `status` is set before the end; 0 = the client left."""

    status = 0


@contextmanager
def counted(metrics: Metrics, method: str, path: str, name: str) -> Iterator[Served]:
    """Count a request; what is logged meanwhile carries its id.

    Args:
        path: of the route that matched; "" = none.
        name: the request's id.
    """
    route = path or UNKNOWN
    served = Served()
    token = request_id.set(name)
    metrics.change("http_requests_active", 1, route=route)
    try:
        yield served
    finally:
        metrics.change("http_requests_active", -1, route=route)
        verb = method if method in _METHODS else UNKNOWN
        status = str(served.status or "gone")
        metrics.count("http_requests_total", route=route, method=verb, status=status)
        request_id.reset(token)
