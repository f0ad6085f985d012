"""Python's type annotations read as JSON: which types can be meant, and how each is written.

Invariant: a type either becomes a strict schema (no members but the declared ones, those without a
default required, in the order of the declaration) or is refused by name with the path to it.
Knows nothing of grammars or states.
"""

from __future__ import annotations

import dataclasses
import datetime
import math
import sys
import types
import typing
import uuid
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin, is_typeddict

from branchline.lang.bounds import bounds_of
from branchline.lang.json_types import (
    ANY,
    MAX_INT,
    Array,
    Either,
    FixedArray,
    Foreign,
    JsonType,
    OneOf,
    Record,
    Scalar,
    Table,
)
from branchline.lang.plain import plain
from branchline.lang.refusals import describe, refused

_WRAPPERS = frozenset(
    getattr(typing, name)
    for name in ("Required", "NotRequired", "ReadOnly", "Final")
    if hasattr(typing, name)
)


class Document:
    """A type with the definitions that its schema refers to."""

    def __init__(self, root: JsonType, defs: Mapping[str, Any]) -> None:
        self.root = root
        self.schema = _closed(root.schema, defs)


def document(wanted: object) -> Document:
    """Read a type.

    Raises `UnsupportedConstraint` for a type that cannot be written as JSON; names it and the path.
    """
    reader = TypeReader()
    root = reader.read(wanted, "")
    defs = {record.key: record.body for record in reader.records.values()}
    return Document(root, {**reader.foreign, **defs})


def document_of_fields(name: str, fields: Mapping[str, Any], required: Sequence[str]) -> Document:
    """Named types as one object, whose instance is a dict of theirs. Raises as `document`."""
    reader = TypeReader()
    record = Record(name, reader.key(name), dict)
    reader.records[record] = record
    record.define({key: reader.read(hint, key) for key, hint in fields.items()}, required)
    defs = {record.key: record.body for record in reader.records.values()}
    return Document(record, {**reader.foreign, **defs})


def is_model(wanted: object) -> bool:
    """Whether `wanted` is a pydantic model; imports nothing."""
    pydantic = sys.modules.get("pydantic")
    return (
        pydantic is not None and isinstance(wanted, type) and issubclass(wanted, pydantic.BaseModel)
    )


class TypeReader:
    """Reads annotations; classes become definitions, so that they may refer to themselves.

    Attributes:
        records: every class with fields, by its identity.
        foreign: definitions of classes that bring their own.
    """

    def __init__(self) -> None:
        self.records: dict[object, Record] = {}
        self.foreign: dict[str, Any] = {}
        self._keys: dict[str, int] = {}

    def read(self, wanted: Any, path: str) -> JsonType:
        """The JSON form of `wanted`, which stands at `path` ("" = the type itself)."""
        if wanted is None or wanted is type(None):
            return Scalar("null", {"type": "null"}, (type(None),))
        if wanted is Any or wanted is object:
            return ANY
        known = _SCALARS.get(wanted) if isinstance(wanted, type) else None
        if known is not None:
            return known()
        origin = get_origin(wanted)
        if origin is not None or wanted in (list, dict, tuple):
            return self._generic(wanted, origin or wanted, path)
        if isinstance(wanted, type):
            return self._class(wanted, path)
        if type(wanted).__name__ == "TypeAliasType":  # of typing, from Python 3.12
            return self.read(wanted.__value__, path)
        if isinstance(wanted, typing.NewType):
            return self.read(wanted.__supertype__, path)
        raise refused(wanted, path)

    def _generic(self, wanted: Any, origin: Any, path: str) -> JsonType:
        args = get_args(wanted)
        name = describe(wanted)
        if origin is Literal:
            return OneOf(name, [(self._raw(arg, wanted, path), arg) for arg in args])
        if origin is Annotated:
            return self._annotated(args[0], args[1:], path)
        if origin in (Union, types.UnionType):
            return self._union(name, args, path)
        if origin in _WRAPPERS:
            return self.read(args[0], path)
        if origin is list or origin is Sequence:
            return Array(name, self.read(args[0] if args else Any, f"{path}[]"))
        if origin is dict or origin is Mapping:
            key, item = args or (str, Any)
            if key is not str:
                raise refused(wanted, path, "JSON has text keys only")
            return Table(name, self.read(item, f"{path}.*"))
        if origin is tuple:
            if not args or args[1:] == (Ellipsis,):
                return Array(name, self.read(args[0] if args else Any, f"{path}[]"), tuple)
            items = [self.read(arg, f"{path}[{i}]") for i, arg in enumerate(args)]
            return FixedArray(name, items)
        raise refused(wanted, path)

    def _annotated(self, wanted: Any, metadata: Sequence[Any], path: str) -> JsonType:
        base = self.read(wanted, path)
        bounds = bounds_of(metadata, base.schema, wanted, path)
        if not bounds:
            return base
        if isinstance(base, (Scalar, Array, Table)):
            return base.bounded(bounds)
        raise refused(wanted, path, f"it takes no bounds ({', '.join(bounds)})")

    def _union(self, name: str, args: Sequence[Any], path: str) -> JsonType:
        """Narrow members first: text that is a date is a date, a whole number is an int."""
        members = [self.read(arg, path) for arg in args]
        return Either(name, sorted(members, key=_width))

    def _class(self, wanted: type, path: str) -> JsonType:
        if issubclass(wanted, Enum):
            values = [(self._raw(member.value, wanted, path), member) for member in wanted]
            if not values:
                raise refused(wanted, path, "it has no members")
            return OneOf(wanted.__name__, values)
        if is_model(wanted):
            from branchline.lang.models import read_model

            return read_model(wanted, path, self)
        if wanted in self.records:
            return self.records[wanted]
        if dataclasses.is_dataclass(wanted):
            return self._record(wanted, path, _dataclass_fields, lambda given: wanted(**given))
        if is_typeddict(wanted):
            return self._record(wanted, path, _dict_fields, dict)
        if issubclass(wanted, tuple) and hasattr(wanted, "_fields"):
            return self._record(wanted, path, _tuple_fields, lambda given: wanted(**given))
        raise refused(wanted, path)

    def _record(
        self,
        wanted: Any,
        path: str,
        fields_of: Callable[[Any, Mapping[str, Any]], dict[str, bool]],
        make: Callable[[dict[str, Any]], Any],
    ) -> Record:
        record = Record(wanted.__name__, self.key(wanted.__name__), make)
        self.records[wanted] = record
        try:
            hints = typing.get_type_hints(wanted, include_extras=True)
        except (NameError, TypeError) as error:
            why = f"its annotations cannot be read ({error}); define what they name at module level"
            raise refused(wanted, path, why) from error
        required = fields_of(wanted, hints)
        fields: dict[str, JsonType] = {}
        for name in required:
            hint = hints[name]
            if isinstance(hint, dataclasses.InitVar):
                raise refused(hint, f"{path}.{name}", "an InitVar is no field")
            fields[name] = self.read(hint, f"{path}.{name}".lstrip("."))
        record.define(fields, [name for name, needed in required.items() if needed])
        return record

    def key(self, name: str) -> str:
        """A name for a definition that no other one has."""
        count = self._keys[name] = self._keys.get(name, 0) + 1
        return name if count == 1 else f"{name}_{count}"

    def _raw(self, value: object, wanted: object, path: str) -> Any:
        if isinstance(value, Enum):
            value = value.value
        if value is None or type(value) in (str, int, float, bool):
            return value
        raise refused(wanted, path, f"its value {value!r} is no JSON scalar")


