"""Grammars in Lark's notation, read by the `lark` package and written for the engine.

Invariant: the written grammar allows the texts that the grammar as given allows, and no others:
terminals are read wherever they fit, as `lark`'s Earley parser does with all ways to divide a text
(`lexer="dynamic_complete"`). Imports, templates, aliases
and repetitions are expanded by `lark` itself; priorities only order the readings of one text, so
they change nothing here; a terminal with lazy quantifiers ends where `lark` would end it, at its
first match. What cannot be said is refused by name, with its line.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from branchline.lang.errors import (
    BranchlineError,
    InvalidRequest,
    UnsupportedConstraint,
    UnsupportedFeature,
)
from branchline.runtime.grammar.lark_writer import (
    LarkGrammar,
    Terminal,
    TooLong,
    read_terminal,
    written,
)

if TYPE_CHECKING:
    from lark import Lark

_LAZY = re.compile(r"(?<!\\)(?:\\\\)*[*+?}]\?")
_WITHOUT_LOOKBEHIND = {
    r"\".*?(?<!\\)(\\\\)*?\"": r'"(?:[^"\\\n]|\\.)*"',
    r'".*?(?<!\\)(\\\\)*?"': r'"(?:[^"\\\n]|\\.)*"',
}
"""`common.ESCAPED_STRING` looks back; the texts it ends at are these."""


def translate(text: str, prefix: str = "") -> str:
    """The engine's text for a grammar whose start rule is `start`.

    Args:
        prefix: of all names; with one, the text is part of a larger grammar.

    Raises:
        InvalidRequest: it is no grammar; says where.
        UnsupportedConstraint: it uses what the engine cannot do; names it and its line.
        UnsupportedFeature: the `lark` package is not installed.
    """
    reader = _Reader(text, _read(text), prefix)
    try:
        return "\n".join(written(reader.grammar(), prefix)) + "\n"
    except TooLong as error:
        raise reader.refused_terminal(error.terminal) from error


def _read(text: str) -> Lark:
    try:
        import lark
    except ImportError as error:
        raise UnsupportedFeature(
            "grammars in Lark's notation are read by the package lark, which is not installed",
            value=error.name,
            hint="Install it: pip install 'branchline[runtime]'.",
        ) from error
    other: Any = sys.modules.get("regex", re)  # lark reads patterns with it where it is installed
    try:
        return lark.Lark(text, parser="earley", lexer="dynamic", maybe_placeholders=False)
    except (lark.exceptions.LarkError, OSError, re.error, other.error, AssertionError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise InvalidRequest(
            f"lark: {' '.join(lines)[:300]}", value=text, hint="See the documentation of Lark."
        ) from error


class _Reader:
    """One grammar: its names become short ones that the engine cannot mistake."""

    def __init__(self, text: str, grammar: Lark, prefix: str) -> None:
        self._text = text
        self._grammar = grammar
        self._prefix = prefix
        self._rules: dict[str, str] = {}
        self._terminals: dict[str, str] = {}

    def grammar(self) -> LarkGrammar:
        """The rules, the terminals, what is ignored."""
        terminals = {terminal.name: terminal for terminal in self._grammar.terminals}
        for number, name in enumerate(terminals):
            self._terminals[name] = f"{self._prefix.upper()}T{number}"
        start = self._rule("start")
        rules: dict[str, list[tuple[str, ...]]] = {}
        for rule in self._grammar.rules:
            body = tuple(map(self._symbol, rule.expansion))
            rules.setdefault(self._rule(str(rule.origin.name)), []).append(body)
        rules = _ending(rules)
        if start not in rules:
            raise self._refused("the rule start, of which no text has an end,", "start")
        if self._grammar.ignore_tokens and self._prefix:
            raise self._refused("%ignore in a part of a composition", "%ignore")
        return LarkGrammar(
            start,
            rules,
            {self._terminals[name]: self._terminal(one) for name, one in terminals.items()},
            [self._terminals[name] for name in self._grammar.ignore_tokens],
        )

    def refused_terminal(self, name: str) -> UnsupportedConstraint:
        """The error for a terminal, by its short name, that cannot be told from what follows."""
        long = next(long for long, short in self._terminals.items() if short == name)
        return self._refused(
            f"the terminal {long}, which counts too far and may overlap what follows it,", long
        )

    def _rule(self, name: str) -> str:
        return self._rules.setdefault(name, f"{self._prefix}r{len(self._rules)}")

    def _symbol(self, symbol: Any) -> str:
        name = str(symbol.name)
        if not symbol.is_term:
            return self._rule(name)
        if name not in self._terminals:  # its texts come from Python code
            raise self._refused(f"the terminal {name}, which has no pattern", name)
        return self._terminals[name]

    def _terminal(self, terminal: Any) -> Terminal:
        pattern = terminal.pattern.to_regexp()
        known = _WITHOUT_LOOKBEHIND.get(pattern)
        lazy = known is None and terminal.pattern.type == "re" and _LAZY.search(pattern)
        try:
            return read_terminal(known or pattern, first_match=bool(lazy))
        except UnsupportedConstraint as error:
            what = error.message.partition(" at position")[0].removeprefix("regex: ")
            raise self._refused(f"{what} in {pattern}", terminal.name, pattern) from error
        except BranchlineError as error:
            where = self._line(terminal.name)
            raise InvalidRequest(
                f"lark: {error.message} in {terminal.name}{where}", value=pattern, hint=error.hint
            ) from error

    def _refused(self, what: str, *names: str) -> UnsupportedConstraint:
        """The error for something that is written as one of `names`."""
        name = names[0]
        return UnsupportedConstraint(
            f"lark: {what} cannot be enforced{self._line(*names)}",
            value=name,
            hint="Write it without.",
        )

    def _line(self, *names: str) -> str:
        """Where one of `names` is written first, as a definition if there is one."""
        lines = self._text.splitlines()
        defined = re.compile(rf"[?!]*{re.escape(names[0])}\b[^:]*:")
        for test in (defined.match, lambda line: any(name in line for name in names)):
            for number, line in enumerate(lines, 1):
                if test(line.strip()):
                    return f" (line {number})"
        return ""


def _ending(rules: Mapping[str, Sequence[tuple[str, ...]]]) -> dict[str, list[tuple[str, ...]]]:
    """What of the rules has texts: a body that needs itself again and again has none, and a model
    that began it could not end.
    """
    ending: dict[str, list[tuple[str, ...]]] = {}
    while True:
        found = {
            name: kept
            for name, bodies in rules.items()
            if (kept := [b for b in bodies if all(p not in rules or p in ending for p in b)])
        }
        if found == ending:
            return ending
        ending = found
