"""Masks of a batch: only rows that need the engine pay; those that take long in one call, which
shares them out, off the interpreter's lock."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np

from branchline.runtime.core.protocols import TokenMatcher
from branchline.runtime.core.sampling_params import Constraint, ConstraintKind
from branchline.runtime.grammar.backends import GrammarBackends
from branchline.runtime.grammar.llguidance_backend import LLGuidanceBackend
from tests.grammar.test_worker import EveryPair
from tests.support.byte_vocabulary import ByteVocabulary

WORDS = 9
PAIRS = 257 + 26 * 26
ROWS = 400
ENOUGH = 4


class Recorder:
    """Stands for an engine's batch call; notes how many rows each call was asked for."""

    def __init__(self, engine: Any, name: str) -> None:
        self._engine = engine
        self._call = getattr(engine, name)
        self.rows: list[int] = []
        setattr(self, name, self._record)

    def _record(self, jobs: Any, *rest: Any) -> Any:
        self.rows.append(len(jobs))
        return self._call(jobs, *rest)


def compiled(backend: Any, kind: ConstraintKind, text: str) -> TokenMatcher:
    matcher: TokenMatcher = backend.compile(Constraint(kind=kind, text=text)).matcher()
    return matcher


def test_rows_that_need_no_engine_never_reach_it() -> None:
    backend = LLGuidanceBackend(ByteVocabulary())
    free, other = (compiled(backend, "regex", "[a-z]+") for _ in range(2))
    forced, ended = compiled(backend, "regex", "xyz[0-9]"), compiled(backend, "regex", "[ab]")
    assert ended.accept(ord("a")) and ended.accept(256)
    recorder = Recorder(backend._executor, "unsafe_compute_mask_ptr")
    backend._executor = recorder  # type: ignore[assignment]
    backend._mask_s = 1.0  # so that they are shared out
    mask = np.full((6, WORDS), 7, dtype=np.int32)
    need = backend.fill_masks([None, free, forced, ended, other, None], mask)
    assert need.tolist() == [False, True, True, True, True, False]
    assert recorder.rows == [2]
    assert (mask[[0, 5]] == 7).all()
    backend.fill_masks([None, None, forced, ended, None, None], mask)
    assert recorder.rows == [2]


def test_quick_masks_are_made_here_and_slow_ones_shared_out_and_both_are_the_same() -> None:
    backend = LLGuidanceBackend(ByteVocabulary())
    recorder = Recorder(backend._executor, "unsafe_compute_mask_ptr")
    backend._executor = recorder  # type: ignore[assignment]
    rows = [compiled(backend, "regex", pattern) for pattern in ("[a-z]+", "[0-9]{3}", "x?y", "é")]
    here, shared = (np.full((len(rows), WORDS), 7, dtype=np.int32) for _ in range(2))
    backend.fill_masks(rows, here)
    assert not recorder.rows
    backend._mask_s = 1.0
    backend.fill_masks(rows, shared)
    assert recorder.rows == [3]  # of the last one is known what must come
    assert np.array_equal(here, shared)
    for _ in range(600):  # what they take is learned from both
        backend.fill_masks(rows, shared)
    assert backend._mask_s < 0.01


def test_a_grammar_with_many_requests_gets_more_engines_beside_them() -> None:
    backend = LLGuidanceBackend(ByteVocabulary(), threads=40)
    grammar = backend.compile(Constraint(kind="regex", text="[a-z]{3}[0-9]+"))
    lanes = grammar._lanes
    lanes._most, first = len(lanes.engines) + 3, len(lanes.engines)
    matchers = [grammar.matcher() for _ in range(first)]
    assert len(lanes.engines) == first
    deadline = time.monotonic() + 10
    while len(lanes.engines) < first + 3 and time.monotonic() < deadline:
        matchers.append(grammar.matcher())
        time.sleep(0.001)
    matchers += [grammar.matcher() for _ in range(2 * (first + 3))]
    assert len(lanes.engines) == first + 3
    for matcher in matchers:
        assert all(matcher.accept(byte) for byte in b"abc1")
    mask = np.full((len(matchers), WORDS), 7, dtype=np.int32)
    backend.fill_masks(matchers, mask)
    assert (mask == mask[0]).all() and mask[0].any()


def test_the_other_engine_is_asked_once_for_all_its_rows() -> None:
    backends = GrammarBackends(ByteVocabulary())
    try:
        one, two = (compiled(backends, "ebnf", 'root ::= [a-z] root | "."') for _ in range(2))
        forced = compiled(backends, "ebnf", 'root ::= "xyz" [0-9]')
        plain = compiled(backends, "regex", "[a-z]+")
        engine = backends._made["xgrammar"]
        recorder = Recorder(engine._batch, "batch_fill_next_token_bitmask")  # type: ignore[attr-defined]
        engine._batch = recorder  # type: ignore[attr-defined]
        mask = np.zeros((5, WORDS), dtype=np.int32)
        need = backends.fill_masks([one, None, forced, two, plain], mask)
        assert need.tolist() == [True, False, True, True, True]
        assert recorder.rows == [2]
    finally:
        backends.close()


def test_other_threads_run_while_a_batch_is_filled() -> None:
    """A call that holds the interpreter's lock lets nobody look several times while it lasts."""
    backend = LLGuidanceBackend(EveryPair(), vocab_size=PAIRS, threads=2)
    first = compiled(backend, "regex", "(.*a.{14}){1,3}")
    assert all(first.accept(byte) for byte in b"fobafobafoba")
    inside = threading.Event()
    stop, looks, most = threading.Event(), 0, 0

    def look() -> None:
        nonlocal looks, most
        while not stop.is_set():
            looks = looks + 1 if inside.is_set() else 0
            most = max(most, looks)
            time.sleep(0.0001)

    class Watched:
        _fill = backend._executor.unsafe_compute_mask_ptr

        def unsafe_compute_mask_ptr(self, *arguments: Any) -> None:
            inside.set()
            try:
                self._fill(*arguments)
            finally:
                inside.clear()

    backend._executor = Watched()  # type: ignore[assignment]
    mask = np.zeros((ROWS, -(-backend.vocab_size // 32)), dtype=np.int32)
    thread = threading.Thread(target=look)
    thread.start()
    try:
        for _ in range(50):
            backend.fill_masks([first.fork() for _ in range(ROWS)], mask)
            if most > ENOUGH:
                break
    finally:
        stop.set()
        thread.join()
    assert most > ENOUGH
