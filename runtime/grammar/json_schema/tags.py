"""Objects told apart by a tag: a name that one of them must have, with different values in each.

Invariant: `apart` is never true of two sets that have a value in common. A look at `const` and
`enum` instead of an intersection: unions of dozens of tagged objects are compared pair by pair.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple

from branchline.runtime.grammar.json_schema.document import Document
from branchline.runtime.grammar.json_schema.sets import Objects, State, Values

_Scalars = frozenset[tuple[str, object]]


class _Names(NamedTuple):
    """Of some objects: names that are surely there, and the finite values of names."""

    required: frozenset[str]
    finite: Mapping[str, _Scalars]


class Tags:
    """Looks at the subschemas of a document; keeps what it has seen."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._of_node: dict[int, _Scalars | None] = {}
        self._of_state: dict[State, _Scalars | None] = {}
        self._of_objects: dict[int, tuple[Objects, _Names]] = {}

    def apart(self, left: Values, right: Values) -> bool:
        """True where surely no value is in both."""
        if not isinstance(left, Objects) or not isinstance(right, Objects):
            return False
        if not left.properties or not right.properties:
            return False
        one, other = self._names(left), self._names(right)
        return any(
            (name in one.required or name in other.required)
            and other.finite.get(name, values).isdisjoint(values)
            for name, values in one.finite.items()
        )

    def values(self, state: State) -> _Scalars | None:
        """Scalars that a state's values are among, as (type, value); None where not known."""
        if state not in self._of_state:
            found: _Scalars | None = None
            for number, holds in state:
                own = self._listed(number) if holds else None
                if own is not None:
                    found = own if found is None else found & own
            self._of_state[state] = found
        return self._of_state[state]

    def _names(self, objects: Objects) -> _Names:
        kept = self._of_objects.get(id(objects))
        if kept is None:
            required = {name for c in objects.clauses if len(c) == 1 for name, has in c if has}
            finite = {}
            for name, state in objects.properties:
                values = self.values(state)
                if values is not None:
                    finite[name] = values
            kept = (objects, _Names(frozenset(required), finite))
            self._of_objects[id(objects)] = kept  # with the objects: their id stays theirs
        return kept[1]

    def _listed(self, number: int) -> _Scalars | None:
        if number not in self._of_node:
            self._of_node[number] = self._read(self._document.at(number).schema)
        return self._of_node[number]

    def _read(self, schema: Any) -> _Scalars | None:
        if not isinstance(schema, dict) or "$ref" in schema:
            return None  # beside a $ref, older drafts see nothing else
        found: list[Any] | None = None
        if "const" in schema and self._document.knows("const"):
            found = [schema["const"]]
        elif isinstance(schema.get("enum"), list):
            found = schema["enum"]
        if found is None or any(isinstance(value, dict | list) for value in found):
            return None
        return frozenset(_tagged(value) for value in found)


def _tagged(value: object) -> tuple[str, object]:
    """A scalar so that what JSON takes for equal is equal: 1 and 1.0, but not 1 and true."""
    if isinstance(value, int | Decimal) and not isinstance(value, bool):
        return "number", Fraction(value)
    return type(value).__name__, value
