"""A schema document: its subschemas, where they are, and what their references mean.

Invariant: a node is one subschema with its place and draft; the same subschema is the same node.
Knows what references and identifiers mean in each draft, and no other keyword.
"""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any, NamedTuple
from urllib.parse import unquote, urldefrag, urljoin

from branchline.runtime.errors import InvalidRequest, UnsupportedConstraint

Schema = dict[str, Any] | bool

_DRAFTS = {
    "http://json-schema.org/draft-03/schema": 3,
    "http://json-schema.org/draft-04/schema": 4,
    "http://json-schema.org/draft-06/schema": 6,
    "http://json-schema.org/draft-07/schema": 7,
    "https://json-schema.org/draft/2019-09/schema": 2019,
    "https://json-schema.org/draft/2020-12/schema": 2020,
}
NEWEST = 2020
SINCE = {
    "const": 6,
    "contains": 6,
    "propertyNames": 6,
    "if": 7,
    "then": 7,
    "else": 7,
    "dependentRequired": 2019,
    "dependentSchemas": 2019,
    "minContains": 2019,
    "maxContains": 2019,
    "unevaluatedItems": 2019,
    "unevaluatedProperties": 2019,
    "$recursiveRef": 2019,
    "prefixItems": 2020,
    "$dynamicRef": 2020,
}
"""The draft that brought a keyword, where not all have it."""

_VALUES = frozenset({"enum", "const", "default", "examples", "example"})
_MOST_DEPTH = 100
_MOST_EXPONENT = 400


def unsupported(keyword: str, path: str, why: str) -> UnsupportedConstraint:
    """The refusal of a keyword at a place; `value` starts with the keyword."""
    return UnsupportedConstraint(
        f"json_schema: {keyword} at {path or '#'} cannot be enforced: {why}",
        value=f"{keyword} at {path or '#'}",
        hint="Rewrite the schema without it.",
    )


def malformed(path: str, why: str) -> InvalidRequest:
    """The refusal of a document that is no schema."""
    return InvalidRequest(
        f"json_schema: {why} at {path or '#'}",
        value=path or "#",
        hint="Give a valid JSON Schema document.",
    )


class Node(NamedTuple):
    """A subschema. `number` tells it apart; `base` is the URI that its references start from."""

    number: int
    schema: Schema
    path: str
    base: str


