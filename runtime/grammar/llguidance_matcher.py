"""A matcher over llguidance. Invariant: see `llguidance_backend`.

Engine states that have failed are reported, never sampled from.
"""

from __future__ import annotations

import llguidance

from branchline.runtime.core.protocols import Visit
from branchline.runtime.errors import ConstraintError
from branchline.runtime.grammar.base import Bitmask, accept_forced, check_rollback, only, visit

_NO_FORCED: tuple[int, ...] = ()


class LLGuidanceMatcher:
    """One request's place in a grammar. One thread at a time.

    The forced tokens ahead are kept as first found until they are used up: found anew half-way
    they might be cut otherwise, and an output would depend on who asked when.
    """

    __slots__ = (
        "_address",
        "_ended",
        "_eos_ids",
        "_forced",
        "_history",
        "_only_empty",
        "_silent",
        "_target",
        "engine",
        "fault",
        "strikes",
    )

    def __init__(
        self, engine: llguidance.LLMatcher, eos_ids: frozenset[int], only_empty: bool
    ) -> None:
        self.engine = engine
        self.fault = ""  # why it was given up, when not by the engine
        self.strikes = 0  # masks that took too long
        self._eos_ids = eos_ids
        self._only_empty = only_empty  # no text but the empty one matches
        self._ended = False
        self._silent = False
        self._forced: tuple[int, ...] | None = None  # None = not asked yet at this place
        self._history: list[tuple[int, ...] | None] = []
        self._target: Bitmask | None = None  # the last that was filled, and where it lies
        self._address = 0

    def accept(self, token_id: int) -> bool:
        """See `TokenMatcher.accept`. An end id is allowed where the text is complete.

        False, too, when the engine has given up: see `GrammarBackend.failure`.
        """
        if self._ended or self.fault:
            return False
        if token_id in self._eos_ids:
            self._ended = self.is_accepting()
            return self._ended
        forced = self._ahead()
        if forced and token_id != forced[0]:
            return False
        if self.engine.is_stopped() or self.engine.try_consume_tokens([token_id]) != 1:
            return False
        self._history.append(self._forced)
        self._forced = forced[1:] or None
        return True

    def fill(self, bitmask: Bitmask, row: int) -> bool:
        """See `TokenMatcher.fill`. bitmask: int32 [s, ceil(V / 32)], C order.

        Raises:
            ConstraintError: an engine limit was hit.
        """
        if not self.fill_known(bitmask, row):
            words = bitmask[row]
            self.engine.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        self._check()
        return True

    def fill_known(self, bitmask: Bitmask, row: int) -> bool:
        """Fill the row if that takes no engine: an ended, failed or forced matcher."""
        if self.fault or self.engine.is_error():
            bitmask[row] = 0
        elif self._ended:
            only(bitmask[row], self._eos_ids)
        elif forced := self._ahead():
            only(bitmask[row], forced[:1])
        else:
            return False
        return True

    def rollback(self, num_tokens: int) -> None:
        """See `TokenMatcher.rollback`. Raises `ValueError` beyond the start."""
        check_rollback(num_tokens, len(self._history) + self._ended)
        if num_tokens and self._ended:
            self._ended = False
            num_tokens -= 1
        if num_tokens:
            self.engine.rollback(num_tokens)
            self._forced = self._history[-num_tokens]
            del self._history[-num_tokens:]

    def is_terminated(self) -> bool:
        """See `TokenMatcher.is_terminated`."""
        if self._ended or (self._only_empty and not self._history):
            return True
        return self.engine.is_stopped() and not self.fault and not self.engine.is_error()

    def is_accepting(self) -> bool:
        """See `TokenMatcher.is_accepting`."""
        return not self.fault and not self.engine.is_error() and self.engine.is_accepting()

    def forced_tokens(self) -> list[int]:
        """See `TokenMatcher.forced_tokens`."""
        return [] if self._ended or self.fault else list(self._ahead())

    def accept_forced(self, most: int) -> list[int]:
        """See `TokenMatcher.accept_forced`; one call of the engine for all of them."""
        forced = () if self._ended or self.fault else self._ahead()
        if not forced or self.is_terminated():
            return []
        if not self._eos_ids.isdisjoint(forced):
            return accept_forced(self, most)
        count = self.engine.try_consume_tokens(list(forced[:most]))
        self._history += [forced[place:] for place in range(count)]
        self._forced = forced[count:] or None
        return list(forced[:count])

    def force_nothing(self) -> None:
        """Never ask the engine what must follow."""
        self._silent = True

    def fork(self) -> LLGuidanceMatcher:
        """An independent matcher at the same place."""
        twin = LLGuidanceMatcher(self.engine.deep_copy(), self._eos_ids, self._only_empty)
        twin._silent = self._silent
        twin.fault = self.fault
        twin.strikes = self.strikes
        twin._ended = self._ended
        twin._forced = self._forced
        twin._history = self._history.copy()
        return twin

    def after(self, token_id: int) -> LLGuidanceMatcher | None:
        """See `TokenMatcher.after`; a token that is refused costs no copy of the engine."""
        if self._ended or self.fault:
            return None
        if token_id in self._eos_ids:
            twin = self.fork()
            return twin if twin.accept(token_id) else None
        forced = self._ahead()
        if forced and token_id != forced[0]:
            return None
        engine = self.engine
        if engine.is_stopped() or engine.validate_tokens([token_id]) != 1:
            return None
        engine = engine.deep_copy()
        if engine.try_consume_tokens([token_id]) != 1:
            return None
        twin = LLGuidanceMatcher(engine, self._eos_ids, self._only_empty)
        twin._silent = self._silent
        twin.strikes = self.strikes
        twin._forced = forced[1:] or None
        twin._history = [*self._history, self._forced]
        return twin

    def visit(self, token_id: int, bitmask: Bitmask, row: int, *, free: bool) -> Visit | None:
        """See `TokenMatcher.visit`; what the engine forces it accepts."""
        if token_id in self._eos_ids or self._ended or self.fault or self._silent:
            return visit(self, token_id, bitmask, row, free=free)
        forced, engine = self._forced, self.engine
        if forced is None:
            forced = self._ahead()
        if forced and token_id != forced[0]:
            return None
        if engine.is_stopped() or engine.try_consume_tokens([token_id]) != 1:
            return None
        self._history.append(forced)
        if rest := forced[1:]:
            self._forced = rest
            return Visit(rest, False)
        if engine.is_stopped():
            self._forced = _NO_FORCED
            self._check()
            return Visit(rest, False)
        self._forced = rest = tuple(engine.compute_ff_tokens())
        if rest or (free and engine.is_accepting()):
            return Visit(rest, False)
        if bitmask is not self._target:  # to ask for an address takes as long as a mask
            self._target, self._address = bitmask, bitmask.ctypes.data
        size = 4 * bitmask.shape[1]
        engine.unsafe_compute_mask_ptr(self._address + row * size, size)
        if engine.is_error():
            self._check()
        return Visit(rest, True)

    def _ahead(self) -> tuple[int, ...]:
        if self._forced is None:
            stopped = self._silent or self.engine.is_stopped()
            self._forced = _NO_FORCED if stopped else tuple(self.engine.compute_ff_tokens())
        return self._forced

    def _check(self) -> None:
        if self.fault or self.engine.is_error():
            why = self.fault or first_lines(self.engine.get_error())
            raise ConstraintError(
                f"the grammar engine gave up: {why}", hint="Simplify the constraint."
            )


def first_lines(message: str, limit: int = 300) -> str:
    """What an engine's message says, without the place that it stood at."""
    text = " ".join(message.split("<state>")[0].split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
