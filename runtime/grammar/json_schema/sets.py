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
_MOST_ABSORBED = 60

Clause = frozenset[tuple[str, bool]]
"""At least one of these names is present (True) or absent (False)."""


class Null(NamedTuple):
    """The value null."""

    tag: str = "null"


class Booleans(NamedTuple):
    """Some of true and false."""

    values: frozenset[bool] = frozenset({True, False})


class Texts(NamedTuple):
    """Strings: a finite set of words, or else a language (the other one is None).

    Words stay words as long as they can: a language of them is made only where one is written.
    """

    language: Language | None
    words: frozenset[str] | None = None

    def as_language(self, languages: Languages) -> Language:
        """The same as a language."""
        return languages.words(self.words or ()) if self.language is None else self.language


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
_Rules = tuple[tuple[Names, State], ...]
_EVERY_CONTAINER: tuple[Values, ...] = (Objects(), Arrays())


def meet(languages: Languages, left: Values, right: Values) -> Values | None:
    """Values in both; None where there is surely none."""
    if left == right or right in _EVERY_CONTAINER:
        return left
    if left in _EVERY_CONTAINER:
        return right
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
    if left.language is not None and right.language is not None:
        both = languages.all([left.language, right.language])
        return None if languages.is_empty(both) else Texts(both)
    if left.words is None:
        left, right = right, left
    kept = left.words or frozenset()
    if right.words is not None:
        kept &= right.words
    elif right.language is not None and right.language is not languages.every:
        language = right.language
        kept = frozenset(word for word in kept if languages.has(language, word))
    return Texts(None, kept) if kept else None


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
    least, most = max(left.least, right.least), _least_of(left.most, right.most)
    if most is not None and most < least:
        return None
    # A contradiction has a clause of each side: neither side contradicts itself.
    for clause in right.clauses:
        if len(clause) == 1:
            ((name, has),) = clause
            if frozenset({(name, not has)}) in left.clauses:
                return None
    properties = left.properties or right.properties
    if left.properties and right.properties:
        merged = dict(left.properties)
        for name, state in right.properties:
            merged[name] = merged.get(name, ANYTHING) | state
        properties = tuple(merged.items())
    return Objects(
        properties,
        _joined(left.rules, right.rules),
        left.clauses | right.clauses,
        _joined(left.some, right.some),
        least,
        most,
    )


def _joined(left: _Rules, right: _Rules) -> _Rules:
    return tuple(dict.fromkeys(left + right)) if left and right else left or right


def absorb(languages: Languages, found: list[Values]) -> list[Values]:
    """Leave out sets that lie in others, where that is cheap to see."""
    if len(found) > _MOST_ABSORBED:
        return found
    kept: list[Values] = []
    for one in found:
        if any(meet(languages, one, other) == one for other in kept):
            continue
        kept = [other for other in kept if meet(languages, other, one) != other]
        kept.append(one)
    return kept


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
