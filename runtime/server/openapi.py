"""The server's own OpenAPI description, made from the structs that read the bodies.

Invariant: a body that the description allows is one that its route's struct can read.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from aiohttp import web

Json = dict[str, Any]
_PLACE = re.compile(r"{(\w+)[^}]*}")


class Described(NamedTuple):
    """A route: what it takes and what it asks for.

    Attributes:
        body: struct of its JSON body; None = it takes none.
        form: schema of the form that it takes as well; None = none.
        access: "open", "normal" or "admin".
    """

    method: str
    path: str
    summary: str
    body: type[Any] | None
    form: Json | None
    access: str


def describe(
    routes: Sequence[web.RouteDef],
    bodies: Mapping[str, type[Any]],
    forms: Mapping[str, Json],
    access: Mapping[str, str],
) -> list[Described]:
    """`routes` with what is known of each by its path."""
    return [
        Described(
            route.method,
            route.path,
            (getattr(route.handler, "__doc__", None) or "").strip().split("\n")[0],
            bodies.get(route.path) if route.method in ("POST", "PUT") else None,
            forms.get(route.path),
            access.get(route.path, "normal"),
        )
        for route in routes
    ]


def document(routes: Sequence[Described], *, keys_needed: bool) -> Json:
    """The whole description.

    Args:
        keys_needed: the server asks for a key; without, only routes for admins do.
    """
    kinds = list(dict.fromkeys(route.body for route in routes if route.body is not None))
    references, schemas = msgspec.json.schema_components(
        kinds, ref_template="#/components/schemas/{name}"
    )
    schema_of = dict(zip(kinds, references, strict=True))
    paths: dict[str, Json] = {}
    for route in routes:
        path = _PLACE.sub(r"{\1}", route.path)
        schema = None if route.body is None else schema_of[route.body]
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, schema, keys_needed)
    return {
        "openapi": "3.1.0",
        "info": {"title": "branchline", "version": importlib.metadata.version("branchline")},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def _operation(route: Described, schema: Json | None, keys_needed: bool) -> Json:
    operation: Json = {
        "summary": route.summary,
        "responses": {
            "200": {"description": "The answer."},
            "4XX": {"description": "The request cannot be run; the body says why."},
            "5XX": {"description": "The server could not do it; the body says why."},
        },
    }
    places = _PLACE.findall(route.path)
    if places:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in places
        ]
    if schema is not None:
        content = {"application/json": {"schema": schema}}
        if route.form is not None:
            content["multipart/form-data"] = {"schema": route.form}
        operation["requestBody"] = {"required": True, "content": content}
    if route.access == "admin" or (keys_needed and route.access != "open"):
        operation["security"] = [{"bearer": []}, {"header": []}]
    return operation
