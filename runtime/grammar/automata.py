"""Patterns as deterministic automata over classes of characters.

Invariant: every state can be reached and leads to an end, so that a way through the automaton is
the beginning of a text. State 0 is the start.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from branchline.runtime.grammar.ebnf import ANY, Alt, Chars, Node, Ranges, Ref, Repeat, Seq, Text

MOST_STATES = 2_000
_ASCII_END = 0x80


class TooLarge(Exception):
    """A pattern has more than `MOST_STATES` states."""


@dataclass(frozen=True, slots=True)
class Dfa:
    """Attributes:
    edges: of each state: next state -> mask of classes.
    final: states in which a text is complete.
    """

    edges: tuple[dict[int, int], ...]
    final: frozenset[int]


class Classes:
    """A partition of all characters; those of one class are in the same sets of some patterns.

    Args:
        nodes: the patterns.
    """

    def __init__(self, nodes: Sequence[Node]) -> None:
        sets = list(dict.fromkeys(ranges for node in nodes for ranges in _sets(node)))
        cuts: dict[int, int] = {}  # where sets begin and end -> which ones, as a mask
        for bit, ranges in enumerate([*sets, ANY, ((_ASCII_END, 0x10FFFF),)]):
            for low, high in ranges:
                cuts[low] = cuts.get(low, 0) ^ (1 << bit)
                cuts[high + 1] = cuts.get(high + 1, 0) ^ (1 << bit)
        parts: dict[int, list[tuple[int, int]]] = {}
        inside, points = 0, sorted(cuts)
        for low, end in pairwise(points):
            inside ^= cuts[low]
            if inside >> len(sets) & 1:
                parts.setdefault(inside, []).append((low, end - 1))
        self._parts = list(parts.values())
        self._masks = {
            ranges: sum(1 << at for at, key in enumerate(parts) if key >> bit & 1)
            for bit, ranges in enumerate(sets)
        }
        self.all = (1 << len(parts)) - 1
        self.wide = sum(1 << at for at, part in enumerate(self._parts) if part[0][0] >= _ASCII_END)

    def mask(self, ranges: Ranges) -> int:
        """The classes of a set that was in the patterns."""
        return self._masks[ranges]

    def ranges(self, mask: int) -> Ranges:
        """All characters of some classes."""
        found: list[tuple[int, int]] = []
        for low, high in sorted(part for bit in bits(mask) for part in self._parts[bit]):
            if found and found[-1][1] == low - 1:
                found[-1] = (found[-1][0], high)
            else:
                found.append((low, high))
        return tuple(found)


def bits(mask: int) -> Iterator[int]:
    """Positions of ones."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def one(char: str) -> Ranges:
    """The set of a character."""
    return ((ord(char), ord(char)),)


def _sets(node: Node) -> Iterator[Ranges]:
    match node:
        case Text(value):
            yield from map(one, value)
        case Chars(ranges):
            yield ranges
        case Seq(parts) | Alt(parts):
            for part in parts:
                yield from _sets(part)
        case Repeat(part):
            yield from _sets(part)
        case Ref(name):
            raise AssertionError(f"a pattern refers to {name}")


def unbounded(node: Node) -> Node:
    """A simpler pattern that matches all that `node` matches, and more: it does not count."""
    match node:
        case Seq(parts):
            return Seq(tuple(map(unbounded, parts)))
        case Alt(parts):
            return Alt(tuple(map(unbounded, parts)))
        case Repeat(part, least, most):
            return Repeat(unbounded(part), min(least, 1), 1 if most == 1 else None)
        case _:
            return node


def automaton(node: Node, classes: Classes, *, first_match: bool = False) -> Dfa:
    """The automaton of a pattern.

    Args:
        first_match: a text ends where it is complete for the first time.

    Raises:
        TooLarge: it would have too many states.
    """
    nfa = _Nfa(classes)
    return _determined(nfa, nfa.add(node, nfa.state()), first_match=first_match)


def one_or_more(parts: Sequence[Dfa], classes: Classes) -> Dfa:
    """The automaton of texts of any of `parts`, one after the other. Raises as `automaton`."""
    nfa = _Nfa(classes)
    begin, end = nfa.state(), nfa.state()
    for part in parts:
        nfa.embed(part, begin, end)
    out = nfa.state()
    nfa.free(end, begin)
    nfa.free(end, out)
    return _determined(nfa, out)


