"""Many runs of one program at once, results in the order of the items.

Sync programs share this thread and switch where they wait, so ten thousand need no thread each.
The prefix that all of them share is computed once by the engine, which sees equal prefixes in
flight; nothing has to be found out here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from branchline.lang import runner, waiting
from branchline.lang.errors import InvalidRequest, UnsupportedFeature

if TYPE_CHECKING:
    from branchline.lang.program import Call

OnError = Literal["raise", "return"]
MAX_CONCURRENCY = 16_384

MakeCall = Callable[[], "Call"]


class Limits(NamedTuple):
    """How a batch runs."""

    concurrency: int
    on_error: OnError
    progress: bool
    workers: int | None


def limits(
    concurrency: int | None,
    on_error: OnError,
    progress: bool,
    workers: int | None,
    options: dict[str, Any],
) -> Limits:
    """Check a batch's settings; takes the old names `num_threads` and `progress_bar` out of
    `options`. `InvalidRequest` names a wrong one.
    """
    threads = options.pop("num_threads", None)
    if concurrency is None and isinstance(threads, int):
        concurrency = threads
    progress = progress or bool(options.pop("progress_bar", False))
    if options.pop("generator_style", False):
        raise UnsupportedFeature(
            "run_batch returns a list", value="generator_style", hint="Iterate over the list."
        )
    for name, value in (("max_concurrency", concurrency), ("workers", workers)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise InvalidRequest(f"{name} is out of range", value=value, hint="Use at least 1.")
    if on_error not in get_args(OnError):
        raise InvalidRequest("unknown on_error", value=on_error, hint="Use 'raise' or 'return'.")
    return Limits(concurrency or MAX_CONCURRENCY, on_error, progress, workers)


class _Results:
    """Results in order; turns an item into a job that never raises unless the batch must end."""

    def __init__(self, calls: list[MakeCall], on_error: OnError) -> None:
        self.calls = calls
        self.on_error = on_error
        self.items: list[Any] = [None] * len(calls)
        self.advance: Callable[[], None] = lambda: None

    def keep(self, index: int, run: Callable[[], Any]) -> None:
        """Run one item."""
        try:
            self.items[index] = run()
        except Exception as error:
            self.failed(index, error)
        self.advance()

    async def akeep(self, index: int) -> None:
        """Like `keep`, on the running event loop."""
        try:
            self.items[index] = await runner.arun(self.calls[index]())
        except Exception as error:
            self.failed(index, error)
        self.advance()

    def failed(self, index: int, error: Exception) -> None:
        """Keep the error, or raise it with a note that says which item it was."""
        if self.on_error == "raise":
            error.add_note(f"in item {index} of the batch")
            raise error
        self.items[index] = error

    def jobs(self) -> Iterator[Callable[[], None]]:
        """One job an item, made when it is about to start."""
        for index, make in enumerate(self.calls):
            yield partial(self.keep, index, partial(_run, make))


def _run(make: MakeCall) -> Any:
    return runner.run(make())


def run_batch(calls: list[MakeCall], limits: Limits, *, asynchronous: bool) -> list[Any]:
    """States, or with on_error="return" exceptions in the places of failed items.

    Args:
        asynchronous: the program is an `async def`.
    """
    results = _Results(calls, limits.on_error)
    with _progress(results, limits.progress):
        if limits.workers is not None:
            _run_on_threads(results, limits.workers)
        elif asynchronous:
            runner.run_coroutine(lambda: _gather(results, limits.concurrency))
        else:
            waiting.Group(results.jobs(), limits.concurrency).run()
    return results.items


async def arun_batch(calls: list[MakeCall], limits: Limits) -> list[Any]:
    """Like `run_batch`, on the running event loop."""
    results = _Results(calls, limits.on_error)
    with _progress(results, limits.progress):
        await _gather(results, limits.concurrency)
    return results.items


async def _gather(results: _Results, concurrency: int) -> None:
    import asyncio

    items = iter(range(len(results.calls)))

    async def worker() -> None:
        for index in items:
            await results.akeep(index)

    tasks = [asyncio.ensure_future(worker()) for _ in range(min(concurrency, len(results.calls)))]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _run_on_threads(results: _Results, workers: int) -> None:
    """Each thread takes the next item; after a failure that ends the batch none takes another."""
    jobs = results.jobs()
    lock = threading.Lock()
    failures: list[BaseException] = []

    def work() -> None:
        while not failures:
            with lock:
                job = next(jobs, None)
            if job is None:
                return
            try:
                job()
            except BaseException as error:
                failures.append(error)

    def run_all() -> None:
        threads = [
            threading.Thread(
                target=copy_context().run, args=(work,), name=f"branchline-worker-{n}", daemon=True
            )
            for n in range(min(workers, len(results.calls)))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    if waiting.current_program() is None:
        run_all()
    else:
        runner.in_thread(run_all)
    if failures:
        raise failures[0]


@contextmanager
def _progress(results: _Results, wanted: bool) -> Iterator[None]:
    """A progress bar over the items, if wanted."""
    if not wanted:
        yield
        return
    from rich.progress import Progress

    with Progress(transient=True) as bar:
        task = bar.add_task("programs", total=len(results.calls))
        results.advance = lambda: bar.advance(task)
        yield