class Document:
    """Reads a schema.

    Args:
        text: JSON.

    Raises:
        InvalidRequest: not JSON, or no schema.
        UnsupportedConstraint: a draft that is not known.
    """

    def __init__(self, text: str) -> None:
        root = _load(text)
        self.draft = self._find_draft(root)
        self._nodes: list[Node] = []
        self._by_object: dict[int, int] = {}
        self._synthetic: dict[str, int] = {}
        self._targets: dict[str, tuple[Schema, str]] = {}
        self._bases: dict[int, str] = {}
        self._targets[""] = (root, "#")
        self._walk(root, "#", "", 0)
        self.root = self.node(root, "#", "")

    def _find_draft(self, root: Schema) -> int:
        named = root.get("$schema") if isinstance(root, dict) else None
        if not isinstance(named, str):
            self.declared = False
            return NEWEST
        draft = _DRAFTS.get(named.strip().removesuffix("#").removesuffix("/"))
        draft = draft or _DRAFTS.get(named.replace("https:", "http:").rstrip("#"))
        if draft == 3:
            raise unsupported("$schema", "#", "draft 3 is not known here")
        self.declared = draft is not None
        return draft or NEWEST

    def knows(self, keyword: str) -> bool:
        """Whether the draft has a keyword; to older ones it is a note without meaning."""
        return self.draft >= SINCE.get(keyword, 0)

    def node(self, schema: object, path: str, base: str) -> Node:
        """The node of a subschema at a place.

        Raises:
            InvalidRequest: it is no schema.
        """
        if isinstance(schema, bool):
            return self.synthetic({} if schema else {"not": {}}, path, base)
        if not isinstance(schema, dict):
            raise malformed(path, "neither an object nor true or false where a schema belongs")
        index = self._by_object.get(id(schema))
        if index is None:
            index = len(self._nodes)
            self._by_object[id(schema)] = index
            self._nodes.append(Node(index, schema, path, self._bases.get(id(schema), base)))
        return self._nodes[index]

    def synthetic(self, schema: dict[str, Any], path: str, base: str) -> Node:
        """The node of a schema made here; equal schemas of one base are one node."""
        key = f"{base} {path if schema not in ({}, {'not': {}}) else ''} {_stable(schema)}"
        index = self._synthetic.get(key)
        if index is None:
            index = self._synthetic[key] = len(self._nodes)
            self._nodes.append(Node(index, schema, path, base))
        return self._nodes[index]

    def at(self, index: int) -> Node:
        """The node of an index."""
        return self._nodes[index]

    def child(self, node: Node, *keys: str | int) -> Node:
        """The node of a subschema below another."""
        value: Any = node.schema
        for key in keys:
            value = value[key]
        path = node.path + "".join(f"/{_escape(str(key))}" for key in keys)
        return self.node(value, path, node.base)

    def resolve(self, node: Node, reference: object) -> Node:
        """What a `$ref` of a node means.

        Raises:
            InvalidRequest: it means nothing.
            UnsupportedConstraint: it is in another document.
        """
        if not isinstance(reference, str):
            raise malformed(node.path, "a $ref that is no text")
        found = self._targets.get(reference) if not node.base else None
        uri, fragment = urldefrag(urljoin(node.base, reference))
        if found is None:
            found = self._targets.get(uri if not fragment else f"{uri}#{fragment}")
        if found is not None:
            return self.node(found[0], found[1], uri)
        if uri not in self._targets:
            raise unsupported("$ref", node.path, f"{reference!r} is in another document")
        value, path = self._targets[uri]
        if not fragment.startswith("/"):
            raise malformed(node.path, f"$ref {reference!r} names nothing")
        target: Any = value
        for part in fragment[1:].split("/"):
            key = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(target, list) and key.isdigit() and int(key) < len(target):
                target = target[int(key)]
            elif isinstance(target, dict) and key in target:
                target = target[key]
            else:
                raise malformed(node.path, f"$ref {reference!r} names nothing")
        return self.node(target, path + fragment, uri)

    def _walk(self, value: Any, path: str, base: str, depth: int) -> None:
        if depth > _MOST_DEPTH:
            raise malformed(path, f"more than {_MOST_DEPTH} levels")
        if isinstance(value, list):
            for index, item in enumerate(value):
                self._walk(item, f"{path}/{index}", base, depth + 1)
        if not isinstance(value, dict):
            return
        base = self._identify(value, path, base)
        self._bases[id(value)] = base
        for key, item in value.items():
            if key not in _VALUES or isinstance(item, dict):
                self._walk(item, f"{path}/{_escape(key)}", base, depth + 1)

    def _identify(self, schema: dict[str, Any], path: str, base: str) -> str:
        if self.draft <= 7 and isinstance(schema.get("$ref"), str):
            return base
        names = ("id",) if self.draft == 4 else ("$id",) if self.declared else ("$id", "id")
        for name in names:
            own = schema.get(name)
            if isinstance(own, str) and own:
                uri, fragment = urldefrag(urljoin(base, own))
                if fragment:
                    self._targets.setdefault(f"{base}#{fragment}", (schema, path))
                elif name == "$id" or self.draft == 4 or path == "#":
                    base = uri
                    self._targets.setdefault(uri, (schema, path))
        for name in ("$anchor", "$dynamicAnchor"):
            if isinstance(schema.get(name), str):
                self._targets.setdefault(f"{base}#{schema[name]}", (schema, path))
        return base


def _load(text: str) -> Schema:
    try:
        root = json.loads(text, parse_float=_decimal, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(
            f"json_schema: not JSON ({error})", value=text, hint="Give a JSON Schema document."
        ) from error
    if not isinstance(root, dict | bool):
        raise InvalidRequest(
            "json_schema: a schema is an object", value=text, hint="Give a JSON Schema document."
        )
    return root


def _decimal(text: str) -> Decimal:
    value = Decimal(text)
    exponent = value.as_tuple().exponent
    if (
        not isinstance(exponent, int)
        or abs(exponent) > _MOST_EXPONENT
        or abs(value.adjusted()) > _MOST_EXPONENT
    ):
        raise ValueError(f"the number {text[:40]} is beyond 1e{_MOST_EXPONENT}")
    return value


def _no_number(text: str) -> Decimal:
    raise ValueError(f"{text} is no JSON number")


def _escape(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


def _stable(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=lambda number: {"": str(number)})
