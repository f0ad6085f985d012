"""What comes before a grammar: a section of free text, and text taken back at the prompt's end.

Invariant: a matcher of stages is a `TokenMatcher` like any other: mask and accept agree, rollback
and fork leave no trace. Its stages, each of which may be missing: free text until the section's end
marker, which ends at the end of a token; the ids of the section's gap; a first token that begins
with the text taken back; the grammar, or free text. Knows no engine and no model.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from branchline.runtime.core.protocols import TokenMatcher, Visit
from branchline.runtime.core.section import Section, progress
from branchline.runtime.grammar.base import (
    Bitmask,
    GrammarTokenizer,
    accept_forced,
    after,
    check_rollback,
    only,
    visit,
)

Words = np.ndarray[tuple[int], np.dtype[np.int32]]

KEPT = 4096
"""Texts whose tokens are kept."""


class Stages(NamedTuple):
    """What a request's grammar waits for.

    Attributes:
        end: the section's end marker; b"" = no section.
        inside: for each number of its bytes written so far, the ids that may come.
        gap: ids that follow the marker.
        cover: ids of which the grammar's first token is one; None = any.
    """

    end: bytes
    inside: tuple[Words, ...]
    gap: tuple[int, ...]
    cover: Words | None


class Vocabulary:
    """Tokens by what they say. Safe to use from several threads; made when first needed.

    Args:
        tokenizer: special ids have the bytes of their markup.
        vocab_size: V.
    """

    def __init__(self, tokenizer: GrammarTokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._words = -(-vocab_size // 32)
        self._beyond = range(vocab_size, 32 * self._words)
        self._lock = threading.Lock()
        self._covers: dict[str, Words] = {}
        self._insides: dict[str, tuple[Words, ...]] = {}

    @cached_property
    def tokens(self) -> Sequence[bytes]:
        """Bytes of each id."""
        return self._tokenizer.all_token_bytes()

    def knows(self, prefix: str, section: Section | None) -> bool:
        """Whether `stages` would answer at once."""
        covered = not prefix or prefix in self._covers
        return covered and (section is None or section.end in self._insides)

    def stages(self, prefix: str, section: Section | None) -> Stages:
        """What stands before a grammar.

        Args:
            prefix: see `Constraint.prefix`.
        """
        with self._lock:
            cover = self._cover(prefix) if prefix else None
            if section is None:
                return Stages(b"", (), (), cover)
            return Stages(section.end.encode(), self._inside(section.end), section.gap_ids, cover)

    def _cover(self, prefix: str) -> Words:
        if prefix not in self._covers:
            barred = self._tokenizer.special_ids | self._tokenizer.eos_ids
            raw = prefix.encode()
            found = [i for i, token in enumerate(self.tokens) if token.startswith(raw)]
            words = np.zeros(self._words, dtype=np.int32)
            only(words, (i for i in found if i not in barred))
            if len(self._covers) >= KEPT:
                self._covers.clear()
            self._covers[prefix] = words
        return self._covers[prefix]

    def _inside(self, marker: str) -> tuple[Words, ...]:
        if marker not in self._insides:
            end = marker.encode()
            # A token that goes beyond the marker has its last byte before its own end.
            longer = [(i, token) for i, token in enumerate(self.tokens) if end[-1] in token[:-1]]
            found = []
            for at in range(len(end)):
                barred = [i for i, token in longer if _passes(end, at, token)]
                words = np.zeros(self._words, dtype=np.int32)
                only(words, [*self._tokenizer.eos_ids, *barred, *self._beyond])
                found.append(~words)
            self._insides[marker] = tuple(found)
        return self._insides[marker]


class StagedMatcher:
    """One request's place in stages and a grammar. One thread at a time.

    Args:
        inner: at its start; owned. None = free text.
    """

    __slots__ = ("_behind", "_history", "_place", "_stages", "_tokens", "inner")

    def __init__(self, inner: TokenMatcher | None, stages: Stages, tokens: Sequence[bytes]) -> None:
        self.inner = inner
        self._stages = stages
        self._tokens = tokens
        self._place = 0  # bytes of the end marker, then ids of the gap
        self._history: list[int] = []  # places before each token ahead of the grammar
        self._behind = 0  # tokens that the grammar has taken

    @property
    def active(self) -> TokenMatcher | None:
        """The grammar's matcher, when the next id is the grammar's to judge."""
        return self.inner if self._at_grammar else None

    @property
    def _at_grammar(self) -> bool:
        return self._place == len(self._stages.end) + len(self._stages.gap)

    def accept(self, token_id: int) -> bool:
        """See `TokenMatcher.accept`."""
        if self._at_grammar:
            narrow = self._narrowing()
            if narrow is not None and not _has(narrow, token_id):
                return False
            if self.inner is not None and not self.inner.accept(token_id):
                return False
            self._behind += 1
            return True
        end, at = self._stages.end, self._place
        if at < len(end):
            if not _has(self._stages.inside[at], token_id):
                return False
            raw = self._tokens[token_id] if token_id < len(self._tokens) else b""
            for byte in raw:
                at = progress(end, at, byte)
        elif token_id == self._stages.gap[at - len(end)]:
            at += 1
        else:
            return False
        self._history.append(self._place)
        self._place = at
        return True

    def fill(self, bitmask: Bitmask, row: int) -> bool:
        """See `TokenMatcher.fill`. bitmask: int32 [s, ceil(V / 32)], C order."""
        active = self.active
        need = active.fill(bitmask, row) if active is not None else False
        if not need:
            bitmask[row] = -1
        return self.restrict(bitmask[row]) or need

    def restrict(self, words: Words) -> bool:
        """Clear the bits that a stage before the grammar forbids; whether there is one.

        Args:
            words: int32 [ceil(V / 32)]; what the grammar allows, or all bits.
        """
        end, at = self._stages.end, self._place
        if self._at_grammar:
            narrow = self._narrowing()
            if narrow is None:
                return False
            words &= narrow
        elif at < len(end):
            words &= self._stages.inside[at]
        else:
            only(words, self._stages.gap[at - len(end) :][:1])
        return True

    def rollback(self, num_tokens: int) -> None:
        """See `TokenMatcher.rollback`. Raises `ValueError` beyond the start."""
        check_rollback(num_tokens, self._behind + len(self._history))
        behind = min(num_tokens, self._behind)
        if behind and self.inner is not None:
            self.inner.rollback(behind)
        self._behind -= behind
        ahead = num_tokens - behind
        if ahead:
            self._place = self._history[-ahead]
            del self._history[-ahead:]

    def is_terminated(self) -> bool:
        """See `TokenMatcher.is_terminated`."""
        active = self.active
        return active is not None and active.is_terminated()

    def is_accepting(self) -> bool:
        """See `TokenMatcher.is_accepting`."""
        if not self._at_grammar or (self._behind == 0 and self._stages.cover is not None):
            return False
        return self.inner is None or self.inner.is_accepting()

    def forced_tokens(self) -> list[int]:
        """See `TokenMatcher.forced_tokens`."""
        end, at = len(self._stages.end), self._place
        if at < end:
            return []
        forced = [] if self.inner is None else self.inner.forced_tokens()
        return [*self._stages.gap[at - end :], *forced]

    def accept_forced(self, most: int) -> list[int]:
        """See `TokenMatcher.accept_forced`."""
        return accept_forced(self, most)

    def fork(self) -> StagedMatcher:
        """An independent matcher at the same place."""
        inner = None if self.inner is None else self.inner.fork()
        twin = StagedMatcher(inner, self._stages, self._tokens)
        twin._place = self._place
        twin._history = self._history.copy()
        twin._behind = self._behind
        return twin

    def after(self, token_id: int) -> TokenMatcher | None:
        """See `TokenMatcher.after`."""
        return after(self, token_id)

    def visit(self, token_id: int, bitmask: Bitmask, row: int, *, free: bool) -> Visit | None:
        """See `TokenMatcher.visit`."""
        return visit(self, token_id, bitmask, row, free=free)

    def _narrowing(self) -> Words | None:
        """What the grammar's next token must be one of. Text that is forced has its own ids."""
        if self._behind or self._stages.cover is None:
            return None
        if self.inner is not None and self.inner.forced_tokens():
            return None
        return self._stages.cover


def _has(words: Words, token_id: int) -> bool:
    return bool(int(words[token_id >> 5]) >> (token_id & 31) & 1)


def _passes(end: bytes, at: int, token: bytes) -> bool:
    """Whether a token completes the marker before its own end."""
    for byte in token[:-1]:
        at = progress(end, at, byte)
        if at == len(end):
            return True
    return False
