"""What a lexer that takes the longest match can get wrong.

The engine reads a text as terminals and takes the longest one that may come next; it never goes
back. That is exact as long as no terminal that is complete can grow, within itself or another one
that may come at the same place, by what could follow it. `greedy_losses` names the terminals for
which that is not so. Invariant: it may name too many, never too few. Knows no notation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from branchline.runtime.grammar.automata import Dfa

Rules = Mapping[str, Sequence[tuple[str, ...]]]
"""Name -> alternatives, each of names of rules and terminals."""


@dataclass(frozen=True, slots=True)
class Meeting:
    """Two terminals read side by side.

    Attributes:
        same: some text is both.
        grows: first characters (a mask of classes) by which the second one goes on where the first
            one is complete.
    """

    same: bool
    grows: int


class Lexing:
    """Which terminals of a grammar may meet; keeps what it found of pairs.

    Args:
        wide: the classes of characters of more than one byte: their first bytes may be equal.
    """

    def __init__(self, wide: int) -> None:
        self._wide = wide
        self._met: dict[tuple[str, str], Meeting] = {}

    def greedy_losses(
        self, rules: Rules, start: str, terminals: Mapping[str, Dfa], ignored: str | None
    ) -> set[tuple[str, str]]:
        """Pairs: a complete terminal, and one that could take what follows it.

        Args:
            terminals: by name; no other ones are in the rules.
            ignored: one that may stand before each other one and at the end, once.
        """
        follows, first = _neighbours(rules, start, terminals)
        places = [first, *self._places(follows, terminals)]
        beginnings = {name: self._widened(_first(dfa)) for name, dfa in terminals.items()}
        after = {
            name: _union(beginnings[other] for other in others) for name, others in follows.items()
        }
        if ignored is not None:
            places = [place | {ignored} for place in places]
            blank = beginnings[ignored]
            after = {name: mask | blank for name, mask in after.items()}
            after[ignored] = _union(mask for name, mask in beginnings.items() if name != ignored)
        pairs = {pair for place in places for pair in product(place, place)}
        return {
            (short, long)
            for short, long in pairs
            if self._meet(short, long, terminals).grows & after[short]
        }

    def _places(
        self, follows: Mapping[str, set[str]], terminals: Mapping[str, Dfa]
    ) -> list[set[str]]:
        """What may come next after a terminal, or after several that are one text."""
        found: list[set[str]] = []
        names = [name for name in follows if follows[name]]
        for at, one in enumerate(names):
            for other in names[at:]:
                if one == other or self._meet(one, other, terminals).same:
                    place = follows[one] | follows[other]
                    if place not in found:
                        found.append(place)
        return found

    def _meet(self, short: str, long: str, terminals: Mapping[str, Dfa]) -> Meeting:
        pair = (short, long)
        if pair not in self._met:
            same, grows = _together(terminals[short], terminals[long])
            self._met[pair] = Meeting(same, self._widened(grows))
        return self._met[pair]

    def _widened(self, mask: int) -> int:
        return mask | self._wide if mask & self._wide else mask


def _first(dfa: Dfa) -> int:
    return _union(dfa.edges[0].values())


def _union(masks: Iterable[int]) -> int:
    found = 0
    for mask in masks:
        found |= mask
    return found


def _together(one: Dfa, other: Dfa) -> tuple[bool, int]:
    same, grows = False, 0
    seen = {(0, 0)}
    todo = [(0, 0)]
    while todo:
        left, right = todo.pop()
        if left in one.final and (left, right) != (0, 0):
            same = same or right in other.final
            grows |= _union(other.edges[right].values())
        for left_next, left_mask in one.edges[left].items():
            for right_next, right_mask in other.edges[right].items():
                pair = (left_next, right_next)
                if left_mask & right_mask and pair not in seen:
                    seen.add(pair)
                    todo.append(pair)
    return same, grows


def _neighbours(
    rules: Rules, start: str, terminals: Mapping[str, Dfa]
) -> tuple[dict[str, set[str]], set[str]]:
    """For each terminal those that may follow it, and those that may come first."""
    empty = empty_rules(rules)
    first = _ends(rules, terminals, empty, step=1)
    last = _ends(rules, terminals, empty, step=-1)
    follows: dict[str, set[str]] = {name: set() for name in terminals}
    for bodies in rules.values():
        for body in bodies:
            for at, left in enumerate(body):
                for right in body[at + 1 :]:
                    for name in last[left]:
                        follows[name] |= first[right]
                    if right not in empty:
                        break
    return follows, set(first[start])


def empty_rules(rules: Rules) -> set[str]:
    """Rules that the empty text matches."""
    found: set[str] = set()
    before = -1
    while len(found) != before:
        before = len(found)
        for name, bodies in rules.items():
            if any(all(part in found for part in body) for body in bodies):
                found.add(name)
    return found


def _ends(
    rules: Rules, terminals: Mapping[str, Dfa], empty: set[str], step: int
) -> dict[str, set[str]]:
    """Terminals that a symbol may begin with (step 1) or end with (step -1)."""
    found: dict[str, set[str]] = {name: {name} for name in terminals}
    found.update({name: set() for name in rules})
    changed = True
    while changed:
        changed = False
        for name, bodies in rules.items():
            size = len(found[name])
            for body in bodies:
                for part in body[::step]:
                    found[name] |= found[part]
                    if part not in empty:
                        break
            changed = changed or len(found[name]) != size
    return found
