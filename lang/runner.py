"""Runs one program to its end, whatever kind of function it is and wherever it is called from.

Invariant: a run that was opened is either finished or abandoned when control comes back.
A sync program waits in the greenlet or thread it is in; an async one on an event loop.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from branchline.lang import waiting
from branchline.lang.backends.base import using
from branchline.lang.errors import BranchlineError
from branchline.lang.run import Run
from branchline.lang.state import State

if TYPE_CHECKING:
    from branchline.lang.program import Call

T = TypeVar("T")


def open_state(call: Call, *, streaming: bool = False) -> State:
    """Open the run on its backend; nothing of the program runs yet."""
    run = Run(
        call.program.name,
        call.backend,
        streaming=streaming,
        asynchronous=call.program.asynchronous,
        deadline_s=call.deadline_s,
        priority=call.priority,
    )
    return State(run, defaults=call.defaults)


def run(call: Call) -> State:
    """Run in this thread; an async program on an event loop of its own."""
    if call.program.asynchronous:
        return run_coroutine(lambda: arun(call))
    return drive(call, open_state(call))


async def arun(call: Call) -> State:
    """Run on the running event loop; a sync program as a greenlet of it."""
    state = open_state(call)
    if call.program.asynchronous:
        return await adrive(call, state)
    return await drive_on_loop(call, state)


def drive(call: Call, state: State) -> State:
    """Run a sync program on an open state."""
    try:
        with using(call.backend):
            state.result = call.body(state)
        state._run.finish()
    except BaseException as error:
        _failed(state, error)
        raise
    return state


async def adrive(call: Call, state: State) -> State:
    """Run an async program on an open state."""
    import asyncio

    state._run.task = asyncio.current_task()
    try:
        with using(call.backend):
            state.result = await call.body(state)
        state._run.function_ended = True
        await state._run.afinish()
    except BaseException as error:
        _failed(state, error)
        raise
    return state


def _failed(state: State, error: BaseException) -> None:
    """End the run; an error that a rule of the language raised learns where it happened."""
    known = error if isinstance(error, BranchlineError) else None
    if known is not None:
        known.located(program=state._run.name)
    state._run.abandon(known)


async def drive_on_loop(call: Call, state: State) -> State:
    """Run a sync program on an open state as a greenlet of the running event loop."""
    import asyncio

    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    failures: list[BaseException] = []

    def body() -> None:
        try:
            drive(call, state)
        except BaseException as error:
            failures.append(error)
        if not done.done():
            done.set_result(None)

    hub = waiting.LoopHub()
    program = waiting.ProgramGreenlet(body, hub)
    hub.wake(program)
    try:
        await done
    finally:
        waiting.stop(program)
        state._run.abandon_unfinished()
    if failures:
        raise failures[0]
    return state


def run_coroutine(make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine to its end from sync code, also where an event loop is running already."""
    import asyncio

    if waiting.running_loop() is None and waiting.current_program() is None:
        return asyncio.run(make())
    return in_thread(lambda: asyncio.run(make()))


def in_thread(job: Callable[[], T]) -> T:
    """Run `job` in a helper thread and wait for it; other programs of this thread go on."""
    sleeper = waiting.sleeper()
    results: list[T] = []
    failures: list[BaseException] = []
    context = contextvars.copy_context()

    def work() -> None:
        try:
            results.append(context.run(job))
        except BaseException as error:
            failures.append(error)
        finally:
            sleeper.wake()

    threading.Thread(target=work, name="branchline-loop", daemon=True).start()
    while not results and not failures:
        sleeper.sleep()
    if failures:
        raise failures[0]
    return results[0]
