"""The backends that compile in workers, for the tiny vocabulary, compiling in this process."""

from __future__ import annotations

from functools import cache

from branchline.runtime.grammar.base import CompiledGrammar, GrammarTokenizer
from branchline.runtime.grammar.llguidance_backend import LLGuidanceBackend
from branchline.runtime.grammar.outlines_backend import OutlinesBackend, compile_automaton
from branchline.runtime.grammar.xgrammar_backend import XGrammarBackend, compiler, load
from tests.grammar.conformance.tiny_vocabulary import TinyTokenizer


class ByteTokenizer:
    """256 bytes and an end id."""

    vocab_size = 257
    eos_ids = frozenset({256})
    special_ids: frozenset[int] = frozenset()

    def all_token_bytes(self) -> list[bytes]:
        return [*(bytes([i]) for i in range(256)), b"<eos>"]

    def encode(self, text: str) -> list[int]:
        return list(text.encode())


def in_process_xgrammar(tokenizer: GrammarTokenizer) -> XGrammarBackend:
    """xgrammar without a worker."""
    load()
    from xgrammar.base import _core

    return XGrammarBackend(tokenizer, compiler(_core, tokenizer, tokenizer.vocab_size))


@cache
def tiny_xgrammar() -> XGrammarBackend:
    """For the tiny vocabulary."""
    return in_process_xgrammar(TinyTokenizer())


@cache
def byte_xgrammar() -> XGrammarBackend:
    """For bytes."""
    return in_process_xgrammar(ByteTokenizer())


@cache
def byte_llguidance() -> LLGuidanceBackend:
    """For bytes."""
    return LLGuidanceBackend(ByteTokenizer())


def spells(grammar: CompiledGrammar, text: str) -> bool:
    """Can the text be written byte by byte and ended?"""
    matcher = grammar.matcher()
    return all(matcher.accept(byte) for byte in text.encode()) and matcher.accept(256)


@cache
def tiny_outlines() -> OutlinesBackend:
    """outlines-core without a worker."""
    tokenizer = TinyTokenizer()
    return OutlinesBackend(tokenizer, lambda constraint: compile_automaton(constraint, tokenizer))
