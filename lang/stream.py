"""Looking at a program while it runs: events, and the text of one variable as it grows.

Invariant: an iteration ends by `Done` (or the end of the variable) or by the program's error, never
silently; leaving it early cancels the program.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from branchline.lang import names, runner, waiting
from branchline.lang.compat_state import meta_info
from branchline.lang.errors import Cancelled
from branchline.lang.events import Done, StreamEvent
from branchline.lang.transcript import RoleMark
from branchline.lang.variables import Slot, Variable

if TYPE_CHECKING:
    from branchline.lang.program import Call
    from branchline.lang.run import Run


class Background:
    """A program that runs while its starter goes on: as a greenlet of the starter's hub where
    there is one, else in a thread of its own.

    Attributes:
        state: the program's state.
        failure: the exception that ended it.
    """

    def __init__(self, call: Call) -> None:
        self.failure: BaseException | None = None
        self.state = runner.open_state(call, streaming=True)
        self.run = self.state._run
        program = waiting.current_program()
        if program is not None:
            program.hub.wake(waiting.ProgramGreenlet(lambda: self._drive(call), program.hub))
            return
        context = contextvars.copy_context()
        threading.Thread(
            target=lambda: context.run(self._drive, call), name="branchline-stream", daemon=True
        ).start()

    def _drive(self, call: Call) -> None:
        try:
            if call.program.asynchronous:
                runner.run_coroutine(lambda: runner.adrive(call, self.state))
            else:
                runner.drive(call, self.state)
        except BaseException as error:
            self.failure = error
        self.run.body_ended = True
        self.run.readers.notify()

    def cancel(self) -> None:
        """Stop the program if it still runs."""
        if not self.run.body_ended:
            self.run.abandon(Cancelled("nobody listens to the program any more"))

    def raise_failure(self) -> None:
        """Raise what ended the program, if something did."""
        if self.failure is not None:
            raise self.failure


def stream(call: Call) -> Iterator[StreamEvent]:
    """Run in the background; yield events as they come."""
    background = Background(call)
    run = background.run
    try:
        while True:
            while run.events:
                yield run.events.popleft()
            if run.body_ended and not run.events:
                break
            run.wait_until(lambda: bool(run.events) or run.body_ended)
    finally:
        background.cancel()
    background.raise_failure()
    yield Done(background.state)


async def astream(call: Call) -> AsyncIterator[StreamEvent]:
    """Run as a task of the running event loop; yield events as they come."""
    import asyncio

    state = runner.open_state(call, streaming=True)
    run = state._run

    async def drive() -> None:
        try:
            if call.program.asynchronous:
                await runner.adrive(call, state)
            else:
                await runner.drive_on_loop(call, state)
        finally:
            run.body_ended = True
            run.readers.notify()

    task = asyncio.ensure_future(drive())
    try:
        while True:
            while run.events:
                yield run.events.popleft()
            if run.body_ended and not run.events:
                break
            await run.arrival(lambda: bool(run.events) or run.body_ended)
        await task
    finally:
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        elif not task.cancelled():
            task.exception()  # seen: it was raised above, or nobody listens any more
    yield Done(state)


class LiveState:
    """What `run(stream=True)` returns: the state of a program that still runs.

    Reading a variable waits until the program defines it or ends; everything else that a `State`
    has waits for the end first.
    """

    def __init__(self, call: Call) -> None:
        self._background = Background(call)
        self._state = self._background.state
        self._run = self._background.run

    def __getitem__(self, name: str) -> Any:
        self._await_definition(name)
        return self._state[name]

    def __setitem__(self, name: str, value: object) -> None:
        self.sync()
        self._state[name] = value

    def __contains__(self, name: object) -> bool:
        return name in self._state

    def __getattr__(self, name: str) -> Any:
        self.sync()
        return getattr(self._state, name)

    def sync(self) -> None:
        """Wait for the program's end; raises nothing."""
        self._run.wait_until(lambda: self._run.body_ended)

    def error(self) -> BaseException | None:
        """What ended the program, once it has ended."""
        self.sync()
        return self._background.failure

    def text_iter(self, var_name: str | None = None) -> Iterator[str]:
        """Pieces of a variable as they come, or of all that is appended.

        What is no output of its own (a scope, a capture, a list after a join) comes in one piece.

        Raises the program's error, and `UnknownVariable` when nothing ever defines the name.
        """
        if var_name is None:
            yield from self._all_text()
            return
        self._await_definition(var_name)
        variable = self._state._find(var_name)
        if isinstance(variable, Slot):
            yield from self._pieces_of(variable)
            return
        self._run.wait_until(partial(_settled, variable, self._run))
        yield variable.text()

    async def text_async_iter(
        self, var_name: str | None = None, return_meta_data: bool = False
    ) -> AsyncIterator[Any]:
        """Like `text_iter`, on the running event loop; with the variable's meta if asked for."""
        if var_name is None:
            async for piece in self._all_text_async():
                yield piece
            return
        run, state = self._run, self._state
        await run.arrival(lambda: var_name in state or run.body_ended)
        self._await_definition(var_name)
        variable = state._find(var_name)
        if isinstance(variable, Slot):
            async for piece in self._pieces_of_async(variable):
                yield (piece, meta_info(variable.meta())) if return_meta_data else piece
            return
        await run.arrival(partial(_settled, variable, run))
        piece = variable.text()
        yield (piece, state.get_meta_info(var_name)) if return_meta_data else piece

    async def _pieces_of_async(self, slot: Slot) -> AsyncIterator[str]:
        seen = 0
        while True:
            while seen < len(slot.partial):
                yield slot.partial[seen]
                seen += 1
            if slot.done:
                break
            await self._run.arrival(partial(_has_more, slot, seen))
        if rest := _rest(slot):
            yield rest

    def _pieces_of(self, slot: Slot) -> Iterator[str]:
        seen = 0
        while True:
            while seen < len(slot.partial):
                yield slot.partial[seen]
                seen += 1
            if slot.done:
                break
            self._run.wait_until(partial(_has_more, slot, seen))
        if rest := _rest(slot):
            yield rest

    def _await_definition(self, name: str) -> None:
        run, state = self._run, self._state
        run.wait_until(lambda: name in state or run.body_ended)
        if name not in state:
            self._background.raise_failure()
            raise names.unknown(state, name)

    def _all_text(self) -> Iterator[str]:
        run, pieces = self._run, self._state._transcript.pieces
        at = 0
        while True:
            run.wait_until(partial(lambda at: len(pieces) > at or run.body_ended, at))
            if at == len(pieces):
                break
            piece = pieces[at]
            at += 1
            if isinstance(piece, str):
                yield piece
            elif not isinstance(piece, RoleMark):
                yield from self._pieces_of(piece)
        self._background.raise_failure()

    async def _all_text_async(self) -> AsyncIterator[str]:
        run, pieces = self._run, self._state._transcript.pieces
        at = 0
        while True:
            await run.arrival(partial(lambda at: len(pieces) > at or run.body_ended, at))
            if at == len(pieces):
                break
            piece = pieces[at]
            at += 1
            if isinstance(piece, str):
                yield piece
            elif not isinstance(piece, RoleMark):
                async for part in self._pieces_of_async(piece):
                    yield part
        self._background.raise_failure()


def _settled(variable: Variable, run: Run) -> bool:
    """Whether a variable has its text, or never will: a scope may be left open."""
    return variable.ready() or run.body_ended


def _has_more(slot: Slot, seen: int) -> bool:
    return slot.done or len(slot.partial) > seen


def _rest(slot: Slot) -> str:
    """What of a finished value has not been streamed; raises what went wrong."""
    return slot.said()[len("".join(slot.partial)) :]
