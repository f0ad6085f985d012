"""A grammar of rules and terminals as a text for the engine, which means the same to its lexer.

The engine's lexer takes the longest terminal that may come next. Where that could lose a text
(`lexing`), the grammar is written in another way: as one terminal if it is regular, for terminals
are exact; else the terminals that could take too much become rules over single characters, which
cost more for each token and lose nothing. Invariant: the text allows exactly what the grammar
allows, with terminals read wherever they fit and ignored ones before each and at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from branchline.runtime.grammar.automata import (
    Classes,
    Dfa,
    TooLarge,
    automaton,
    one_or_more,
    unbounded,
)
from branchline.runtime.grammar.ebnf import Node
from branchline.runtime.grammar.lark_regular import one_pattern
from branchline.runtime.grammar.lexing import Lexing
from branchline.runtime.grammar.regex_dialect import to_automaton_regex
from branchline.runtime.grammar.regex_tree import pattern_tree

Bodies = dict[str, list[tuple[str, ...]]]


@dataclass(frozen=True, slots=True)
class Terminal:
    """Attributes:
    text: as the engine reads it: a pattern between slashes, unless `first_match`.
    tree: the same pattern.
    first_match: it ends where it is complete for the first time; `text` says so, `tree` does not.
    """

    text: str
    tree: Node
    first_match: bool = False


def read_terminal(pattern: str, *, first_match: bool) -> Terminal:
    """A Python pattern as a terminal. Raises as `to_automaton_regex`."""
    body = f"/{to_automaton_regex(pattern)}/"
    tree = pattern_tree(pattern, both_cases=True)
    text = f"({body} & ~({body} /(?s:.+)/))" if first_match else body
    return Terminal(text, tree, first_match)


@dataclass(frozen=True, slots=True)
class LarkGrammar:
    """Attributes:
    rules: name -> alternatives, each of names of rules and terminals.
    ignored: terminals of which any number may stand before each other one and at the end.
    """

    start: str
    rules: Bodies
    terminals: Mapping[str, Terminal]
    ignored: Sequence[str]


class TooLong(Exception):
    """A terminal would have to be written as characters and has too many states."""

    def __init__(self, terminal: str) -> None:
        super().__init__(terminal)
        self.terminal = terminal


def written(grammar: LarkGrammar, prefix: str) -> list[str]:
    """The lines of the engine's grammar.

    Args:
        prefix: of all names; with one, the text is part of a larger grammar.

    Raises:
        TooLong: it cannot be written exactly.
    """
    parts = _Parts(grammar, prefix)
    losses = parts.losses()
    if losses and not prefix:
        pattern = _regular(grammar)
        if pattern is not None:
            return ["start: WHOLE", f"WHOLE: /{pattern}/"]
    parts.place_ignored()
    while losses:
        for name in sorted(losses):
            parts.split(name)
        losses = parts.losses()
    return parts.lines()


class _Parts:
    """A grammar on its way: more and more of its terminals are rules over characters."""

    def __init__(self, grammar: LarkGrammar, prefix: str) -> None:
        self._prefix = prefix
        self._start = grammar.start
        self._rules = {name: list(bodies) for name, bodies in grammar.rules.items()}
        self._texts = {name: one.text for name, one in grammar.terminals.items()}
        self._classes = Classes([one.tree for one in grammar.terminals.values()])
        self._lexing = Lexing(self._classes.wide)
        self._counted: dict[str, str] = {}  # terminals that are known only without their counts
        self._chars: dict[int, str] = {}
        self._dfas = {name: self._dfa(name, one) for name, one in grammar.terminals.items()}
        self._outer = set(self._dfas) - set(grammar.ignored)  # that may stand behind ignored ones
        self._outer |= {name for bodies in self._rules.values() for body in bodies for name in body}
        self._outer &= set(self._dfas)
        self.ignored = self._one_ignored(grammar.ignored)
        self._any_ignored = self.ignored is not None and _holds_any(
            self._dfas[self.ignored], self._classes
        )
        self._placed = self.ignored is None  # do the rules say where it stands?

    def _dfa(self, name: str, terminal: Terminal) -> Dfa:
        try:
            return automaton(terminal.tree, self._classes, first_match=terminal.first_match)
        except TooLarge:
            self._counted[name] = name
        try:
            return automaton(unbounded(terminal.tree), self._classes)
        except TooLarge:
            return self._anything()

    def _anything(self) -> Dfa:
        return Dfa(({1: self._classes.all}, {1: self._classes.all}), frozenset({1}))

    def _one_ignored(self, names: Sequence[str]) -> str | None:
        if not names:
            return None
        name = f"{self._prefix.upper()}I"
        self._texts[name] = f"({' | '.join(names)})+"
        try:
            self._dfas[name] = one_or_more([self._dfas[one] for one in names], self._classes)
        except TooLarge:
            self._counted[name] = names[0]
            self._dfas[name] = self._anything()
        for one in names:
            if one in self._counted:
                self._counted[name] = one
        return name

    def losses(self) -> set[str]:
        """Terminals that could take what belongs to the next one.

        Ignored text of any characters may, as in any lexer: a comment does not end where it could,
        but where it must. It may not from within a terminal that was split.
        """
        used = {name for bodies in self._rules.values() for body in bodies for name in body}
        ignored = None if self._placed else self.ignored
        dfas = {name: dfa for name, dfa in self._dfas.items() if name in used or name == ignored}
        pairs = self._lexing.greedy_losses(self._rules, self._start, dfas, ignored)
        chars = set(self._chars.values())
        return {
            long
            for short, long in pairs
            if long != self.ignored or short in chars or not self._any_ignored
        }

    def split(self, name: str) -> None:
        """Make a terminal a rule over characters.

        Raises:
            TooLong: it is not known what it matches.
        """
        if name in self._counted:
            raise TooLong(self._counted[name])
        new = f"{self._prefix}c{name.removeprefix(self._prefix.upper()).lower()}"
        for bodies in self._rules.values():
            bodies[:] = [tuple(new if one == name else one for one in body) for body in bodies]
        self._rules |= _as_rules(new, self._dfas.pop(name), self._char)
        del self._texts[name]

    def place_ignored(self) -> None:
        """Write down where ignored text may stand.

        The engine's own `%ignore` allows none at the beginning, not always some at the end, and
        some between the characters of a terminal that was split.
        """
        if self._placed:
            return
        assert self.ignored is not None
        self._placed = True
        blank = f"{self._prefix}blank"
        for bodies in self._rules.values():
            bodies[:] = [
                tuple(
                    part
                    for one in body
                    for part in ((blank, one) if one in self._outer else (one,))
                )
                for body in bodies
            ]
        whole = f"{self._prefix}whole"
        self._rules[whole] = [(self._start, blank)]
        self._rules[blank] = [(self.ignored,), ()]
        self._start = whole

    def _char(self, mask: int) -> str:
        """The terminal for one character of some classes."""
        if mask not in self._chars:
            name = f"{self._prefix.upper()}C{len(self._chars)}"
            inside = "".join(
                f"\\x{{{low:x}}}-\\x{{{high:x}}}" for low, high in self._classes.ranges(mask)
            )
            self._chars[mask] = name
            self._texts[name] = f"/[{inside}]/"
            self._dfas[name] = Dfa(({1: mask}, {}), frozenset({1}))
        return self._chars[mask]

    def lines(self) -> list[str]:
        """The grammar as it is now."""
        lines = [f"{self._prefix}start: {self._start}"]
        for name, bodies in self._rules.items():
            alternatives = " | ".join(" ".join(body) or '""' for body in bodies)
            lines.append(f"{name}: {alternatives}")
        return lines + [f"{name}: {text}" for name, text in self._texts.items()]


def _holds_any(dfa: Dfa, classes: Classes) -> bool:
    """Whether texts may hold every character beyond ASCII, as comments do."""
    wide = classes.wide
    return any(mask & wide == wide for ways in dfa.edges for mask in ways.values())


def _regular(grammar: LarkGrammar) -> str | None:
    """The whole grammar as a pattern, if it is seen to be regular."""
    if any(terminal.first_match for terminal in grammar.terminals.values()):
        return None
    patterns = {name: one.text[1:-1] for name, one in grammar.terminals.items()}
    blank = "|".join(f"(?:{patterns[name]})" for name in grammar.ignored)
    return one_pattern(grammar.start, grammar.rules, patterns, f"(?:{blank})*" if blank else "")


def _as_rules(name: str, dfa: Dfa, char: Callable[[int], str]) -> Bodies:
    """An automaton as rules: one for each state that is reached in several ways.

    They recur to the left, which costs the engine's parser the same for each character.
    """
    into: list[list[tuple[int, int]]] = [[] for _ in dfa.edges]
    for at, ways in enumerate(dfa.edges):
        for to, mask in ways.items():
            into[to].append((at, mask))
    rules: Bodies = {}

    def inline(state: int) -> bool:
        return state == 0 or (
            len(into[state]) == 1 and len(dfa.edges[state]) + (state in dfa.final) == 1
        )

    def reached(state: int) -> tuple[str, ...]:
        """What leads to a state."""
        tail: list[str] = []
        while inline(state) and state:
            state, mask = into[state][0]
            tail.append(char(mask))
        return (*(() if state == 0 else (f"{name}s{state}",)), *reversed(tail))

    rules[name] = [reached(state) for state in sorted(dfa.final)]
    for state in range(1, len(dfa.edges)):
        if not inline(state) and into[state]:
            rules[f"{name}s{state}"] = [(*reached(at), char(mask)) for at, mask in into[state]]
    return rules
