"""Streams: events in order, errors inside the loop, leaving the loop ends the program."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

import branchline as bl


@bl.function
def story(s: bl.State, about: str) -> str:
    s += bl.user("About " + about)
    s += bl.assistant(bl.gen("first") + " and " + bl.gen("second"))
    value: str = s["first"]
    return value


@bl.function
async def astory(s: bl.State, about: str) -> Any:
    s += "About " + about
    return await s.gen("first"), await s.gen("second")


REPLIES = {"first": "once upon a time there was", "second": "a second sentence"}


def told(events: list[Any]) -> tuple[dict[str, list[str]], list[tuple[str, Any]], Any]:
    """Pieces of text by variable, values in the order they came, and the last event."""
    pieces: dict[str, list[str]] = {}
    for event in events:
        if isinstance(event, bl.TextDelta):
            pieces.setdefault(event.name, []).append(event.text)
    ready = [(e.name, e.value) for e in events if isinstance(e, bl.VariableReady)]
    return pieces, ready, events[-1]


def collected(program: Any, asynchronous: bool) -> list[Any]:
    mock = bl.Mock(REPLIES)
    if not asynchronous:
        return list(program.stream(about="x", backend=mock))

    async def collect() -> list[Any]:
        return [e async for e in program.astream(about="x", backend=mock)]

    return asyncio.run(collect())


@pytest.mark.parametrize("asynchronous", [False, True], ids=["stream", "astream"])
@pytest.mark.parametrize("program", [story, astory], ids=lambda p: p.name)
def test_a_stream_tells_each_text_in_pieces_then_its_value_and_ends_with_the_state(
    program: Any, asynchronous: bool
) -> None:
    pieces, ready, last = told(collected(program, asynchronous))
    assert {name: "".join(parts) for name, parts in pieces.items()} == REPLIES
    assert all(len(parts) > 1 for parts in pieces.values())
    assert ready == list(REPLIES.items())
    assert isinstance(last, bl.Done)
    assert last.state["second"] == REPLIES["second"]
    assert REPLIES["second"] in last.state.text()


def test_events_come_while_the_program_runs() -> None:
    heard = threading.Event()

    def reply(name: str, text: str) -> str:
        if name == "second" and not heard.wait(20):
            raise TimeoutError("nothing of the first value was heard before the second began")
        return REPLIES[name]

    for event in story.stream("x", backend=bl.Mock(reply)):
        if isinstance(event, bl.TextDelta) and event.name == "first":
            heard.set()
    assert heard.is_set()


@pytest.mark.parametrize("program", [story, astory], ids=lambda p: p.name)
def test_a_failure_is_raised_inside_the_loop(program: Any) -> None:
    mock = bl.Mock({"first": "fine", "second": RuntimeError("broken")})
    seen = []
    with pytest.raises(bl.BackendError, match="broken"):
        for event in program.stream(about="x", backend=mock):
            seen.append(event)
    assert [e.text for e in seen if isinstance(e, bl.TextDelta)] == ["fine"]
    assert not any(isinstance(e, bl.Done) for e in seen)

    async def astream() -> None:
        async for _ in program.astream(about="x", backend=mock):
            pass

    with pytest.raises(bl.BackendError, match="broken"):
        asyncio.run(astream())


def test_an_exception_of_the_function_is_raised_inside_the_loop() -> None:
    @bl.function
    def broken(s: bl.State) -> None:
        s += bl.gen("x")
        s["x"]
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        list(broken.stream(backend=bl.Mock("a b c")))


def open_programs(mock: bl.Mock) -> int:
    deadline = time.monotonic() + 3
    while mock.stats().programs_open and time.monotonic() < deadline:
        time.sleep(0.01)
    return mock.stats().programs_open


def test_leaving_the_loop_cancels_the_program() -> None:
    ended = threading.Event()

    @bl.function
    def endless(s: bl.State) -> None:
        try:
            while True:
                s += bl.gen("x", append=True)
                s["x"]
        finally:
            ended.set()

    mock = bl.Mock("a b c", latency_s=0.01)
    for event in endless.stream(backend=mock):
        if isinstance(event, bl.VariableReady):
            break
    assert ended.wait(3)
    assert open_programs(mock) == 0

    async def leave() -> None:
        ended.clear()
        events = endless.astream(backend=mock)
        async for event in events:
            if isinstance(event, bl.VariableReady):
                break
        await events.aclose()  # type: ignore[attr-defined]

    asyncio.run(leave())
    assert ended.is_set()
    assert open_programs(mock) == 0


def test_a_stream_may_be_iterated_from_several_threads() -> None:
    stream = story.stream("x", backend=bl.Mock(REPLIES))
    events: list[Any] = []
    while not events or not isinstance(events[-1], bl.Done):
        thread = threading.Thread(target=lambda: events.append(next(stream)))
        thread.start()
        thread.join()
    assert list(stream) == []
    pieces, ready, _ = told(events)
    assert {name: "".join(parts) for name, parts in pieces.items()} == REPLIES
    assert ready == list(REPLIES.items())


def test_wrong_arguments_are_raised_before_the_loop() -> None:
    with pytest.raises(TypeError, match="topic"):
        story.stream(topic="x", backend=bl.Mock("a"))


def test_a_truncated_typed_value_is_an_event_and_not_the_end() -> None:
    @bl.function
    def typed(s: bl.State) -> str:
        s += bl.gen("x", bool, max_tokens=2)
        try:
            return str(s["x"])
        except bl.TruncatedError:
            return "cut"

    events = list(typed.stream(backend=bl.Mock("true")))
    ready = next(e for e in events if isinstance(e, bl.VariableReady))
    assert ready.value is None
    assert isinstance(ready.error, bl.TruncatedError)
    assert events[-1].state.result == "cut"  # type: ignore[union-attr]


def test_branches_say_which_lane_they_are() -> None:
    @bl.function
    def branches(s: bl.State) -> None:
        with s.fork(2) as forks:
            forks += bl.gen("x")

    lanes = {e.lane for e in branches.stream(backend=bl.Mock("a")) if not isinstance(e, bl.Done)}
    assert lanes == {1, 2}


def test_a_stream_inside_a_program_of_a_batch() -> None:
    @bl.function
    def outer(s: bl.State) -> Any:
        return [e.text for e in story.stream("x") if isinstance(e, bl.TextDelta)]

    states = outer.run_batch([{}] * 5, backend=bl.Mock(REPLIES, latency_s=0.02))
    assert {"".join(state.result) for state in states} == {"".join(REPLIES.values())}
