"""Keywords about values as such, numbers and strings. Invariant: see `factors.Factor`."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

from branchline.runtime.grammar.json_schema import numbers
from branchline.runtime.grammar.json_schema.document import Node, malformed, unsupported
from branchline.runtime.grammar.json_schema.factors import Context, Factor, Union, listing, whole
from branchline.runtime.grammar.json_schema.formats import FORMATS, REFUSED_FORMATS
from branchline.runtime.grammar.json_schema.languages import Language
from branchline.runtime.grammar.json_schema.numbers import Numbers
from branchline.runtime.grammar.json_schema.patterns import search_language
from branchline.runtime.grammar.json_schema.sets import (
    ANYTHING,
    Arrays,
    Booleans,
    Kind,
    Names,
    Null,
    Objects,
    Texts,
    Values,
    everything,
)
from branchline.runtime.patterns.ecma import PatternError

_TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
_INTEGERS = Numbers(step=Fraction(1))
Maker = Callable[[Context, Node, Kind], Factor | None]


def kind_of(value: object) -> Kind:
    """The type of a JSON value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | Decimal):
        return "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object"


def type_factor(context: Context, node: Node, kind: Kind) -> Factor:
    """`type`."""
    found = _schema(node)["type"]
    types = found if isinstance(found, list) else [found]
    for name in types:
        if name not in _TYPES:
            raise unsupported("type", node.path, f"{name!r} is no type")
    every = everything(context.languages, kind)
    yes: list[Values] = [every] if kind in types else []
    no: list[Values] = [] if yes else [every]
    if kind == "number" and not yes and "integer" in types:
        yes, no = [_INTEGERS], [Numbers(broken=True)]
    return Factor("type", lambda: yes, lambda: no)


def may_be(node: Node, kind: Kind) -> bool:
    """False where `type` alone says that no value of a type is valid; a look, no more."""
    types = _schema(node).get("type")
    if types == kind or types is None or "$ref" in _schema(node):
        return True
    if isinstance(types, str):
        return types not in _TYPES or (types == "integer" and kind == "number")
    return True


def enum_factor(context: Context, node: Node, kind: Kind) -> Factor:
    """`enum`."""
    return _one_of(context, node, kind, "enum", listing(_schema(node)["enum"], node, "enum"))


def const_factor(context: Context, node: Node, kind: Kind) -> Factor:
    """`const`."""
    return _one_of(context, node, kind, "const", [_schema(node)["const"]])


def _one_of(
    context: Context, node: Node, kind: Kind, keyword: str, all_values: list[Any]
) -> Factor:
    values = [value for value in all_values if kind_of(value) == kind]
    make = context.languages
    every = everything(make, kind)
    yes: list[Values] = []
    match kind:
        case "string":
            words = frozenset(values)
            if any(0xD800 <= ord(char) <= 0xDFFF for word in words for char in word):
                raise malformed(f"{node.path}/{keyword}", "half a surrogate pair")
            yes = [Texts(None, words)] if words else []
            return Factor(keyword, lambda: yes, lambda: [Texts(make.complement(make.words(words)))])
        case "number":
            found = Numbers(listed=frozenset(map(Fraction, values)))
            yes = [found] if values else []
            rest_numbers = numbers.without(found) if values else [every]
            return Factor(keyword, lambda: yes, lambda: rest_numbers or [])
        case "boolean":
            flags = frozenset(values)
            yes = [Booleans(flags)] if flags else []
            left = Booleans(frozenset({True, False}) - flags)
            return Factor(keyword, lambda: yes, lambda: [left] if left.values else [])
        case "null":
            yes = [Null()] if values else []
            return Factor(keyword, lambda: yes, lambda: [] if values else [Null()])
    if kind == "array":
        yes = [_array_of(context, node, value) for value in values]
    else:
        yes = [_object_of(context, node, value) for value in values]

    def no() -> Union:
        result: Union = [every]
        for value in values:
            other = _other_arrays if kind == "array" else _other_objects
            result = context.both(result, other(context, node, value), keyword, node.path)
        return result

    return Factor(keyword, lambda: yes, no)


def _exactly(context: Context, node: Node, value: object, holds: bool = True) -> Any:
    made = context.document.synthetic({"enum": [value]}, node.path, node.base)
    return context.state(made, holds)


def _array_of(context: Context, node: Node, value: list[Any]) -> Arrays:
    prefix = tuple(_exactly(context, node, item) for item in value)
    return Arrays(prefix, context.nothing(), len(value), len(value))


def _other_arrays(context: Context, node: Node, value: list[Any]) -> Union:
    options: list[Values] = [Arrays(least=len(value) + 1)]
    if value:
        options.append(Arrays(most=len(value) - 1))
    for at, item in enumerate(value):
        prefix = (ANYTHING,) * at + (_exactly(context, node, item, False),)
        options.append(Arrays(prefix, least=len(value), most=len(value)))
    return options


