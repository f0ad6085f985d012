"""From subschemas to sets of values, one level at a time.

Invariant: `sets` is exact: a value of the type is in one of the sets iff the schema holds (does not
hold) for it, where what is inside containers is left to states. So recursion in a schema is
recursion among states, and complement goes down with the flag of a literal (as in alternating tree
automata: Muller and Schupp, "Alternating automata on infinite trees", 1987). Knows no engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from branchline.runtime.errors import UnsupportedConstraint
from branchline.runtime.grammar.json_schema.applicators import APPLICATORS, one_schema
from branchline.runtime.grammar.json_schema.containers import CONTAINER_KEYWORDS
from branchline.runtime.grammar.json_schema.document import Document, Node, malformed, unsupported
from branchline.runtime.grammar.json_schema.factors import Factor, Union
from branchline.runtime.grammar.json_schema.languages import Language, Languages
from branchline.runtime.grammar.json_schema.scalars import (
    SCALAR_KEYWORDS,
    Maker,
    may_be,
    type_factor,
)
from branchline.runtime.grammar.json_schema.sets import (
    ANYTHING,
    KINDS,
    Arrays,
    Booleans,
    Kind,
    Objects,
    State,
    Texts,
    Values,
    absorb,
    everything,
    item_state,
    meet,
)
from branchline.runtime.grammar.json_schema.tags import Tags

_EMPTINESS_DEPTH = 4
REFUSED = {
    "$dynamicRef": "its meaning depends on the way to it",
    "$recursiveRef": "its meaning depends on the way to it",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much may be spent on one schema.

    Attributes:
        variants: sets in one union.
        steps: intersections.
        states: different states inside containers.
        symbols: rules and terminals of the grammar.
    """

    variants: int = 400
    steps: int = 60_000
    states: int = 6_000
    symbols: int = 20_000


