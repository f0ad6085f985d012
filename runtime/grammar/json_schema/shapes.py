"""Objects and arrays laid out for a grammar: each name and each item with its own state.

Invariant: the shapes of a set have together exactly the values of the set; in a shape, every name
of a property falls under exactly one of the listed names and regions. Knows no grammar.
"""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

from branchline.runtime.grammar.json_schema.document import unsupported
from branchline.runtime.grammar.json_schema.expander import Expander
from branchline.runtime.grammar.json_schema.languages import Language
from branchline.runtime.grammar.json_schema.sets import (
    ANYTHING,
    Arrays,
    Clause,
    Names,
    Objects,
    State,
    item_state,
)

_MOST_REGIONS = 64
MOST_LISTED = 64
"""Of names that no keyword lists as such: that many may come in any order."""
_MOST_WITNESSES = 4
_MOST_CONTAINS = 3

Region = tuple[Language, State]


class Shape(NamedTuple):
    """Objects.

    Attributes:
        names: names and what their values are in, in the order of the schema.
        regions: other names, disjoint, and what their values are in.
        witnesses: for each, at least one property lies in one of its regions.
        clauses: which of the names are present.
        least, most: number of properties.
    """

    names: tuple[tuple[str, State], ...]
    regions: tuple[Region, ...]
    witnesses: tuple[tuple[Region, ...], ...]
    clauses: frozenset[Clause]
    least: int
    most: int | None


def shapes_of(expander: Expander, objects: Objects) -> list[Shape]:
    """Shapes of a set of objects.

    Raises:
        UnsupportedConstraint: too many kinds of names.
    """
    words = _all_names(expander, objects)
    regions = _regions(expander, objects, words)
    pending: list[tuple[Objects, tuple[tuple[Region, ...], ...]]] = [
        (objects._replace(some=()), ())
    ]
    if len(objects.some) > _MOST_WITNESSES:
        raise unsupported("additionalProperties", "#", "too many negations of it at one place")
    for which, state in objects.some:
        after = []
        for one, witnesses in pending:
            for name in words:
                named = _with_name(expander, one, which, name, state)
                if named is not None:
                    after.append((named, witnesses))
            witness = _witness(expander, which, state, regions)
            if witness:
                after.append((one, (*witnesses, witness)))
        pending = after
    return [
        Shape(
            tuple((name, expander.value_state(one, name)) for name in words),
            tuple(region for region in regions if not expander.is_empty(region[1])),
            witnesses,
            one.clauses,
            one.least,
            one.most,
        )
        for one, witnesses in pending
    ]


def _all_names(expander: Expander, objects: Objects) -> tuple[str, ...]:
    found = {name: None for name, _ in objects.properties}
    required = [name for clause in objects.clauses if len(clause) == 1 for name, _ in clause]
    found.update(dict.fromkeys(sorted(required)))
    others = {name for clause in objects.clauses for name, _ in clause}
    for which, _ in (*objects.rules, *objects.some):
        others |= which.words
    for which, state in objects.rules:
        if expander.nothing() <= state:
            others |= _only_names(expander, which)
    found.update(dict.fromkeys(sorted(others)))
    return tuple(found)


def _only_names(expander: Expander, forbidden: Names) -> frozenset[str]:
    """The names that there can be where all of `forbidden` are ruled out, if they are few: listed
    like others, each comes once at most.
    """
    if forbidden.only is not None:
        return frozenset()
    lists = [expander.languages.texts(one, MOST_LISTED) for one in forbidden.but]
    found = frozenset(name for each in lists if each is not None for name in each)
    return frozenset() if None in lists or len(found) > MOST_LISTED else found


def _with_name(
    expander: Expander, objects: Objects, which: Names, name: str, state: State
) -> Objects | None:
    if not which.has(expander.languages, name) or frozenset({(name, False)}) in objects.clauses:
        return None
    properties = dict(objects.properties)
    properties[name] = properties.get(name, ANYTHING) | state
    clauses = objects.clauses | {frozenset({(name, True)})}
    named = objects._replace(properties=tuple(properties.items()), clauses=clauses)
    return None if expander.is_empty(expander.value_state(named, name)) else named


def _witness(
    expander: Expander, which: Names, state: State, regions: list[Region]
) -> tuple[Region, ...]:
    make = expander.languages
    kind = [make.complement(one) for one in which.but]
    if which.only is not None:
        kind.append(which.only)
    found = []
    for language, own in regions:
        both = make.all([language, *kind])
        if not make.is_empty(both) and not expander.is_empty(own | state):
            found.append((both, own | state))
    return tuple(found)


def _regions(expander: Expander, objects: Objects, words: tuple[str, ...]) -> list[Region]:
    """Kinds of other names; those that are forbidden are among them."""
    make = expander.languages
    kinds: dict[Language, None] = {}
    for which, _ in objects.rules:
        kinds.update(dict.fromkeys([*which.but, *([which.only] if which.only else [])]))
    pieces: list[tuple[list[Language], frozenset[Language]]] = [([], frozenset())]
    for kind in kinds:
        split = []
        for parts, inside in pieces:
            for part, now in ((kind, inside | {kind}), (make.complement(kind), inside)):
                if not make.is_empty(make.all([*parts, part])):
                    split.append(([*parts, part], now))
        pieces = split
        if len(pieces) > _MOST_REGIONS:
            raise unsupported("patternProperties", "#", "its patterns overlap in too many ways")
    by_state: dict[State, list[Language]] = {}
    for parts, inside in pieces:
        state = ANYTHING
        for which, one in objects.rules:
            if (which.only is None or which.only in inside) and not inside & set(which.but):
                state |= one
        if expander.nothing() <= state:
            state = expander.nothing()
        by_state.setdefault(state, []).append(make.all(parts))
    named = make.complement(make.words(words))
    whole = len(by_state) == 1
    found = [
        (make.all([named, make.every if whole else make.any(languages)]), state)
        for state, languages in by_state.items()
    ]
    return [(language, state) for language, state in found if not make.is_empty(language)]


class Choice(NamedTuple):
    """One way an item may be: its state, and which of the `contains` it is counted for."""

    state: State
    counted: frozenset[int]


def choices_at(expander: Expander, arrays: Arrays, index: int) -> list[Choice]:
    """Ways the item at an index may be.

    Raises:
        UnsupportedConstraint: too many `contains` at one place.
    """
    if len(arrays.contains) > _MOST_CONTAINS:
        raise unsupported("contains", "#", f"more than {_MOST_CONTAINS} of them at one place")
    active = [at for at, one in enumerate(arrays.contains) if index >= one.start]
    found = []
    for count in range(len(active) + 1):
        for chosen in combinations(active, count):
            state = item_state(arrays, index)
            for at in active:
                one = arrays.contains[at]
                if at in chosen:
                    state |= one.state
                elif one.not_state is not None:
                    state |= one.not_state
            if not expander.is_empty(state):
                found.append(Choice(state, frozenset(chosen)))
    return found


def fixed_positions(arrays: Arrays) -> int:
    """From this index on all items are alike."""
    return max([len(arrays.prefix), *(one.start for one in arrays.contains)])
