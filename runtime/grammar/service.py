"""Grammars as the scheduler uses them: matchers on request, one bitmask for a step.

Invariant: the caller never waits. The backend is made on a thread of its own, when the engine is
idle for the first time or at the first request: making it holds up everything in this process for
about 0.1 s, so that neither an engine's start nor running requests should pay for it. What comes
before a grammar (`staged`) is added here, so that no backend knows of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np

from branchline.runtime.core.protocols import MaskSource, TokenMatcher
from branchline.runtime.core.sampling_params import Constraint
from branchline.runtime.core.section import Section
from branchline.runtime.errors import BackendError, BranchlineError, wrap
from branchline.runtime.grammar.base import BITS, Bitmask, Choice, GrammarBackend, GrammarTokenizer
from branchline.runtime.grammar.manager import GrammarManager, Outcome
from branchline.runtime.grammar.staged import StagedMatcher, Vocabulary

Ready = Callable[[TokenMatcher | BranchlineError], None]


class GrammarService:
    """One engine's grammars.

    Args:
        make_backend: called once, on another thread.
        tokenizer: of the model.
        vocab_size: V, columns of the logits.
        limit_s: seconds a constraint may take to compile.
        memory: gives int32 [rows, ceil(V / 32)] with anything in it, where masks of so many rows
            are filled, and may be overwritten by the next; None = each has memory of its own.
    """

    def __init__(
        self,
        make_backend: Callable[[], GrammarBackend],
        tokenizer: GrammarTokenizer,
        *,
        vocab_size: int,
        limit_s: float,
        memory: Callable[[int], Bitmask] | None = None,
    ) -> None:
        self._make_backend = make_backend
        self._vocabulary = Vocabulary(tokenizer, vocab_size)
        self._words = (vocab_size + 31) // 32
        self._limit_s = limit_s
        self._memory = memory or self._new
        self._lock = threading.Lock()
        self._manager: GrammarManager | None = None
        self._failure: BranchlineError | None = None
        self._early: list[tuple[Constraint, Ready]] = []
        self._starting = False
        self._closed = False

    def prepare(self) -> None:
        """Make the backend now, on another thread, if it is not made yet."""
        with self._lock:
            self._begin()

    def request(self, constraint: Constraint, ready: Ready, section: Section | None = None) -> None:
        """Have `ready` called once, on any thread, with a new matcher or the error.

        Args:
            section: the constraint holds behind it.
        """
        if not constraint.prefix and section is None:
            self._request(constraint, ready)
        elif self._vocabulary.knows(constraint.prefix, section):
            self._request_staged(constraint, ready, section)
        else:
            threading.Thread(
                target=self._request_staged,
                args=(constraint, ready, section),
                name="branchline-vocabulary",
                daemon=True,
            ).start()

    def _request_staged(
        self, constraint: Constraint, ready: Ready, section: Section | None
    ) -> None:
        vocabulary = self._vocabulary
        try:
            stages = vocabulary.stages(constraint.prefix, section)
        except Exception as error:
            ready(wrap(error))
            return

        def staged(result: TokenMatcher | BranchlineError) -> None:
            if isinstance(result, BranchlineError):
                ready(result)
            else:
                ready(StagedMatcher(result, stages, vocabulary.tokens))

        if constraint.kind == "text":
            ready(_closed() if self._closed else StagedMatcher(None, stages, vocabulary.tokens))
        else:
            self._request(constraint, staged)

    def _request(self, constraint: Constraint, ready: Ready) -> None:
        with self._lock:
            if self._manager is None and self._failure is None and not self._closed:
                self._early.append((constraint, ready))
                self._begin()
                return
        self._hand_over(constraint, ready)

    def fill(self, matchers: Sequence[MaskSource], count: int) -> Bitmask | None:
        """int32 [count, ceil(V / 32)] for a step's sampled rows; None when nothing is forbidden.

        Args:
            matchers: of the rows, see `MaskSource`.
        """
        bitmask = self._memory(count)
        inner: list[TokenMatcher | None] = []
        staged: list[tuple[StagedMatcher, int]] = []
        need = False
        for row, one in enumerate(matchers):
            if isinstance(one, int):
                bitmask[row] = 0
                bitmask[row, one >> 5] = BITS[one & 31]
                need = True
                inner.append(None)
                continue
            if isinstance(one, np.ndarray):
                bitmask[row] = one
                need = True
                inner.append(None)
                continue
            if isinstance(one, StagedMatcher):
                staged.append((one, row))
                one = one.active
            if one is None:
                bitmask[row] = -1
            inner.append(one)
        if self._manager is not None and any(one is not None for one in inner):
            need = bool(self._manager.fill_masks(inner, bitmask).any()) or need
        for matcher, row in staged:
            need = matcher.restrict(bitmask[row]) or need
        return bitmask if need else None

    def _new(self, count: int) -> Bitmask:
        return np.empty((count, self._words), dtype=np.int32)

    def failure(self, matcher: TokenMatcher) -> str:
        """Why a matcher can go no further; "" = it can."""
        inner = matcher.inner if isinstance(matcher, StagedMatcher) else matcher
        return "" if self._manager is None or inner is None else self._manager.failure(inner)

    def choice(self, constraint: Constraint) -> Choice | None:
        """Which backend enforces a constraint and why; None when that is not known (any more)."""
        outcome = None if self._manager is None else self._manager.try_get(constraint)
        return None if outcome is None or isinstance(outcome, BranchlineError) else outcome.choice

    def explain(self, constraint: Constraint) -> str:
        """The same in words: "backend: why; not another: why not"."""
        choice = self.choice(constraint)
        if choice is None:
            return ""
        others = [f"not {refusal.backend}: {refusal.why}" for refusal in choice.refused]
        return "; ".join([f"{choice.backend}: {choice.why}", *others])

    def stats(self) -> dict[str, int]:
        """How much is kept and under way; empty before the first constraint."""
        return {} if self._manager is None else self._manager.stats()

    def close(self) -> None:
        """Tell those who wait; take no more."""
        with self._lock:
            self._closed = True
            early, self._early = self._early, []
            manager = self._manager
        for _, ready in early:
            ready(_closed())
        if manager is not None:
            manager.close()

    def _begin(self) -> None:
        if not self._starting and not self._closed:
            self._starting = True
            threading.Thread(target=self._start, name="branchline-grammar", daemon=True).start()

    def _start(self) -> None:
        manager: GrammarManager | None = None
        failure: BranchlineError | None = None
        try:
            manager = GrammarManager(self._make_backend(), limit_s=self._limit_s)
        except Exception as error:
            failure = wrap(error)
        with self._lock:
            self._manager, self._failure = manager, failure
            early, self._early = self._early, []
            closed = self._closed
        if closed and manager is not None:  # while it was being made
            manager.close()
        for constraint, ready in early:
            self._hand_over(constraint, ready)

    def _hand_over(self, constraint: Constraint, ready: Ready) -> None:
        if self._manager is None:
            ready(self._failure or _closed())
            return

        def done(outcome: Outcome) -> None:
            if isinstance(outcome, BranchlineError):
                ready(outcome)
                return
            try:
                ready(outcome.matcher())
            except Exception as error:
                ready(wrap(error))

        self._manager.request(constraint, done)


def _closed() -> BackendError:
    return BackendError("the engine is closed", hint="Make a new Engine.")
