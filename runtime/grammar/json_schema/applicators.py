"""Keywords that apply other schemas to the same value. Invariant: see `factors.Factor`."""

from __future__ import annotations

from collections.abc import Callable

from branchline.runtime.grammar.json_schema.containers import dependent_names, present
from branchline.runtime.grammar.json_schema.document import Node
from branchline.runtime.grammar.json_schema.factors import (
    Context,
    Factor,
    Union,
    listing,
    mapping,
    names,
)
from branchline.runtime.grammar.json_schema.sets import Kind, everything


def _all_of(context: Context, node: Node, kind: Kind) -> list[Factor]:
    found = []
    for one in _branches(context, node, "allOf"):
        found.extend(context.factors(one, kind))
    return found


def one_schema(
    context: Context, node: Node, kind: Kind, keyword: str, holds: bool = True
) -> Factor:
    """A schema as a whole that must hold, or must not."""
    return Factor(
        keyword,
        lambda: context.sets(node, holds, kind),
        lambda: context.sets(node, not holds, kind),
    )


def _branches(context: Context, node: Node, keyword: str) -> list[Node]:
    assert isinstance(node.schema, dict)
    found = listing(node.schema[keyword], node, keyword)
    return [context.document.child(node, keyword, index) for index in range(len(found))]


def _reference(context: Context, node: Node, kind: Kind) -> list[Factor]:
    assert isinstance(node.schema, dict)
    return context.factors(context.document.resolve(node, node.schema["$ref"]), kind)


def _negation(context: Context, node: Node, kind: Kind) -> list[Factor]:
    return [one_schema(context, context.document.child(node, "not"), kind, "not", holds=False)]


def _meet_all(
    context: Context, unions: list[Callable[[], Union]], kind: Kind, keyword: str, path: str
) -> Union:
    result: Union = [everything(context.languages, kind)]
    for union in unions:
        if not result:
            break
        result = context.both(result, union(), keyword, path)
    return result


def _any_of(context: Context, node: Node, kind: Kind) -> list[Factor]:
    branches = [
        one_schema(context, one, kind, "anyOf") for one in _branches(context, node, "anyOf")
    ]

    def within(inside: Union) -> Union:
        options = [context.both(inside, one.yes(), "anyOf", node.path) for one in branches]
        return context.either(options)

    return [
        Factor(
            "anyOf",
            lambda: context.either([one.yes() for one in branches]),
            lambda: _meet_all(context, [one.no for one in branches], kind, "anyOf", node.path),
            within,
        )
    ]


def _one_of(context: Context, node: Node, kind: Kind) -> list[Factor]:
    branches = [
        one_schema(context, one, kind, "oneOf") for one in _branches(context, node, "oneOf")
    ]

    def both(left: Union, right: Union) -> Union:
        return context.both(left, right, "oneOf", node.path)

    def overlap(left: Union, right: Union) -> bool:
        return context.overlap(left, right, "oneOf", node.path)

    def within(inside: Union) -> Union:
        options = [both(inside, one.yes()) for one in branches]
        beside: list[list[int]] = [[] for _ in options]
        for at, option in enumerate(options):
            for other in range(at):
                if overlap(option, options[other]):
                    beside[at].append(other)
                    beside[other].append(at)
        found = []
        for option, others in zip(options, beside, strict=True):
            for other in others:
                if overlap(option, options[other]):  # what is left of it
                    option = both(option, branches[other].no())
            found.append(option)
        return context.either(found)

    def no() -> Union:
        options = [one.yes() for one in branches]
        none = _meet_all(context, [one.no for one in branches], kind, "oneOf", node.path)
        pairs = [
            both(option, other) for at, option in enumerate(options) for other in options[at + 1 :]
        ]
        return context.either([none, *pairs])

    every: Union = [everything(context.languages, kind)]
    return [Factor("oneOf", lambda: within(every), no, within)]


def _condition(context: Context, node: Node, kind: Kind) -> list[Factor]:
    assert isinstance(node.schema, dict)
    test = context.document.child(node, "if")
    cases = [
        one_schema(context, context.document.child(node, keyword), kind, keyword)
        if keyword in node.schema
        else None
        for keyword in ("then", "else")
    ]
    if cases == [None, None]:
        return []

    def all_cases(within: Union, holds: bool) -> Union:
        found = []
        for case, passes in zip(cases, (True, False), strict=True):
            inside = context.both(within, context.sets(test, passes, kind), "if", node.path)
            if case is not None and inside:
                result = case.yes() if holds else case.no()
                found.append(context.both(inside, result, "if", node.path))
            elif holds:
                found.append(inside)
        return context.either(found)

    every: Union = [everything(context.languages, kind)]
    return [
        Factor(
            "if",
            lambda: all_cases(every, True),
            lambda: all_cases(every, False),
            lambda inside: all_cases(inside, True),
        )
    ]


def _dependencies(context: Context, node: Node, kind: Kind) -> list[Factor]:
    assert isinstance(node.schema, dict)
    if kind != "object":
        return []
    factors = []
    wanted: dict[str, list[str]] = {}
    for keyword in ("dependentSchemas", "dependencies"):
        found = mapping(node.schema.get(keyword, {}), node, keyword)
        for name, value in found.items():
            if isinstance(value, list | str) and keyword == "dependencies":
                others = [value] if isinstance(value, str) else value
                wanted[name] = names(others, node, keyword)
                continue
            inner = context.document.child(node, keyword, name)
            factors.append(_dependent(context, inner, name, keyword, node.path))
    return [*factors, *([dependent_names("dependencies", wanted)] if wanted else [])]


def _dependent(context: Context, inner: Node, name: str, keyword: str, path: str) -> Factor:
    has: Union = [present(name, True)]

    def yes() -> Union:
        kept = context.both(has, context.sets(inner, True, "object"), keyword, path)
        return [present(name, False), *kept]

    def no() -> Union:
        return context.both(has, context.sets(inner, False, "object"), keyword, path)

    return Factor(keyword, yes, no)


def _no_dependencies(context: Context, node: Node, kind: Kind) -> list[Factor]:
    """`dependencies` beside `dependentSchemas`: done there."""
    assert isinstance(node.schema, dict)
    return [] if "dependentSchemas" in node.schema else _dependencies(context, node, kind)


APPLICATORS: dict[str, Callable[[Context, Node, Kind], list[Factor]]] = {
    "$ref": _reference,
    "allOf": _all_of,
    "dependentSchemas": _dependencies,
    "dependencies": _no_dependencies,
    "if": _condition,
    "not": _negation,
    "oneOf": _one_of,
    "anyOf": _any_of,
}
