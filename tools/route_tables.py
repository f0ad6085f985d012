"""The page docs/routes.md: limits, and the fields of every body, from the server's own structs."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

import msgspec

from branchline.runtime.programs.remote_program import ProgramLimits
from branchline.runtime.server.app import FAMILIES
from branchline.runtime.server.fields import NO_EFFECT
from branchline.runtime.server.limits import Limits

HEAD = """\
# Fields of the HTTP routes

<!-- Written by `make docs` from runtime/server: edit the structs and the limits there instead. -->

What every route takes. [serving.md](serving.md) says what the routes do. A field that is not listed
is refused by name; one marked *no effect* is taken and changes nothing; one marked *refused* is
known, and only null may be sent. Fields of streamed and whole answers are those of the API's own
documentation.
"""
LIMITS = """
## Limits

Each is set by `--limit NAME=X`, or in the table `[limits]` or `[program_limits]` of a file.

"""
_MODULE = re.compile(r"(?:\w+\.)+(?=\w)")
_LITERAL = re.compile(r"Literal\[([^\]]*)\]")


def page() -> str:
    """The whole text of the page."""
    parts = [
        HEAD,
        LIMITS,
    ]
    parts += ["| limit | default | bounds |\n|---|---|---|\n"]
    for item in (*fields(Limits), *fields(ProgramLimits)):
        if "help" in item.metadata:
            flag = item.name
            parts.append(f"| `{flag}` | {item.default} | {item.metadata['help']} |\n")
    for kind, paths in _bodies().items():
        named = ", ".join(f"`{path}`" for path in paths)
        parts.append(f"\n## {named}\n\n")
        parts.append(_table(kind))
    return "".join(parts)


def _bodies() -> dict[type[Any], list[str]]:
    found: dict[type[Any], list[str]] = {}
    for family in FAMILIES:
        for path, kind in family.bodies.items():
            found.setdefault(kind, []).append(path)
    return found


def _table(kind: type[Any]) -> str:
    rows = ["| field | type | default | |\n|---|---|---|---|\n"]
    for item in msgspec.structs.fields(kind):
        shown = _type(item.type)
        mark = "no effect" if item.encode_name in NO_EFFECT else ""
        if item.type is type(None):
            mark = "refused"
        default = "required" if item.required else _default(item.default)
        if mark == "refused":
            shown = ""
        shown = shown.replace("|", "\\|")
        rows.append(f"| `{item.encode_name}` | {shown} | {default} | {mark} |\n")
    return "".join(rows)


def _type(kind: Any) -> str:
    text = kind.__name__ if isinstance(kind, type) else str(kind)
    text = _MODULE.sub("", text)
    return _LITERAL.sub(lambda found: found[1].replace("'", '"').replace(", ", " | "), text)


def _default(value: Any) -> str:
    return "" if value is msgspec.NODEFAULT or value is None else f"`{value!r}`"