def _determined(nfa: _Nfa, end: int, *, first_match: bool = False) -> Dfa:
    numbers = {nfa.closure({0}): 0}
    edges: list[dict[int, int]] = []
    final: set[int] = set()
    todo = list(numbers)
    for states in todo:
        edges.append({})
        if end in states:
            final.add(len(edges) - 1)
            if first_match:
                continue
        for reached, mask in nfa.moves(states).items():
            if reached not in numbers:
                if len(numbers) == MOST_STATES:
                    raise TooLarge
                numbers[reached] = len(numbers)
                todo.append(reached)
            edges[-1][numbers[reached]] = mask
    return _trimmed(edges, final)


def _trimmed(edges: list[dict[int, int]], final: set[int]) -> Dfa:
    """Without states that lead to no end (an empty set of characters)."""
    alive: set[int] = set(final)
    before = -1
    while len(alive) != before:
        before = len(alive)
        alive |= {at for at, ways in enumerate(edges) if not alive.isdisjoint(ways)}
    return Dfa(
        tuple({to: mask for to, mask in ways.items() if to in alive} for ways in edges),
        frozenset(final),
    )


class _Nfa:
    """States with moves by a class and moves by nothing."""

    def __init__(self, classes: Classes) -> None:
        self._classes = classes
        self._moves: list[list[tuple[int, int]]] = []
        self._free: list[list[int]] = []

    def state(self) -> int:
        if len(self._moves) == 8 * MOST_STATES:
            raise TooLarge
        self._moves.append([])
        self._free.append([])
        return len(self._moves) - 1

    def add(self, node: Node, at: int) -> int:
        """Put a pattern behind a state; the state where it ends."""
        match node:
            case Text(value):
                for char in value:
                    at = self._move(at, one(char))
                return at
            case Chars(ranges):
                return self._move(at, ranges)
            case Seq(parts):
                for part in parts:
                    at = self.add(part, at)
                return at
            case Alt(parts):
                end = self.state()
                for part in parts:
                    self._free[self.add(part, at)].append(end)
                return end
            case Repeat(part, least, most):
                return self._repeat(part, least, most, at)
            case Ref(name):
                raise AssertionError(f"a pattern refers to {name}")

    def embed(self, dfa: Dfa, begin: int, end: int) -> None:
        """Put an automaton between two states."""
        states = [self.state() for _ in dfa.edges]
        self.free(begin, states[0])
        for at, ways in zip(states, dfa.edges, strict=True):
            self._moves[at] += [(mask, states[to]) for to, mask in ways.items()]
        for at in dfa.final:
            self.free(states[at], end)

    def free(self, at: int, to: int) -> None:
        """A move by nothing."""
        self._free[at].append(to)

    def _move(self, at: int, ranges: Ranges) -> int:
        to = self.state()
        self._moves[at].append((self._classes.mask(ranges), to))
        return to

    def _repeat(self, part: Node, least: int, most: int | None, at: int) -> int:
        for _ in range(least):
            at = self.add(part, at)
        if most is None:
            loop = self.state()
            self._free[at].append(loop)
            self._free[self.add(part, loop)].append(loop)
            end = self.state()
            self._free[loop].append(end)
            return end
        end = self.state()
        self._free[at].append(end)
        for _ in range(most - least):
            at = self.add(part, at)
            self._free[at].append(end)
        return end

    def closure(self, states: set[int]) -> frozenset[int]:
        """Those and all that are reached by nothing."""
        found, todo = set(states), list(states)
        while todo:
            for to in self._free[todo.pop()]:
                if to not in found:
                    found.add(to)
                    todo.append(to)
        return frozenset(found)

    def moves(self, states: frozenset[int]) -> dict[frozenset[int], int]:
        """Sets of states that are reached by one character, and by which classes."""
        by_mask: dict[int, set[int]] = {}
        for state in states:
            for mask, to in self._moves[state]:
                by_mask.setdefault(mask, set()).add(to)
        found: dict[frozenset[int], int] = {}
        left = 0
        for mask in by_mask:
            left |= mask
        while left:
            bit = left & -left
            reached: set[int] = set()
            alike = left
            for mask, ends in by_mask.items():
                if mask & bit:
                    reached |= ends
                    alike &= mask
                else:
                    alike &= ~mask
            left &= ~alike
            if reached:
                closed = self.closure(reached)
                found[closed] = found.get(closed, 0) | alike
        return found
