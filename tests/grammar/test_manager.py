"""The cache of grammars: single flight, failures kept, limits, closing."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np
import pytest

from branchline.runtime.core.protocols import TokenMatcher
from branchline.runtime.core.sampling_params import Constraint
from branchline.runtime.errors import (
    BackendError,
    BranchlineError,
    QueueFull,
    UnsupportedConstraint,
)
from branchline.runtime.grammar.base import Bitmask, Choice, CompiledGrammar, NeedMask
from branchline.runtime.grammar.manager import MAX_WAITING, GrammarManager, Outcome
from branchline.runtime.grammar.service import GrammarService
from branchline.runtime.tokenizer.byte_tokenizer import ByteTokenizer


class Compiled:
    """A grammar that cannot be matched."""

    def __init__(self, constraint: Constraint) -> None:
        self.constraint = constraint
        self.memory_bytes = 1_000_000
        self.choice = Choice("scripted", "the only one")

    def matcher(self) -> TokenMatcher:
        raise AssertionError("not asked for here")


class ScriptedBackend:
    """Compiles when told to; fails on "bad", breaks on "bug"."""

    name = "scripted"

    def __init__(self) -> None:
        self.go = threading.Event()
        self.calls: list[str] = []
        self.closed = False

    def compile(self, constraint: Constraint) -> CompiledGrammar:
        self.calls.append(constraint.text)
        assert self.go.wait(20)
        if constraint.text == "bad":
            raise UnsupportedConstraint("bad", hint="h", value="v")
        if constraint.text == "bug":
            raise KeyError("bug")
        return Compiled(constraint)

    def fill_masks(self, matchers: Sequence[TokenMatcher | None], bitmask: Bitmask) -> NeedMask:
        return np.zeros(len(matchers), dtype=np.bool_)

    def failure(self, matcher: TokenMatcher) -> str:
        return ""

    def close(self) -> None:
        self.closed = True


class Reader:
    """Collects outcomes."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self.arrived = threading.Semaphore(0)

    def __call__(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self.arrived.release()

    def wait(self, count: int = 1) -> list[Outcome]:
        for _ in range(count):
            assert self.arrived.acquire(timeout=20)
        return self.outcomes


def regex(text: str) -> Constraint:
    return Constraint(kind="regex", text=text)


@pytest.fixture
def backend() -> Iterator[ScriptedBackend]:
    scripted = ScriptedBackend()
    yield scripted
    scripted.go.set()


def test_one_compile_for_all_who_ask(backend: ScriptedBackend) -> None:
    manager, reader = GrammarManager(backend, workers=2), Reader()
    for _ in range(10):
        manager.request(regex("a"), reader)
    assert manager.try_get(regex("a")) is None
    assert not reader.outcomes
    backend.go.set()
    outcomes = reader.wait(10)
    assert all(outcome is outcomes[0] for outcome in outcomes)
    assert cast(Compiled, outcomes[0]).constraint.text == "a"
    assert manager.try_get(regex("a")) is outcomes[0]
    manager.request(regex("a"), reader)
    assert len(reader.outcomes) == 11
    assert backend.calls == ["a"]
    manager.close()


@pytest.mark.parametrize(("text", "kind"), [("bad", UnsupportedConstraint), ("bug", BackendError)])
def test_failures_are_kept_and_each_reader_gets_its_own(
    backend: ScriptedBackend, text: str, kind: type[BranchlineError]
) -> None:
    manager, reader = GrammarManager(backend), Reader()
    backend.go.set()
    manager.request(regex(text), reader)
    reader.wait()
    manager.request(regex(text), reader)
    first, second = reader.wait()
    assert isinstance(first, kind) and isinstance(second, kind)
    assert first is not second and first.to_wire() == second.to_wire()
    assert backend.calls == [text]
    manager.close()


def test_least_recently_used_grammars_go_first(backend: ScriptedBackend) -> None:
    manager, reader = GrammarManager(backend, workers=1, cache_bytes=2_500_000), Reader()
    backend.go.set()
    for text in ("a", "b"):
        manager.request(regex(text), reader)
        reader.wait()
    assert manager.try_get(regex("a")) is not None
    manager.request(regex("c"), reader)
    reader.wait()
    assert manager.try_get(regex("b")) is None
    assert manager.try_get(regex("a")) is not None and manager.try_get(regex("c")) is not None
    manager.close()


def test_a_slow_compile_is_reported_and_its_result_kept(backend: ScriptedBackend) -> None:
    manager, reader = GrammarManager(backend, workers=1, limit_s=0.05), Reader()
    manager.request(regex("slow"), reader)
    first = reader.wait()[0]
    assert isinstance(first, UnsupportedConstraint) and "0.05 s" in str(first)
    manager.request(regex("slow"), reader)
    assert isinstance(reader.wait()[1], UnsupportedConstraint)
    assert backend.calls == ["slow"]
    backend.go.set()
    for _ in range(200):
        if manager.try_get(regex("slow")) is not None:
            break
        threading.Event().wait(0.01)
    assert isinstance(manager.try_get(regex("slow")), Compiled)
    assert len(reader.outcomes) == 2
    manager.close()


def test_closing_tells_those_who_wait(backend: ScriptedBackend) -> None:
    manager, reader = GrammarManager(backend, workers=1), Reader()
    manager.request(regex("a"), reader)
    manager.request(regex("b"), reader)
    manager.close()
    assert backend.closed
    assert all(isinstance(outcome, BackendError) for outcome in reader.wait(2))
    manager.request(regex("c"), reader)
    assert isinstance(reader.wait(1)[2], BackendError)


def test_the_service_says_who_enforces_a_constraint(backend: ScriptedBackend) -> None:
    made = threading.Event()

    def make() -> ScriptedBackend:
        made.set()
        return backend

    service = GrammarService(make, ByteTokenizer(), vocab_size=260, limit_s=5.0)
    assert service.choice(regex("a")) is None and service.stats() == {}
    service.prepare()
    service.prepare()
    assert made.wait(20)
    backend.go.set()
    asked = threading.Event()
    service.request(regex("a"), lambda _: asked.set())
    service.request(regex("bad"), lambda _: None)
    assert asked.wait(20)
    assert service.choice(regex("a")) == Choice("scripted", "the only one")
    assert service.explain(regex("a")) == "scripted: the only one"
    assert service.explain(regex("bad")) == ""
    assert service.choice(regex("bad")) is None
    assert service.stats()["cached_bytes"] > 1_000_000
    service.close()
    assert backend.closed


def test_a_backend_that_is_made_while_the_service_closes_is_closed(
    backend: ScriptedBackend,
) -> None:
    asked, go = threading.Event(), threading.Event()

    def make() -> ScriptedBackend:
        asked.set()
        assert go.wait(20)
        return backend

    service, reader = GrammarService(make, ByteTokenizer(), vocab_size=260, limit_s=5.0), Reader()
    service.prepare()
    assert asked.wait(20)
    service.close()
    go.set()
    for thread in threading.enumerate():
        if thread.name == "branchline-grammar":
            thread.join(20)
    assert backend.closed
    service.request(regex("a"), lambda result: reader(cast(Outcome, result)))
    assert isinstance(reader.wait(1)[0], BackendError)


def test_long_compiles_do_not_hold_up_short_ones() -> None:
    """Two lanes: with every long place taken, a short constraint still compiles."""

    class Waiting(ScriptedBackend):
        def compile(self, constraint: Constraint) -> CompiledGrammar:
            return (
                super().compile(constraint) if len(constraint.text) > 99 else Compiled(constraint)
            )

    slow = Waiting()
    manager, reader, long = GrammarManager(slow, workers=1), Reader(), Reader()
    for number in range(3):
        manager.request(regex("x" * (5000 + number)), long)
    manager.request(regex("short"), reader)
    assert cast(Compiled, reader.wait()[0]).constraint.text == "short"
    assert not long.outcomes
    slow.go.set()
    long.wait(3)
    manager.close()


def test_too_many_waiting_compiles_are_refused(backend: ScriptedBackend) -> None:
    manager, reader = GrammarManager(backend, workers=1), Reader()
    for number in range(MAX_WAITING + 1):
        manager.request(regex(f"a{number}"), reader)
    assert isinstance(reader.wait()[0], QueueFull) and len(reader.outcomes) == 1
    backend.go.set()
    manager.close()
