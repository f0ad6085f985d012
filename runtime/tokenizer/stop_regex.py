"""Regular expressions that are matched while their text is still being generated.

Invariant: one pass, time linear in the text and in the pattern (Thompson 1968), and the answer
after each character depends on the characters so far alone, never on how they were split into
pieces. Besides whether a match ended, a scan knows where the earliest match still under way
began: text before that place is safe to show. (Engines that only report finished matches, linear
or not, cannot say this.)

Syntax: literals, `.`, classes, `\\d \\w \\s` and their opposites, groups, `|`, `* + ? {m,n}`, lazy
marks (no effect: the first end wins anyway), `^` and `\\A`, and `(?i)`, `(?s)` at the start.
Lookaround, back-references and `$ \\b \\B \\Z` are refused: whether they hold depends on text that
is not there yet, or takes more than linear time.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import NamedTuple

from branchline.runtime.errors import InvalidRequest
from branchline.runtime.tokenizer.stop_regex_parser import (
    Alternation,
    CharSet,
    Concatenation,
    Node,
    Repeat,
    StartAnchor,
    parse,
)

MAX_STATES = 2000


@dataclass(slots=True)
class _State:
    """One NFA state: consumes a character of `chars` and goes on, or is silent."""

    chars: CharSet | None = None
    anchored: bool = False
    accepting: bool = False
    then: list[int] = field(default_factory=list)


class StopPattern:
    """A compiled pattern; immutable, shared by any number of scans.

    Args:
        pattern: the text of the expression.

    Raises:
        InvalidRequest: not an expression, a construct that is refused, too large, or one that
            matches the empty text.
    """

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self._states: list[_State] = []
        accept = self._new(_State(accepting=True))
        start = self._build(parse(pattern), accept)
        self._first = self._closure([start], at_start=True)
        self._later = self._closure([start], at_start=False)
        if self._first.accepting or self._later.accepting:
            raise InvalidRequest(
                "stop_regex matches the empty text, so nothing could be generated.",
                hint="Make it match at least one character.",
                value=pattern,
            )
        self._after = [
            self._closure(state.then, at_start=False) if state.chars is not None else None
            for state in self._states
        ]

    def scan(self) -> StopScan:
        """A fresh scan."""
        return StopScan(self)

    def _new(self, state: _State) -> int:
        if len(self._states) >= MAX_STATES:
            raise InvalidRequest(
                f"stop_regex is too large (more than {MAX_STATES} states).",
                hint="Use smaller repetition counts.",
                value=self.pattern,
            )
        self._states.append(state)
        return len(self._states) - 1

    def _build(self, node: Node, then: int) -> int:
        """States that match `node` and go on at `then`; returns the entry."""
        if isinstance(node, CharSet):
            return self._new(_State(chars=node, then=[then]))
        if isinstance(node, StartAnchor):
            return self._new(_State(anchored=True, then=[then]))
        if isinstance(node, Concatenation):
            for part in reversed(node.parts):
                then = self._build(part, then)
            return then
        if isinstance(node, Alternation):
            return self._new(_State(then=[self._build(part, then) for part in node.parts]))
        return self._repeat(node, then)

    def _repeat(self, node: Repeat, then: int) -> int:
        if node.most is None:
            loop = self._new(_State())
            self._states[loop].then = [self._build(node.inner, loop), then]
            entry = loop
        else:
            entry = then
            for _ in range(node.most - node.least):
                entry = self._new(_State(then=[self._build(node.inner, entry), then]))
        for _ in range(node.least):
            entry = self._build(node.inner, entry)
        return entry

    def _closure(self, states: list[int], *, at_start: bool) -> _Closure:
        """What can be reached from `states` without a character."""
        seen: set[int] = set()
        todo = list(states)
        consuming: list[int] = []
        accepting = False
        while todo:
            index = todo.pop()
            if index in seen:
                continue
            seen.add(index)
            state = self._states[index]
            if state.chars is not None:
                consuming.append(index)
            elif state.accepting:
                accepting = True
            elif at_start or not state.anchored:
                todo.extend(state.then)
        return _Closure(tuple(consuming), accepting)


class _Closure(NamedTuple):
    consuming: tuple[int, ...]
    accepting: bool


class RegexHit(NamedTuple):
    """A match `[start, end)` in characters from the start of the text."""

    start: int
    end: int


class StopScan:
    """One text under one pattern.

    The match reported is the one that ends first; of those, the one that begins first.
    """

    def __init__(self, pattern: StopPattern) -> None:
        self._pattern = pattern
        self._live: dict[int, int] = {}
        self._at = 0

    @property
    def pending_start(self) -> int:
        """Where the earliest match still under way begins; the text's length if there is none."""
        return min(self._live.values(), default=self._at)

    def feed(self, text: str, *, armed_from: int = 0) -> RegexHit | None:
        """Read on; stops at the first match and then must not be fed again.

        Args:
            text: the next characters.
            armed_from: matches that end at or before this offset do not count.
        """
        pattern, states = self._pattern, self._pattern._states
        for char in text:
            entries = pattern._later if self._at else pattern._first
            live = self._live
            for index in entries.consuming:
                live.setdefault(index, self._at)
            moved: dict[int, int] = {}
            ended = -1
            for index, start in live.items():
                chars = states[index].chars
                after = pattern._after[index]
                if chars is None or after is None or not chars.matches(char):
                    continue
                if after.accepting and (ended < 0 or start < ended):
                    ended = start
                for target in after.consuming:
                    if start < moved.get(target, self._at + 1):
                        moved[target] = start
            self._live = moved
            self._at += 1
            if ended >= 0 and self._at > armed_from:
                return RegexHit(ended, self._at)
        return None


@functools.lru_cache(maxsize=256)
def compile_stop_regex(pattern: str) -> StopPattern:
    """The compiled pattern, kept for the next request that asks for the same one."""
    return StopPattern(pattern)