def _dataclass_fields(wanted: Any, hints: Mapping[str, Any]) -> dict[str, bool]:
    missing = dataclasses.MISSING
    found = [field for field in dataclasses.fields(wanted) if field.init]
    needed = {f.name: f.default is missing and f.default_factory is missing for f in found}
    for name, hint in hints.items():
        if isinstance(hint, dataclasses.InitVar) and not hasattr(wanted, name):
            needed[name] = True
    return needed


def _dict_fields(wanted: Any, hints: Mapping[str, Any]) -> dict[str, bool]:
    """Python does not see Required and NotRequired in annotations that are kept as texts."""
    marks = {typing.Required: True, typing.NotRequired: False}
    return {
        name: marks.get(get_origin(hint), name in wanted.__required_keys__)
        for name, hint in hints.items()
    }


def _tuple_fields(wanted: Any, hints: Mapping[str, Any]) -> dict[str, bool]:
    for name in wanted._fields:
        if name not in hints:
            raise refused(wanted, name, "its fields have no types; use typing.NamedTuple")
    return {name: name not in wanted._field_defaults for name in wanted._fields}


def _width(member: JsonType) -> int:
    """Place in a union: narrow members before those that take the same values and more."""
    if member is ANY:
        return 4
    if isinstance(member, Foreign) or member.schema == {"type": "number"}:
        return 2
    if member.schema.get("type") == "string" and "pattern" not in member.schema:
        return 3
    return 1 if not isinstance(member, OneOf) else 0


def _integer() -> Scalar:
    bounds = {"minimum": -MAX_INT, "maximum": MAX_INT}
    return Scalar("int", {"type": "integer", **bounds}, (int,))


def _text_like(wanted: type) -> Callable[[], Scalar]:
    form = plain(wanted)
    assert form is not None
    schema = {"type": "string", "pattern": f"^({form.pattern})$"}
    return lambda: Scalar(wanted.__name__, dict(schema), (str,), form.parse)


def _number() -> Scalar:
    return Scalar("float", {"type": "number"}, (int, float), _float)


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # a whole number with hundreds of digits
        return math.copysign(math.inf, value)


_SCALARS: dict[type, Callable[[], Scalar]] = {
    str: lambda: Scalar("str", {"type": "string"}, (str,)),
    int: _integer,
    float: _number,
    bool: lambda: Scalar("bool", {"type": "boolean"}, (bool,)),
    datetime.date: _text_like(datetime.date),
    datetime.time: _text_like(datetime.time),
    datetime.datetime: _text_like(datetime.datetime),
    uuid.UUID: _text_like(uuid.UUID),
}


def _closed(schema: Mapping[str, Any], defs: Mapping[str, Any]) -> dict[str, Any]:
    """`schema` with the definitions it needs, in itself; its own first reference is resolved."""
    needed: dict[str, Any] = {}
    _collect(schema, defs, needed)
    if set(schema) == {"$ref"}:
        key = schema["$ref"].rpartition("/")[2]
        others: dict[str, Any] = {}
        _collect(defs[key], defs, others)
        if key not in others:
            schema, needed = defs[key], others
    return {**schema, "$defs": needed} if needed else dict(schema)


def _collect(schema: Any, defs: Mapping[str, Any], needed: dict[str, Any]) -> None:
    """Add to `needed` what `schema` refers to, directly or not."""
    if isinstance(schema, list):
        for item in schema:
            _collect(item, defs, needed)
    elif isinstance(schema, dict):
        key = str(schema.get("$ref", "")).rpartition("/")[2]
        if key and key in defs and key not in needed:
            needed[key] = defs[key]
            _collect(defs[key], defs, needed)
        for item in schema.values():
            _collect(item, defs, needed)
