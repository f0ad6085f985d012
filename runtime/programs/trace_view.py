"""A request graph as one self-contained HTML page. Needs no network; escapes all program text."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from branchline.runtime.programs.graph import RequestGraph

_SLOT = "/*GRAPH*/"


def render(graph: RequestGraph) -> str:
    """The page's text."""
    template = resources.files(__package__).joinpath("trace.html").read_text(encoding="utf-8")
    head, slot, tail = template.partition(_SLOT)
    assert slot, "the template has a slot for the graph"
    data = msgspec.json.encode(graph).decode()
    safe = data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    safe = safe.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return head + safe + tail
