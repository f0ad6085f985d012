"""Rules and terminals of a grammar for llguidance. Invariant: one name for each expression.

Every terminal that can follow another begins with a character that the other cannot go on with,
or is read to the same end, so that the engine's longest match never splits a text wrongly. Knows
no schema.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from branchline.runtime.errors import InvalidRequest
from branchline.runtime.grammar.json_schema.spelling import literal

_REFERENCE = re.compile(r"\b(r[0-9]+)::(\w+(?:\([^)]*\))?)")
_WHITE = "[ \\x{9}\\x{a}\\x{d}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How the text is laid out.

    Attributes:
        item: what separates items and properties.
        key: what separates a name from its value.
        white: white space allowed around those and inside brackets: at most so many characters.
        any_order: properties that the schema lists in any order, those it does not list after the
            required ones; else in the order of the schema, the others at the end.
    """

    item: str = ", "
    key: str = ": "
    white: int = 0
    any_order: bool = True

    def __post_init__(self) -> None:
        if self.item.strip() != "," or self.key.strip() != ":" or self.white < 0:
            raise InvalidRequest(
                "separators of JSON are a comma and a colon, with white space around them",
                value=(self.item, self.key, self.white),
                hint='Use ", " and ": ".',
            )


SPACED = Layout()
COMPACT = Layout(item=",", key=":")


class Grammar:
    """Collects rules.

    Args:
        layout: separators.
        most_symbols: rules and terminals allowed.
    """

    def __init__(self, layout: Layout, most_symbols: int) -> None:
        self.layout = layout
        self._most = most_symbols
        self._lines: list[str] = []
        self._counting: dict[str, list[str]] = {}
        self._terminals: dict[str, str] = {}
        self._count = 0
        space = f"{_WHITE}{{0,{layout.white}}}" if layout.white else ""
        self.after_key = space + (":" if layout.white else literal(layout.key)) + space
        comma = "," if layout.white else literal(layout.item)
        self.comma = self.terminal(f"/{space}{comma}{space}/")
        self.open_object = self.terminal(f"/\\x{{7b}}{space}/")
        self.close_object = self.terminal(f"/{space}\\x{{7d}}/")
        self.open_array = self.terminal(f"/\\[{space}/")
        self.close_array = self.terminal(f"/{space}\\]/")

    def _name(self, prefix: str) -> str:
        self._count += 1
        if self._count > self._most:
            raise InvalidRequest(
                "json_schema: the schema is too large",
                value=f"more than {self._most} rules",
                hint="Use a smaller schema.",
            )
        return f"{prefix}{self._count}"

    def terminal(self, expression: str) -> str:
        """The name of the terminal with this expression."""
        name = self._terminals.get(expression)
        if name is None:
            name = self._terminals[expression] = self._name("T")
            self._lines.append(f"{name}: {expression}")
        return name

    def new_rule(self) -> str:
        """A name for a rule that is defined later."""
        return self._name("r")

    def define(self, name: str, options: Sequence[str], *, counting: bool = False) -> None:
        """Define a rule as a choice; `counting` rules carry a number (see `Register`)."""
        options = [option or '""' for option in options]
        if counting:
            self._counting[name] = options
        else:
            self._lines.append(f"{name}: {_choice(options)}")

    def rule(self, options: Sequence[str], *, counting: bool = False) -> str:
        """A new rule as a choice."""
        name = self.new_rule()
        self.define(name, options, counting=counting)
        return name

    def text(self, start: str) -> str:
        """The whole grammar."""
        plain = self._countless()

        def reference(found: re.Match[str]) -> str:
            return found[1] if found[1] in plain else found[0]

        lines = [f"start: {start}", *self._lines]
        for name, options in self._counting.items():
            mark = "" if name in plain else "::_"
            if mark and len(options) == 1 and "%if" not in options[0]:
                # Without a condition the engine puts the rule's one option in its places,
                # which it cannot do with a changed number.
                options = [f"{options[0]} %if ge(_, 0)"]
            lines.append(f"{name}{mark}: {_choice(options)}")
        return "".join(f"{_REFERENCE.sub(reference, line)}\n" for line in lines)

    def _countless(self) -> set[str]:
        """Counting rules that need no number after all; the engine wants them without."""
        needed = {
            name
            for name, options in self._counting.items()
            if any("%if" in option for option in options)
        }
        grown = True
        while grown:
            grown = False
            for name, options in self._counting.items():
                if name not in needed and any(
                    found in needed for option in options for found, _ in _REFERENCE.findall(option)
                ):
                    needed.add(name)
                    grown = True
        return self._counting.keys() - needed


def _choice(options: Sequence[str]) -> str:
    return "\n  | ".join(options)


REGISTER_BITS = 64


class Register:
    """Layout of the number that counting rules carry."""

    def __init__(self) -> None:
        self.width = 0

    def field(self, largest: int) -> str | None:
        """Bits for a count up to `largest`; None when the number is full."""
        bits = max(largest.bit_length(), 1)
        if self.width + bits > REGISTER_BITS:
            return None
        start, self.width = self.width, self.width + bits
        return f"[{start}:{self.width}]"

    def bit(self) -> int | None:
        """One bit; None when the number is full."""
        if self.width >= REGISTER_BITS:
            return None
        self.width += 1
        return self.width - 1


def when(conditions: Sequence[str]) -> str:
    """The condition of an option: all of these."""
    return f" %if {all_of(conditions)}" if conditions else ""


def all_of(conditions: Sequence[str]) -> str:
    """All of these conditions (at least one is given)."""
    return _joined("and", conditions)


def one_of(conditions: Sequence[str]) -> str:
    """Any of these conditions (at least one is given)."""
    return _joined("or", conditions)


def _joined(how: str, conditions: Sequence[str]) -> str:
    *others, result = dict.fromkeys(conditions)
    for one in reversed(others):
        result = f"{how}({one}, {result})"
    return result


def repeated(text: str, least: int, most: int | None) -> str:
    """An expression so many times (None: without bound)."""
    if most == 0:
        return ""
    times = "*" if (least, most) == (0, None) else f"{{{least},{'' if most is None else most}}}"
    return f"({text}){times}"


def stepped(grammar: Grammar, parts: Sequence[str], target: str, changes: Sequence[str]) -> str:
    """Symbols, then a counting rule after changes to the number, at most one for each symbol.

    The engine takes one change in a reference, and none in a reference that comes first.
    """
    if not changes:
        return f"{' '.join(parts)} {target}::_"
    split = len(parts) - len(changes) + 1
    for part, change in zip(reversed(parts[split:]), reversed(changes[1:]), strict=True):
        target = grammar.rule([f"{part} {target}::{change}"], counting=True)
    return f"{' '.join(parts[:split])} {target}::{changes[0]}"
