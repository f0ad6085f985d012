"""Grammar backend on xgrammar (pushdown automata over a token mask cache).

Invariant: the engine is given only grammars written by `ebnf` and structural tags checked by
`structural_tag`, since it ignores or misreads much of what users write; and nothing is compiled in
this process, since a compile cannot be stopped: a worker does it and sends the result. The package
is optional and loaded when a backend is made.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from branchline.runtime.core.protocols import TokenMatcher
from branchline.runtime.core.sampling_params import Constraint
from branchline.runtime.errors import UnsupportedConstraint
from branchline.runtime.grammar import ebnf
from branchline.runtime.grammar.base import (
    Bitmask,
    Choice,
    Compile,
    GrammarTokenizer,
    NeedMask,
    only,
)
from branchline.runtime.grammar.canonical import Canonical
from branchline.runtime.grammar.choices import read_choices
from branchline.runtime.grammar.limits import DEFAULT_LIMITS, Limits, check_mask_time, check_text
from branchline.runtime.grammar.regex_tree import pattern_tree
from branchline.runtime.grammar.schema_tree import schema_rules
from branchline.runtime.grammar.state_matcher import EngineState, StateMatcher, Words
from branchline.runtime.grammar.structural_tag import engine_tag


def engine_source(constraint: Constraint, limits: Limits = DEFAULT_LIMITS) -> str:
    """A constraint in the engine's own notation: "e" and a grammar, or "t" and a structural tag.

    Raises:
        InvalidRequest, UnsupportedConstraint: see `GrammarBackend.compile`.
    """
    check_text(constraint, limits)
    prefix = constraint.prefix
    if constraint.kind == "structural_tag":
        return "t" + engine_tag(constraint.text, constraint.whitespace, limits, prefix=prefix)
    rules = _rules(constraint, limits)
    if prefix:
        seam = ebnf.Seq((ebnf.Text(prefix), ebnf.Ref("root")))
        return "e" + ebnf.write({**rules, "prefix of root": seam}, "prefix of root")
    return "e" + ebnf.write(rules)


def _rules(constraint: Constraint, limits: Limits) -> Mapping[str, ebnf.Node]:
    text = constraint.text
    match constraint.kind:
        case "ebnf":
            return ebnf.read(text, limits)
        case "regex":
            return ebnf.checked({"root": pattern_tree(text, limits)}, "regex")
        case "choices":
            return ebnf.alternatives(read_choices(text, limits))
        case "json_schema":
            return schema_rules(text, constraint.whitespace, limits)
        case _:
            raise UnsupportedConstraint(
                f"{constraint.kind}: xgrammar does not read it as written",
                value=text,
                hint="Use the backend llguidance.",
            )


def vocabulary(tokenizer: GrammarTokenizer) -> list[bytes]:
    """Token bytes by id; special ids are empty, which the engine never allows."""
    barred = tokenizer.special_ids | tokenizer.eos_ids
    return [
        b"" if i in barred else bytes(token) for i, token in enumerate(tokenizer.all_token_bytes())
    ]


def load() -> Any:
    """The package.

    Raises:
        UnsupportedConstraint: it is not installed.
    """
    try:
        return importlib.import_module("xgrammar")
    except ImportError as error:
        raise UnsupportedConstraint(
            f"the grammar backend xgrammar cannot be loaded ({error})",
            hint="Install branchline[grammars].",
        ) from error


class XGrammarBackend:
    """Compiles constraints for one tokenizer.

    Args:
        tokenizer: see `GrammarTokenizer`.
        compile_elsewhere: does what `compiler` does, within limits: in an engine, a worker.
        vocab_size: number of logits, when the model has more than the tokenizer has ids.
        threads: for `fill_masks`.
        limits: see `Limits`.

    Raises:
        UnsupportedConstraint: the package is not installed.
    """

    name = "xgrammar"

    def __init__(
        self,
        tokenizer: GrammarTokenizer,
        compile_elsewhere: Compile,
        *,
        vocab_size: int | None = None,
        threads: int = 2,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self._engine = load()
        self.vocab_size = max(vocab_size or 0, tokenizer.vocab_size)
        self.eos_ids = frozenset(tokenizer.eos_ids)
        self._limits = limits
        self._compile_elsewhere = compile_elsewhere
        self._canonical = Canonical(tokenizer)
        # The engine sets bits beyond the last token where much is allowed.
        pieces = vocabulary(tokenizer)
        usable = [token for token, piece in enumerate(pieces) if piece]
        self._usable = np.zeros(-(-self.vocab_size // 32), dtype=np.int32)
        only(self._usable, [*usable, *self.eos_ids])
        self._info = self._engine.TokenizerInfo(
            pieces,
            self._engine.VocabType.RAW,
            vocab_size=self.vocab_size,
            stop_token_ids=sorted(self.eos_ids),
        )
        self._batch = self._engine.BatchGrammarMatcher(max_threads=threads)

    def compile(self, constraint: Constraint) -> XGrammarGrammar:
        """See `GrammarBackend.compile`."""
        check_text(constraint, self._limits)
        serialized = self._compile_elsewhere(constraint)
        compiled = self._engine.CompiledGrammar.deserialize_json(serialized.decode(), self._info)
        grammar = XGrammarGrammar(constraint, compiled, self, int(compiled.memory_size_bytes))
        first = np.zeros(-(-self.vocab_size // 32), dtype=np.int32)
        begun = time.thread_time()
        grammar.matcher().compute(first)
        check_mask_time(constraint, time.thread_time() - begun, self._limits)
        if not first.any():
            raise UnsupportedConstraint(
                f"{constraint.kind}: no text satisfies the constraint",
                value=constraint.text,
                hint="Allow at least one text.",
            )
        return grammar

    def start(self, compiled: Any) -> StateMatcher:
        """A matcher at the start of a compiled grammar."""
        state = _State(self._engine.GrammarMatcher(compiled), self._canonical, self._usable)
        return StateMatcher(state, self.eos_ids, self.vocab_size)

    def fill_masks(self, matchers: Sequence[TokenMatcher | None], bitmask: Bitmask) -> NeedMask:
        """See `GrammarBackend.fill_masks`."""
        need = np.zeros(len(matchers), dtype=np.bool_)
        handles: list[Any] = []
        rows: list[int] = []
        for row, matcher in enumerate(matchers):
            if matcher is None:
                continue
            if not isinstance(matcher, StateMatcher) or not isinstance(matcher.state, _State):
                raise TypeError(f"{type(matcher).__name__} is not a matcher of this backend")
            need[row] = True
            if not matcher.fill_known(bitmask, row):
                handles.append(matcher.state.engine)
                rows.append(row)
        if rows:
            bitmask[rows] = -1  # a row in which all is allowed is not written
            self._batch.batch_fill_next_token_bitmask(handles, bitmask, rows)
            bitmask[rows] &= self._usable
        return need

    def failure(self, matcher: TokenMatcher) -> str:
        """See `GrammarBackend.failure`."""
        return matcher.fault if isinstance(matcher, StateMatcher) else ""

    def close(self) -> None:
        """See `GrammarBackend.close`; there is nothing to free."""


class XGrammarGrammar:
    """A compiled constraint."""

    def __init__(
        self, constraint: Constraint, compiled: Any, backend: XGrammarBackend, memory_bytes: int
    ) -> None:
        self.constraint = constraint
        self.memory_bytes = memory_bytes
        self.choice = Choice(backend.name, "asked for")
        self._compiled = compiled
        self._backend = backend

    def matcher(self) -> StateMatcher:
        """A matcher at the start."""
        return self._backend.start(self._compiled)


class _State:
    """See `EngineState`."""

    backend = "xgrammar"
    __slots__ = ("_canonical", "_usable", "engine")

    def __init__(self, engine: Any, canonical: Canonical, usable: Words) -> None:
        self.engine = engine
        self._canonical = canonical
        self._usable = usable

    def accept(self, token_id: int) -> bool:
        return bool(self.engine.accept_token(token_id))

    def rollback(self, num_tokens: int) -> None:
        self.engine.rollback(num_tokens)

    def fork(self) -> EngineState:
        return _State(self.engine.fork(), self._canonical, self._usable)

    def is_completed(self) -> bool:
        return bool(self.engine.is_completed())

    def fill(self, words: Words) -> None:
        words[:] = -1
        self.engine.fill_next_token_bitmask(words.reshape(1, -1), 0)
        words &= self._usable

    def forced(self) -> tuple[int, ...]:
        try:
            text = self.engine.find_jump_forward_string().encode()
        except UnicodeDecodeError as error:  # forced up to the middle of a character
            text = error.object[: error.start]
        return self._canonical.tokens(text)


def compiler(
    engine: Any, tokenizer: GrammarTokenizer, vocab_size: int, limits: Limits = DEFAULT_LIMITS
) -> Compile:
    """Compiles constraints in this process to serialized grammars: what a worker runs.

    Args:
        engine: the package's native module.
    """
    eos = sorted(tokenizer.eos_ids)
    info = engine.TokenizerInfo(vocabulary(tokenizer), 0, vocab_size, eos, False)
    made = engine.GrammarCompiler(info, 1, False, 0)

    def run(constraint: Constraint) -> bytes:
        source = engine_source(constraint, limits)
        try:
            if source[0] == "e":
                compiled = made.compile_grammar_from_strings(source[1:], "root")
            else:
                compiled = made.compile_structural_tag(source[1:])
        except RuntimeError as error:
            raise UnsupportedConstraint(
                f"xgrammar: {_without_place(str(error))}", hint="Rewrite the constraint."
            ) from error
        return str(compiled.serialize_json()).encode()

    return run


def _without_place(message: str) -> str:
    """The last part of an engine's message: the rest names its own files."""
    return message.splitlines()[-1].split(": ", 1)[-1][:300] if message else "no reason given"
