"""Reading a finished text by the grammar that allowed it: the value, and what each capture took.

Invariant: what the engine allows is found again. Where a text can be divided in several ways, each
part takes as much as it can, from the left. Polynomial in the length of the text: whether a node
covers a stretch is found once. Knows nothing of engines.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from branchline.lang.grammar import (
    Alt,
    Capture,
    Grammar,
    Literal,
    Optional,
    Repeat,
    Seq,
    Until,
    capture_names,
)

if TYPE_CHECKING:
    from branchline.lang.types import ValueType

Resolve = Callable[[object], "ValueType"]


class Reading(NamedTuple):
    """What a text means.

    Attributes:
        captures: (name, value) in the order of the text.
    """

    value: Any
    captures: tuple[tuple[str, Any], ...] = ()


def read(node: Grammar, text: str, resolve: Resolve) -> Reading:
    """Read `text` as a whole; raises ValueError when it does not match.

    Args:
        resolve: how leaves are written and read.
    """
    reader = _Reader(text, resolve)
    if not reader.covers(node, 0, len(text)):
        raise ValueError("the text does not match")
    return reader.build(node, 0, len(text))


def captures(node: Grammar, text: str, resolve: Resolve) -> dict[str, Any]:
    """Value of each capture by name: a list inside a repetition, None where it took no part.

    Raises ValueError when the text does not match.
    """
    found = read(node, text, resolve).captures
    values: dict[str, Any] = {}
    for name, repeated in capture_names(node).items():
        taken = [value for key, value in found if key == name]
        values[name] = taken if repeated else (taken[0] if taken else None)
    return values


class _Reader:
    """One text. Stretches are (begin, end) offsets of it."""

    def __init__(self, text: str, resolve: Resolve) -> None:
        self._text = text
        self._resolve = resolve
        self._known: dict[tuple[int, int, int], bool] = {}
        self._tails: dict[tuple[int, int, int, int], bool] = {}

    def covers(self, node: Grammar, begin: int, end: int) -> bool:
        """Whether `node` matches the stretch as a whole."""
        key = (id(node), begin, end)
        if key not in self._known:
            self._known[key] = self._covers(node, begin, end)
        return self._known[key]

    def _covers(self, node: Grammar, begin: int, end: int) -> bool:
        match node:
            case Literal(text=text):
                return end - begin == len(text) and self._text.startswith(text, begin)
            case Until(stop=stop):
                return self._until(stop, begin) == end
            case Seq(parts=parts):
                return self._tail(parts, 0, begin, end)
            case Alt(branches=branches):
                return any(self.covers(branch, begin, end) for branch in branches)
            case Optional(body=body):
                return begin == end or self.covers(body, begin, end)
            case Capture(body=body):
                return self.covers(body, begin, end)
            case Repeat():
                return self._tile(node, begin, end) is not None
            case _:
                return leaf_covers(self._resolve(node), self._text[begin:end])

    def _tail(self, parts: tuple[Grammar, ...], at: int, begin: int, end: int) -> bool:
        """Whether `parts[at:]` match the stretch."""
        if at == len(parts) - 1:
            return self.covers(parts[at], begin, end)
        key = (id(parts), at, begin, end)
        if key not in self._tails:
            self._tails[key] = any(
                middle <= end and self._tail(parts, at + 1, middle, end)
                for middle in self.ends(parts[at], begin)
            )
        return self._tails[key]

    def ends(self, node: Grammar, begin: int) -> Iterator[int]:
        """Ends of all stretches from `begin` that `node` matches, the longest first."""
        match node:
            case Literal(text=text):
                if self._text.startswith(text, begin):
                    yield begin + len(text)
            case Until(stop=stop):
                end = self._until(stop, begin)
                if end >= 0:
                    yield end
            case Seq(parts=parts):
                yield from self._ends_of(parts, begin)
            case Alt(branches=branches):
                yield from _longest({e for branch in branches for e in self.ends(branch, begin)})
            case Optional(body=body):
                yield from _longest({begin, *self.ends(body, begin)})
            case Capture(body=body):
                yield from self.ends(body, begin)
            case Repeat():
                yield from _longest(self._repeat_ends(node, begin))
            case _:
                yield from leaf_ends(self._resolve(node), self._text, begin)

    def _ends_of(self, parts: tuple[Grammar, ...], begin: int) -> Iterator[int]:
        starts = {begin}
        for part in parts:
            starts = {end for start in starts for end in self.ends(part, start)}
        return _longest(starts)

    def _repeat_ends(self, node: Repeat, begin: int) -> set[int]:
        found = {begin} if node.low == 0 else set()
        seen = {(0, begin)}
        todo = [(0, begin)]
        while todo:
            count, start = todo.pop()
            if count == node.high:
                continue
            for end in self.ends(node.body, start):
                state = (_next_count(node, count), end)
                if state not in seen:
                    seen.add(state)
                    todo.append(state)
                    if state[0] >= node.low:
                        found.add(end)
        return found

    def _tile(self, node: Repeat, begin: int, end: int) -> list[int] | None:
        """Where the repetitions end when together they cover the stretch; None when they cannot."""
        if begin == end and node.low == 0:
            return []
        failed: set[tuple[int, int]] = set()
        path: list[tuple[int, int, Iterator[int]]] = [(0, begin, self.ends(node.body, begin))]
        while path:
            count, start, candidates = path[-1]
            following = next(candidates, None)
            if following is None:
                failed.add((count, start))
                path.pop()
                continue
            state = (_next_count(node, count), following)
            if following > end or state in failed or (following == start and count >= node.low):
                continue
            if following == end and state[0] >= node.low:
                return [*(entry[1] for entry in path[1:]), end]
            if state[0] != node.high:
                path.append((*state, self.ends(node.body, following)))
        return None

    def _until(self, stop: str, begin: int) -> int:
        found = self._text.find(stop, begin)
        return found + len(stop) if found >= 0 else -1

    # ---- values

    def build(self, node: Grammar, begin: int, end: int) -> Reading:
        """The reading of a stretch that `node` covers."""
        text = self._text[begin:end]
        match node:
            case Literal():
                return Reading(text)
            case Until(stop=stop):
                return Reading(text[: -len(stop)])
            case Seq(parts=parts):
                return Reading(text, self._parts(parts, begin, end))
            case Alt(branches=branches):
                taken = next(b for b in branches if self.covers(b, begin, end))
                return self.build(taken, begin, end)
            case Optional(body=body):
                if self.covers(body, begin, end):
                    return self.build(body, begin, end)
                return Reading(None)
            case Capture(name=name, body=body):
                inner = self.build(body, begin, end)
                return Reading(inner.value, ((name, inner.value), *inner.captures))
            case Repeat(body=body):
                return self._list(body, [begin, *(self._tile(node, begin, end) or [])])
            case _:
                return Reading(self._resolve(node).value(text, truncated=False))

    def _parts(
        self, parts: tuple[Grammar, ...], begin: int, end: int
    ) -> tuple[tuple[str, Any], ...]:
        found: tuple[tuple[str, Any], ...] = ()
        for at, part in enumerate(parts):
            middle = end
            if at < len(parts) - 1:
                middle = next(
                    m
                    for m in self.ends(part, begin)
                    if m <= end and self._tail(parts, at + 1, m, end)
                )
            found += self.build(part, begin, middle).captures
            begin = middle
        return found

    def _list(self, body: Grammar, marks: list[int]) -> Reading:
        readings = [self.build(body, a, b) for a, b in pairwise(marks)]
        return Reading(
            [reading.value for reading in readings],
            tuple(pair for reading in readings for pair in reading.captures),
        )


def leaf_covers(kind: ValueType, text: str) -> bool:
    """Whether a leaf matches `text` as a whole, as far as that can be told without an engine."""
    constraint = kind.constraint
    if constraint is None or constraint.kind not in ("regex", "choices", "json_schema"):
        return True
    if constraint.kind == "regex" and _pattern(constraint.text).fullmatch(text) is None:
        return False
    if constraint.kind == "choices":
        return text in json.loads(constraint.text)
    if kind.parse is None:
        return True
    try:
        kind.parse(text)
    except (ValueError, KeyError):
        return False
    return True


def leaf_ends(kind: ValueType, text: str, begin: int) -> Iterator[int]:
    """Ends of the stretches from `begin` that a leaf matches, the likeliest first."""
    constraint = kind.constraint
    if constraint is not None and constraint.kind == "json_schema":
        try:
            _, end = json.JSONDecoder().raw_decode(text, begin)
        except (ValueError, RecursionError):
            return
        if leaf_covers(kind, text[begin:end]):
            yield end
        return
    if constraint is not None and constraint.kind == "choices":
        items = json.loads(constraint.text)
        yield from _longest({begin + len(i) for i in items if text.startswith(i, begin)})
        return
    for end in range(len(text), begin - 1, -1):
        if leaf_covers(kind, text[begin:end]):
            yield end


def _next_count(node: Repeat, count: int) -> int:
    """Repetitions so far; beyond `low` they need no counting where there is no upper bound."""
    return min(count + 1, node.low) if node.high is None else count + 1


def _longest(ends: set[int]) -> Iterator[int]:
    return iter(sorted(ends, reverse=True))


@lru_cache(maxsize=256)
def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text)
