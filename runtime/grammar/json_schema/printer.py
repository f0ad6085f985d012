"""States as rules of a grammar. Invariant: a rule's texts are the JSON texts of a state's values.

First all states that can be reached are found, then which of them have values at all; what has
none is left out, so that no prefix of a text leads to a dead end. Knows the engine's grammar
language only through `lark.Grammar`.
"""

from __future__ import annotations

from branchline.runtime.grammar.json_schema import numbers
from branchline.runtime.grammar.json_schema.arrays import ArrayPrinter
from branchline.runtime.grammar.json_schema.document import unsupported
from branchline.runtime.grammar.json_schema.expander import Effort, Expander
from branchline.runtime.grammar.json_schema.lark import Grammar, Layout
from branchline.runtime.grammar.json_schema.numbers import Numbers
from branchline.runtime.grammar.json_schema.objects import ObjectPrinter
from branchline.runtime.grammar.json_schema.sets import (
    KINDS,
    Arrays,
    Booleans,
    Null,
    Objects,
    State,
    Texts,
    Values,
)
from branchline.runtime.grammar.json_schema.shapes import (
    Shape,
    choices_at,
    fixed_positions,
    shapes_of,
)
from branchline.runtime.grammar.json_schema.spelling import Speller, TooLarge

_MOST_POSITIONS = 2000


class Printer:
    """Writes the grammar of one schema.

    Args:
        expander: of its document.
        effort: what may be spent.
        layout: separators and order.
    """

    def __init__(self, expander: Expander, effort: Effort, layout: Layout) -> None:
        self.expander = expander
        self.grammar = Grammar(layout, effort.symbols)
        self._effort = effort
        self._speller = Speller(expander.languages)
        self._values: dict[State, list[Values]] = {}
        self._shapes: dict[Objects, list[Shape]] = {}
        self._productive: set[State] = set()
        self._symbols: dict[State, str] = {}
        self._pending: list[State] = []
        self._objects = ObjectPrinter(self)
        self._arrays = ArrayPrinter(self)

    def run(self, root: State) -> str | None:
        """The grammar; None where no value is in the state."""
        self._explore(root)
        self._find_productive()
        if root not in self._productive:
            return None
        start = self.symbol(root)
        while self._pending:
            state = self._pending.pop()
            self.grammar.define(self._symbols[state], self._options(state))
        return self.grammar.text(start)

    def has_values(self, state: State) -> bool:
        """Whether a state that was reached has values."""
        return state in self._productive

    def values(self, state: State) -> list[Values]:
        """The sets of a state that was reached."""
        return self._values[state]

    def symbol(self, state: State) -> str:
        """The rule or terminal of a state with values."""
        name = self._symbols.get(state)
        if name is None:
            kept = [one for one in self._values[state] if self.productive(one)]
            if len(kept) == 1 and not isinstance(kept[0], Arrays | Objects):
                name = self._scalar(kept[0], state)
            else:
                name = self.grammar.new_rule()
                self._pending.append(state)
            self._symbols[state] = name
        return name

    def key(self, name: str) -> str:
        """The terminal of one name and what follows it."""
        return self.grammar.terminal(self._speller.word(name, self.grammar.after_key))

    def keys(self, texts: Texts) -> str:
        """The terminal of names of a kind and what follows them."""
        try:
            return self.grammar.terminal(
                self._speller.quoted(
                    texts.as_language(self.expander.languages), self.grammar.after_key
                )
            )
        except TooLarge as error:
            raise unsupported("patternProperties", "#", str(error)) from error

    def shapes(self, objects: Objects) -> list[Shape]:
        """Shapes of a set of objects; kept."""
        found = self._shapes.get(objects)
        if found is None:
            found = self._shapes[objects] = shapes_of(self.expander, objects)
        return found

    def text_terminal(self, words: frozenset[str]) -> str:
        """The terminal of some strings."""
        return self.grammar.terminal(self._speller.quoted(self.expander.languages.words(words)))

    def _options(self, state: State) -> list[str]:
        options: list[str] = []
        for one in self._values[state]:
            if not self.productive(one):
                continue
            if isinstance(one, Objects):
                for shape in self.shapes(one):
                    if self._shape_is_productive(shape):
                        options.extend(self._objects.options(shape))
            elif isinstance(one, Arrays):
                options.extend(self._arrays.options(one))
            else:
                options.append(self._scalar(one, state))
        return list(dict.fromkeys(options))

    def _scalar(self, values: Values, state: State) -> str:
        match values:
            case Null():
                return self.grammar.terminal('"null"')
            case Booleans():
                words = sorted("true" if flag else "false" for flag in values.values)
                return self.grammar.terminal(f"/{'|'.join(words)}/")
            case Numbers():
                return self.number(values, state)
            case Texts():
                try:
                    language = values.as_language(self.expander.languages)
                    return self.grammar.terminal(self._speller.quoted(language))
                except TooLarge as error:
                    raise unsupported("pattern", self._path(state), str(error)) from error
        raise TypeError(f"{type(values).__name__} is no scalar")

    def number(self, values: Numbers, state: State) -> str:
        """The rule or terminal of a set of numbers."""
        found = numbers.spelling(values)
        if found is None:
            raise unsupported("multipleOf", self._path(state), "this combination with other bounds")
        expression, is_rule = found
        return self.grammar.rule([expression]) if is_rule else self.grammar.terminal(expression)

    def _path(self, state: State) -> str:
        return self.expander.document.at(min(state)[0]).path if state else "#"

    def _explore(self, root: State) -> None:
        queue = [root]
        seen = {root}
        for state in queue:
            found: list[Values] = []
            for kind in KINDS:
                found.extend(self.expander.of_state(state, kind))
            self._values[state] = found
            for one in found:
                for child in self._children(one):
                    if child not in seen:
                        seen.add(child)
                        queue.append(child)
            if len(seen) > self._effort.states:
                raise unsupported(
                    "$ref", self._path(state), f"over {self._effort.states} different places"
                )

    def _children(self, values: Values) -> list[State]:
        if isinstance(values, Arrays):
            if fixed_positions(values) > _MOST_POSITIONS:
                raise unsupported("prefixItems", "#", f"over {_MOST_POSITIONS} items")
            return [
                choice.state
                for at in range(fixed_positions(values) + 1)
                for choice in choices_at(self.expander, values, at)
            ]
        if isinstance(values, Objects):
            found: list[State] = []
            for shape in self.shapes(values):
                found.extend(state for _, state in shape.names)
                found.extend(state for _, state in shape.regions)
                found.extend(state for one in shape.witnesses for _, state in one)
            return found
        return []

    def _find_productive(self) -> None:
        grown = True
        while grown:
            grown = False
            for state, found in reversed(self._values.items()):
                if state not in self._productive and any(map(self.productive, found)):
                    self._productive.add(state)
                    grown = True

    def productive(self, values: Values) -> bool:
        """Whether a set has values, as far as its parts are known to have some."""
        if isinstance(values, Texts):
            if values.language is None:
                return bool(values.words)
            return not self.expander.languages.is_empty(values.language)
        if isinstance(values, Arrays):
            return self._arrays.has_values(values)
        if isinstance(values, Objects):
            return any(map(self._shape_is_productive, self.shapes(values)))
        return True

    def _shape_is_productive(self, shape: Shape) -> bool:
        return self._objects.has_values(shape)
