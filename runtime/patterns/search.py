"""Whether a text holds a match of a pattern, in time linear in the text.

A text is read from its end: of each place it is known which states of the pattern's automaton can
succeed from there, so that what comes behind (anchors, word boundaries, lookahead) is known where
it is asked for. Invariant: the answer is that of ECMA-262; where finding it would take more than a
fixed amount of work there is none. Knows no JSON.
"""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import NamedTuple

from branchline.runtime.patterns.ecma import WORD, Part, PatternError, parse
from branchline.runtime.patterns.ranges import Ranges, in_ranges

MAX_STATES = 4000
MAX_STEPS = 1_000_000
"""Moves of single states for one text: about half a second."""
_REMEMBERED = 4096
"""Steps, and states of all sets, that a search keeps from one text to the next."""

_Test = tuple[str, int, bool]
"""A condition on a place: "start", "end", "edge" or "look", number of the look, negated."""


class _Automaton:
    """One pattern, or the inside of one lookahead. State 0 succeeds everywhere.

    A state reads a character and goes on at one other, or goes on at others at once, under a
    condition.
    """

    def __init__(self) -> None:
        self.chars: list[Ranges | None] = [None]
        self.readers: dict[int, list[int]] = {}  # by the state they go on at
        self.silent: dict[int, list[tuple[int, _Test | None]]] = {}  # likewise
        self.entry = 0
        self.tests: list[_Test] = []

    def reader(self, chars: Ranges, then: int) -> int:
        """A state that reads one character."""
        state = self.state()
        self.chars[state] = chars
        self.readers.setdefault(then, []).append(state)
        return state

    def state(self) -> int:
        """A state that goes nowhere yet."""
        if len(self.chars) > MAX_STATES:
            raise PatternError(f"a pattern of more than {MAX_STATES} states")
        self.chars.append(None)
        return len(self.chars) - 1

    def join(self, state: int, then: int, test: _Test | None = None) -> int:
        """Have `state` go on at `then`; returns `state`."""
        if test is not None and test not in self.tests:
            self.tests.append(test)
        self.silent.setdefault(then, []).append((state, test))
        return state


class _Builder:
    """The automata of one pattern: those of its lookaheads, the innermost first, then its own."""

    def __init__(self) -> None:
        self.automata: list[_Automaton] = []

    def build(self, part: Part) -> int:
        """Number of the automaton of `part`."""
        made = _Automaton()
        made.entry = self._states(made, part, 0)
        self.automata.append(made)
        return len(self.automata) - 1

    def _states(self, made: _Automaton, part: Part, then: int) -> int:
        """States that match `part` and go on at `then`; the entry."""
        match part.kind:
            case "set":
                return made.reader(part.ranges, then)
            case "seq":
                for one in reversed(part.parts):
                    then = self._states(made, one, then)
                return then
            case "or":
                entry = made.state()
                for one in part.parts:
                    made.join(entry, self._states(made, one, then))
                return entry
            case "rep":
                return self._repeated(made, part, then)
            case "look":
                look = self.build(part.parts[0])
                return made.join(made.state(), then, ("look", look, part.negated))
        return made.join(made.state(), then, (part.kind, 0, part.negated))

    def _repeated(self, made: _Automaton, part: Part, then: int) -> int:
        [inner] = part.parts
        if part.most is None:
            entry = made.state()
            made.join(entry, then)
            made.join(entry, self._states(made, inner, entry))
        else:
            entry = then
            for _ in range(part.most - part.least):
                entry = made.join(made.state(), self._states(made, inner, entry))
                made.join(entry, then)
        for _ in range(part.least):
            entry = self._states(made, inner, entry)
        return entry


class _Step(NamedTuple):
    """What a step depends on: states that succeed behind a character, the character, conditions."""

    alive: int
    char: int
    held: tuple[bool, ...]


