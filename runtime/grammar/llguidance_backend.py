"""Grammar backend on llguidance (lazy automata and an Earley parser over a token trie).

Invariant: what a matcher allows, token by token, is what the constraint allows as text, and
where the text is forced the one canonical tokenization of it is the only one allowed, so that
jumping over forced tokens never changes an output. Failed engine states are reported, never
sampled from. End ids are handled here: the engine never consumes one.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

import llguidance
import msgspec
import numpy as np

from branchline.runtime.core.protocols import TokenMatcher
from branchline.runtime.core.sampling_params import Constraint, Whitespace
from branchline.runtime.errors import InvalidRequest, UnsupportedConstraint
from branchline.runtime.grammar.base import (
    Bitmask,
    Choice,
    Compile,
    GrammarTokenizer,
    NeedMask,
    only,
)
from branchline.runtime.grammar.choices import read_choices
from branchline.runtime.grammar.endless import may_force_for_ever
from branchline.runtime.grammar.engine_tokenizer import EngineTokenizer
from branchline.runtime.grammar.json_schema.compiler import compile_schema, layout_of
from branchline.runtime.grammar.limits import (
    DEFAULT_LIMITS,
    Limits,
    check_document,
    check_mask_time,
    check_repeats,
    check_text,
    is_cheap,
)
from branchline.runtime.grammar.llguidance_matcher import LLGuidanceMatcher, first_lines
from branchline.runtime.grammar.regex_dialect import literal, to_automaton_regex
from branchline.runtime.grammar.turns import short_turns

_GRAMMAR_BYTES = 256 * 1024
"""About what a compiled grammar holds beside its text (measured: 0.2 MB, with matchers 0.26)."""

_KEPT = 64
"""Grammars from workers that are kept as text."""

_SCHEMA_RULE = re.compile(r"^(\w+): %json (\{.*\})$", re.MULTILINE)

_SHARED_S = 0.00015
"""Masks of a step that take longer are shared out among threads: to wake them takes as long."""

_LOOKED_AT = 16
"""Of so many steps whose masks are shared out, one makes a mask itself, to see what it takes."""

_WEIGHT = 0.2
"""Of the newest masks in the mean of what one takes."""

_LANES_S = 0.02
"""CPU seconds that compiling a grammar again, for more rows to be masked at once, may take."""

_MORE_LANES_S = 0.1
"""The same beside the requests, once a grammar has had more of them than rows can be masked."""


class LLGuidanceBackend:
    """Compiles constraints for one tokenizer; `fill_masks` uses `threads` threads off the GIL.

    Args:
        tokenizer: see `GrammarTokenizer`.
        vocab_size: number of logits, when the model has more than the tokenizer has ids.
        threads: for `fill_masks`.
        limits: see `Limits`.
        try_first: asked before anything that may be expensive is compiled in this process;
            returns its `engine_grammar`.

    Raises:
        UnsupportedConstraint: the tokenizer has no end id.
    """

    name = "llguidance"

    def __init__(
        self,
        tokenizer: GrammarTokenizer,
        *,
        vocab_size: int | None = None,
        threads: int = 2,
        limits: Limits = DEFAULT_LIMITS,
        try_first: Compile | None = None,
    ) -> None:
        if not tokenizer.eos_ids:
            raise UnsupportedConstraint(
                "constraints need a tokenizer with an end-of-sequence token",
                hint="Use a model whose tokenizer names one.",
            )
        self.vocab_size = max(vocab_size or 0, tokenizer.vocab_size)
        self.eos_ids = frozenset(tokenizer.eos_ids)
        self._tokenizer = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(EngineTokenizer(tokenizer, self.vocab_size)),
            n_vocab=self.vocab_size,
            eos_token=sorted(self.eos_ids),
        )
        self._threads = threads
        self._executor = llguidance.LLExecutor(threads)
        self._bounds = limits
        self._try_first = try_first
        self._mask_s = 0.0  # a mask's mean, of those made on the thread that asks
        self._shared = 0  # steps since one was
        self._kept: OrderedDict[Constraint, str] = OrderedDict()
        self._lock = threading.Lock()
        self._limits = llguidance.LLParserLimits(
            max_items_in_row=10_000,  # about as many properties may come next
            initial_lexer_fuel=1_000_000,  # about 20 ms
            step_lexer_fuel=1_000_000,  # 200,000 end an anyOf of 500 objects, at 15 ms a mask
            step_max_items=20_000,
            max_lexer_states=50_000,  # 1 to 2 kB each
            max_grammar_size=500_000,
            verbose_errors=False,
        )

    def compile(self, constraint: Constraint) -> LLGuidanceGrammar:
        """See `GrammarBackend.compile`."""
        check_text(constraint, self._bounds)
        plain = msgspec.structs.replace(constraint, prefix="")
        if self._try_first is None or is_cheap(plain):
            with short_turns():
                grammar = engine_grammar(plain, self._bounds)
        else:
            grammar = self._tried(plain, self._try_first)
        if constraint.prefix:
            grammar = behind(constraint.prefix, grammar)
        return self.load(constraint, grammar)

    def _tried(self, plain: Constraint, try_first: Compile) -> str:
        """What a worker made of a constraint; kept, since many texts may stand before it."""
        grammar = self._kept.get(plain)
        if grammar is None:
            grammar = try_first(plain).decode()
            with self._lock:
                self._kept[plain] = grammar
                while len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
        return grammar

    def load(self, constraint: Constraint, grammar: str) -> LLGuidanceGrammar:
        """Compile what `engine_grammar` made of a constraint, up to its first mask.

        Raises:
            UnsupportedConstraint: it cannot be enforced exactly.
        """
        begun = time.thread_time()
        matcher = self._engine(grammar)
        took = time.thread_time() - begun
        if matcher.is_error():
            raise UnsupportedConstraint(
                f"{constraint.kind}: {first_lines(matcher.get_error())}",
                value=constraint.text,
                hint="Rewrite the constraint without it.",
            )
        warnings = matcher.get_grammar_warnings()
        if warnings:
            raise UnsupportedConstraint(
                f"{constraint.kind}: not all of it would be enforced: {'; '.join(warnings)[:300]}",
                value=constraint.text,
                hint="Rewrite the constraint without that.",
            )
        words = np.frombuffer(matcher.compute_bitmask(), dtype=np.int32).copy()
        ends = np.zeros_like(words)
        only(ends, self.eos_ids)
        only_empty = not (words & ~ends).any()
        dead = matcher.is_error() or (only_empty and not matcher.is_accepting())
        if dead or (constraint.prefix and self._is_dead_behind(matcher, constraint.prefix, ends)):
            raise UnsupportedConstraint(
                f"{constraint.kind}: no text satisfies the constraint",
                value=constraint.text,
                hint="Allow at least one text.",
            )
        begun = time.thread_time()
        matcher.deep_copy().compute_bitmask()  # as every request will begin
        check_mask_time(constraint, time.thread_time() - begun, self._bounds)
        lanes = max(1, min(self._threads, int(_LANES_S / max(took, 1e-6))))
        engines = [matcher, *(self._engine(grammar) for _ in range(lanes - 1))]
        most = min(self._threads, lanes + int(_MORE_LANES_S / max(took, 1e-6)))
        memory = most * (_GRAMMAR_BYTES + 8 * len(grammar))
        lanes_of = _Lanes(engines, lambda: self._engine(grammar), most)
        return LLGuidanceGrammar(constraint, lanes_of, self.eos_ids, only_empty, memory)

    def _is_dead_behind(
        self,
        matcher: llguidance.LLMatcher,
        prefix: str,
        ends: np.ndarray[tuple[int], np.dtype[np.int32]],
    ) -> bool:
        """Whether nothing can follow the text that a grammar begins with."""
        ids, probe = self._tokenizer.tokenize_str(prefix), matcher.deep_copy()
        if probe.try_consume_tokens(ids) < len(ids):
            return bool(probe.is_error())
        words = np.frombuffer(probe.compute_bitmask(), dtype=np.int32)
        return bool(probe.is_error() or not ((words & ~ends).any() or probe.is_accepting()))

    def _engine(self, grammar: str) -> llguidance.LLMatcher:
        return llguidance.LLMatcher(self._tokenizer, grammar, log_level=0, limits=self._limits)

    def fill_masks(self, matchers: Sequence[TokenMatcher | None], bitmask: Bitmask) -> NeedMask:
        """See `GrammarBackend.fill_masks`."""
        need = np.zeros(len(matchers), dtype=np.bool_)
        jobs: list[tuple[llguidance.LLMatcher, int]] = []
        for row, matcher in enumerate(matchers):
            if matcher is None:
                continue
            if not isinstance(matcher, LLGuidanceMatcher):
                raise TypeError(f"{type(matcher).__name__} is not a matcher of this backend")
            need[row] = True
            if not matcher.fill_known(bitmask, row):
                jobs.append((matcher.engine, row))
        if jobs:
            self._compute(jobs, bitmask)
        return need

    def _compute(self, jobs: list[tuple[llguidance.LLMatcher, int]], bitmask: Bitmask) -> None:
        """Masks of engines, each in its row, on this thread as long as they are quick."""
        first, size = bitmask.ctypes.data, 4 * bitmask.shape[1]
        here = jobs
        if len(jobs) > 1 and len(jobs) * self._mask_s >= _SHARED_S:
            self._shared = (self._shared + 1) % _LOOKED_AT
            here = jobs[: self._shared == 0]
        if len(here) < len(jobs):
            self._executor.unsafe_compute_mask_ptr(jobs[len(here) :], first, size, len(bitmask))
        if here:
            begun = time.thread_time()
            for engine, row in here:
                engine.unsafe_compute_mask_ptr(first + row * size, size)
            took = time.thread_time() - begun
            self._mask_s += _WEIGHT * (took / len(here) - self._mask_s)
        for engine, row in jobs:
            if engine.is_error():
                bitmask[row] = 0

    def failure(self, matcher: TokenMatcher) -> str:
        """See `GrammarBackend.failure`."""
        if not isinstance(matcher, LLGuidanceMatcher):
            raise TypeError(f"{type(matcher).__name__} is not a matcher of this backend")
        return matcher.fault or first_lines(matcher.engine.get_error())

    def close(self) -> None:
        """See `GrammarBackend.close`; there is nothing to free."""


class LLGuidanceGrammar:
    """A compiled constraint; its matchers start as copies of engines that never move."""

    def __init__(
        self,
        constraint: Constraint,
        lanes: _Lanes,
        eos_ids: frozenset[int],
        only_empty: bool,
        memory_bytes: int,
    ) -> None:
        self.constraint = constraint
        self._forces = constraint.kind != "lark" or not may_force_for_ever(constraint.text)
        self.memory_bytes = memory_bytes
        self.choice = Choice(LLGuidanceBackend.name, "asked for")
        self._lanes = lanes
        self._eos_ids = eos_ids
        self._only_empty = only_empty

    def matcher(self) -> LLGuidanceMatcher:
        """A matcher at the start."""
        matcher = LLGuidanceMatcher(self._lanes.start(), self._eos_ids, self._only_empty)
        if not self._forces:
            matcher.force_nothing()
        return matcher


class _Lanes:
    """Engines of one grammar that never move. Safe to use from several threads.

    Copies of one engine share its lexer under a lock, so masks of rows that began from the same
    engine are filled one after the other: new matchers go round the engines. Where there have been
    more matchers than engines, more of these are made on a thread of their own.

    Args:
        engines: the first ones.
        make: another one.
        most: engines at last.
    """

    def __init__(
        self,
        engines: list[llguidance.LLMatcher],
        make: Callable[[], llguidance.LLMatcher],
        most: int,
    ) -> None:
        self.engines = engines
        self._make, self._most = make, most
        self._lock = threading.Lock()
        self._given = 0
        self._grows = False

    def start(self) -> llguidance.LLMatcher:
        """A copy of the next engine."""
        with self._lock:
            engine = self.engines[self._given % len(self.engines)]
            self._given += 1
            grow = not self._grows and len(self.engines) < min(self._given, self._most)
            self._grows = self._grows or grow
        if grow:
            threading.Thread(target=self._grow, name="branchline-lanes", daemon=True).start()
        return engine.deep_copy()

    def _grow(self) -> None:
        while len(self.engines) < self._most:
            self.engines.append(self._make())


def engine_grammar(constraint: Constraint, limits: Limits = DEFAULT_LIMITS) -> str:
    """A constraint in the engine's own form, without its prefix: see `behind`.

    Raises:
        InvalidRequest: it is malformed or a bound is exceeded.
        UnsupportedConstraint: it cannot be enforced exactly; names what.
    """
    check_text(constraint, limits)
    text = constraint.text
    match constraint.kind:
        case "regex":
            pattern = to_automaton_regex(text)
            check_repeats("regex", pattern, limits)
            return str(llguidance.LLMatcher.grammar_from_regex(pattern))
        case "choices":
            pattern = "|".join(literal(choice) for choice in read_choices(text, limits))
            return str(llguidance.LLMatcher.grammar_from_regex(f"(?:{pattern})"))
        case "lark":
            check_repeats("lark", text, limits)
            return lark_to_grammar(text, constraint.whitespace, limits)
        case "json_schema":
            return schema_to_grammar(text, constraint.whitespace, limits)
        case _:
            raise UnsupportedConstraint(
                f"{constraint.kind}: llguidance does not read it",
                value=text,
                hint="Use the backend xgrammar.",
            )


def behind(prefix: str, grammar: str) -> str:
    """A grammar in the engine's own form behind a text (`Constraint.prefix`).

    Each has a lexer of its own, so that neither changes the other.
    """
    document = json.loads(grammar) if grammar.startswith("{") else {}
    body, *others = document.get("grammars", [{"lark_grammar": grammar}])
    first = {"lark_grammar": f"start: /{literal(prefix)}/ @body"}
    return json.dumps({**document, "grammars": [first, {**body, "name": "body"}, *others]})


def lark_to_grammar(text: str, whitespace: Whitespace, limits: Limits) -> str:
    """A grammar in Lark's notation in the engine's own form. Raises as `engine_grammar`.

    A rule that is a JSON Schema (`name: %json {…}` on one line) is as exact as a schema on its own;
    one that sets `x-guidance` is read by the engine itself.
    """
    schemas: list[dict[str, str]] = []

    def beside(found: re.Match[str]) -> str:
        name, schema = found.groups()
        if '"x-guidance"' in schema:
            return found[0]
        schemas.append(
            {"name": name, "lark_grammar": schema_to_grammar(schema, whitespace, limits)}
        )
        return f"{name}: @{name}"

    body = _SCHEMA_RULE.sub(beside, text)
    if not schemas:
        return str(llguidance.LLMatcher.grammar_from_lark(text))
    return json.dumps({"grammars": [{"lark_grammar": body}, *schemas]})


def schema_to_grammar(text: str, whitespace: Whitespace, limits: Limits) -> str:
    """A JSON schema document in the engine's own form. Raises as `engine_grammar`."""
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(
            f"json_schema: not JSON ({error})", value=text, hint="Give a JSON Schema document."
        ) from error
    if not isinstance(schema, dict | bool):
        raise InvalidRequest(
            "json_schema: a schema is an object", value=text, hint="Give a JSON Schema document."
        )
    check_document("json_schema", schema, limits)
    lark = compile_schema(text, layout=layout_of(whitespace, limits.whitespace_run))
    return str(llguidance.LLMatcher.grammar_from_lark(lark))
