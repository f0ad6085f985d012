"""What a program costs in Python, engine aside."""

from __future__ import annotations

import time

from branchline.runtime.core.outputs import GenerateResult, RequestMeta
from branchline.runtime.programs.protocol import Close, Event, OpenProgram, SetVariable
from tests.programs.helpers import gen, rig, text
from tests.support.scripted_port import ScriptedPort


class InstantPort(ScriptedPort):
    """Answers with a constant, so that the port costs next to nothing."""

    def finish(self, request_id: str, text: object = None) -> None:
        running = self.running.pop(request_id)
        meta = RequestMeta(prompt_tokens=10, output_tokens=3)
        result = GenerateResult(request_id=request_id, text="hi", token_ids=[5, 6, 7], meta=meta)
        running.on_output(result)


def test_ten_thousand_programs_take_two_seconds_at_most() -> None:
    """About 0.5 s of one core; the best of three, since others may be busy."""
    best = min(_many(10_000) for _ in range(3))
    assert best < 2.0


def _many(count: int) -> float:
    port, executor = rig(InstantPort())
    events: list[Event] = []
    start = time.thread_time()
    sessions = []
    for index in range(count):
        session = executor.open(OpenProgram(program_id=str(index)), events.extend)
        session.send([text(0, f"Tell me about item {index}, please."), gen(1, "x"), Close()])
        sessions.append(session)
    port.run()
    assert len(events) == 2 * count and executor.stats().programs_open == 0
    return time.thread_time() - start


def test_an_op_that_computes_nothing_takes_thirty_microseconds_at_most() -> None:
    port, executor = rig(InstantPort())
    session = executor.open(OpenProgram(program_id="p"), lambda events: None)
    count = 10_000
    start = time.thread_time()
    session.send([SetVariable(0, node, "x", "y") for node in range(count)])
    port.run()
    assert (time.thread_time() - start) / count < 30e-6
