"""Compile workers: processes that are killed when a compile takes too long or too much.

Invariant: a call ends, with data or with a typed error, within its limit plus the start of a
process; whatever an engine does, this process goes on. Workers start when they are first needed and
end themselves when idle.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from typing import IO

import msgspec
import psutil

from branchline.runtime.errors import BackendError, UnsupportedConstraint, from_wire
from branchline.runtime.grammar.base import GrammarTokenizer
from branchline.runtime.grammar.limits import DEFAULT_LIMITS, Limits
from branchline.runtime.grammar.worker_protocol import (
    BACKGROUND,
    HEADER_BYTES,
    Answer,
    Hello,
    Job,
    framed,
)

COMMAND = ("-P", "-m", "branchline.runtime.grammar.worker_main")
"""-P: a file of the working folder must not stand in for a module."""
START_S = 60.0
"""A process may take this long to start."""
PATIENCE_S = 1.0
"""After this long it is looked at whether a process gets any processor time at all."""
STARVED_SHARE = 0.02
"""Of one core: with less than this a job is done again by a process that asks for its turn."""
STARTING_SHARE = 0.2
"""Likewise while it starts, which takes about 0.4 s of the processor."""
LATER = 3.0
"""So many times `PATIENCE_S` after its begin a job is looked at again, ..."""
LATER_SHARE = 0.2
"""... and must have had this much of a core."""
OVERTIME = 3.0
"""A job that had less than half of its limit as time of the processor may take so many limits."""


class WorkerGone(Exception):
    """The process ended instead of answering; what it said last."""


class WorkerStarved(Exception):
    """The process has hardly run: others take all of the machine."""


class WorkerPool:
    """Up to `size` compile processes for one tokenizer. Safe to use from several threads.

    Args:
        tokenizer: see `GrammarTokenizer`.
        vocab_size: number of logits.
        size: compiles at once; more callers wait.
        limits: see `Limits`.
    """

    def __init__(
        self,
        tokenizer: GrammarTokenizer,
        *,
        vocab_size: int,
        size: int = 2,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self._limits = limits
        self._hello = Hello(
            tokens=[bytes(token) for token in tokenizer.all_token_bytes()],
            special_ids=sorted(tokenizer.special_ids),
            eos_ids=sorted(tokenizer.eos_ids),
            vocab_size=vocab_size,
            limits=limits,
        )
        self._free: list[_Process | None] = [None] * size
        self._busy: set[_Process] = set()
        self._turn = threading.Condition()
        self._closed = False
        self.started = 0
        self.killed = 0
        self.starved = 0

    def compile(self, job: Job) -> bytes:
        """Have a job done; waits for a free process.

        Raises:
            UnsupportedConstraint: it cannot be compiled, or not within the limits.
            InvalidRequest: it is malformed.
            BackendError: the pool is closed, or no process starts.
        """
        deadline = time.monotonic() + START_S + self._limits.compile_s
        process = self._take(deadline)
        try:
            answer = self._ask(process, job)
        finally:
            self._give(process)
        if answer.error is not None:
            raise from_wire(dict(answer.error))
        return answer.data

    def close(self) -> None:
        """End all processes; calls under way fail."""
        with self._turn:
            self._closed = True
            processes = [*self._busy, *(one for one in self._free if one is not None)]
            self._free = [None for _ in self._free]
            self._turn.notify_all()
            busy = set(self._busy)
        for process in processes:
            if process in busy:
                process.stop()  # whoever waits for it cleans up
            else:
                process.kill()

    def _take(self, deadline: float) -> _Process:
        with self._turn:
            while not self._free and not self._closed:
                if not self._turn.wait(deadline - time.monotonic()):
                    raise BackendError(
                        "no compile worker became free", hint="Try again.", retryable=True
                    )
            if self._closed:
                raise BackendError("the compile workers are closed")
            process = self._free.pop() or _Process(self._hello)
            self._busy.add(process)
        return process

    def _give(self, process: _Process) -> None:
        with self._turn:
            self._busy.discard(process)
            self._free.append(process)
            self._turn.notify()
            if self._closed:  # and it had not begun when the others were ended
                process.kill()

    def _ask(self, process: _Process, job: Job) -> Answer:
        try:
            try:
                self._start(process)
                return process.ask(job, self._limits.compile_s)
            except WorkerStarved:
                self.starved += 1
                return self._ask_urgently(process, job)
        except TimeoutError as error:
            process.kill()
            self.killed += 1
            raise UnsupportedConstraint(
                f"the constraint took {job.backend} more than {self._limits.compile_s:g} s to "
                "compile (limit compile_s)",
                hint="Simplify it.",
            ) from error
        except WorkerGone as error:
            process.kill()
            if self._closed:
                raise BackendError("the compile workers were closed") from error
            self.killed += 1
            raise UnsupportedConstraint(
                f"the constraint made {job.backend} fail, most likely by needing more than "
                f"{self._limits.worker_bytes >> 20} MB (limit worker_bytes): {error}",
                hint="Simplify it.",
            ) from error

    def _start(self, process: _Process, *, background: bool = True) -> None:
        """Have a process run. Raises BackendError: it does not, whatever the constraint is."""
        try:
            if process.ensure(background=background):
                self.started += 1
        except WorkerStarved:
            self.started += 1
            raise
        except (TimeoutError, WorkerGone) as error:
            process.kill()
            if self._closed:
                raise BackendError("the compile workers were closed") from error
            why = str(error) or f"it took more than {START_S:g} s"
            raise BackendError(
                f"a compile worker did not start: {why}", hint="Try again.", retryable=True
            ) from error

    def _ask_urgently(self, process: _Process, job: Job) -> Answer:
        """Have a job done by a process of its own that takes its turns like any other."""
        process.kill()
        self._start(process, background=False)
        answer = process.ask(job, self._limits.compile_s)
        process.kill()
        return answer


class _Process:
    """One worker process, started again when it has ended. One caller at a time."""

    def __init__(self, hello: Hello) -> None:
        self._hello = hello
        self._process: subprocess.Popen[bytes] | None = None
        self._said: IO[bytes] | None = None
        self._background = True
        self._lock = threading.Lock()
        self._decoder = msgspec.msgpack.Decoder(Answer)

    @property
    def pid(self) -> int:
        """Of the process; 0 when it does not run."""
        return 0 if self._process is None else self._process.pid

    def ensure(self, *, background: bool = True) -> bool:
        """Start it if it does not run; True when it was started.

        Args:
            background: take only time of the processor that nobody else wants.

        Raises:
            WorkerGone, TimeoutError: it does not start.
            WorkerStarved: it hardly gets to it in the background.
        """
        if self._process is not None and self._process.poll() is None:
            return False
        self.kill()
        # A file, not a pipe: nobody need read it, and its end says why a process ended.
        said = tempfile.TemporaryFile()  # noqa: SIM115
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "RAYON_NUM_THREADS": "1",
        }
        process = subprocess.Popen(
            [sys.executable, *COMMAND, *([BACKGROUND] if background else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            bufsize=0,
            env=environment,
        )
        assert process.stdin is not None
        os.set_blocking(process.stdin.fileno(), False)
        with self._lock:
            self._process, self._said = process, said
        self._background = background
        self._exchange(framed(self._hello), START_S, STARTING_SHARE)
        return True

    def ask(self, job: Job, limit_s: float) -> Answer:
        """One job.

        Raises:
            TimeoutError: no answer within `limit_s`; the process must be killed.
            WorkerGone: it ended.
            WorkerStarved: a process in the background has not really begun.
        """
        try:
            return self._exchange(framed(job), limit_s, STARVED_SHARE)
        except WorkerGone:
            if self._process is None or self._process.poll() != 0:
                raise
            # It ended itself for lack of work between the look at it and the writing.
            self.ensure()
            return self._exchange(framed(job), limit_s, STARVED_SHARE)

    def stop(self) -> None:
        """Have it end, whatever it does; callable while another thread waits for it."""
        with self._lock:
            if self._process is not None:
                self._process.kill()

    def kill(self) -> None:
        """End it and clean up; only while nobody waits for it."""
        with self._lock:
            process, self._process = self._process, None
            said, self._said = self._said, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
        if said is not None:
            said.close()

    def _exchange(self, message: bytes, limit_s: float, least_share: float) -> Answer:
        """Send a message and wait; one in the background must have had so much of a core."""
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise WorkerGone("it was stopped")
        watch = _Watch(process.pid, limit_s, least_share if self._background else 0.0)
        try:
            view = memoryview(message)
            while view:
                watch.wait(process.stdin, select.POLLOUT)
                view = view[os.write(process.stdin.fileno(), view) :]
        except BrokenPipeError:
            raise WorkerGone(self._last_words()) from None
        head = self._read(process.stdout, HEADER_BYTES, watch)
        body = self._read(process.stdout, int.from_bytes(head, "big"), watch)
        return self._decoder.decode(body)

    def _read(self, pipe: IO[bytes], count: int, watch: _Watch) -> bytes:
        parts: list[bytes] = []
        while count:
            watch.wait(pipe, select.POLLIN)
            part = pipe.read(count)
            if not part:
                raise WorkerGone(self._last_words())
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def _last_words(self) -> str:
        process, said = self._process, self._said
        if process is None or said is None:
            return "it was stopped"
        code = process.wait()
        how = f"ended with {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
        size = os.fstat(said.fileno()).st_size
        words = os.pread(said.fileno(), 300, max(0, size - 300)).decode(errors="replace")
        return " ".join(f"{how} {words}".split())


class _Watch:
    """One exchange with a process: how long it may take, and whether the process gets to it.

    Args:
        limit_s: seconds of wall time, when it gets at least half of a core.
        least_share: of a core, during the first `PATIENCE_S`; 0 = it may have less.
    """

    def __init__(self, pid: int, limit_s: float, least_share: float) -> None:
        self._pid = pid
        self._begin = time.monotonic()
        self._limit_s = limit_s
        self._deadline = self._begin + limit_s
        self._looks = [(PATIENCE_S, least_share), (LATER * PATIENCE_S, LATER_SHARE)]
        if not least_share:
            self._looks = []
        self._background = bool(least_share)
        self._used = _cpu_seconds(pid)

    def wait(self, pipe: IO[bytes], event: int) -> None:
        """Until there is something to read, or room to write, or the other end is closed.

        Raises:
            TimeoutError: the time is over.
            WorkerStarved: the process has hardly run.
        """
        poll = select.poll()
        poll.register(pipe, event)
        while not poll.poll(1000 * max(0.0, self._next() - time.monotonic())):
            now = time.monotonic()
            if now >= self._deadline:
                self._late()
            if self._looks and now >= self._begin + self._looks[0][0]:
                after, share = self._looks.pop(0)
                if self._had() < share * after and _runs(self._pid):
                    raise WorkerStarved

    def _next(self) -> float:
        """When to look at it."""
        look = self._begin + self._looks[0][0] if self._looks else self._deadline
        return min(self._deadline, look)

    def _had(self) -> float:
        """Seconds of the processor since the begin."""
        return _cpu_seconds(self._pid) - self._used

    def _late(self) -> None:
        """The limit is over: whether that is the job's fault."""
        last = self._begin + OVERTIME * self._limit_s
        if self._deadline >= last or self._had() >= self._limit_s / 2 or not _runs(self._pid):
            raise TimeoutError
        if self._background:
            raise WorkerStarved
        self._deadline = last


def _cpu_seconds(pid: int) -> float:
    """Processor time that a process has had."""
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:  # it has just ended, which whoever reads from it finds out
        return 0.0
    return float(times.user + times.system)


def _runs(pid: int) -> bool:
    """Whether it has not ended."""
    with contextlib.suppress(psutil.Error):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False
