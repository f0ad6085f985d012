"""Translating a constraint holds up no other thread for long; nothing of that stays behind."""

from __future__ import annotations

import gc
import sys
import threading
from contextlib import suppress

import pytest

from branchline.runtime.core.sampling_params import Constraint
from branchline.runtime.errors import UnsupportedConstraint
from branchline.runtime.grammar import llguidance_backend
from branchline.runtime.grammar.json_schema.compiler import compile_schema
from branchline.runtime.grammar.json_schema.expander import Expander
from branchline.runtime.grammar.json_schema.languages import Language
from branchline.runtime.grammar.turns import TURN_S, short_turns
from tests.support.byte_vocabulary import ByteVocabulary


def test_turns_are_short_while_any_thread_translates() -> None:
    before = sys.getswitchinterval()
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with short_turns():
            inside.set()
            leave.wait(20)
            assert not gc.isenabled()

    thread = threading.Thread(target=other)
    with short_turns():
        assert sys.getswitchinterval() == pytest.approx(TURN_S)
        thread.start()
        assert inside.wait(20)
    assert sys.getswitchinterval() == pytest.approx(TURN_S)
    leave.set()
    thread.join()
    assert gc.isenabled()
    assert sys.getswitchinterval() == pytest.approx(before) and before > TURN_S


def test_an_error_restores_the_interval() -> None:
    before = sys.getswitchinterval()
    with pytest.raises(ZeroDivisionError), short_turns():
        raise ZeroDivisionError
    assert gc.isenabled()
    assert sys.getswitchinterval() == pytest.approx(before)


def test_constraints_are_translated_in_short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    translate = llguidance_backend.engine_grammar

    def watched(*arguments: object) -> str:
        seen.append(sys.getswitchinterval())
        return translate(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(llguidance_backend, "engine_grammar", watched)
    backend = llguidance_backend.LLGuidanceBackend(ByteVocabulary())
    backend.compile(Constraint(kind="json_schema", text='{"type": "integer"}'))
    assert seen == [pytest.approx(TURN_S)]


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with short_turns():
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize("text", ['{"oneOf": [{"type": "string"}, {"minimum": 2}]}', '{"not": {}}'])
def test_what_was_made_of_a_schema_is_freed_without_the_collector(text: str) -> None:
    def living() -> int:
        return sum(type(one) in (Language, Expander) for one in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = living()
        with suppress(UnsupportedConstraint):
            compile_schema(text)
        assert living() == before
    finally:
        gc.enable()
