"""Bounds given with a type (`Annotated[int, Field(ge=0)]`) as keywords of a schema.

Invariant: metadata is turned into keywords, or is text for the reader, or is refused; none is
ignored. Objects are known by their attributes, so that pydantic's, annotated-types' and msgspec's
all work without importing any of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from branchline.lang.grammar import Choices, Regex
from branchline.lang.refusals import refused

_NUMBER = {
    "ge": "minimum",
    "gt": "exclusiveMinimum",
    "le": "maximum",
    "lt": "exclusiveMaximum",
    "multiple_of": "multipleOf",
}
_TEXT = {"min_length": "minLength", "max_length": "maxLength", "pattern": "pattern"}
_ARRAY = {"min_length": "minItems", "max_length": "maxItems"}
_OBJECT = {"min_length": "minProperties", "max_length": "maxProperties"}
_BY_TYPE = {
    "integer": _NUMBER,
    "number": _NUMBER,
    "string": _TEXT,
    "array": _ARRAY,
    "object": _OBJECT,
}
_ALL = frozenset(_NUMBER) | frozenset(_TEXT)
_SILENT = frozenset({"title", "description", "examples", "strict", "discriminator"})
"""Attributes that say nothing about which values are allowed."""
_TIGHTEST: dict[str, Any] = {"minimum": max, "maximum": min}


def bounds_of(
    metadata: Sequence[Any], schema: Mapping[str, Any], wanted: object, path: str
) -> dict[str, Any]:
    """Keywords that `metadata` adds to `schema`.

    Raises `UnsupportedConstraint` for metadata that no keyword says, or that the type cannot take.
    """
    words = _BY_TYPE.get(str(schema.get("type")), {})
    found: dict[str, Any] = {}
    for item in _flat(metadata):
        if isinstance(item, str):
            continue
        if isinstance(item, (Regex, Choices)):
            _add(found, schema, _pattern(item, words, wanted, path))
            continue
        given = {name: getattr(item, name, None) for name in _ALL}
        given = {name: bound for name, bound in given.items() if bound is not None}
        if not given and not any(hasattr(item, name) for name in _ALL | _SILENT):
            raise refused(wanted, path, f"the bound {item!r} cannot be enforced")
        for name, bound in given.items():
            if name not in words:
                if name == "min_length" and bound == 0:  # what annotated-types' Len always says
                    continue
                raise refused(wanted, path, f"it takes no {name}")
            _add(found, schema, {words[name]: bound})
    return found


def _flat(metadata: Sequence[Any]) -> list[Any]:
    """Pydantic's `Field(...)` carries a list of its own."""
    items: list[Any] = []
    for item in metadata:
        inner = getattr(item, "metadata", None)
        items += _flat(inner) if isinstance(inner, (list, tuple)) else [item]
    return items


def _pattern(
    item: Regex | Choices, words: Mapping[str, str], wanted: object, path: str
) -> dict[str, Any]:
    if "pattern" not in words:
        raise refused(wanted, path, "only a str takes a pattern")
    if isinstance(item, Choices):
        return {"enum": list(item.items)}
    return {"pattern": f"^(?:{item.pattern})$"}


def _add(found: dict[str, Any], schema: Mapping[str, Any], bounds: Mapping[str, Any]) -> None:
    for word, bound in bounds.items():
        if hasattr(bound, "pattern"):  # a compiled one
            bound = bound.pattern
        if word in found and word not in _TIGHTEST:
            raise refused(bound, "", f"{word} is given twice")
        before = found.get(word, schema.get(word))
        tightest = _TIGHTEST.get(word)
        found[word] = bound if before is None or tightest is None else tightest(before, bound)
