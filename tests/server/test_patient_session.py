"""Long texts of programs are tokenized beside the event loop, and nothing else changes."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable

import pytest

import branchline as bl
from branchline.runtime.core.sampling_params import SamplingParams
from branchline.runtime.engine import Engine
from branchline.runtime.errors import ProgramError
from branchline.runtime.programs.protocol import (
    AppendText,
    Close,
    Closed,
    Event,
    Fork,
    Generate,
    Op,
    ReadLane,
    Select,
)
from branchline.runtime.server.patient_session import SHORT_CHARS, PatientSession
from tests.support.http_server import RunningServer

LONG = "x" * (SHORT_CHARS + 1)


class Tokenizing:
    """A session whose `send` takes as long as a test likes."""

    def __init__(self) -> None:
        self.ready = threading.Event()
        self.error: Exception | None = None
        self.taken: list[tuple[list[Op], threading.Thread]] = []
        self.abandoned = 0

    def send(self, ops: list[Op]) -> None:
        if threading.current_thread() is not threading.main_thread():
            assert self.ready.wait(10)
        if self.error is not None:
            raise self.error
        self.taken.append((ops, threading.current_thread()))

    def abandon(self) -> None:
        self.abandoned += 1


def drive(what: Callable[[PatientSession, Tokenizing, list[Event]], Awaitable[None]]) -> None:
    async def run() -> None:
        inner, events = Tokenizing(), list[Event]()
        await what(PatientSession(inner, events.extend), inner, events)

    asyncio.run(run())


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


def text(lane: int, node: int, chars: str) -> AppendText:
    return AppendText(lane, node, (chars,))


GEN = Generate(lane=0, node=9, name="x", sampling=SamplingParams())


@pytest.mark.parametrize(
    ("sent", "straight"),
    [
        ([[text(0, 0, "short")], [GEN]], True),
        ([[text(0, 0, LONG)]], True),  # nothing is tokenized until something follows
        ([[text(0, 0, LONG), GEN]], False),
        ([[text(0, 0, LONG)], [GEN]], False),
        ([[text(0, 0, LONG[:-2])], [text(0, 1, "yyy")], [GEN]], False),
        ([[text(1, 0, LONG)], [GEN]], True),  # another lane
        ([[text(1, 0, LONG)], [Close()]], False),
        ([[text(0, 0, LONG), Fork(0, 1, (1, 2))]], False),
        ([[Select(lane=0, node=1, name="y", choices=(LONG, "no"))]], False),
    ],
)
def test_a_thread_takes_what_makes_a_tokenizer_work_for_long(
    sent: list[list[Op]], straight: bool
) -> None:
    async def run(session: PatientSession, inner: Tokenizing, events: list[Event]) -> None:
        inner.ready.set()
        for ops in sent:
            session.send(ops)
        assert (len(inner.taken) == len(sent)) == straight
        await until(lambda: len(inner.taken) == len(sent))
        assert [ops for ops, _ in inner.taken] == sent
        assert (inner.taken[-1][1] is threading.main_thread()) == straight
        session.send([ReadLane(0, 20)])
        await until(lambda: len(inner.taken) > len(sent))

    drive(run)


def test_what_is_sent_meanwhile_keeps_its_place() -> None:
    async def run(session: PatientSession, inner: Tokenizing, events: list[Event]) -> None:
        sent: list[list[Op]] = [[text(0, 0, LONG), GEN], [text(0, 10, "a")], [Close()]]
        for ops in sent:
            session.send(ops)
        await asyncio.sleep(0.01)
        assert inner.taken == []
        inner.ready.set()
        await until(lambda: len(inner.taken) == 3)
        assert [ops for ops, _ in inner.taken] == sent

    drive(run)


def test_leaving_waits_for_no_tokenizer() -> None:
    async def run(session: PatientSession, inner: Tokenizing, events: list[Event]) -> None:
        session.send([text(0, 0, LONG), GEN])
        session.send([Close()])
        await asyncio.sleep(0.01)
        session.abandon()
        assert not inner.abandoned
        inner.ready.set()
        await until(lambda: inner.abandoned)
        assert len(inner.taken) == 1 and events == []

    drive(run)


def test_ops_that_cannot_be_taken_end_the_program() -> None:
    async def run(session: PatientSession, inner: Tokenizing, events: list[Event]) -> None:
        inner.error = ProgramError("the program is closed")
        inner.ready.set()
        session.send([text(0, 0, LONG), GEN])
        await until(lambda: events)
        [closed] = events
        assert isinstance(closed, Closed) and closed.error is not None
        assert closed.error["code"] == "ProgramError" and inner.abandoned

    drive(run)


@pytest.mark.parametrize("live", [False, True])
def test_no_long_text_is_tokenized_on_the_loop_that_serves(
    server: RunningServer, engine: Engine, live: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = f"{live} " * SHORT_CHARS  # more than the context holds; not cached yet

    @bl.function(max_tokens=2)
    def program(s: bl.State) -> str:
        s += said + bl.gen("x")
        return s["x"]

    where: dict[str, str] = {}
    encode = engine.tokenizer.encode

    def watched(given: str, **options: bool) -> list[int]:
        if len(given) > SHORT_CHARS:
            where[given] = threading.current_thread().name
        return encode(given, **options)

    monkeypatch.setattr(engine.tokenizer, "encode", watched)
    if live:
        endpoint = bl.Endpoint(server.url)
        with pytest.raises(bl.BranchlineError, match="a sequence holds 2048"):
            program.run(backend=endpoint)
        endpoint.close()
    else:
        answer = server.post("/v1/programs", {"graph": json.loads(program.trace().to_json())})
        assert answer.status == 400 and "a sequence holds 2048" in answer.json["error"]["message"]
    assert where and "test-server" not in where.values()
