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

from branchline.runtime.errors import BackendError, UnsupportedConstraint, from_wire
from branchline.runtime.grammar.base import GrammarTokenizer
from branchline.runtime.grammar.limits import DEFAULT_LIMITS, Limits
from branchline.runtime.grammar.worker_protocol import HEADER_BYTES, Answer, Hello, Job, framed

COMMAND = ("-m", "branchline.runtime.grammar.worker_main")
START_S = 60.0
"""A process may take this long to start."""


class WorkerGone(Exception):
    """The process ended instead of answering; what it said last."""


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

    def compile(self, job: Job) -> bytes:
        """Have a job done; waits for a free process.

        Raises:
            UnsupportedConstraint: it cannot be compiled, or not within the limits.
            InvalidRequest: it is malformed.
            BackendError: the pool is closed.
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

    def _ask(self, process: _Process, job: Job) -> Answer:
        try:
            if process.ensure():
                self.started += 1
            return process.ask(job, self._limits.compile_s)
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


class _Process:
    """One worker process, started again when it has ended. One caller at a time."""

    def __init__(self, hello: Hello) -> None:
        self._hello = hello
        self._process: subprocess.Popen[bytes] | None = None
        self._said: IO[bytes] | None = None
        self._lock = threading.Lock()
        self._decoder = msgspec.msgpack.Decoder(Answer)

    def ensure(self) -> bool:
        """Start it if it does not run; True when it was started.

        Raises:
            WorkerGone, TimeoutError: it does not start.
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
            [sys.executable, *COMMAND],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            bufsize=0,
            env=environment,
        )
        with self._lock:
            self._process, self._said = process, said
        self._exchange(framed(self._hello), START_S)
        return True

    def ask(self, job: Job, limit_s: float) -> Answer:
        """One job.

        Raises:
            TimeoutError: no answer within `limit_s`; the process must be killed.
            WorkerGone: it ended.
        """
        try:
            return self._exchange(framed(job), limit_s)
        except WorkerGone:
            if self._process is None or self._process.poll() != 0:
                raise
            # It ended itself for lack of work between the look at it and the writing.
            self.ensure()
            return self._exchange(framed(job), limit_s)

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

    def _exchange(self, message: bytes, limit_s: float) -> Answer:
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise WorkerGone("it was stopped")
        deadline = time.monotonic() + limit_s
        try:
            view = memoryview(message)
            while view:
                view = view[process.stdin.write(view) :]
        except BrokenPipeError:
            raise WorkerGone(self._last_words()) from None
        head = self._read(process.stdout, HEADER_BYTES, deadline)
        body = self._read(process.stdout, int.from_bytes(head, "big"), deadline)
        return self._decoder.decode(body)

    def _read(self, pipe: IO[bytes], count: int, deadline: float) -> bytes:
        parts: list[bytes] = []
        poll = select.poll()
        poll.register(pipe, select.POLLIN)
        while count:
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                raise TimeoutError
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
