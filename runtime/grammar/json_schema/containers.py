"""Keywords about arrays and objects. Invariant: see `factors.Factor`."""

from __future__ import annotations

from typing import Any

from branchline.runtime.grammar.json_schema.document import Node, unsupported
from branchline.runtime.grammar.json_schema.factors import (
    Context,
    Factor,
    Union,
    listing,
    mapping,
    names,
    whole,
)
from branchline.runtime.grammar.json_schema.scalars import Maker, pattern_language
from branchline.runtime.grammar.json_schema.sets import (
    ANYTHING,
    Arrays,
    Clause,
    Contains,
    Kind,
    Names,
    Objects,
    State,
    Values,
)


def items_factor(context: Context, node: Node, kind: Kind) -> Factor | None:
    """`prefixItems`, `items`, `additionalItems`."""
    if kind != "array":
        return None
    prefix, rest = _prefix(context, node)
    other = context.document.child(node, rest) if rest in _schema(node) else None
    states = tuple(context.state(one) for one in prefix)
    yes = Arrays(states, ANYTHING if other is None else context.state(other))

    def no() -> Union:
        options: list[Values] = []
        for at, one in enumerate(prefix):
            wrong = (ANYTHING,) * at + (context.state(one, False),)
            options.append(Arrays(wrong, least=at + 1))
        if other is not None:
            wrong_one = Contains(context.state(other, False), start=len(prefix))
            options.append(Arrays(contains=(wrong_one,)))
        return options

    return Factor("items", lambda: [yes], no)


def _prefix(context: Context, node: Node) -> tuple[list[Node], str]:
    """Schemas of the first items, and the keyword for those behind them."""
    schema, document = _schema(node), context.document
    first, rest = "prefixItems", "items"
    if isinstance(schema.get("items"), list):
        first, rest = "items", "additionalItems"
    if first not in schema or not document.knows(first):
        return [], rest
    count = len(listing(schema[first], node, first))
    return [document.child(node, first, index) for index in range(count)], rest


def count_factor(context: Context, node: Node, kind: Kind) -> Factor | None:
    """`minItems`, `maxItems`, `minProperties`, `maxProperties`."""
    del context
    if kind not in ("array", "object"):
        return None
    schema = _schema(node)
    suffix = "Items" if kind == "array" else "Properties"
    low, high = f"min{suffix}", f"max{suffix}"
    least = whole(schema.get(low, 0), node, low)
    most = whole(schema[high], node, high) if high in schema else None

    def sized(least: int, most: int | None) -> Values:
        if kind == "array":
            return Arrays(least=least, most=most)
        return Objects(least=least, most=most)

    def yes() -> Union:
        return [] if most is not None and most < least else [sized(least, most)]

    def no() -> Union:
        few = [sized(0, least - 1)] if least else []
        return few if most is None else [*few, sized(most + 1, None)]

    return Factor(low, yes, no)


def unique_factor(context: Context, node: Node, kind: Kind) -> Factor | None:
    """`uniqueItems`."""
    del context
    if kind != "array" or _schema(node)["uniqueItems"] is not True:
        return None

    def no() -> Union:
        raise unsupported("uniqueItems", node.path, "it is negated: two items would be equal")

    return Factor("uniqueItems", lambda: [Arrays(unique=node.path or "#")], no)


def contains_factor(context: Context, node: Node, kind: Kind) -> Factor | None:
    """`contains`, `minContains`, `maxContains`."""
    schema = _schema(node)
    if kind != "array" or "contains" not in schema:
        return None
    inner = context.document.child(node, "contains")
    least, most = 1, None
    if "minContains" in schema and context.document.knows("minContains"):
        least = whole(schema["minContains"], node, "minContains")
    if "maxContains" in schema and context.document.knows("maxContains"):
        most = whole(schema["maxContains"], node, "maxContains")

    def counted(least: int, most: int | None) -> Values:
        if most == 0:
            return Arrays(rest=context.state(inner, False))
        other = None if most is None else context.state(inner, False)
        return Arrays(contains=(Contains(context.state(inner), least, most, 0, other),))

    def yes() -> Union:
        if most is not None and most < least:
            return []
        return [counted(least, most)] if least or most is not None else [Arrays()]

    def no() -> Union:
        few = [counted(0, least - 1)] if least else []
        return few if most is None else [*few, counted(most + 1, None)]

    return Factor("contains", yes, no)


def properties_factor(context: Context, node: Node, kind: Kind) -> Factor | None:
    """`properties`, `patternProperties`, `additionalProperties`."""
    if kind != "object":
        return None
    schema, document = _schema(node), context.document
    named = {
        name: document.child(node, "properties", name)
        for name in mapping(schema.get("properties", {}), node, "properties")
    }
    patterns = [
        (
            pattern_language(context, node, "patternProperties", pattern),
            document.child(node, "patternProperties", pattern),
        )
        for pattern in mapping(schema.get("patternProperties", {}), node, "patternProperties")
    ]
    rules = [(Names(only=language), one) for language, one in patterns]
    if "additionalProperties" in schema:
        rest = Names(frozenset(named), tuple(language for language, _ in patterns))
        rules.append((rest, document.child(node, "additionalProperties")))
    yes = Objects(
        tuple((name, context.state(one)) for name, one in named.items()),
        tuple((which, context.state(one)) for which, one in rules),
    )

    def no() -> Union:
        options: list[Values] = []
        for name, one in named.items():
            wrong = ((name, context.state(one, False)),)
            options.append(Objects(wrong, clauses=_all_of([(name, True)])))
        for which, one in rules:
            options.append(Objects(some=((which, context.state(one, False)),)))
        return options

    return Factor("properties", lambda: [yes], no)