class Expander:
    """Expands the subschemas of a document; a `factors.Context`.

    Args:
        document: the schema.
        effort: what may be spent.
    """

    def __init__(self, document: Document, effort: Effort) -> None:
        self.document = document
        self.languages = Languages()
        self._effort = effort
        self._steps = 0
        self._nothing: State = frozenset({(document.node(False, "#", "").number, True)})
        self._sets: dict[tuple[int, bool, Kind], Union] = {}
        self._of_state: dict[tuple[State, Kind], Union] = {}
        self._empty: dict[tuple[State, int], bool] = {}
        self._tags = Tags(document)
        self._open: set[tuple[int, bool, Kind]] = set()
        self._factors_of: dict[tuple[int, Kind], list[Factor]] = {}
        self._open_factors: set[tuple[int, Kind]] = set()
        self._every: dict[Kind, Union] = {
            kind: [everything(self.languages, kind)] for kind in KINDS
        }

    def nothing(self) -> State:
        """See `Context.nothing`."""
        return self._nothing

    def state(self, node: Node, holds: bool = True) -> State:
        """See `Context.state`."""
        seen = set()
        while True:
            schema = node.schema
            assert isinstance(schema, dict)
            meaning = [key for key in schema if key in _MEANT and self.document.knows(key)]
            if node.number in seen:
                raise malformed(node.path, "a $ref that leads to itself")
            seen.add(node.number)
            if "$ref" in schema and (meaning == ["$ref"] or self._lonely_ref(schema)):
                node = self.document.resolve(node, schema["$ref"])
            elif meaning == ["not"]:
                node, holds = self.document.child(node, "not"), not holds
            elif not meaning:
                return ANYTHING if holds else self._nothing
            else:
                return frozenset({(node.number, holds)})

    def _lonely_ref(self, schema: dict[str, Any]) -> bool:
        return self.document.declared and self.document.draft <= 7 and "$ref" in schema

    def sets(self, node: Node, holds: bool, kind: Kind) -> Union:
        """See `Context.sets`."""
        key = (node.number, holds, kind)
        found = self._sets.get(key)
        if found is None:
            if key in self._open:
                raise malformed(node.path, "a $ref that leads to itself")
            self._open.add(key)
            try:
                found = self._sets[key] = self._expand(node, holds, kind)
            finally:
                self._open.discard(key)
        return found

    def of_state(self, state: State, kind: Kind) -> Union:
        """Values of a type in a state."""
        key = (state, kind)
        found = self._of_state.get(key)
        if found is None:
            found = self._of_state[key] = self._in_state(state, kind)
        return found

    def _in_state(self, state: State, kind: Kind) -> Union:
        nodes = [(self.document.at(index), holds) for index, holds in sorted(state)]
        if any(holds and not may_be(node, kind) for node, holds in nodes):
            return []
        factors = []
        for node, holds in nodes:
            if holds:
                factors.extend(self.factors(node, kind))
            else:
                factors.append(one_schema(self, node, kind, "not", holds=False))
        return self._all(factors, kind, nodes[0][0].path if nodes else "#")

    def text_language(self, state: State) -> Language:
        """See `Context.text_language`."""
        texts = self.of_state(state, "string")
        return self.languages.any(
            [one.as_language(self.languages) for one in texts if isinstance(one, Texts)]
        )

    def _expand(self, node: Node, holds: bool, kind: Kind) -> Union:
        if not may_be(node, kind):
            return [] if holds else self._every[kind]
        factors = self.factors(node, kind)
        if holds:
            return self._all(factors, kind, node.path)
        return self.either([factor.no() for factor in factors])

    def _all(self, factors: Sequence[Factor], kind: Kind, path: str) -> Union:
        result: Union = self._every[kind]
        for factor in sorted(factors, key=lambda factor: factor.within is not None):
            if factor.within is not None:
                result = factor.within(result)
            else:
                result = self.both(result, factor.yes(), factor.keyword, path)
            if not result:
                break
        return result

    def factors(self, node: Node, kind: Kind) -> list[Factor]:
        """See `Context.factors`."""
        key = (node.number, kind)
        found = self._factors_of.get(key)
        if found is None:
            if key in self._open_factors:
                raise malformed(node.path, "a $ref that leads to itself")
            self._open_factors.add(key)
            try:
                found = self._factors_of[key] = self._factors(node, kind)
            finally:
                self._open_factors.discard(key)
        return found

    def _factors(self, node: Node, kind: Kind) -> list[Factor]:
        schema = node.schema
        assert isinstance(schema, dict)
        if "$ref" in schema and self._lonely_ref(schema):
            schema = {"$ref": schema["$ref"]}
        factors: list[Factor] = []
        if "type" in schema:
            factors.append(type_factor(self, node, kind))
            if not factors[0].yes():
                return factors
        makers: dict[Maker, None] = {}
        for keyword in schema:
            if not self.document.knows(keyword):
                continue
            if keyword in REFUSED:
                raise unsupported(keyword, node.path, REFUSED[keyword])
            if keyword in _ALL_MAKERS:
                makers[_ALL_MAKERS[keyword]] = None
        for maker in sorted(makers, key=lambda maker: _ORDER[maker]):
            factor = maker(self, node, kind)
            if factor is not None:
                factors.append(factor)
        for keyword, apply in APPLICATORS.items():
            if keyword in schema and self.document.knows(keyword):
                factors.extend(apply(self, node, kind))
        return factors

    def both(self, left: Union, right: Union, keyword: str, path: str) -> Union:
        """See `Context.both`."""
        common = list(dict.fromkeys(self._common(left, right, keyword, path)))
        result = self.either([common])
        if len(result) > self._effort.variants:
            raise unsupported(
                keyword, path, f"it has over {self._effort.variants} variants side by side"
            )
        return result

    def overlap(self, left: Union, right: Union, keyword: str, path: str) -> bool:
        """See `Context.overlap`."""
        return next(self._common(left, right, keyword, path), None) is not None

    def _common(self, left: Union, right: Union, keyword: str, path: str) -> Iterator[Values]:
        if len(left) * len(right) > 1:
            self._steps += len(left) * len(right)
        if self._steps > self._effort.steps:
            raise unsupported(keyword, path, f"it takes over {self._effort.steps} combinations")
        for one in left:
            for other in right:
                if self._tags.apart(one, other):
                    continue
                common = meet(self.languages, one, other)
                if common is not None and not self._surely_empty(common, _EMPTINESS_DEPTH):
                    yield common

    def either(self, unions: Sequence[Union]) -> Union:
        """See `Context.either`."""
        found = list(dict.fromkeys(one for union in unions for one in union))
        if len(found) < 2:
            return found
        texts = [one for one in found if isinstance(one, Texts)]
        if texts:
            return [self._any_text(texts)]
        flags = [one for one in found if isinstance(one, Booleans)]
        if flags:
            return [Booleans(frozenset().union(*(one.values for one in flags)))]
        return absorb(self.languages, found)

    def _any_text(self, texts: Sequence[Texts]) -> Texts:
        words: set[str] = set()
        for one in texts:
            if one.words is None:
                whole = [text.as_language(self.languages) for text in texts]
                return Texts(self.languages.any(whole))
            words |= one.words
        return Texts(None, frozenset(words))

    def is_empty(self, state: State, depth: int = _EMPTINESS_DEPTH) -> bool:
        """Whether surely no value is in a state; looks only so many containers deep."""
        if self._nothing <= state:
            return True
        if not state or depth <= 0:
            return False
        if self._tags.values(state) == frozenset():
            return True
        key = (state, depth)
        found = self._empty.get(key)
        if found is None:
            self._empty[key] = False  # met again further down: not known to be empty
            try:
                found = not any(
                    not self._surely_empty(one, depth - 1)
                    for kind in KINDS
                    for one in self.of_state(state, kind)
                )
            except UnsupportedConstraint:
                found = False
            self._empty[key] = found
        return found

    def _surely_empty(self, values: Values, depth: int) -> bool:
        if isinstance(values, Arrays):
            least = min(values.least, len(values.prefix) + 1)
            if any(self.is_empty(item_state(values, at), depth) for at in range(least)):
                return True
            return any(one.least and self.is_empty(one.state, depth) for one in values.contains)
        if isinstance(values, Objects):
            for clause in values.clauses:
                if len(clause) == 1:
                    ((name, has),) = clause
                    if has and self.is_empty(self.value_state(values, name), depth):
                        return True
            return any(self.is_empty(state, depth) for _, state in values.some)
        return False

    def value_state(self, objects: Objects, name: str) -> State:
        """What the value of a name is in."""
        state = ANYTHING
        for own, one in objects.properties:
            if own == name:
                state |= one
        for which, one in objects.rules:
            if not one <= state and which.has(self.languages, name):
                state |= one
        return self._nothing if self._nothing <= state else state


_ALL_MAKERS: dict[str, Maker] = {**SCALAR_KEYWORDS, **CONTAINER_KEYWORDS}
_ORDER: dict[Maker, int] = {maker: at for at, maker in enumerate(_ALL_MAKERS.values())}
_MEANT = frozenset({"type", *_ALL_MAKERS, *APPLICATORS, "then", "else", *REFUSED})
ENFORCED = tuple(sorted(_MEANT - set(REFUSED)))
