"""A matcher over an engine that only knows bytes or states. Invariant: see `TokenMatcher`.

Adds what such an engine lacks: end ids, forced tokens that are kept until they are used up (found
anew half-way they might be cut otherwise), failures that stay, and masks that are not computed
twice at the same place.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from branchline.runtime.core.protocols import TokenMatcher, Visit
from branchline.runtime.errors import ConstraintError
from branchline.runtime.grammar.base import (
    Bitmask,
    accept_forced,
    after,
    check_rollback,
    only,
    visit,
)

Words = np.ndarray[tuple[int], np.dtype[np.int32]]
_NO_FORCED: tuple[int, ...] = ()


class EngineState(Protocol):
    """One place in an engine's grammar."""

    backend: str
    """Name of the backend that it is of."""

    def accept(self, token_id: int) -> bool:
        """Advance by a token that is no end id; False and unchanged when it is not allowed."""

    def rollback(self, num_tokens: int) -> None: ...

    def fork(self) -> EngineState: ...

    def is_completed(self) -> bool:
        """True when the text so far is complete."""

    def fill(self, words: Words) -> None:
        """Write the bits of all tokens allowed, end ids aside. int32 [ceil(V / 32)]."""

    def forced(self) -> tuple[int, ...]:
        """Canonical tokens that must follow; asked only where the text is not complete."""


class StateMatcher:
    """One request's place in a grammar. One thread at a time.

    Args:
        state: of the engine; owned.
        eos_ids: allowed where the text is complete.
        vocab_size: V.
    """

    __slots__ = (
        "_ended",
        "_eos_ids",
        "_forced",
        "_history",
        "_last",
        "_words",
        "fault",
        "state",
        "strikes",
    )

    def __init__(self, state: EngineState, eos_ids: frozenset[int], vocab_size: int) -> None:
        self.state = state
        self.fault = ""  # why it was given up
        self.strikes = 0  # masks that took too long
        self._eos_ids = eos_ids
        self._words = -(-vocab_size // 32)
        self._ended = False
        self._forced: tuple[int, ...] | None = None  # None = not asked yet at this place
        self._history: list[tuple[int, ...] | None] = []
        self._last: Words | None = None  # mask of this place

    @property
    def backend(self) -> str:
        """Name of the backend that it is of."""
        return self.state.backend

    def accept(self, token_id: int) -> bool:
        """See `TokenMatcher.accept`. An end id is allowed where the text is complete.

        False, too, when the matcher was given up: see `GrammarBackend.failure`.
        """
        if self._ended or self.fault:
            return False
        if token_id in self._eos_ids:
            self._ended = self.state.is_completed()
            return self._ended
        forced = self._ahead()
        if forced and token_id != forced[0]:
            return False
        if not self.state.accept(token_id):
            return False
        self._history.append(self._forced)
        self._forced = forced[1:] or None
        self._last = None
        return True

    def fill(self, bitmask: Bitmask, row: int) -> bool:
        """See `TokenMatcher.fill`. bitmask: int32 [s, ceil(V / 32)], C order.

        Raises:
            ConstraintError: the engine gave up.
        """
        if self.fault:
            bitmask[row] = 0
            raise ConstraintError(self.fault, hint="Simplify the constraint.")
        if not self.fill_known(bitmask, row):
            bitmask[row] = self._mask()
        return True

    def fill_known(self, bitmask: Bitmask, row: int) -> bool:
        """Fill the row if that takes no engine."""
        if self.fault:
            bitmask[row] = 0
        elif self._ended:
            only(bitmask[row], self._eos_ids)
        elif self._last is not None:
            bitmask[row] = self._last
        elif forced := self._ahead():
            only(bitmask[row], forced[:1])
        else:
            return False
        return True

    def compute(self, words: Words) -> None:
        """The mask by the engine, written to `words`; not kept. int32 [ceil(V / 32)]."""
        self.state.fill(words)
        if self.state.is_completed():
            bits = words.view(np.uint32)
            for token in self._eos_ids:
                bits[token >> 5] |= np.uint32(1 << (token & 31))

    def rollback(self, num_tokens: int) -> None:
        """See `TokenMatcher.rollback`. Raises `ValueError` beyond the start."""
        check_rollback(num_tokens, len(self._history) + self._ended)
        if num_tokens and self._ended:
            self._ended = False
            num_tokens -= 1
        if num_tokens:
            self.state.rollback(num_tokens)
            self._forced = self._history[-num_tokens]
            del self._history[-num_tokens:]
            self._last = None

    def is_terminated(self) -> bool:
        """See `TokenMatcher.is_terminated`."""
        if self._ended:
            return True
        if self.fault or not self.state.is_completed():
            return False
        ends = np.zeros(self._words, dtype=np.int32)
        only(ends, self._eos_ids)
        return not (self._mask() & ~ends).any()

    def is_accepting(self) -> bool:
        """See `TokenMatcher.is_accepting`."""
        return not self.fault and self.state.is_completed()

    def forced_tokens(self) -> list[int]:
        """See `TokenMatcher.forced_tokens`."""
        return [] if self._ended or self.fault else list(self._ahead())

    def accept_forced(self, most: int) -> list[int]:
        """See `TokenMatcher.accept_forced`."""
        return accept_forced(self, most)

    def fork(self) -> StateMatcher:
        """An independent matcher at the same place."""
        twin = StateMatcher(self.state.fork(), self._eos_ids, 32 * self._words)
        twin.fault = self.fault
        twin.strikes = self.strikes
        twin._ended = self._ended
        twin._forced = self._forced
        twin._history = self._history.copy()
        twin._last = self._last
        return twin

    def after(self, token_id: int) -> TokenMatcher | None:
        """See `TokenMatcher.after`."""
        return after(self, token_id)

    def visit(self, token_id: int, bitmask: Bitmask, row: int, *, free: bool) -> Visit | None:
        """See `TokenMatcher.visit`."""
        return visit(self, token_id, bitmask, row, free=free)

    def _ahead(self) -> tuple[int, ...]:
        if self._forced is None:
            self._forced = _NO_FORCED if self.state.is_completed() else self.state.forced()
        return self._forced

    def _mask(self) -> Words:
        if self._last is None:
            words = np.zeros(self._words, dtype=np.int32)
            self.compute(words)
            self._last = words
        return self._last