def property_names_factor(context: Context, node: Node, kind: Kind) -> Factor | None:
    """`propertyNames`."""
    if kind != "object":
        return None
    inner = context.document.child(node, "propertyNames")
    allowed = context.text_language(context.state(inner))
    others = Names(but=(allowed,))
    return Factor(
        "propertyNames",
        lambda: [Objects(rules=((others, context.nothing()),))],
        lambda: [Objects(some=((others, ANYTHING),))],
    )


def required_factor(context: Context, node: Node, kind: Kind) -> Factor | None:
    """`required`."""
    del context
    if kind != "object":
        return None
    wanted = names(_schema(node)["required"], node, "required")
    absent: Clause = frozenset((name, False) for name in wanted)
    yes = Objects(clauses=_all_of([(name, True) for name in wanted]))
    return Factor(
        "required",
        lambda: [yes],
        lambda: [Objects(clauses=frozenset({absent}))] if wanted else [],
    )


def dependent_required_factor(context: Context, node: Node, kind: Kind) -> Factor | None:
    """`dependentRequired`."""
    del context
    if kind != "object":
        return None
    found = mapping(_schema(node)["dependentRequired"], node, "dependentRequired")
    wanted = {name: names(found[name], node, "dependentRequired") for name in found}
    return dependent_names("dependentRequired", wanted)


def dependent_names(keyword: str, wanted: dict[str, list[str]]) -> Factor:
    """Where a name is present, others are."""
    pairs = [(name, other) for name, others in wanted.items() for other in others if other != name]
    yes = Objects(
        clauses=frozenset(frozenset({(name, False), (other, True)}) for name, other in pairs)
    )
    return Factor(
        keyword,
        lambda: [yes],
        lambda: [Objects(clauses=_all_of([(name, True), (other, False)])) for name, other in pairs],
    )


def present(name: str, has: bool) -> Objects:
    """Objects that have, or lack, a name."""
    return Objects(clauses=_all_of([(name, has)]))


def unevaluated_factor(context: Context, node: Node, kind: Kind) -> Factor | None:
    """`unevaluatedProperties`, `unevaluatedItems`, where nothing beside them evaluates."""
    schema = _schema(node)
    keyword = "unevaluatedProperties" if kind == "object" else "unevaluatedItems"
    if (
        kind not in ("object", "array")
        or keyword not in schema
        or not context.document.knows(keyword)
    ):
        return None
    beside = [name for name in _EVALUATORS if name in schema]
    if kind == "array" and "contains" in schema:
        beside.append("contains")
    if beside:
        raise unsupported(keyword, node.path, f"it stands beside {beside[0]}")
    inner = context.document.child(node, keyword)
    if kind == "array":
        prefix, rest = _prefix(context, node)
        if rest in schema:
            return None
        start = len(prefix)
        items = Arrays((ANYTHING,) * start, context.state(inner))
        wrong = Contains(context.state(inner, False), start=start)
        return Factor(keyword, lambda: [items], lambda: [Arrays(contains=(wrong,))])
    if "additionalProperties" in schema:
        return None
    languages = tuple(
        pattern_language(context, node, "patternProperties", pattern)
        for pattern in mapping(schema.get("patternProperties", {}), node, "patternProperties")
    )
    which = Names(frozenset(mapping(schema.get("properties", {}), node, "properties")), languages)
    rules: tuple[tuple[Names, State], ...] = ((which, context.state(inner)),)
    some = ((which, context.state(inner, False)),)
    return Factor(keyword, lambda: [Objects(rules=rules)], lambda: [Objects(some=some)])


_EVALUATORS = (
    "$ref",
    "$dynamicRef",
    "$recursiveRef",
    "allOf",
    "anyOf",
    "oneOf",
    "not",
    "if",
    "dependentSchemas",
    "dependencies",
)


def _all_of(literals: list[tuple[str, bool]]) -> frozenset[Clause]:
    return frozenset(frozenset({literal}) for literal in literals)


def _schema(node: Node) -> dict[str, Any]:
    assert isinstance(node.schema, dict)
    return node.schema


CONTAINER_KEYWORDS: dict[str, Maker] = {
    "properties": properties_factor,
    "patternProperties": properties_factor,
    "additionalProperties": properties_factor,
    "required": required_factor,
    "propertyNames": property_names_factor,
    "minProperties": count_factor,
    "maxProperties": count_factor,
    "dependentRequired": dependent_required_factor,
    "prefixItems": items_factor,
    "items": items_factor,
    "additionalItems": items_factor,
    "minItems": count_factor,
    "maxItems": count_factor,
    "uniqueItems": unique_factor,
    "contains": contains_factor,
    "minContains": contains_factor,
    "maxContains": contains_factor,
    "unevaluatedProperties": unevaluated_factor,
    "unevaluatedItems": unevaluated_factor,
}
"""Keywords of a family name one maker, which looks at all of them."""
