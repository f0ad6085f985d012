"""What a grammar backend gives. Invariant: a compiled grammar is shared and never changes.

Knows no engine; the matcher's own contract is `core.protocols.TokenMatcher`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from branchline.runtime.core.protocols import TokenMatcher, Visit
from branchline.runtime.core.sampling_params import Constraint

Compile = Callable[[Constraint], bytes]
"""Compiles a constraint elsewhere, within limits; raises as `GrammarBackend.compile`."""

Bitmask = np.ndarray[tuple[int, int], np.dtype[np.int32]]
NeedMask = np.ndarray[tuple[int], np.dtype[np.bool_]]


BITS = tuple(np.array([1 << bit for bit in range(32)], dtype=np.uint32).view(np.int32))
"""A word with one bit set, by the bit's place."""


class Refusal(NamedTuple):
    """A backend that was not taken, and why."""

    backend: str
    why: str


class Choice(NamedTuple):
    """Which backend enforces a constraint.

    Attributes:
        backend: its name.
        why: one clause.
        refused: those that were considered before it, in order.
    """

    backend: str
    why: str
    refused: tuple[Refusal, ...] = ()


class GrammarTokenizer(Protocol):
    """What a backend must know of a tokenizer."""

    eos_ids: frozenset[int]
    special_ids: frozenset[int]
    vocab_size: int

    def all_token_bytes(self) -> Sequence[bytes]:
        """The bytes of each id; of special ids, their markup, which no grammar allows; b"" = never
        allowed."""

    def encode(self, text: str) -> list[int]:
        """Canonical ids of plain text."""


class CompiledGrammar(Protocol):
    """A constraint, ready to be matched. Safe to use from several threads."""

    @property
    def constraint(self) -> Constraint: ...

    @property
    def memory_bytes(self) -> int:
        """What keeping it costs, about."""

    @property
    def choice(self) -> Choice:
        """Why this backend."""

    def matcher(self) -> TokenMatcher:
        """A matcher at the start; microseconds."""


class GrammarBackend(Protocol):
    """Compiles constraints for one tokenizer."""

    name: str

    def compile(self, constraint: Constraint) -> CompiledGrammar:
        """May take long; callable from any thread.

        Raises:
            InvalidRequest: the constraint is malformed or too large.
            UnsupportedConstraint: it cannot be enforced exactly; names what.
        """

    def fill_masks(self, matchers: Sequence[TokenMatcher | None], bitmask: Bitmask) -> NeedMask:
        """Write the allowed-token bits of the rows that have a matcher, several rows at once.

        A row whose matcher has failed (`failure`) gets no bit at all.

        Args:
            matchers: one for each row; None = no constraint.
            bitmask: int32 [s, ceil(V / 32)], C order; rows that need no mask keep what they hold.

        Returns:
            bool [s], rows to which the mask must be applied.
        """

    def failure(self, matcher: TokenMatcher) -> str:
        """Why a matcher can go no further ("" = it can): an engine limit was hit."""

    def close(self) -> None:
        """Free what is not memory of this process; compiles under way may fail."""


def accept_forced(matcher: TokenMatcher, most: int) -> list[int]:
    """`TokenMatcher.accept_forced`, one id after the other."""
    taken: list[int] = []
    if not matcher.is_terminated():
        for token_id in matcher.forced_tokens()[:most]:
            if not matcher.accept(token_id):
                break
            taken.append(token_id)
    return taken


def check_rollback(num_tokens: int, taken: int) -> None:
    """Raise `ValueError` where fewer tokens were taken than are to be taken back."""
    if not 0 <= num_tokens <= taken:
        raise ValueError(f"cannot take back {num_tokens} of {taken} tokens")


def after(matcher: TokenMatcher, token_id: int) -> TokenMatcher | None:
    """`TokenMatcher.after` by its other methods."""
    twin = matcher.fork()
    return twin if twin.accept(token_id) else None


def visit(
    matcher: TokenMatcher, token_id: int, bitmask: Bitmask, row: int, *, free: bool
) -> Visit | None:
    """`TokenMatcher.visit` by its other methods."""
    if not matcher.accept(token_id):
        return None
    if matcher.is_terminated():
        return Visit((), False)
    forced = matcher.forced_tokens()
    if forced and matcher.accept(forced[0]):
        matcher.rollback(1)
        return Visit(forced, False)
    if free and matcher.is_accepting():
        return Visit((), False)
    return Visit((), matcher.fill(bitmask, row))


def only(words: np.ndarray[tuple[int], np.dtype[np.int32]], ids: Iterable[int]) -> None:
    """Set the bits of `ids` and clear all others. words: int32 [ceil(V / 32)], written."""
    words[:] = 0
    for token in ids:
        words[token >> 5] |= BITS[token & 31]


def ids_of(words: np.ndarray[tuple[int], np.dtype[np.int32]], vocab_size: int) -> list[int]:
    """Ids below `vocab_size` whose bit is set. words: int32 [ceil(V / 32)]."""
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")[:vocab_size]
    found: list[int] = np.flatnonzero(bits).tolist()
    return found
