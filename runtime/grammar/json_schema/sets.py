"""Sets of JSON values, one type at a time. Invariant: `meet` of two sets is exact.

A set of values of one type is a union (a list) of the sets here. What is inside a container is a
`State`: subschemas that all must (or must not) hold, told apart by the numbers of their nodes.
Knows no keyword.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from branchline.runtime.grammar.json_schema import numbers
from branchline.runtime.grammar.json_schema.languages import Language, Languages
from branchline.runtime.grammar.json_schema.numbers import Numbers

Kind = Literal["null", "boolean", "number", "string", "array", "object"]
KINDS: tuple[Kind, ...] = ("string", "number", "boolean", "null", "array", "object")

Lit = tuple[int, bool]
"""A node, and whether its schema must hold or must not."""

State = frozenset[Lit]
ANYTHING: State = frozenset()

Clause = frozenset[tuple[str, bool]]
"""At least one of these names is present (True) or absent (False)."""


class Null(NamedTuple):
    """The value null."""

    tag: str = "null"


class Booleans(NamedTuple):
    """Some of true and false."""

    values: frozenset[bool] = frozenset({True, False})


class Texts(NamedTuple):
    """Strings: a finite set of words, or else a language."""

    language: Language
    words: frozenset[str] | None = None


class Contains(NamedTuple):
    """At least `least` and at most `most` (None = any) items from `start` on are in `state`."""

    state: State
    least: int = 1
    most: int | None = None
    start: int = 0
    not_state: State | None = None


class Arrays(NamedTuple):
    """Arrays. `unique` is where equal items are forbidden ("" = nowhere)."""

    prefix: tuple[State, ...] = ()
    rest: State = ANYTHING
    least: int = 0
    most: int | None = None
    contains: tuple[Contains, ...] = ()
    unique: str = ""


class Names(NamedTuple):
    """Names of properties: all but `words` and those in a language of `but`; or only `only`."""

    words: frozenset[str] = frozenset()
    but: tuple[Language, ...] = ()
    only: Language | None = None

    def has(self, languages: Languages, name: str) -> bool:
        """Whether a name is among them."""
        if name in self.words or any(languages.has(one, name) for one in self.but):
            return False
        return self.only is None or languages.has(self.only, name)


class Objects(NamedTuple):
    """Objects.

    Attributes:
        properties: what the value of a name is in.
        rules: what the values of all names of a kind are in.
        clauses: which names are present.
        some: at least one name of a kind has a value in the state.
    """

    properties: tuple[tuple[str, State], ...] = ()
    rules: tuple[tuple[Names, State], ...] = ()
    clauses: frozenset[Clause] = frozenset()
    some: tuple[tuple[Names, State], ...] = ()
    least: int = 0
    most: int | None = None


Values = Null | Booleans | Texts | Numbers | Arrays | Objects


def meet(languages: Languages, left: Values, right: Values) -> Values | None:
    """Values in both; None where there is surely none."""
    if left == right:
        return left
    if isinstance(left, Texts) and isinstance(right, Texts):
        return _meet_texts(languages, left, right)
    if isinstance(left, Numbers) and isinstance(right, Numbers):
        return numbers.meet(left, right)
    if isinstance(left, Booleans) and isinstance(right, Booleans):
        both = left.values & right.values
        return Booleans(both) if both else None
    if isinstance(left, Arrays) and isinstance(right, Arrays):
        return _meet_arrays(left, right)
    if isinstance(left, Objects) and isinstance(right, Objects):
        return _meet_objects(left, right)
    raise TypeError(f"{type(left).__name__} and {type(right).__name__} are of two types")


def _meet_texts(languages: Languages, left: Texts, right: Texts) -> Texts | None:
    if left.words is None and right.words is None:
        both = languages.all([left.language, right.language])
        return None if languages.is_empty(both) else Texts(both)
    if left.words is None:
        left, right = right, left
    kept = left.words or frozenset()
    if right.words is not None:
        kept &= right.words
    else:
        kept = frozenset(word for word in kept if languages.has(right.language, word))
    return listed(languages, kept) if kept else None


def listed(languages: Languages, words: frozenset[str]) -> Texts:
    """A finite set of strings."""
    return Texts(languages.words(words), words)


def _least_of(left: int | None, right: int | None) -> int | None:
    if left is None or right is None:
        return right if left is None else left
    return min(left, right)


def _meet_arrays(left: Arrays, right: Arrays) -> Arrays | None:
    length = max(len(left.prefix), len(right.prefix))
    prefix = tuple(item_state(left, i) | item_state(right, i) for i in range(length))
    least, most = max(left.least, right.least), _least_of(left.most, right.most)
    if most is not None and most < least:
        return None
    contains = tuple(dict.fromkeys(left.contains + right.contains))
    unique = left.unique or right.unique
    return Arrays(prefix, left.rest | right.rest, least, most, contains, unique)


def item_state(arrays: Arrays, index: int) -> State:
    """What the item at an index is in."""
    return arrays.prefix[index] if index < len(arrays.prefix) else arrays.rest


def _meet_objects(left: Objects, right: Objects) -> Objects | None:
    properties = dict(left.properties)
    for name, state in right.properties:
        properties[name] = properties.get(name, ANYTHING) | state
    least, most = max(left.least, right.least), _least_of(left.most, right.most)
    clauses = left.clauses | right.clauses
    if most is not None and most < least:
        return None
    if any(
        frozenset({(name, not has)}) in clauses for c in clauses if len(c) == 1 for name, has in c
    ):
        return None
    return Objects(
        tuple(properties.items()),
        tuple(dict.fromkeys(left.rules + right.rules)),
        clauses,
        tuple(dict.fromkeys(left.some + right.some)),
        least,
        most,
    )


def everything(languages: Languages, kind: Kind) -> Values:
    """All values of a type."""
    match kind:
        case "null":
            return Null()
        case "boolean":
            return Booleans()
        case "string":
            return Texts(languages.every)
        case "number":
            return numbers.EVERY_NUMBER
        case "array":
            return Arrays()
    return Objects()
