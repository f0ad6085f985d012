"""The state a program writes to and reads from: one lane of a run, with its variables.

Invariant: appending never waits and reading a value waits for that value alone. A name stands for
one thing. A state keeps its run alive, never the other way round, so a state that nobody holds any
more frees its lane.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from branchline.lang import names
from branchline.lang.append import append
from branchline.lang.compat_state import OldNames
from branchline.lang.errors import (
    BranchlineError,
    ProgramError,
    UnsupportedFeature,
)
from branchline.lang.expressions import Expression
from branchline.lang.markers import reject
from branchline.lang.run import LaneRead, Run
from branchline.lang.sampling import request_options
from branchline.lang.transcript import Message, Transcript
from branchline.lang.turns import Turns
from branchline.lang.variables import Constant, Slot, Span, Usage, Variable, usage_of
from branchline.runtime.programs import protocol

if TYPE_CHECKING:
    from branchline.lang.fork import Forks
    from branchline.runtime.programs.graph import RequestGraph
    from branchline.runtime.responses import ToolSpec

T = TypeVar("T")

UNDEFINED_WAIT_S = 2.0
"""How long a task waits for another one to define a variable while nothing else happens."""


class LaneOrigin(NamedTuple):
    """What a forked state starts with."""

    lane: int
    transcript: Transcript
    variables: dict[str, Variable]
    unnamed: int
    keep_errors: bool


class State(Turns, OldNames):
    """What a program sees as its first parameter.

    Attributes:
        result: what the program's function returned, once it has run.
    """

    def __init__(
        self,
        run: Run,
        *,
        defaults: Sequence[Mapping[str, Any]] = (),
        origin: LaneOrigin | None = None,
    ) -> None:
        self.result: Any = None
        self._run = run
        self._defaults = tuple(defaults)
        self._lane = 0 if origin is None else origin.lane
        self._transcript = Transcript() if origin is None else origin.transcript
        self._variables = {} if origin is None else origin.variables
        self._inherited = frozenset(self._variables)
        self._unnamed = 0 if origin is None else origin.unnamed
        self._keeps_errors = origin is not None and origin.keep_errors
        self._joined = False
        self._told: tuple[ToolSpec, ...] = ()

    def __del__(self) -> None:
        if getattr(self, "_lane", 0):
            self._run.outbox.drop(self._lane)

    # ---- appending

    def __iadd__(self, value: object) -> State:
        self._check()
        append(self, value)
        return self

    def gen(self, name: str | None = None, type: Any = None, **options: Any) -> Value:
        """Append a `gen`; awaiting the result (or calling `.result()`) gives its value."""
        from branchline.lang.api import gen

        return self._append_value(gen(name, type, **options))

    def select(self, name: str | None, choices: Sequence[str], **options: Any) -> Value:
        """Append a `select`; awaiting the result (or calling `.result()`) gives its value."""
        from branchline.lang.api import select

        return self._append_value(select(name, choices, **options))

    def _append_value(self, expression: Expression) -> Value:
        self._check()
        before = len(self._transcript.pieces)
        append(self, expression)
        slots = [p for p in self._transcript.pieces[before:] if isinstance(p, Slot)]
        return Value(self, slots[-1])

    def set(self, name: str, value: object) -> None:
        """Define a variable. A variable set before may be set again; a generated one may not,
        before the program has ended.
        """
        self._check()
        name = reject(name, "a variable name")
        if self._run.closed:
            self._variables[name] = Constant(value)
            return
        if not isinstance(self._variables.get(name), Constant):
            names.check_free(self, name)
        text = reject(str(value), f"the value of {name!r}")
        self._variables[name] = Constant(value)
        self._run.emit(protocol.SetVariable(self._lane, self._run.next_node(), name, text))

    __setitem__ = set

    @contextmanager
    def adapter(self, name: str | None) -> Iterator[State]:
        """`with s.adapter("sql"): …` — what is appended inside runs with that adapter.

        The innermost block holds, over the run's and the program's adapter; a call that names one
        has its own. None or "" is the base model. Branches forked inside keep it.

        Raises `InvalidRequest` for something that is no name.
        """
        self._check()
        layer = {"adapter": "" if name is None else name}
        request_options([layer])
        self._defaults = (*self._defaults, layer)
        try:
            yield self
        finally:
            # Not what was there before: tasks of an async program may leave in any order.
            self._defaults = tuple([one for one in self._defaults if one is not layer])

    @contextmanager
    def scope(self, name: str) -> Iterator[State]:
        """`with s.scope("y"): …` — variable `y` is the text appended inside, without markup.

        Raises `NameInUse` when `y` stands for something else.
        """
        self._check()
        names.check_free(self, name)
        pieces = self._transcript.pieces
        begin, end = len(pieces), -1
        self._variables[name] = Span(
            lambda: None if end < 0 else self._transcript.readable(begin, end)
        )
        try:
            yield self
        finally:
            end = len(pieces)

    # ---- reading

    def __getitem__(self, name: str) -> Any:
        return self._read(name, lambda variable: variable.value())

    def get(self, name: str, default: Any = None) -> Any:
        """Like `s[name]`, but `default` when nothing defines the name."""
        if name not in self:
            return default
        return self[name]

    async def aget(self, name: str) -> Any:
        """Like `s[name]`, without blocking the event loop."""
        return await self._aread(name, lambda variable: variable.value())

    def __contains__(self, name: object) -> bool:
        return name in self._variables

    @property
    def names(self) -> list[str]:
        """Names of all variables defined so far."""
        return list(self._variables)

    def meta(self, name: str) -> Any:
        """Counts, times and raw text of a variable (`VariableMeta`, or a list of them); waits.

        Does not raise where the variable failed: `meta(name).error` says why.
        """
        return self._read(name, lambda variable: variable.meta())

    async def ameta(self, name: str) -> Any:
        """Like `meta`, without blocking the event loop."""
        return await self._aread(name, lambda variable: variable.meta())

    def text(self) -> str:
        """The whole text so far, template markup included; waits for it."""
        return self._content().text

    def tokens(self) -> list[int]:
        """The exact token ids held so far; waits for them.

        Raises `UnsupportedFeature` on a backend that has no tokens to show.
        """
        self._need("tokens", "token ids")
        return list(self._content().token_ids)

    async def atext(self) -> str:
        """Like `text`, without blocking the event loop."""
        read = self._run.read_lane(self._lane)
        await self._run.arrival(read.ready)
        return _content(read).text

    def messages(self) -> list[Message]:
        """The chat turns so far, as {"role", "content"}; waits for their values."""
        for variable in self._transcript.variables():
            self._run.wait_until(variable.ready)
        return self._transcript.messages()

    @property
    def usage(self) -> Usage:
        """Token counts of all values the whole program has so far."""
        return usage_of(list(self._run.slots.values()))

    @property
    def graph(self) -> RequestGraph:
        """The request graph of the run so far, with what each node did."""
        from branchline.lang.recording import graph_of

        return graph_of(self._run)

    def _read(self, name: str, use: Callable[[Variable], T]) -> T:
        variable = self._find(name)
        self._run.wait_until(variable.ready)
        return use(variable)

    async def _aread(self, name: str, use: Callable[[Variable], T]) -> T:
        if name not in self._variables and self._run.asynchronous:
            await self._definition(name)
        variable = self._find(name)
        await self._run.arrival(variable.ready)
        return use(variable)

    async def _definition(self, name: str) -> None:
        """Another task of the program may define `name` yet: wait for it, but not for ever.

        The program's own task would wait for itself. Gives up when the function has ended, or when
        nothing was appended or computed for `UNDEFINED_WAIT_S`.
        """
        import asyncio

        run = self._run
        if asyncio.current_task() is run.task:
            return
        progress = -1
        while name not in self and not run.function_ended and run.progress() != progress:
            progress = run.progress()
            ready = partial(_defined_or_over, self, name)
            with suppress(TimeoutError):
                await asyncio.wait_for(run.arrival(ready), UNDEFINED_WAIT_S)

    def _find(self, name: str) -> Variable:
        variable = self._variables.get(name)
        if variable is None:
            raise names.unknown(self, name)
        return variable

    def _content(self) -> protocol.LaneContent:
        read = self._run.read_lane(self._lane)
        self._run.wait_until(read.ready)
        return _content(read)

    # ---- branches

    def fork(
        self,
        n: int = 1,
        *,
        on_error: Literal["cancel", "keep"] = "cancel",
        size: int | None = None,
    ) -> Forks:
        """`n` states that share all tokens so far. See `Forks`.

        Args:
            size: another name of `n`.
            on_error: "cancel": a failing branch cancels its siblings and fails the program.
                "keep": it fails alone, and its exception stands in its place after a join.
        """
        from branchline.lang.fork import fork

        return fork(self, n if size is None else size, on_error=on_error)

    def copy(self) -> State:
        """A state of its own that shares all tokens so far.

        `with s.copy() as other: …` ends it with the block; its variables stay its own.
        """
        return self.fork(1)[0]

    def __enter__(self) -> State:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._lane and not self._joined:
            self._joined = True
            if kind is not None:
                self._run.cancel_lanes((self._lane,), "its block was left by an error")

    # ---- inside the language

    def _check(self) -> None:
        """Raise what has gone wrong already, or that the state takes nothing more."""
        run = self._run
        error = run.lanes.errors.get(self._lane)
        if error is None and not self._keeps_errors:
            error = run.failure
        if error is None and self._lane in run.lanes.cancelled:
            error = _cancelled(run)
        if error is None and self._joined:
            error = ProgramError(
                "the branch has been joined; it takes nothing more",
                program=run.name,
                hint="Append to the parent, or join later.",
            )
        if error is not None:
            raise error.with_traceback(None)  # else it grows with every attempt

    def _need(self, feature: str, what: str) -> None:
        """Raise `UnsupportedFeature` when the backend lacks `feature`."""
        backend = self._run.backend
        if feature not in backend.features:
            raise UnsupportedFeature(
                f"backend {backend.name!r} does not support {what}",
                value=feature,
                program=self._run.name,
                hint="Use another backend.",
            )

    def _repr_html_(self) -> str:
        from branchline.lang.view.notebook import state_html

        return state_html(self)


class Value:
    """A value on its way: `await` it, or call `result()`."""

    __slots__ = ("_slot", "_state")

    def __init__(self, state: State, slot: Slot) -> None:
        self._state = state
        self._slot = slot

    def __await__(self) -> Generator[Any, None, Any]:
        yield from self._state._run.arrival(self._slot.ready).__await__()
        return self._slot.value()

    def result(self) -> Any:
        """Wait for the value."""
        self._state._run.wait_until(self._slot.ready)
        return self._slot.value()


def _defined_or_over(state: State, name: str) -> bool:
    return name in state or state._run.function_ended


def _content(read: LaneRead) -> protocol.LaneContent:
    if read.content is None:
        raise read.failure or ProgramError("the lane's text is gone")
    return read.content


def _cancelled(run: Run) -> BranchlineError:
    from branchline.lang.errors import Cancelled

    return Cancelled("the branch was cancelled", program=run.name)
