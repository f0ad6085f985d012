"""Translating a constraint holds up no other thread for long; nothing of that stays behind."""

from __future__ import annotations

import sys
import threading

import pytest

from branchline.runtime.core.sampling_params import Constraint
from branchline.runtime.grammar import llguidance_backend
from branchline.runtime.grammar.turns import TURN_S, short_turns
from tests.grammar.test_worker import ByteVocabulary


def test_turns_are_short_while_any_thread_translates() -> None:
    before = sys.getswitchinterval()
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with short_turns():
            inside.set()
            leave.wait(20)

    thread = threading.Thread(target=other)
    with short_turns():
        assert sys.getswitchinterval() == pytest.approx(TURN_S)
        thread.start()
        assert inside.wait(20)
    assert sys.getswitchinterval() == pytest.approx(TURN_S)
    leave.set()
    thread.join()
    assert sys.getswitchinterval() == pytest.approx(before) and before > TURN_S


def test_an_error_restores_the_interval() -> None:
    before = sys.getswitchinterval()
    with pytest.raises(ZeroDivisionError), short_turns():
        raise ZeroDivisionError
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
