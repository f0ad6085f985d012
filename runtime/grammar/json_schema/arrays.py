"""Arrays as rules. Invariant: no choice leads to a dead end.

Counts of `contains` and equal items are kept in the number that parametric rules carry; equal
items only where the items are of a finite set, one bit for each value.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

from branchline.runtime.grammar.json_schema.document import unsupported
from branchline.runtime.grammar.json_schema.lark import Register, one_of, repeated, stepped, when
from branchline.runtime.grammar.json_schema.numbers import Numbers
from branchline.runtime.grammar.json_schema.sets import (
    Arrays,
    Booleans,
    Null,
    State,
    Texts,
    item_state,
)
from branchline.runtime.grammar.json_schema.shapes import choices_at, fixed_positions

if TYPE_CHECKING:
    from branchline.runtime.grammar.json_schema.printer import Printer

_MOST_UNIQUE = 62
_MOST_COUNT = 100_000
_MOST_TUPLE = 12
_MOST_CHANGES = 2


class ArrayPrinter:
    """Writes the arrays of a printer's grammar."""

    def __init__(self, printer: Printer) -> None:
        self._printer = printer

    def has_values(self, arrays: Arrays) -> bool:
        """Whether an array can be in the set, as far as its parts are known to have values."""
        longest = self._longest(arrays)
        if longest is not None and longest < arrays.least:
            return False
        for at, one in enumerate(arrays.contains):
            if one.least:
                last = fixed_positions(arrays)
                last = last if longest is None else min(last, longest - 1)
                if not any(
                    at in choice.counted and self._printer.has_values(choice.state)
                    for place in range(last + 1)
                    for choice in choices_at(self._printer.expander, arrays, place)
                ):
                    return False
        return True

    def _longest(self, arrays: Arrays) -> int | None:
        """Most items, as far as items have values."""
        for at in range(fixed_positions(arrays) + 1):
            if arrays.most is not None and at >= arrays.most:
                return arrays.most
            choices = choices_at(self._printer.expander, arrays, at)
            if not any(self._printer.has_values(choice.state) for choice in choices):
                return at
        return arrays.most

    def options(self, arrays: Arrays) -> list[str]:
        """Rule bodies of arrays with values."""
        longest = self._longest(arrays)
        arrays = arrays._replace(most=longest)
        largest = max(arrays.least, longest or 0)
        if largest > _MOST_COUNT:
            keyword = "minItems" if arrays.least > _MOST_COUNT else "maxItems"
            raise unsupported(keyword, "#", f"it is more than {_MOST_COUNT}")
        opened = self._printer.grammar.open_array
        if longest == 0:
            return [f"{opened} {self._printer.grammar.close_array}"]
        if arrays.unique and longest != 1 and not self._all_differ(arrays):
            return [f"{opened} {self._unique(arrays)}"]
        if arrays.contains:
            return [self._containing(arrays)]
        return [f"{opened} {self._plain(arrays)}"]

    def _plain(self, arrays: Arrays) -> str:
        grammar, printer = self._printer.grammar, self._printer
        known = len(arrays.prefix)
        if arrays.most is not None:
            known = min(known, arrays.most)
        after = self._rest(arrays, known)
        for at in range(known - 1, -1, -1):
            item = printer.symbol(item_state(arrays, at))
            comma = f"{grammar.comma} " if at else ""
            text = f"{comma}{item} {after}"
            after = text if arrays.least > at else grammar.rule([text, grammar.close_array])
        return after

    def _rest(self, arrays: Arrays, known: int) -> str:
        """What follows the items of the prefix."""
        grammar = self._printer.grammar
        if arrays.most is not None and arrays.most <= known:
            return grammar.close_array
        item = self._printer.symbol(arrays.rest)
        least = max(arrays.least - known, 0)
        most = None if arrays.most is None else arrays.most - known
        more = f"{grammar.comma} {item}"
        if known:
            return f"{repeated(more, least, most)} {grammar.close_array}"
        rest = repeated(more, max(least - 1, 0), None if most is None else most - 1)
        some = f"{item} {rest} {grammar.close_array}"
        return some if least else grammar.rule([some, grammar.close_array])

    def _all_differ(self, arrays: Arrays) -> bool:
        """Whether items at different places surely differ."""
        if arrays.most is None or arrays.most > _MOST_TUPLE:
            return False
        states = [item_state(arrays, at) for at in range(arrays.most)]
        return all(
            self._printer.expander.is_empty(one | other)
            for at, one in enumerate(states)
            for other in states[at + 1 :]
        )

    def _unique(self, arrays: Arrays) -> str:
        grammar = self._printer.grammar
        values = self._finite(arrays.rest) if not arrays.prefix and not arrays.contains else None
        if values is None or len(values) > _MOST_UNIQUE:
            why = "its items are not a finite set of scalars"
            if values is not None:
                why = f"its items are of over {_MOST_UNIQUE} values"
            raise unsupported("uniqueItems", arrays.unique, why)
        least = min(arrays.least, len(values) + 1)
        if least > len(values):
            raise unsupported("uniqueItems", arrays.unique, "there are fewer values than minItems")
        end = f"{grammar.close_array}{when([f'bit_count_ge(_, {least})'] if least else [])}"
        last, first, rest = grammar.new_rule(), [], []
        for bit, value in enumerate(values):
            conditions = [f"bit_clear({bit})"]
            if arrays.most is not None:
                conditions.append(f"bit_count_lt(_, {arrays.most})")
            step = f"{last}::set_bit({bit})"
            first.append(f"{value} {step}")
            rest.append(f"{grammar.comma} {value} {step}{when(conditions)}")
        grammar.define(last, [*rest, end], counting=True)
        return f"{grammar.rule([*first, end], counting=True)}::0"

    def _finite(self, state: State) -> list[str] | None:
        """A terminal for each value of a state; None where they are not finite or no scalars."""
        printer = self._printer
        words: set[str] = set()
        others: set[Fraction] = set()
        found: dict[str, None] = {}
        for one in printer.values(state):
            match one:
                case Null():
                    found[printer.grammar.terminal('"null"')] = None
                case Booleans():
                    for flag in sorted(one.values):
                        text = "true" if flag else "false"
                        found[printer.grammar.terminal(f"/{text}/")] = None
                case Texts(words=frozenset() as listed):
                    words |= listed
                case Numbers(listed=frozenset() as listed):
                    others |= listed
                case Texts() | Numbers():
                    return None
                case _:
                    if printer.productive(one):
                        return None
        if len(words) + len(others) + len(found) > _MOST_UNIQUE:
            return [""] * (_MOST_UNIQUE + 1)
        for word in sorted(words):
            found[printer.text_terminal(frozenset({word}))] = None
        for value in sorted(others):
            found[printer.number(Numbers(listed=frozenset({value})), state)] = None
        return list(found)

    def _containing(self, arrays: Arrays) -> str:
        """Items counted for `contains`; nobody is counted twice for one of them."""
        grammar, printer = self._printer.grammar, self._printer
        register = Register()
        fields = [register.field(max(one.least, one.most or 0)) for one in arrays.contains]
        length = None
        if arrays.least or arrays.most is not None:
            length = register.field(max(arrays.least, arrays.most or 0))
        if None in fields or (length is None and (arrays.least or arrays.most is not None)):
            raise unsupported("contains", "#", "its counts are too large")
        end = [
            f"ge({field}, {one.least})"
            for field, one in zip(fields, arrays.contains, strict=True)
            if one.least
        ]
        if arrays.least:
            end.append(f"ge({length}, {arrays.least})")
        close_it = f"{grammar.close_array}{when(end)}"

        def options(place: int, before: str, target: str) -> list[str]:
            found = []
            for choice in choices_at(printer.expander, arrays, place):
                if not printer.has_values(choice.state):
                    continue
                changes, room = [], []
                for at, one in enumerate(arrays.contains):
                    if at in choice.counted:
                        changes.append(f"incr({fields[at]})")
                        if one.most is not None:
                            room.append(f"lt({fields[at]}, {one.most})")
                    elif one.least and arrays.most is not None:
                        free = max(arrays.most - one.least, 0)
                        enough = f"ge({fields[at]}, {one.least})"
                        room.append(one_of([enough, f"lt({length}, {free})"]))
                if length is not None:
                    changes.append(f"incr({length})")
                    if arrays.most is not None:
                        room.append(f"lt({length}, {arrays.most})")
                if len(changes) > _MOST_CHANGES:
                    raise unsupported("contains", "#", "several with counts at one place")
                parts = [before, printer.symbol(choice.state)]
                found.append(stepped(grammar, parts, target, changes) + when(room))
            return found

        fixed = fixed_positions(arrays)
        after = grammar.new_rule()
        grammar.define(after, [*options(fixed, grammar.comma, after), close_it], counting=True)
        target = after
        for place in range(fixed - 1, 0, -1):
            body = [*options(place, grammar.comma, target), close_it]
            target = grammar.rule(body, counting=True)
        empty = f"{grammar.open_array} {close_it}"
        first = grammar.rule([*options(0, grammar.open_array, target), empty], counting=True)
        return f"{first}::0"
