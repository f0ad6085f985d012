"""A program: a Python function whose first parameter is the state, and the ways to run it.

Invariant: a keyword of `run` that the function has as a parameter is the function's, whatever else
it may mean. Knows how to sort arguments; running itself is `runner`, `stream` and `batch`.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from branchline.lang.compat import modern_run_options
from branchline.lang.compat_call import Invocation
from branchline.lang.errors import InvalidOption, ProgramError
from branchline.lang.expressions import ProgramCall
from branchline.lang.markers import Box
from branchline.lang.sampling import (
    DEFAULT_NAMES,
    build,
    check_names,
    output_options,
    request_options,
)

if TYPE_CHECKING:
    from branchline.lang.batch import OnError
    from branchline.lang.events import StreamEvent
    from branchline.lang.state import State
    from branchline.runtime.programs.graph import RequestGraph
    from branchline.runtime.programs.protocol import ProgramBackend

RUN_NAMES = frozenset({"backend", "deadline_s", "priority", "adapter"}) | DEFAULT_NAMES


class Call(NamedTuple):
    """One run that is about to begin.

    Attributes:
        defaults: sampling option layers, the weakest first.
    """

    program: Program
    backend: ProgramBackend
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    defaults: tuple[Mapping[str, Any], ...]
    deadline_s: float | None
    priority: int

    def body(self, state: State) -> Any:
        """Call the function; a coroutine when it is async."""
        return self.program.func(state, *self.args, **self.kwargs)


class Defaults(dict[str, Any]):
    """A layer of sampling options that a program has; what a run says is above all of them."""


class Program:
    """Made by `@function`. Immutable.

    Attributes:
        func: the Python function.
        name: its name, for messages and traces.
        asynchronous: it is an `async def`.
    """

    def __init__(
        self,
        func: Callable[..., Any],
        defaults: Mapping[str, Any],
        bound: Mapping[str, Any] | None = None,
    ) -> None:
        self.func = func
        self.name = getattr(func, "__name__", "program")
        self.asynchronous = inspect.iscoroutinefunction(func)
        self.defaults = Defaults(defaults)
        self.bound = dict(bound or {})
        self.__doc__ = func.__doc__
        self.__name__ = self.name
        self.__wrapped__ = func
        build((self.defaults,), None)  # a wrong default is an error where it is written
        output_options((self.defaults,))
        request_options((self.defaults,))
        self.signature = _signature(func, self.name)
        kinds = inspect.Parameter
        self.parameters = frozenset(
            name
            for name, parameter in self.signature.parameters.items()
            if parameter.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)
        )
        self._open_ended = any(
            parameter.kind is kinds.VAR_KEYWORD for parameter in self.signature.parameters.values()
        )

    def __repr__(self) -> str:
        return f"<program {self.name}{self.signature}>"

    # ---- inside another program

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """With a state first: run inline on it. Without: an expression that does so; outside of
        programs it can be read like the state of a run.
        """
        from branchline.lang.state import State

        if args and isinstance(args[0], State):
            return self.run_inline(args[0], args[1:], kwargs)
        return ProgramCall(Box(Invocation(self, args, kwargs)))

    def run_inline(self, state: State, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run on a state that another program owns; an async program gives a coroutine.

        Raises `ProgramError` for an async program inside a sync one.
        """
        state._check()
        kwargs = {**self.bound, **kwargs}
        self.check_arguments(args, kwargs)
        if not self.asynchronous:
            with self._defaults_of(state):
                return self.func(state, *args, **kwargs)
        if not state._run.asynchronous:
            raise ProgramError(
                f"async program {self.name!r} is called inside a sync one",
                program=state._run.name,
                hint="Make the caller an async def and await it.",
            )
        return self._inline_async(state, args, kwargs)

    async def _inline_async(
        self, state: State, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        with self._defaults_of(state):
            return await self.func(state, *args, **kwargs)

    @contextmanager
    def _defaults_of(self, state: State) -> Iterator[None]:
        """The program's defaults hold for what is appended inside: over those of the programs
        around it and of the backend, below what the run and blocks of the state say.
        """
        layer, layers = Defaults(self.defaults), state._defaults
        at = max((i + 1 for i, each in enumerate(layers) if isinstance(each, Defaults)), default=0)
        state._defaults = (*layers[:at], layer, *layers[at:])
        try:
            yield
        finally:
            # Not what was there before: tasks of an async program may leave in any order.
            state._defaults = tuple([one for one in state._defaults if one is not layer])

    # ---- running

    def run(self, *args: Any, **kwargs: Any) -> State:
        """Run to the end and return the state; its `result` is what the function returned.

        Args:
            args, kwargs: the function's arguments; besides them `backend=`, sampling defaults of
                this run, `deadline_s=` (seconds for the whole program), `priority=`, `adapter=`,
                and `stream=True` (return at once; iterate with `text_iter`).

        Raises:
            InvalidOption: a keyword that neither the function nor `run` has.
            BranchlineError: the first error of the program; exceptions of the function as they are.
        """
        from branchline.lang import runner

        if "stream" not in self.parameters and kwargs.pop("stream", False):
            from branchline.lang.stream import LiveState

            return LiveState(self.call(args, kwargs))  # type: ignore[return-value]
        return runner.run(self.call(args, kwargs))

    async def arun(self, *args: Any, **kwargs: Any) -> State:
        """Like `run`, on the running event loop."""
        from branchline.lang import runner

        return await runner.arun(self.call(args, kwargs))

    def stream(self, *args: Any, **kwargs: Any) -> Iterator[StreamEvent]:
        """Run and iterate over `TextDelta`, `VariableReady` and at last `Done`.

        A failure is raised inside the loop. Leaving the loop cancels the program.
        """
        from branchline.lang.stream import stream

        return stream(self.call(args, kwargs))

    def astream(self, *args: Any, **kwargs: Any) -> AsyncIterator[StreamEvent]:
        """Like `stream`, on the running event loop."""
        from branchline.lang.stream import astream

        return astream(self.call(args, kwargs))

    def run_batch(
        self,
        items: Iterable[Any],
        *,
        backend: ProgramBackend | None = None,
        max_concurrency: int | None = None,
        on_error: OnError = "raise",
        progress: bool = False,
        workers: int | None = None,
        **options: Any,
    ) -> list[Any]:
        """Run once for each item, many at once; states in the order of the items.

        Args:
            items: each a dict of keyword arguments, a tuple of positional ones, or one argument.
            max_concurrency: programs alive at a time; None = 16,384.
            on_error: "raise": the first error ends the batch. "return": the exception stands in
                the failed item's place.
            progress: show a progress bar.
            workers: run the programs on this many threads, for programs that block on I/O of
                their own; None = all in this thread, switching where they wait.
            options: sampling defaults of these runs, as for `run`.
        """
        from branchline.lang import batch

        limits = batch.limits(max_concurrency, on_error, progress, workers, options)
        calls = self._calls(items, backend, options)
        return batch.run_batch(calls, limits, asynchronous=self.asynchronous)

    async def arun_batch(
        self,
        items: Iterable[Any],
        *,
        backend: ProgramBackend | None = None,
        max_concurrency: int | None = None,
        on_error: Literal["raise", "return"] = "raise",
        progress: bool = False,
        **options: Any,
    ) -> list[Any]:
        """Like `run_batch`, on the running event loop."""
        from branchline.lang import batch

        limits = batch.limits(max_concurrency, on_error, progress, None, options)
        return await batch.arun_batch(self._calls(items, backend, options), limits)

    def _calls(
        self, items: Iterable[Any], backend: ProgramBackend | None, options: dict[str, Any]
    ) -> list[Callable[[], Call]]:
        """For each item a function that sorts its arguments, or raises what is wrong with them."""
        from branchline.lang.backends.base import resolve_backend

        options = modern_run_options(options, ())
        check_names(options, RUN_NAMES, "run_batch()")
        backend = resolve_backend(backend)

        def later(item: Any) -> Callable[[], Call]:
            if isinstance(item, Mapping):
                args, kwargs = (), dict(item)
            else:
                args, kwargs = item if isinstance(item, tuple) else (item,), {}
            return lambda: self.call(args, kwargs, options, backend)

        return [later(item) for item in items]

    def bind(self, **kwargs: Any) -> Program:
        """The same program with some arguments given.

        Raises `InvalidOption` for an argument it does not have.
        """
        if not self._open_ended:
            check_names(kwargs, self.parameters, f"program {self.name!r}")
        return Program(self.func, self.defaults, {**self.bound, **kwargs})

    def trace(self, *args: Any, **kwargs: Any) -> RequestGraph:
        """Run with placeholders instead of a model; the request graph.

        Arguments that are left out and have no default become placeholders too. Where control flow
        depends on a placeholder, one way is taken and a dynamic edge says so.
        """
        from branchline.lang.tracer import trace

        return trace(self, args, {**self.bound, **kwargs})

    # ---- arguments

    def call(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        options: Mapping[str, Any] | None = None,
        backend: ProgramBackend | None = None,
    ) -> Call:
        """Sort keywords into the function's and the run's; the function's come first."""
        from branchline.lang.backends.base import resolve_backend

        own: dict[str, Any] = dict(self.bound)
        of_run: dict[str, Any] = dict(options or {})
        for name, value in modern_run_options(kwargs, self.parameters).items():
            if name not in self.parameters and name in RUN_NAMES:
                of_run[name] = value
            else:
                own[name] = value
        self.check_arguments(args, own)
        backend = resolve_backend(of_run.pop("backend", None) or backend)
        how = {name: of_run.pop(name, None) for name in ("deadline_s", "priority")}
        how = request_options([how])
        layers = (getattr(backend, "sampling_defaults", {}), self.defaults, of_run)
        if of_run:
            build(layers, None)
            output_options(layers)
            request_options(layers)
        return Call(self, backend, args, own, layers, how.get("deadline_s"), how.get("priority", 0))

    def check_arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Raise `InvalidOption` when the function cannot be called like this."""
        try:
            self.signature.bind(*args, **kwargs)
        except TypeError as error:
            if not self._open_ended:
                known = self.parameters | RUN_NAMES
                check_names(kwargs, known, f"program {self.name!r}")
            raise InvalidOption(
                f"program {self.name!r} cannot be called like this: {error}",
                program=self.name,
                hint=f"Its arguments are {self.signature}.",
            ) from error


def _signature(func: Callable[..., Any], name: str) -> inspect.Signature:
    """The signature without the state; `ProgramError` when `func` cannot be a program."""
    if inspect.isgeneratorfunction(func) or inspect.isasyncgenfunction(func):
        raise ProgramError(
            f"{name!r} is a generator function", hint="A program returns; it does not yield."
        )
    signature = inspect.signature(func)
    parameters = list(signature.parameters.values())
    kinds = inspect.Parameter
    if not parameters or parameters[0].kind not in (
        kinds.POSITIONAL_ONLY,
        kinds.POSITIONAL_OR_KEYWORD,
    ):
        raise ProgramError(
            f"{name!r} has no first parameter for the state", hint="Write def f(s, …)."
        )
    return signature.replace(parameters=parameters[1:])