def _object_of(context: Context, node: Node, value: dict[str, Any]) -> Objects:
    return Objects(
        tuple((name, _exactly(context, node, item)) for name, item in value.items()),
        ((Names(frozenset(value)), context.nothing()),),
        frozenset(frozenset({(name, True)}) for name in value),
    )


def _other_objects(context: Context, node: Node, value: dict[str, Any]) -> Union:
    options: list[Values] = [Objects(some=((Names(frozenset(value)), ANYTHING),))]
    if value:
        options.append(Objects(clauses=frozenset({frozenset((name, False) for name in value)})))
    for name, item in value.items():
        present = frozenset({frozenset({(name, True)})})
        state = _exactly(context, node, item, False)
        options.append(Objects(((name, state),), clauses=present))
    return options


def number_factor(context: Context, node: Node, kind: Kind) -> Factor | None:
    """`minimum`, `maximum`, `exclusiveMinimum`, `exclusiveMaximum`, `multipleOf`."""
    if kind != "number":
        return None
    schema = _schema(node)
    low, low_open = _bound(node, "minimum", "exclusiveMinimum", above=True)
    high, high_open = _bound(node, "maximum", "exclusiveMaximum", above=False)
    step = None
    if "multipleOf" in schema:
        step = _number(node, "multipleOf")
        if step <= 0:
            raise malformed(f"{node.path}/multipleOf", "a multipleOf that is not above 0")
    found = numbers.meet(Numbers(low, low_open, high, high_open), Numbers(step=step))

    def no() -> Union:
        rest = numbers.without(Numbers(low, low_open, high, high_open))
        other = numbers.without(Numbers(step=step)) if step is not None else []
        if rest is None or other is None:
            raise unsupported("not", node.path, "numbers that are no multiples")
        return [*rest, *other]

    return Factor("minimum", lambda: [] if found is None else [found], no)


def _bound(node: Node, plain: str, exclusive: str, *, above: bool) -> tuple[Fraction | None, bool]:
    schema = _schema(node)
    value = _number(node, plain) if plain in schema else None
    strict = schema.get(exclusive)
    if isinstance(strict, bool):
        return value, strict and value is not None
    if strict is None:
        return value, False
    other = _number(node, exclusive)
    if value is None or (other >= value if above else other <= value):
        return other, True
    return value, False


def _number(node: Node, keyword: str) -> Fraction:
    value = _schema(node)[keyword]
    if kind_of(value) != "number":
        raise malformed(f"{node.path}/{keyword}", "no number where one belongs")
    return Fraction(value)


def length_factor(context: Context, node: Node, kind: Kind) -> Factor | None:
    """`minLength`, `maxLength`."""
    if kind != "string":
        return None
    schema = _schema(node)
    least = whole(schema.get("minLength", 0), node, "minLength")
    most = whole(schema["maxLength"], node, "maxLength") if "maxLength" in schema else None
    if most is not None and most < least:
        return Factor("minLength", lambda: [], lambda: [everything(context.languages, "string")])
    return _text_factor(context, "minLength", context.languages.length(least, most))


def pattern_factor(context: Context, node: Node, kind: Kind) -> Factor | None:
    """`pattern`."""
    if kind != "string":
        return None
    found = pattern_language(context, node, "pattern", _schema(node)["pattern"])
    return _text_factor(context, "pattern", found)


def pattern_language(context: Context, node: Node, keyword: str, pattern: object) -> Language:
    """Strings in which a pattern is found.

    Raises:
        InvalidRequest: it is no text.
        UnsupportedConstraint: it cannot be translated.
    """
    if not isinstance(pattern, str):
        raise malformed(f"{node.path}/{keyword}", "no text where a pattern belongs")
    try:
        return search_language(context.languages, pattern)
    except PatternError as error:
        raise unsupported(keyword, node.path, f"the pattern {pattern!r} has {error}") from error


def format_factor(context: Context, node: Node, kind: Kind) -> Factor | None:
    """`format`, where the name is one of those that assert something."""
    name = _schema(node)["format"]
    if kind != "string" or not isinstance(name, str):
        return None
    if name in REFUSED_FORMATS:
        raise unsupported("format", node.path, f"{name!r} {REFUSED_FORMATS[name]}")
    if name not in FORMATS:
        return None
    return _text_factor(
        context, "format", search_language(context.languages, f"^(?:{FORMATS[name]})$")
    )


def _text_factor(context: Context, keyword: str, language: Language) -> Factor:
    rest = context.languages.complement(language)
    return Factor(keyword, lambda: [Texts(language)], lambda: [Texts(rest)])


def _schema(node: Node) -> dict[str, Any]:
    assert isinstance(node.schema, dict)
    return node.schema


SCALAR_KEYWORDS: dict[str, Maker] = {
    "enum": enum_factor,
    "const": const_factor,
    "minimum": number_factor,
    "maximum": number_factor,
    "exclusiveMinimum": number_factor,
    "exclusiveMaximum": number_factor,
    "multipleOf": number_factor,
    "minLength": length_factor,
    "maxLength": length_factor,
    "pattern": pattern_factor,
    "format": format_factor,
}
"""Keywords of a family name one maker, which looks at all of them."""
