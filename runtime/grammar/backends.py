"""All grammar backends as one. Invariant: one request's trouble stays its own.

Each constraint goes to the backend chosen for it; a batch may hold matchers of several. What may
not end is compiled in worker processes. A matcher whose mask takes too long is given up: its
request fails, those beside it go on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from branchline.runtime.core.protocols import TokenMatcher
from branchline.runtime.core.sampling_params import Constraint
from branchline.runtime.errors import UnsupportedConstraint
from branchline.runtime.grammar.base import (
    Bitmask,
    Choice,
    Compile,
    CompiledGrammar,
    GrammarBackend,
    GrammarTokenizer,
    NeedMask,
    Refusal,
)
from branchline.runtime.grammar.choice import ABILITIES, candidates, installed
from branchline.runtime.grammar.limits import DEFAULT_LIMITS, Limits
from branchline.runtime.grammar.llguidance_backend import LLGuidanceBackend
from branchline.runtime.grammar.llguidance_matcher import LLGuidanceMatcher
from branchline.runtime.grammar.state_matcher import StateMatcher
from branchline.runtime.grammar.worker import WorkerPool
from branchline.runtime.grammar.worker_protocol import BackendName, Job

MOST_STRIKES = 3


class ChosenGrammar(NamedTuple):
    """A compiled grammar with the choice that led to it."""

    grammar: CompiledGrammar
    choice: Choice

    @property
    def constraint(self) -> Constraint:
        """What it enforces."""
        return self.grammar.constraint

    @property
    def memory_bytes(self) -> int:
        """See `CompiledGrammar.memory_bytes`."""
        return self.grammar.memory_bytes

    def matcher(self) -> TokenMatcher:
        """A matcher at the start."""
        return self.grammar.matcher()


class GrammarBackends:
    """Chooses for each constraint; makes a backend when it is first needed.

    Args:
        tokenizer: see `GrammarTokenizer`.
        vocab_size: number of logits.
        setting: "auto", or the only backend to use.
        threads: for masks.
        limits: see `Limits`.

    Raises:
        UnsupportedConstraint: the tokenizer has no end id.
    """

    name = "backends"

    def __init__(
        self,
        tokenizer: GrammarTokenizer,
        *,
        vocab_size: int | None = None,
        setting: str = "auto",
        threads: int = 2,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self.vocab_size = max(vocab_size or 0, tokenizer.vocab_size)
        self.setting = setting
        self._tokenizer = tokenizer
        self._threads = threads
        self._limits = limits
        self._lock = threading.Lock()
        self.workers = WorkerPool(tokenizer, vocab_size=self.vocab_size, limits=limits)
        self._made: dict[str, GrammarBackend] = {}
        self._makers: dict[str, Callable[[], GrammarBackend]] = {
            "llguidance": self._llguidance,
            "xgrammar": self._xgrammar,
            "outlines": self._outlines,
        }
        self._installed = installed()
        self._slow: set[str] = set()  # backends whose last masks took long
        if setting in ("auto", "llguidance"):
            self._backend("llguidance")

    def compile(self, constraint: Constraint) -> ChosenGrammar:
        """See `GrammarBackend.compile`; the grammar's `choice` says who was not taken and why."""
        able, refused = candidates(constraint, self.setting, self._installed)
        failures: list[UnsupportedConstraint] = []
        for ability in able:
            try:
                grammar = self._backend(ability.backend).compile(constraint)
            except UnsupportedConstraint as error:
                if error.value is None:  # a worker knows only what was made of the constraint
                    error.value = constraint.text[:200]
                failures.append(error)
                refused = (*refused, Refusal(ability.backend, error.message))
                continue
            choice = Choice(ability.backend, ability.why, refused)
            return ChosenGrammar(grammar, choice)
        raise failures[0]

    def fill_masks(self, matchers: Sequence[TokenMatcher | None], bitmask: Bitmask) -> NeedMask:
        """See `GrammarBackend.fill_masks`."""
        need = np.zeros(len(matchers), dtype=np.bool_)
        for backend, mine in self._shares(matchers):
            begun = time.monotonic()
            if backend.name in self._slow:
                self._slow.discard(backend.name)
                if self._fill_each(backend, mine, bitmask):
                    self._slow.add(backend.name)
                need |= np.array([matcher is not None for matcher in mine])
            else:
                need |= backend.fill_masks(mine, bitmask)
                # Who it was is found at the next step, row by row: wall time of a batch on a
                # busy machine blames nobody.
                if time.monotonic() - begun > self._limits.mask_s / 2:
                    self._slow.add(backend.name)
        return need

    def failure(self, matcher: TokenMatcher) -> str:
        """See `GrammarBackend.failure`."""
        return self._owner(matcher).failure(matcher)

    def report(self) -> dict[str, object]:
        """What `branchline env` and an engine's info show."""
        return {
            "setting": self.setting,
            "installed": list(self._installed),
            "loaded": sorted(self._made),
            "kinds": {
                kind: [
                    {"backend": one.backend, "auto": one.auto, "why": one.why, "exact": one.exact}
                    for one in abilities
                ]
                for kind, abilities in ABILITIES.items()
            },
            "workers_started": self.workers.started,
            "workers_killed": self.workers.killed,
            "workers_starved": self.workers.starved,
            "limits": self._limits.as_dict(),
        }

    def close(self) -> None:
        """End the workers; compiles under way fail."""
        self.workers.close()

    def _shares(
        self, matchers: Sequence[TokenMatcher | None]
    ) -> list[tuple[GrammarBackend, list[TokenMatcher | None]]]:
        """Each backend with the batch as it sees it: only its own matchers."""
        if len(self._made) == 1:  # as nearly always
            return [(backend, list(matchers)) for backend in self._made.values()]
        shares: dict[str, list[TokenMatcher | None]] = {}
        for row, matcher in enumerate(matchers):
            if matcher is not None:
                name = self._owner(matcher).name
                shares.setdefault(name, [None] * len(matchers))[row] = matcher
        return [(self._made[name], mine) for name, mine in shares.items()]

    def _fill_each(
        self, backend: GrammarBackend, matchers: list[TokenMatcher | None], bitmask: Bitmask
    ) -> bool:
        """Row by row, on this thread, whose CPU time says what each costs. True: still slow."""
        slow = False
        for row, matcher in enumerate(matchers):
            if not isinstance(matcher, LLGuidanceMatcher | StateMatcher):
                continue
            alone: list[TokenMatcher | None] = [None] * len(matchers)
            alone[row] = matcher
            begun = time.thread_time()
            if isinstance(matcher, StateMatcher):
                if not matcher.fill_known(bitmask, row):
                    matcher.compute(bitmask[row])
            else:
                backend.fill_masks(alone, bitmask)
            took = time.thread_time() - begun
            if took > self._limits.mask_s:
                matcher.strikes += 1 if took < 4 * self._limits.mask_s else MOST_STRIKES
            if matcher.strikes >= MOST_STRIKES and not matcher.fault:
                matcher.fault = (
                    f"the mask of one token took {took:.2f} s (limit mask_s "
                    f"{self._limits.mask_s:g})"
                )
                bitmask[row] = 0
            slow = slow or took > self._limits.mask_s / 4
        return slow

    def _owner(self, matcher: TokenMatcher) -> GrammarBackend:
        if isinstance(matcher, LLGuidanceMatcher):
            return self._made["llguidance"]
        if isinstance(matcher, StateMatcher):
            return self._made[matcher.backend]
        raise TypeError(f"{type(matcher).__name__} is not a matcher of these backends")

    def _backend(self, name: str) -> GrammarBackend:
        made = self._made.get(name)
        if made is None:
            with self._lock:
                if name not in self._made:
                    self._made[name] = self._makers[name]()
                made = self._made[name]
        return made

    def _llguidance(self) -> GrammarBackend:
        return LLGuidanceBackend(
            self._tokenizer,
            vocab_size=self.vocab_size,
            threads=self._threads,
            limits=self._limits,
            try_first=self._worker("llguidance"),
        )

    def _xgrammar(self) -> GrammarBackend:
        # Imported here, as the next one: each loads what most engines never need.
        from branchline.runtime.grammar.xgrammar_backend import XGrammarBackend

        return XGrammarBackend(
            self._tokenizer,
            self._worker("xgrammar"),
            vocab_size=self.vocab_size,
            threads=self._threads,
            limits=self._limits,
        )

    def _outlines(self) -> GrammarBackend:
        from branchline.runtime.grammar.outlines_backend import OutlinesBackend

        return OutlinesBackend(
            self._tokenizer,
            self._worker("outlines"),
            vocab_size=self.vocab_size,
            limits=self._limits,
        )

    def _worker(self, backend: BackendName) -> Compile:
        return lambda constraint: self.workers.compile(Job(backend, constraint))
