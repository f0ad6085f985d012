"""How one type is written as JSON: the schema a text must satisfy, and the instance of a value.

Invariant: what satisfies `schema`, `decode` accepts; what `decode` accepts is an instance. Values
are those of `json.loads`. Knows nothing of Python's type annotations (`schemas` reads those).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

MAX_INT = 10**18
"""Integers in JSON are bounded, so that no model can go on writing digits for ever. Engines compare
this bound exactly, whatever numbers they count in."""


class Mismatch(ValueError):
    """A JSON value is not of the type; the text says where and why."""


class JsonType:
    """One type.

    Attributes:
        name: for messages.
        schema: JSON Schema; may refer to `#/$defs/…` of the document it is part of.
    """

    def __init__(self, name: str, schema: dict[str, Any]) -> None:
        self.name = name
        self.schema = schema

    def decode(self, value: Any, path: str = "") -> Any:
        """The instance of a JSON value; raises `Mismatch`. The base takes any value as it is."""
        return value

    def child(self, key: str | int) -> JsonType | None:
        """The type of a member (by name) or an item (by index); None when it has no such part."""
        return None

    def wrong(self, value: Any, path: str) -> Mismatch:
        """The error for a value that is not of the type."""
        shown = json.dumps(value)
        shown = shown if len(shown) <= 60 else shown[:59] + "…"
        return Mismatch(f"{path or 'the value'} is not a {self.name}: {shown}")


class Anything(JsonType):
    """Any JSON value."""

    def child(self, key: str | int) -> JsonType | None:
        return self


ANY = Anything("JSON value", {})


class Scalar(JsonType):
    """A number, text, boolean or null, within bounds.

    Args:
        kinds: the Python classes `json.loads` gives for it, exactly.
        convert: to the instance; raises ValueError.
    """

    def __init__(
        self,
        name: str,
        schema: dict[str, Any],
        kinds: tuple[type, ...],
        convert: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__(name, schema)
        self._kinds = kinds
        self._convert = convert

    def bounded(self, bounds: Mapping[str, Any]) -> Scalar:
        """The same type with more keywords in its schema."""
        return Scalar(self.name, {**self.schema, **bounds}, self._kinds, self._convert)

    def decode(self, value: Any, path: str = "") -> Any:
        if type(value) not in self._kinds or not within(value, self.schema):
            raise self.wrong(value, path)
        if self._convert is None:
            return value
        try:
            return self._convert(value)
        except (ValueError, KeyError, OverflowError) as error:
            raise self.wrong(value, path) from error


class OneOf(JsonType):
    """One of some JSON scalars, each standing for an instance."""

    def __init__(self, name: str, values: Sequence[tuple[Any, Any]]) -> None:
        super().__init__(name, {"enum": [raw for raw, _ in values]})
        self._instances = {_as_json(raw): instance for raw, instance in values}

    def decode(self, value: Any, path: str = "") -> Any:
        try:
            return self._instances[_as_json(value)]
        except (KeyError, TypeError):  # a list cannot be looked up
            raise self.wrong(value, path) from None


def _as_json(value: Any) -> tuple[type, Any]:
    """Equal for what JSON takes for equal: 1 and 1.0, but not 1 and true."""
    return float if type(value) is int else type(value), value


class Array(JsonType):
    """A list, all of one type."""

    def __init__(
        self, name: str, item: JsonType, make: Callable[[list[Any]], Any] | None = None
    ) -> None:
        super().__init__(name, {"type": "array", "items": item.schema})
        self._item = item
        self._make = make

    def bounded(self, bounds: Mapping[str, Any]) -> Array:
        """The same type with more keywords in its schema."""
        twin = Array(self.name, self._item, self._make)
        twin.schema.update(bounds)
        return twin

    def child(self, key: str | int) -> JsonType | None:
        return self._item if isinstance(key, int) else None

    def decode(self, value: Any, path: str = "") -> Any:
        if not isinstance(value, list) or not within(value, self.schema):
            raise self.wrong(value, path)
        items = [self._item.decode(item, f"{path}[{i}]") for i, item in enumerate(value)]
        return items if self._make is None else self._make(items)


class FixedArray(JsonType):
    """A tuple: a type for each place."""

    def __init__(self, name: str, items: Sequence[JsonType]) -> None:
        schema: dict[str, Any] = {"type": "array", "minItems": len(items), "maxItems": len(items)}
        if items:
            schema |= {"prefixItems": [item.schema for item in items], "items": False}
        super().__init__(name, schema)
        self._items = tuple(items)

    def child(self, key: str | int) -> JsonType | None:
        return self._items[key] if isinstance(key, int) and key < len(self._items) else None

    def decode(self, value: Any, path: str = "") -> Any:
        if not isinstance(value, list) or len(value) != len(self._items):
            raise self.wrong(value, path)
        pairs = enumerate(zip(self._items, value, strict=True))
        return tuple(item.decode(raw, f"{path}[{i}]") for i, (item, raw) in pairs)


class Table(JsonType):
    """A `dict` with text keys, all values of one type."""

    def __init__(self, name: str, item: JsonType) -> None:
        super().__init__(name, {"type": "object", "additionalProperties": item.schema})
        self._item = item

    def bounded(self, bounds: Mapping[str, Any]) -> Table:
        """The same type with more keywords in its schema."""
        twin = Table(self.name, self._item)
        twin.schema.update(bounds)
        return twin

    def child(self, key: str | int) -> JsonType | None:
        return self._item if isinstance(key, str) else None

    def decode(self, value: Any, path: str = "") -> Any:
        if not isinstance(value, dict) or not within(value, self.schema):
            raise self.wrong(value, path)
        return {key: self._item.decode(item, f"{path}.{key}") for key, item in value.items()}


class Record(JsonType):
    """A class with named fields, in the order in which they are declared.

    Args:
        make: the instance of the decoded fields that are there; raises ValueError or TypeError.

    Attributes:
        schema: a reference; `body` is what it refers to, once `define` was called.
    """

    def __init__(self, name: str, key: str, make: Callable[[dict[str, Any]], Any]) -> None:
        super().__init__(name, {"$ref": f"#/$defs/{key}"})
        self.key = key
        self.body: dict[str, Any] = {}
        self._fields: dict[str, JsonType] = {}
        self._required: frozenset[str] = frozenset()
        self._make = make

    def define(self, fields: Mapping[str, JsonType], required: Sequence[str]) -> None:
        """Give it its fields; done later, so that a field may be of the class itself."""
        self._fields = dict(fields)
        self._required = frozenset(required)
        self.body = {
            "type": "object",
            "properties": {name: field.schema for name, field in fields.items()},
            "required": list(required),
            "additionalProperties": False,
        }

    def child(self, key: str | int) -> JsonType | None:
        return self._fields.get(key) if isinstance(key, str) else None

    def decode(self, value: Any, path: str = "") -> Any:
        if not isinstance(value, dict):
            raise self.wrong(value, path)
        for name in value:
            if name not in self._fields:
                raise Mismatch(f"{path}.{name} is no field of {self.name}".lstrip("."))
        for name in self._required - value.keys():
            raise Mismatch(f"{path}.{name} is missing from a {self.name}".lstrip("."))
        fields = {
            name: self._fields[name].decode(item, f"{path}.{name}".lstrip("."))
            for name, item in value.items()
        }
        try:
            return self._make(fields)
        except (ValueError, TypeError) as error:
            raise Mismatch(f"{path or 'the value'} is not a {self.name}: {error}") from error


class Foreign(JsonType):
    """A class that brings its own schema and reader (a pydantic model)."""

    def __init__(
        self,
        name: str,
        schema: dict[str, Any],
        read: Callable[[str], Any],
        child: Callable[[str], JsonType | None],
    ) -> None:
        super().__init__(name, schema)
        self._read = read
        self._child = child

    def child(self, key: str | int) -> JsonType | None:
        return self._child(key) if isinstance(key, str) else None

    def decode(self, value: Any, path: str = "") -> Any:
        try:
            return self._read(json.dumps(value))
        except ValueError as error:
            raise Mismatch(f"{path or 'the value'} is not a {self.name}: {error}") from error


class Either(JsonType):
    """A union: the first member that takes the value."""

    def __init__(self, name: str, members: Sequence[JsonType]) -> None:
        super().__init__(name, {"anyOf": [member.schema for member in members]})
        self._members = tuple(members)

    def child(self, key: str | int) -> JsonType | None:
        parts = [part for member in self._members if (part := member.child(key)) is not None]
        return Either(f"part of {self.name}", parts) if len(parts) > 1 else next(iter(parts), None)

    def decode(self, value: Any, path: str = "") -> Any:
        for member in self._members:
            try:
                return member.decode(value, path)
            except Mismatch:
                continue
        raise self.wrong(value, path)


_MEASURES: dict[str, Callable[[Any, Any], bool]] = {
    "minimum": lambda value, bound: value >= bound,
    "maximum": lambda value, bound: value <= bound,
    "exclusiveMinimum": lambda value, bound: value > bound,
    "exclusiveMaximum": lambda value, bound: value < bound,
    "multipleOf": lambda value, bound: _is_multiple(value, bound),
    "minLength": lambda value, bound: len(value) >= bound,
    "maxLength": lambda value, bound: len(value) <= bound,
    "minItems": lambda value, bound: len(value) >= bound,
    "maxItems": lambda value, bound: len(value) <= bound,
    "minProperties": lambda value, bound: len(value) >= bound,
    "maxProperties": lambda value, bound: len(value) <= bound,
    "pattern": lambda value, bound: re.search(bound, value) is not None,
}


def within(value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether a value of the right kind keeps the bounds of `schema`."""
    return all(
        test(value, schema[word])
        for word, test in _MEASURES.items()
        if schema.get(word) is not None
    )


def _is_multiple(value: float, step: float) -> bool:
    if isinstance(value, int) and isinstance(step, int):
        return value % step == 0
    ratio = value / step
    return math.isfinite(ratio) and math.isclose(ratio, round(ratio), rel_tol=1e-9, abs_tol=1e-9)