class _Run:
    """One automaton over texts; remembers steps, so that most take one look-up."""

    def __init__(self, automaton: _Automaton) -> None:
        self._automaton = automaton
        self._numbers: dict[frozenset[int], int] = {}
        self._sets: list[frozenset[int]] = []
        self._steps: dict[_Step, int] = {}
        self._members = 0
        self.tests = automaton.tests
        self.steps = 0

    def move(self, alive: int, char: int, held: tuple[bool, ...]) -> int:
        """States that succeed before `char`, by number.

        Args:
            alive: number of those that succeed behind it; -1 = none.
            char: -1 at the end of the text.
            held: whether each of `tests` holds before `char`.
        """
        step = _Step(alive, char, held)
        found = self._steps.get(step)
        if found is None:
            found = self._steps[step] = self._move(step)
        return found

    def succeeds(self, alive: int) -> bool:
        """Whether the whole pattern is among the states of that number."""
        return self._automaton.entry in self._sets[alive]

    def forget(self) -> None:
        """A text is over: drop what was remembered, if it is much."""
        self.steps = 0
        if len(self._steps) + self._members > _REMEMBERED:
            self._steps, self._numbers, self._sets = {}, {}, []
            self._members = 0

    def _move(self, step: _Step) -> int:
        automaton = self._automaton
        holds = dict(zip(automaton.tests, step.held, strict=True))
        todo = [0]
        for state in self._sets[step.alive] if step.alive >= 0 else ():
            for reader in automaton.readers.get(state, ()):
                self.steps += 1
                chars = automaton.chars[reader]
                if chars is not None and in_ranges(chars, step.char):
                    todo.append(reader)
        seen: set[int] = set()
        while todo:
            state = todo.pop()
            if state in seen:
                continue
            seen.add(state)
            self.steps += 1
            for before, test in automaton.silent.get(state, ()):
                if test is None or holds[test]:
                    todo.append(before)
        found = frozenset(seen)
        if found not in self._numbers:
            self._numbers[found] = len(self._sets)
            self._sets.append(found)
            self._members += len(found)
        return self._numbers[found]


class Search:
    """A pattern that is looked for in texts; for any thread, one at a time.

    Raises:
        PatternError: it is malformed, no automaton can do it, or it is too large.
    """

    def __init__(self, pattern: str) -> None:
        builder = _Builder()
        builder.build(parse(pattern))
        self._runs = [_Run(automaton) for automaton in builder.automata]
        self._edges = any(test[0] == "edge" for run in self._runs for test in run.tests)
        self._lock = threading.Lock()

    def found_in(self, text: str) -> bool | None:
        """Whether the pattern matches somewhere in `text`; None = that would take too long."""
        with self._lock:
            try:
                return self._look(text)
            finally:
                for run in self._runs:
                    run.forget()

    def _look(self, text: str) -> bool | None:
        runs = self._runs
        alive = [-1] * len(runs)
        for at in range(len(text), -1, -1):
            char = ord(text[at]) if at < len(text) else -1
            edge = self._edges and _is_word(text, at) != _is_word(text, at - 1)
            looks: list[bool] = []
            for number, run in enumerate(runs):
                held = tuple(
                    _holds(test, at == 0, at == len(text), edge, looks) for test in run.tests
                )
                alive[number] = run.move(alive[number], char, held)
                looks.append(run.succeeds(alive[number]))
            if looks[-1]:
                return True
            if sum(run.steps for run in runs) > MAX_STEPS:
                return None
        return False


def _holds(test: _Test, start: bool, end: bool, edge: bool, looks: list[bool]) -> bool:
    kind, look, negated = test
    found = {"start": start, "end": end, "edge": edge}[kind] if kind != "look" else looks[look]
    return found is not negated


def _is_word(text: str, at: int) -> bool:
    return 0 <= at < len(text) and in_ranges(WORD, ord(text[at]))


@lru_cache(maxsize=256)
def search_for(pattern: str) -> Search | None:
    """The search of a pattern, kept; None for one that has none (see `Search`)."""
    try:
        return Search(pattern)
    except PatternError:
        return None
