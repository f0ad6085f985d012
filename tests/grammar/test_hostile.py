"""Hostile constraints end in a grammar or a typed error, in time, and this process lives on."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from branchline.runtime.bench.hostile_constraints import Hostile, corpus
from branchline.runtime.core.sampling_params import Constraint
from branchline.runtime.engine import Engine
from branchline.runtime.errors import BackendError, ConstraintError, InvalidRequest
from branchline.runtime.grammar.backends import GrammarBackends
from branchline.runtime.grammar.limits import Limits
from tests.support.byte_vocabulary import ByteVocabulary

COMPILE_S = 3.0
ITEM_S = 60.0
MOST_BYTES = 1 << 30
SECONDS = {
    "ebnf: ambiguous",
    "ebnf: long run",
    "ebnf: runs of runs",
    "ebnf: very long run",
    "json_schema: 2,000 optional properties",
    "json_schema: 500 branches",
    "lark: ambiguous",
    "regex: repeats of repeats",
}


@pytest.fixture(scope="module")
def backend() -> Iterator[GrammarBackends]:
    made = GrammarBackends(ByteVocabulary(), limits=Limits(compile_s=COMPILE_S))
    yield made
    made.close()


def marked() -> list[object]:
    """The corpus; what takes seconds is left to the slow run."""
    return [
        pytest.param(one, id=one.name, marks=[pytest.mark.slow] if one.name in SECONDS else [])
        for one in corpus()
    ]


@pytest.mark.parametrize("hostile", marked())
def test_it_ends_in_a_grammar_or_a_clear_error(backend: GrammarBackends, hostile: Hostile) -> None:
    before = psutil.Process().memory_info().rss
    begun = time.monotonic()
    try:
        matcher = backend.compile(hostile.constraint).matcher()
    except (InvalidRequest, ConstraintError) as error:
        assert error.hint and str(error)
    else:
        mask = np.zeros((1, 9), dtype=np.int32)
        for token in hostile.feed.encode():
            backend.fill_masks([matcher], mask)
            if backend.failure(matcher):
                assert not mask.any()
                break
            if not matcher.accept(token):
                break
    assert time.monotonic() - begun < 3 * COMPILE_S + 5
    assert psutil.Process().memory_info().rss - before < 400 << 20


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_an_engine_lives_through_all_of_it(default_model: Path) -> None:
    """Every item, on a model's whole vocabulary, beside a stream whose text stays the same."""
    stop = threading.Event()
    texts: list[str] = []
    with Engine(str(default_model), kv_tokens=9000) as engine:

        def stream() -> None:
            while not stop.is_set():
                texts.append(engine.generate("One, two,", temperature=0.0, max_tokens=30).text)

        before = psutil.Process().memory_info().rss
        thread = threading.Thread(target=stream)
        thread.start()
        try:
            for hostile in corpus():
                begun = time.monotonic()
                try:
                    engine.generate(
                        "It is",
                        constraint=hostile.constraint,
                        temperature=0.0,
                        max_tokens=24,
                        timeout_s=ITEM_S,
                    )
                except (InvalidRequest, ConstraintError, BackendError) as error:
                    assert error.hint and str(error), hostile.name
                assert time.monotonic() - begun < ITEM_S, hostile.name
                own = psutil.Process()
                assert own.memory_info().rss - before < MOST_BYTES, hostile.name
                for worker in own.children():
                    assert worker.memory_info().rss < MOST_BYTES, hostile.name
        finally:
            stop.set()
            thread.join()
    assert len(texts) > 1 and len(set(texts)) == 1


def test_the_quick_run_leaves_out_what_is_there() -> None:
    assert {one.name for one in corpus()} > SECONDS and len(SECONDS) < 12


def test_names_are_distinct() -> None:
    names = [hostile.name for hostile in corpus()]
    assert len(set(names)) == len(names) >= 50


@pytest.mark.timeout(30)
def test_a_terminal_that_can_only_go_on_is_not_followed_for_ever(backend: GrammarBackends) -> None:
    """By longest match the second W never comes: another "a" must come, and another."""
    text = 'start: W W | "[" start "]"\nW: /a+/\n'
    matcher = backend.compile(Constraint(kind="lark", text=text)).matcher()
    for place in (matcher, matcher.fork()):
        for byte in b"aaaa":
            assert place.accept(byte)
        assert not place.is_accepting() and place.forced_tokens() == []


def test_what_terminals_with_an_end_force_is_told(backend: GrammarBackends) -> None:
    text = 'start: "yes, " NAME\nNAME: "Ann" | "Bob"\n'
    matcher = backend.compile(Constraint(kind="lark", text=text)).matcher()
    assert bytes(matcher.forced_tokens()) == b"yes, "
