"""The web page at `/`: a playground and a dashboard, as plain files.

Invariants: the page is built of these files alone, and its policy lets it load nothing from
elsewhere; what it shows it asks of the routes that every client has. Files are open to everybody,
the routes behind them ask for keys as always.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import resources

from aiohttp import web

from branchline.runtime.programs import trace_view
from branchline.runtime.server.context import ServerContext
from branchline.runtime.server.keys import Access
from branchline.runtime.server.wire import Handler

TYPES = {
    "html": "text/html",
    "css": "text/css",
    "js": "text/javascript",
    "svg": "image/svg+xml",
    "json": "application/json",
}
"""Files of these kinds are served."""

_TRACE = trace_view.inline_hashes()
POLICY = "; ".join(
    [
        "default-src 'none'",
        # The trace of a program is a page of its own in a sandboxed frame, under this policy too.
        f"script-src 'self' {_TRACE['script']}",
        f"style-src 'self' {_TRACE['style']}",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@cache
def paths() -> Mapping[str, str]:
    """The path of each file, and the file's name."""
    names = sorted(item.name for item in resources.files(__name__).iterdir())
    served = {f"/page/{name}": name for name in names if name.rpartition(".")[2] in TYPES}
    return {"/": served.pop("/page/index.html"), **served}


ACCESS = dict.fromkeys(paths(), Access.OPEN)


def routes(context: ServerContext) -> list[web.RouteDef]:
    """Routes of this module."""
    return [web.get(path, _file(name)) for path, name in paths().items()]


@cache
def _body(name: str) -> bytes:
    return resources.files(__name__).joinpath(name).read_bytes()


def _file(name: str) -> Handler:
    body = _body(name)
    kind = TYPES[name.rpartition(".")[2]]

    async def handle(request: web.Request) -> web.Response:
        """A file of the web page."""
        return web.Response(body=body, headers=HEADERS, content_type=kind, charset="utf-8")

    return handle
