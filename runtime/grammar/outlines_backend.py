"""Grammar backend on outlines-core: a pattern as one automaton over tokens.

Invariant: the engine only ever runs in a worker, since it can end its process; what it found comes
back as plain arrays that are walked here. Its automata lose every token that passes a final state
(outlines-core 0.2.14), so patterns are compiled with a character behind them that no text contains:
the only final states are then those behind it. U+10FFFF, which is assigned to nothing and never
will be, stands for that and is thereby not part of any text.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import msgspec
import numpy as np

from branchline.runtime.core.protocols import TokenMatcher
from branchline.runtime.core.sampling_params import Constraint
from branchline.runtime.errors import UnsupportedConstraint
from branchline.runtime.grammar.base import Bitmask, Choice, Compile, GrammarTokenizer, NeedMask
from branchline.runtime.grammar.choices import read_choices
from branchline.runtime.grammar.limits import DEFAULT_LIMITS, Limits, check_repeats, check_text
from branchline.runtime.grammar.regex_dialect import literal, to_automaton_regex
from branchline.runtime.grammar.state_matcher import EngineState, StateMatcher, Words

_END = "\U0010ffff"
_Ints = np.ndarray[tuple[int], np.dtype[np.int32]]


class Automaton(msgspec.Struct, frozen=True):
    """States and their transitions, sorted by state, then token; little-endian int32 arrays.

    Attributes:
        accepting: one value a state; 1 where the text may end.
        starts: states + 1 values; where a state's transitions begin.
        tokens, targets: of each transition. State 0 is where a text begins.
    """

    accepting: bytes
    starts: bytes
    tokens: bytes
    targets: bytes


def engine_pattern(constraint: Constraint, limits: Limits = DEFAULT_LIMITS) -> str:
    """A constraint as the engine is given it.

    Raises:
        InvalidRequest, UnsupportedConstraint: see `GrammarBackend.compile`.
    """
    check_text(constraint, limits)
    return f"{literal(constraint.prefix)}(?:{_own_pattern(constraint, limits)})"


def _own_pattern(constraint: Constraint, limits: Limits) -> str:
    if constraint.kind == "choices":
        return "|".join(literal(choice) for choice in read_choices(constraint.text, limits))
    if constraint.kind != "regex":
        raise UnsupportedConstraint(
            f"{constraint.kind}: outlines-core does not enforce it exactly",
            value=constraint.text,
            hint="Use the backend llguidance or xgrammar.",
        )
    pattern = to_automaton_regex(constraint.text)
    check_repeats("regex", pattern, limits)
    return pattern


def compile_automaton(
    constraint: Constraint, tokenizer: GrammarTokenizer, limits: Limits = DEFAULT_LIMITS
) -> bytes:
    """Compile in this process to a serialized `Automaton`: what a worker runs.

    Raises:
        InvalidRequest, UnsupportedConstraint: see `GrammarBackend.compile`.
    """
    pattern = engine_pattern(constraint, limits)
    tokens = tokenizer.all_token_bytes()
    barred = tokenizer.special_ids | tokenizer.eos_ids
    try:
        outlines_core = importlib.import_module("outlines_core")
    except ImportError as error:
        raise UnsupportedConstraint(
            "the grammar backend outlines is not installed", hint="Install branchline[grammars]."
        ) from error
    ids: dict[bytes, list[int]] = {}
    for token, piece in enumerate(tokens):
        if piece and token not in barred:
            ids.setdefault(bytes(piece), []).append(token)
    end, unused = len(tokens), len(tokens) + 1
    ids.setdefault(_END.encode(), []).append(end)
    try:
        vocabulary = outlines_core.Vocabulary(unused, ids)
        index = outlines_core.Index(f"(?:{pattern})\\x{{{ord(_END):x}}}", vocabulary)
    except ValueError as error:
        raise UnsupportedConstraint(
            f"outlines-core: {str(error)[:300]}", hint="Rewrite the constraint."
        ) from error
    final = set(index.get_final_states())
    edges: dict[int, dict[int, int]] = {}
    accepting: set[int] = set()
    for state, row in index.get_transitions().items():
        if row.get(end) in final:
            accepting.add(state)
        edges[state] = {t: to for t, to in row.items() if t < end and to not in final}
    return _packed(index.get_initial_state(), edges, accepting)


def _packed(initial: int, edges: dict[int, dict[int, int]], accepting: set[int]) -> bytes:
    """Number the states from which a text can be completed; leave out the others."""
    sources: dict[int, list[int]] = {}
    for state, row in edges.items():
        for target in set(row.values()):
            sources.setdefault(target, []).append(state)
    alive, todo = set(accepting), list(accepting)
    while todo:
        for source in sources.get(todo.pop(), ()):
            if source not in alive:
                alive.add(source)
                todo.append(source)
    order = [initial, *sorted(alive - {initial})]
    numbers = {state: number for number, state in enumerate(order)}
    starts, tokens, targets = [0], [], []
    for state in order:
        kept = sorted((t, numbers[to]) for t, to in edges.get(state, {}).items() if to in alive)
        tokens += [token for token, _ in kept]
        targets += [target for _, target in kept]
        starts.append(len(tokens))
    flags = [int(state in accepting) for state in order]
    arrays = (
        np.array(values, dtype="<i4").tobytes() for values in (flags, starts, tokens, targets)
    )
    return msgspec.msgpack.encode(Automaton(*arrays))


class OutlinesBackend:
    """Compiles patterns and choices for one tokenizer.

    Args:
        tokenizer: see `GrammarTokenizer`.
        compile_elsewhere: does what `compile_automaton` does, within limits: in an engine, a
            worker.
        vocab_size: number of logits, when the model has more than the tokenizer has ids.
        limits: see `Limits`.
    """

    name = "outlines"

    def __init__(
        self,
        tokenizer: GrammarTokenizer,
        compile_elsewhere: Compile,
        *,
        vocab_size: int | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self.vocab_size = max(vocab_size or 0, tokenizer.vocab_size)
        self.eos_ids = frozenset(tokenizer.eos_ids)
        self._limits = limits
        self._compile_elsewhere = compile_elsewhere

    def compile(self, constraint: Constraint) -> OutlinesGrammar:
        """See `GrammarBackend.compile`."""
        check_text(constraint, self._limits)
        data = self._compile_elsewhere(constraint)
        automaton = _Arrays(msgspec.msgpack.decode(data, type=Automaton), self.vocab_size)
        if not automaton.accepting[0] and automaton.starts[1] == 0:
            raise UnsupportedConstraint(
                f"{constraint.kind}: no text satisfies the constraint",
                value=constraint.text,
                hint="Allow at least one text.",
            )
        return OutlinesGrammar(constraint, automaton, self.eos_ids, len(data))

    def fill_masks(self, matchers: Sequence[TokenMatcher | None], bitmask: Bitmask) -> NeedMask:
        """See `GrammarBackend.fill_masks`. A row is a look-up: there is nothing to share out."""
        need = np.zeros(len(matchers), dtype=np.bool_)
        for row, matcher in enumerate(matchers):
            if matcher is None:
                continue
            if not isinstance(matcher, StateMatcher) or not isinstance(matcher.state, _State):
                raise TypeError(f"{type(matcher).__name__} is not a matcher of this backend")
            need[row] = True
            if not matcher.fill_known(bitmask, row):
                matcher.compute(bitmask[row])
        return need

    def failure(self, matcher: TokenMatcher) -> str:
        """See `GrammarBackend.failure`."""
        return matcher.fault if isinstance(matcher, StateMatcher) else ""

    def close(self) -> None:
        """See `GrammarBackend.close`; there is nothing to free."""


class OutlinesGrammar:
    """A compiled constraint."""

    def __init__(
        self,
        constraint: Constraint,
        automaton: _Arrays,
        eos_ids: frozenset[int],
        memory_bytes: int,
    ) -> None:
        self.constraint = constraint
        self.memory_bytes = memory_bytes
        self.choice = Choice(OutlinesBackend.name, "asked for")
        self._automaton = automaton
        self._eos_ids = eos_ids

    def matcher(self) -> StateMatcher:
        """A matcher at the start."""
        return StateMatcher(_State(self._automaton), self._eos_ids, self._automaton.vocab_size)


class _Arrays:
    """An `Automaton` as arrays."""

    def __init__(self, automaton: Automaton, vocab_size: int) -> None:
        def ints(data: bytes) -> _Ints:
            return np.frombuffer(data, dtype="<i4")

        self.accepting = ints(automaton.accepting)
        self.starts = ints(automaton.starts)
        self.tokens = ints(automaton.tokens)
        self.targets = ints(automaton.targets)
        self.vocab_size = vocab_size

    def row(self, state: int) -> slice:
        """The transitions of a state."""
        return slice(int(self.starts[state]), int(self.starts[state + 1]))


class _State:
    """See `EngineState`."""

    backend = "outlines"
    __slots__ = ("_automaton", "_path")

    def __init__(self, automaton: _Arrays, path: list[int] | None = None) -> None:
        self._automaton = automaton
        self._path = path or [0]

    def accept(self, token_id: int) -> bool:
        target = self._next(self._path[-1], token_id)
        if target is not None:
            self._path.append(target)
        return target is not None

    def rollback(self, num_tokens: int) -> None:
        del self._path[-num_tokens:]

    def fork(self) -> EngineState:
        return _State(self._automaton, self._path.copy())

    def is_completed(self) -> bool:
        return bool(self._automaton.accepting[self._path[-1]])

    def fill(self, words: Words) -> None:
        flags = np.zeros(32 * len(words), dtype=np.uint8)
        flags[self._automaton.tokens[self._automaton.row(self._path[-1])]] = 1
        words[:] = np.packbits(flags, bitorder="little").view(np.int32)

    def forced(self) -> tuple[int, ...]:
        found: list[int] = []
        state = self._path[-1]
        seen = {state}
        while not self._automaton.accepting[state]:
            row = self._automaton.row(state)
            if row.stop - row.start != 1:
                break
            found.append(int(self._automaton.tokens[row.start]))
            state = int(self._automaton.targets[row.start])
            if state in seen:
                break
            seen.add(state)
        return tuple(found)

    def _next(self, state: int, token_id: int) -> int | None:
        row = self._automaton.row(state)
        tokens = self._automaton.tokens[row]
        at = int(np.searchsorted(tokens, token_id))
        if at == len(tokens) or tokens[at] != token_id:
            return None
        return int(self._automaton.targets[row.start + at])
