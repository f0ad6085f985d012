"""A request graph as one self-contained HTML page. Needs no network; escapes all program text."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib import resources
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from branchline.runtime.programs.graph import RequestGraph

_SLOT = "/*GRAPH*/"
_INLINE = re.compile(r"<(style|script)>(.*?)</\1>", re.DOTALL)


def render(graph: RequestGraph) -> str:
    """The page's text."""
    template = _template()
    head, slot, tail = template.partition(_SLOT)
    assert slot, "the template has a slot for the graph"
    data = msgspec.json.encode(graph).decode()
    safe = data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    safe = safe.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return head + safe + tail


def inline_hashes() -> dict[str, str]:
    """What a policy must allow to show the page in a frame: CSP sources of its `style` and its
    `script`, which are the same for every graph."""
    found = {}
    for kind, text in _INLINE.findall(_template()):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        found[kind] = f"'sha256-{digest}'"
    return found


def _template() -> str:
    return resources.files(__package__).joinpath("trace.html").read_text(encoding="utf-8")
