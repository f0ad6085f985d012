"""Arrays as rules. Invariant: no choice leads to a dead end.

Where items are counted for `contains`, each count from which an array can be completed has a rule
of its own. Equal items are kept in the number that parametric rules carry, one bit for each value,
only where the items are of a finite set.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

from branchline.runtime.grammar.json_schema.document import unsupported
from branchline.runtime.grammar.json_schema.lark import repeated, when
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
_MOST_COUNTS = 4000


class _Count(NamedTuple):
    """How many items there are, and how many of them are counted for each `contains`, as far as
    that makes a difference."""

    items: int
    counted: tuple[int, ...]


class ArrayPrinter:
    """Writes the arrays of a printer's grammar."""

    def __init__(self, printer: Printer) -> None:
        self._printer = printer

    def has_values(self, arrays: Arrays) -> bool:
        """Whether an array can be in the set, as far as its parts are known to have values."""
        longest = self._longest(arrays)
        if longest is not None and longest < arrays.least:
            return False
        return not arrays.contains or bool(self._counts(arrays._replace(most=longest)))

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
            return [f"{opened} {self._containing(arrays)}"]
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
        grammar = self._printer.grammar
        steps = self._counts(arrays)
        rules = {count: grammar.new_rule() for count in steps}
        for count, (complete, after) in steps.items():
            before = f"{grammar.comma} " if count.items else ""
            options = [f"{before}{self._printer.symbol(one)} {rules[to]}" for one, to in after]
            grammar.define(rules[count], [*options, *([grammar.close_array] if complete else [])])
        return rules[_Count(0, (0,) * len(arrays.contains))]

    def _counts(self, arrays: Arrays) -> dict[_Count, tuple[bool, list[tuple[State, _Count]]]]:
        """For each count from which an array can be completed: whether it may end there, and the
        items that may come, with the count after them. Empty where no array is in the set."""
        start = _Count(0, (0,) * len(arrays.contains))
        after: dict[_Count, list[tuple[State, _Count]]] = {start: []}
        queue = [start]
        for count in queue:
            after[count] = found = self._counted_items(arrays, count)
            for _, to in found:
                if to not in after:
                    after[to] = []
                    queue.append(to)
            if len(after) > _MOST_COUNTS:
                raise unsupported("contains", "#", "its counts are too large")
        alive = {count for count in after if _is_complete(arrays, count)}
        grown = True
        while grown:
            more = {
                count
                for count, found in after.items()
                if count not in alive and any(to in alive for _, to in found)
            }
            alive |= more
            grown = bool(more)
        if start not in alive:
            return {}
        return {
            count: (_is_complete(arrays, count), [(one, to) for one, to in found if to in alive])
            for count, found in after.items()
            if count in alive
        }

    def _counted_items(self, arrays: Arrays, count: _Count) -> list[tuple[State, _Count]]:
        """Items that may come after some, and the count with them."""
        if count.items == arrays.most:
            return []
        fixed = fixed_positions(arrays)
        cap = arrays.most if arrays.most is not None else max(arrays.least, fixed, 1)
        found = []
        for choice in choices_at(self._printer.expander, arrays, min(count.items, fixed)):
            if not self._printer.has_values(choice.state):
                continue
            counted = [number + (at in choice.counted) for at, number in enumerate(count.counted)]
            if any(
                one.most is not None and number > one.most
                for one, number in zip(arrays.contains, counted, strict=True)
            ):
                continue
            enough = tuple(
                number if one.most is not None else min(number, one.least)
                for one, number in zip(arrays.contains, counted, strict=True)
            )
            found.append((choice.state, _Count(min(count.items + 1, cap), enough)))
        return found


def _is_complete(arrays: Arrays, count: _Count) -> bool:
    enough = zip(arrays.contains, count.counted, strict=True)
    return count.items >= arrays.least and all(number >= one.least for one, number in enough)
