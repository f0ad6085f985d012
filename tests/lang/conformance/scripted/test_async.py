"""Async programs, and sync ones in, around and beside event loops."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

import branchline as bl
from branchline.lang.errors import ProgramError


@bl.function
async def ask(s: bl.State, word: str = "w") -> str:
    s += word + " "
    value: str = await s.gen("x")
    return value


@bl.function
def sync_ask(s: bl.State, word: str = "w") -> str:
    s += word + " " + bl.gen("x")
    value: str = s["x"]
    return value


PROGRAMS = pytest.mark.parametrize("program", [ask, sync_ask], ids=lambda p: p.name)


@PROGRAMS
def test_run_from_plain_code(program: Any) -> None:
    assert program.run(backend=bl.Mock("a")).result == "a"


@PROGRAMS
def test_run_inside_a_running_loop(program: Any) -> None:
    async def notebook() -> Any:
        mock = bl.Mock("a")
        states = program.run_batch(["x", "y"], backend=mock)
        streamed = [type(e).__name__ for e in program.stream(backend=mock)]
        return program.run(backend=mock).result, [s.result for s in states], streamed[-1]

    assert asyncio.run(notebook()) == ("a", ["a", "a"], "Done")


@PROGRAMS
def test_arun_overlaps_without_threads(program: Any) -> None:
    async def many() -> float:
        mock = bl.Mock("a", latency_s=0.2)
        before = threading.active_count()
        begin = time.perf_counter()
        states = await asyncio.gather(*(program.arun(backend=mock) for _ in range(200)))
        assert {state.result for state in states} == {"a"}
        assert threading.active_count() <= before + 1
        return time.perf_counter() - begin

    assert asyncio.run(many()) < 20  # one after the other they would take 40 s


@PROGRAMS
def test_arun_batch(program: Any) -> None:
    async def batch() -> Any:
        return await program.arun_batch(["a", "b"], backend=bl.Mock("r"), max_concurrency=1)

    assert [state.result for state in asyncio.run(batch())] == ["r", "r"]


@PROGRAMS
def test_run_from_several_threads_at_once(program: Any) -> None:
    mock = bl.Mock("a", latency_s=0.02)
    results: list[Any] = []

    def work() -> None:
        for state in program.run_batch(["x"] * 20, backend=mock):
            results.append(state.result)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert results == ["a"] * 120


def test_a_program_runs_other_programs_of_both_kinds() -> None:
    @bl.function
    def outer(s: bl.State) -> Any:
        return ask.run().result, sync_ask.run().result

    @bl.function
    async def aouter(s: bl.State) -> Any:
        return (await ask.arun()).result, (await sync_ask.arun()).result, sync_ask.run().result

    mock = bl.Mock("a", latency_s=0.01)
    assert outer.run(backend=mock).result == ("a", "a")
    assert aouter.run(backend=mock).result == ("a", "a", "a")
    for program, width in ((outer, 2), (aouter, 3)):
        states = program.run_batch([{}] * 5, backend=mock)
        assert [state.result for state in states] == [("a",) * width] * 5


def test_a_loop_of_its_own_inside_a_program_of_a_batch() -> None:
    @bl.function
    def outer(s: bl.State) -> Any:
        async def inside() -> str:
            await asyncio.sleep(0.01)
            return str(sync_ask.run().result) + str((await ask.arun()).result)

        s += bl.gen("y")
        return asyncio.run(inside()) + s["y"]

    states = outer.run_batch([{}] * 4, backend=bl.Mock("a", latency_s=0.01))
    assert [state.result for state in states] == ["aaa"] * 4


def test_async_forks() -> None:
    @bl.function
    async def program(s: bl.State) -> Any:
        s += "p"

        async def body(branch: bl.State, number: int) -> Any:
            branch += str(number)
            return await branch.gen("x")

        async with s.fork(3) as branches:
            values = await asyncio.gather(*(body(b, n) for n, b in enumerate(branches)))
        return values, await s.aget("x"), await s.atext()

    result = program.run(backend=bl.Mock(lambda name, text: "v" + text[-1])).result
    assert result == (["v0", "v1", "v2"], ["v0", "v1", "v2"], "p")


def test_async_first() -> None:
    @bl.function
    async def program(s: bl.State) -> Any:
        forks = s.fork(2)
        forks[0] += bl.gen("x") + bl.gen("y")
        forks[1] += bl.gen("x")
        winners = await forks.first(1)
        return [list(forks).index(winner) for winner in winners]

    assert program.run(backend=bl.Mock("a", latency_s=0.03)).result == [1]


def test_an_error_in_an_async_branch_is_raised_where_the_block_ends() -> None:
    reached: list[str] = []

    @bl.function
    async def program(s: bl.State) -> None:
        async with s.fork(2) as branches:
            branches[0] += "0" + bl.gen("x")
            branches[1] += "1" + bl.gen("x")
        reached.append("after")

    mock = bl.Mock(lambda name, text: ValueError("no") if text == "1" else "yes")
    with pytest.raises(bl.BackendError, match="no"):
        program.run(backend=mock)
    assert not reached


def test_async_reads_meta_and_unknown_names() -> None:
    @bl.function
    async def program(s: bl.State) -> Any:
        s += bl.gen("x")
        assert (await s.ameta("x")).output_tokens == 1
        with s.user():
            s += "hello"
        with pytest.raises(KeyError, match="Known variables: x"):
            await s.aget("nope")
        with pytest.raises(bl.BackendError):
            await s.gen("y")
        return "done"

    with pytest.raises(bl.BackendError, match="used up"):
        program.run(backend=bl.Mock(["a"]))


def test_a_task_waits_for_what_another_task_defines() -> None:
    @bl.function
    async def program(s: bl.State) -> Any:
        async def reader() -> Any:
            return await s.aget("x")

        async def writes(state: bl.State) -> None:
            await asyncio.sleep(0.02)
            state += bl.gen("x")

        value, _ = await asyncio.gather(reader(), writes(s))
        return value

    assert program.run(backend=bl.Mock("a")).result == "a"


def test_a_task_that_waits_for_what_nothing_defines_gets_a_key_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("branchline.lang.state.UNDEFINED_WAIT_S", 0.05)

    @bl.function
    async def program(s: bl.State) -> None:
        s += bl.gen("x")
        await asyncio.gather(asyncio.ensure_future(s.aget("nope")))

    with pytest.raises(KeyError, match="Known variables: x"):
        program.run(backend=bl.Mock("a", latency_s=0.1))


def test_inline_calls_of_async_programs() -> None:
    @bl.function
    async def outer(s: bl.State) -> Any:
        value = await ask(s, word="q")
        sync_value = sync_ask.bind(word="z").func  # a plain function is still at hand
        assert callable(sync_value)
        return value, await s.atext()

    @bl.function
    def wrong(s: bl.State) -> None:
        s += ask(word="q")

    assert outer.run(backend=bl.Mock("a")).result == ("a", "q a")
    with pytest.raises(ProgramError, match="inside a sync one"):
        wrong.run(backend=bl.Mock("a"))


@PROGRAMS
def test_cancelling_the_task_ends_the_program(program: Any) -> None:
    mock = bl.Mock("a", latency_s=30.0)

    async def cancel() -> None:
        task = asyncio.ensure_future(program.arun(backend=mock))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    begin = time.perf_counter()
    asyncio.run(cancel())
    while mock.stats().programs_open and time.perf_counter() - begin < 3:
        time.sleep(0.01)
    assert mock.stats().programs_open == 0
    assert time.perf_counter() - begin < 3


@PROGRAMS
def test_a_deadline_of_the_program(program: Any) -> None:
    begin = time.perf_counter()
    with pytest.raises(bl.DeadlineExceeded):
        program.run(backend=bl.Mock("a", latency_s=30.0), deadline_s=0.1)
    assert time.perf_counter() - begin < 2


def test_blocking_reads_work_in_async_programs_too() -> None:
    @bl.function
    async def program(s: bl.State) -> Any:
        s += bl.gen("x")
        return s["x"], s.text()

    assert program.run(backend=bl.Mock("a", latency_s=0.02)).result == ("a", "a")
