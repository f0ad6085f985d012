"""The packages that enforce grammars as they are, without this project: what it adds, costs.

Their speed only: what they say of a constraint is not always true. Knows their public interfaces.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from branchline.runtime.core.sampling_params import Constraint
from branchline.runtime.errors import UnsupportedConstraint
from branchline.runtime.grammar.base import GrammarTokenizer


class BareLLGuidance:
    """The package llguidance on one tokenizer."""

    name = "llguidance bare"

    def __init__(self, tokenizer: GrammarTokenizer, vocab_size: int) -> None:
        import llguidance

        self._package = llguidance
        pieces = [bytes(piece) for piece in tokenizer.all_token_bytes()]
        pieces += [b""] * (vocab_size - len(pieces))

        class Vocabulary:
            eos_token_id = min(tokenizer.eos_ids)
            bos_token_id = None
            tokens = pieces
            special_token_ids = sorted(tokenizer.special_ids | tokenizer.eos_ids)

            def __call__(self, text: str | bytes) -> list[int]:
                return tokenizer.encode(text if isinstance(text, str) else text.decode())

        self._tokenizer = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(Vocabulary()), n_vocab=vocab_size
        )

    def first_mask(self, constraint: Constraint) -> Any:
        """A matcher that has given its first mask.

        Raises:
            UnsupportedConstraint: the package does not take it.
        """
        make = self._package.LLMatcher
        text = constraint.text
        try:
            match constraint.kind:
                case "json_schema":
                    grammar = make.grammar_from_json_schema(text)
                case "regex":
                    grammar = make.grammar_from_regex(text)
                case "lark":
                    grammar = make.grammar_from_lark(text)
                case _:
                    raise UnsupportedConstraint(f"llguidance has no {constraint.kind}")
        except ValueError as error:
            raise UnsupportedConstraint(f"llguidance: {error}") from error
        matcher = make(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise UnsupportedConstraint(f"llguidance: {matcher.get_error()[:200]}")
        matcher.compute_bitmask()
        return matcher

    def masks(self, constraint: Constraint, ids: list[int]) -> list[float]:
        """CPU seconds of the mask before each id of a text, as far as it is taken."""
        matcher = self.first_mask(constraint)
        return _walk(ids, matcher.compute_bitmask, lambda token: bool(matcher.consume_token(token)))


class BareXGrammar:
    """The package xgrammar on one tokenizer."""

    name = "xgrammar bare"

    def __init__(self, tokenizer: GrammarTokenizer, vocab_size: int) -> None:
        import xgrammar

        self._package = xgrammar
        barred = tokenizer.special_ids | tokenizer.eos_ids
        pieces = [
            b"" if at in barred else bytes(piece)
            for at, piece in enumerate(tokenizer.all_token_bytes())
        ]
        info = xgrammar.TokenizerInfo(
            pieces,
            xgrammar.VocabType.RAW,
            vocab_size=vocab_size,
            stop_token_ids=sorted(tokenizer.eos_ids),
        )
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
        self._mask = np.zeros((1, -(-vocab_size // 32)), dtype=np.int32)

    def first_mask(self, constraint: Constraint) -> Any:
        """See `BareLLGuidance.first_mask`."""
        text = constraint.text
        try:
            match constraint.kind:
                case "json_schema":
                    compiled = self._compiler.compile_json_schema(text, any_whitespace=False)
                case "regex":
                    compiled = self._compiler.compile_regex(text)
                case "ebnf":
                    compiled = self._compiler.compile_grammar(text)
                case _:
                    raise UnsupportedConstraint(f"xgrammar has no {constraint.kind}")
        except (RuntimeError, ValueError) as error:
            raise UnsupportedConstraint(f"xgrammar: {error}") from error
        matcher = self._package.GrammarMatcher(compiled)
        matcher.fill_next_token_bitmask(self._mask)
        return matcher

    def masks(self, constraint: Constraint, ids: list[int]) -> list[float]:
        """See `BareLLGuidance.masks`."""
        matcher = self.first_mask(constraint)
        return _walk(ids, lambda: matcher.fill_next_token_bitmask(self._mask), matcher.accept_token)


def _walk(ids: list[int], fill: Callable[[], object], accept: Callable[[int], bool]) -> list[float]:
    took = []
    for token in ids:
        begun = time.thread_time()
        fill()
        took.append(time.thread_time() - begun)
        if not accept(token):
            break
    return took
