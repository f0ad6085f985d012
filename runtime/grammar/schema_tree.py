"""A small part of JSON Schema as a grammar tree, for backends whose own reading is not exact.

Invariant: every text of the tree is JSON that the schema allows; nothing of a schema is ignored
but its annotations. A keyword that is not covered is refused with its place. Objects keep the order
of their properties, further ones last, as every grammar engine has it; names of further ones are
written without escapes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from branchline.runtime.core.sampling_params import Whitespace
from branchline.runtime.errors import InvalidRequest, UnsupportedConstraint
from branchline.runtime.grammar.ebnf import (
    Alt,
    Chars,
    Node,
    Ref,
    Repeat,
    Seq,
    Text,
    checked,
    complement,
)
from branchline.runtime.grammar.limits import DEFAULT_LIMITS, Limits, check_document

ANNOTATIONS = frozenset(
    {"title", "description", "default", "examples", "example", "$schema", "$comment", "deprecated"}
    | {"readOnly", "writeOnly", "$defs", "definitions"}
)
COVERED = {
    "string": frozenset({"minLength", "maxLength"}),
    "integer": frozenset(),
    "number": frozenset(),
    "boolean": frozenset(),
    "null": frozenset(),
    "array": frozenset({"items", "minItems", "maxItems"}),
    "object": frozenset({"properties", "required", "additionalProperties"}),
}
"""Keywords beside `type`, `enum`, `const`, `anyOf`, `$ref` (each of the last four alone)."""

_EMPTY = Text("")
_DIGIT = Chars(((48, 57),))
_HEX = Chars(((48, 57), (65, 70), (97, 102)))
_PLAIN = complement(((0, 0x1F), (34, 34), (92, 92)))
_INTEGER = Seq(
    (
        Repeat(Text("-"), 0, 1),
        Alt((Text("0"), Seq((Chars(((49, 57),)), Repeat(_DIGIT, 0, None))))),
    )
)
_NUMBER = Seq(
    (
        _INTEGER,
        Repeat(Seq((Text("."), Repeat(_DIGIT, 1, None))), 0, 1),
        Repeat(
            Seq(
                (
                    Chars(((69, 69), (101, 101))),
                    Repeat(Chars(((43, 43), (45, 45))), 0, 1),
                    Repeat(_DIGIT, 1, None),
                )
            ),
            0,
            1,
        ),
    )
)


def _pair(first: tuple[int, ...]) -> Node:
    """The last three digits of half a surrogate pair whose second digit is one of `first`."""
    return Seq((Chars(tuple((code, code) for code in first)), _HEX, _HEX))


_HIGH = tuple(map(ord, "89abAB"))
_LOW = tuple(map(ord, "cdefCDEF"))
_CHARACTER = Alt(
    (
        Chars(_PLAIN),
        Seq((Text("\\"), Chars(tuple((ord(c), ord(c)) for c in '"/\\bfnrt')))),
        Seq(
            (Text("\\u"), Chars(((48, 57), (65, 67), (69, 70), (97, 99), (101, 102))), *[_HEX] * 3)
        ),
        Seq((Text("\\u"), Chars(((68, 68), (100, 100))), Chars(((48, 55),)), _HEX, _HEX)),
        Seq(
            (
                Text("\\u"),
                Chars(((68, 68), (100, 100))),
                _pair(_HIGH),
                Text("\\u"),
                Chars(((68, 68), (100, 100))),
                _pair(_LOW),
            )
        ),
    )
)
_BASE: dict[str, Node] = {
    "string": Seq((Text('"'), Repeat(Ref("character"), 0, None), Text('"'))),
    "character": _CHARACTER,
    "integer": _INTEGER,
    "number": _NUMBER,
    "boolean": Alt((Text("true"), Text("false"))),
    "null": Text("null"),
}


def schema_rules(
    text: str, whitespace: Whitespace = "fixed", limits: Limits = DEFAULT_LIMITS
) -> dict[str, Node]:
    """Rules of a schema document; the first is "root".

    Raises:
        InvalidRequest: no schema, or a bound is exceeded.
        UnsupportedConstraint: a keyword that is not covered; names it and its place.
    """
    try:
        schema = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(
            f"json_schema: not JSON ({error})", value=text, hint="Give a JSON Schema document."
        ) from error
    check_document("json_schema", schema, limits)
    if isinstance(schema, dict):
        schema.pop("$id", None)  # at the root it moves no reference that is covered
    return checked(_Builder(schema, whitespace, limits).rules(), "json_schema")


class _Builder:
    def __init__(self, schema: Any, whitespace: Whitespace, limits: Limits) -> None:
        self._schema = schema
        self._limits = limits
        self._rules: dict[str, Node] = {}
        self._named: set[str] = set()  # pointers that are rules
        spaces: dict[Whitespace, tuple[Node, Node]] = {
            "fixed": (Text(" "), _EMPTY),
            "compact": (_EMPTY, _EMPTY),
            "flexible": (Ref("space"), Ref("space")),
        }
        one, self._space = spaces[whitespace]
        run = Chars(((9, 10), (13, 13), (32, 32)))
        self._rules["space"] = Repeat(run, 0, limits.whitespace_run)
        self._comma: Node = Seq((self._space, Text(","), one))
        self._colon: Node = Seq((self._space, Text(":"), one))

    def rules(self) -> dict[str, Node]:
        root = self._reference("#", "#")
        pointers = {name: node for name, node in self._rules.items() if name in self._named}
        return {**pointers, "root": root, **_BASE, **self._rules}  # those that say where come first

    def _refuse(self, keyword: str, path: str) -> NoReturn:
        raise UnsupportedConstraint(
            f"json_schema: {keyword} at {path} cannot be enforced by this backend",
            value=keyword,
            hint="Leave it out, or use another grammar backend.",
        )

    def _rule(self, node: Node) -> Ref:
        name = f"n{len(self._rules)}"
        self._rules[name] = node
        return Ref(name)

    def _reference(self, pointer: str, path: str) -> Ref:
        """The rule of the schema at a pointer; made when first asked for."""
        if pointer not in self._named:
            target = self._schema
            try:
                for step in pointer.split("/")[1:]:
                    key = step.replace("~1", "/").replace("~0", "~")
                    target = target[int(key) if isinstance(target, list) else key]
            except (KeyError, IndexError, ValueError, TypeError) as error:
                raise InvalidRequest(
                    f"json_schema: {path} refers to what is not there",
                    value=pointer,
                    hint="Correct the $ref.",
                ) from error
            self._named.add(pointer)
            self._rules[pointer] = _EMPTY
            self._rules[pointer] = self._value(target, pointer)
        return Ref(pointer)

    def _value(self, schema: Any, path: str) -> Node:
        if schema is True or schema == {}:
            return self._anything()
        if not isinstance(schema, Mapping):
            self._refuse("false" if schema is False else "a schema that is no object", path)
        present = [key for key in schema if key not in ANNOTATIONS]
        for alone in ("$ref", "anyOf", "enum", "const"):
            if alone in present:
                others = [key for key in present if key not in (alone, "type")]
                if others or (len(present) > 1 and alone in ("$ref", "anyOf")):
                    self._refuse(f"{alone} beside {(others or ['type'])[0]}", path)
                return self._alone(alone, schema, path)
        types = schema.get("type")
        names = [types] if isinstance(types, str) else types
        if not present:
            return self._anything()
        if not isinstance(names, list) or not names:
            self._refuse(f"{present[0]} without type" if types is None else "type", path)
        for name in names:
            if not isinstance(name, str) or name not in COVERED:
                self._refuse(f"type {name!r}", path)
        covered = frozenset({"type"}).union(*(COVERED[name] for name in names))
        for key in present:
            if key not in covered:
                self._refuse(key, path)
        parts = tuple(self._typed(name, schema, path) for name in dict.fromkeys(names))
        return parts[0] if len(parts) == 1 else Alt(parts)

    def _alone(self, keyword: str, schema: Mapping[str, Any], path: str) -> Node:
        value = schema[keyword]
        if keyword == "$ref":
            if not isinstance(value, str) or not (value == "#" or value.startswith("#/")):
                self._refuse(f"$ref {value!r}", path)
            return self._reference(value, path)
        if keyword == "const":
            value = [value]
        if not isinstance(value, list) or not value:
            self._refuse(f"an empty or malformed {keyword}", path)
        if keyword == "anyOf":
            return Alt(
                tuple(self._value(item, f"{path}/anyOf/{i}") for i, item in enumerate(value))
            )
        if "type" in schema:
            value = [item for item in value if _is_of(item, schema["type"])]
            if not value:
                self._refuse(f"{keyword} without a value of its type", path)
        return Alt(tuple(self._literal(item) for item in value))

    def _literal(self, value: Any) -> Node:
        if isinstance(value, list):
            return self._bracketed("[", [self._literal(item) for item in value], "]")
        if isinstance(value, dict):
            pairs = [
                Seq((Text(_text(key)), self._colon, self._literal(item)))
                for key, item in value.items()
            ]
            return self._bracketed("{", pairs, "}")
        return Text(_text(value))

    def _bracketed(self, opening: str, items: Sequence[Node], closing: str) -> Node:
        parts: list[Node] = [Text(opening), self._space]
        for index, item in enumerate(items):
            parts += [self._comma, item] if index else [item]
        return Seq((*parts, self._space, Text(closing)))

    def _typed(self, name: str, schema: Mapping[str, Any], path: str) -> Node:
        if name == "object":
            return self._object(schema, path)
        if name == "array":
            item = schema.get("items", True)
            node = self._rule(self._value(item, f"{path}/items"))
            return self._list("[", node, "]", *self._bounds("Items", schema, path))
        least, most = self._bounds("Length", schema, path) if name == "string" else (0, None)
        if name != "string" or (least, most) == (0, None):
            return Ref(name)
        return Seq((Text('"'), Repeat(Ref("character"), least, most), Text('"')))

    def _bounds(self, noun: str, schema: Mapping[str, Any], path: str) -> tuple[int, int | None]:
        least, most = schema.get(f"min{noun}", 0), schema.get(f"max{noun}")
        for key, bound in ((f"min{noun}", least), (f"max{noun}", most)):
            if bound is not None and (type(bound) is not int or bound < 0):
                self._refuse(f"{key} {bound!r}", path)
            if bound is not None and bound > self._limits.repeat:
                self._refuse(f"{key} above {self._limits.repeat}", path)
        if most is not None and most < least:
            self._refuse(f"max{noun} below min{noun}", path)
        return least, most

    def _list(self, opening: str, item: Node, closing: str, least: int, most: int | None) -> Node:
        """least to most items with commas."""
        if most == 0:
            return self._bracketed(opening, [], closing)
        more = Repeat(
            Seq((self._comma, item)), max(least - 1, 0), None if most is None else most - 1
        )
        full = Seq((Text(opening), self._space, item, more, self._space, Text(closing)))
        return full if least else Alt((full, self._bracketed(opening, [], closing)))

    def _object(self, schema: Mapping[str, Any], path: str) -> Node:
        properties = schema.get("properties", {})
        required = schema.get("required", [])
        further = schema.get("additionalProperties", True)
        if not isinstance(properties, Mapping) or not isinstance(required, list):
            self._refuse("malformed properties or required", path)
        for key in required:
            if key not in properties:
                self._refuse(f"required {key!r}, which is not in properties,", path)
        pairs = [
            (
                key in required,
                self._rule(
                    Seq(
                        (
                            Text(_text(key)),
                            self._colon,
                            self._value(item, f"{path}/properties/{_step(key)}"),
                        )
                    )
                ),
            )
            for key, item in properties.items()
        ]
        extra: Node | None = None
        if further is not False:
            value = self._value(further, f"{path}/additionalProperties")
            name = Seq((Text('"'), self._other_than(list(properties)), Text('"')))
            extra = self._rule(Seq((name, self._colon, value)))
        first = self._members(pairs, extra)
        return Seq((Text("{"), self._space, first, self._space, Text("}")))

    def _members(self, pairs: list[tuple[bool, Ref]], extra: Node | None) -> Node:
        """All members with their commas; built from the last one on."""
        rest: Node = _EMPTY  # what may follow when members came before
        first: Node = _EMPTY
        if extra is not None:
            rest = self._rule(Repeat(Seq((self._comma, extra)), 0, None))
            first = Repeat(Seq((extra, rest)), 0, 1)
        for needed, pair in reversed(pairs):
            follows, begins = Seq((self._comma, pair, rest)), Seq((pair, rest))
            new_rest = follows if needed else Alt((follows, rest))
            first = self._rule(begins if needed else Alt((begins, first)))
            rest = self._rule(new_rest)
        return first

    def _other_than(self, names: Sequence[str]) -> Node:
        """The inside of a JSON string without escapes that is none of `names`."""
        children: dict[str, list[str]] = {}
        for name in names:
            if name:
                children.setdefault(name[0], []).append(name[1:])
        barred = tuple((ord(char), ord(char)) for char in children)
        outside = complement((*complement(_PLAIN), *barred))
        parts: list[Node] = [Seq((Chars(outside), Repeat(Chars(_PLAIN), 0, None)))]
        parts += [
            self._rule(Seq((Text(char), self._other_than(rest))))
            for char, rest in children.items()
            if ord(char) >= 32 and char not in '"\\'
        ]
        if "" not in names:
            parts.append(_EMPTY)
        return Alt(tuple(parts))

    def _anything(self) -> Node:
        if "anything" not in self._rules:
            self._rules["anything"] = _EMPTY
            value = Ref("anything")
            pair = Seq((Ref("string"), self._colon, value))
            self._rules["anything"] = Alt(
                (
                    *(Ref(name) for name in ("string", "number", "boolean", "null")),
                    self._list("[", value, "]", 0, None),
                    self._list("{", pair, "}", 0, None),
                )
            )
        return Ref("anything")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _text(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    halves = any("\ud800" <= char <= "\udfff" for char in text)
    return json.dumps(value) if halves else text


def _step(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


_TESTS: dict[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}


def _is_of(value: Any, types: Any) -> bool:
    names = types if isinstance(types, list) else [types]
    return any(_TESTS.get(name, lambda _: False)(value) for name in names if isinstance(name, str))
