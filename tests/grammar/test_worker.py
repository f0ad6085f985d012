"""Compile workers: they answer, are killed, run out of memory, crash, idle out, and close."""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import msgspec
import psutil
import pytest

from branchline.runtime.core.sampling_params import Constraint
from branchline.runtime.errors import BackendError, InvalidRequest, UnsupportedConstraint
from branchline.runtime.grammar import worker
from branchline.runtime.grammar.limits import Limits
from branchline.runtime.grammar.worker import WorkerPool
from branchline.runtime.grammar.worker_protocol import Answer, Job
from tests.support.byte_vocabulary import ByteVocabulary

_ELSEWHERE: set[int] = set()


@pytest.fixture(autouse=True)
def _workers_of_other_tests() -> None:
    """Processes that tests of other rooms have left to their idle limit are not this test's."""
    _ELSEWHERE.clear()
    _ELSEWHERE.update(process.pid for process in psutil.Process().children())


def own_children() -> list[psutil.Process]:
    """Processes that this test has started."""
    return [process for process in psutil.Process().children() if process.pid not in _ELSEWHERE]


class EveryPair(ByteVocabulary):
    """All pairs of lower-case letters, too, so that automata get large."""

    def all_token_bytes(self) -> list[bytes]:
        letters = [bytes([i]) for i in range(97, 123)]
        return [*super().all_token_bytes(), *(a + b for a in letters for b in letters)]


def processes(pool: WorkerPool) -> int:
    """Started ones, without those for jobs that a busy machine starved: one for the job, and one
    in place of the one that was given up, which the next job would bring."""
    return pool.started - 2 * pool.starved + (pool.starved > 0 and not own_children())


def idle_worker(pool: WorkerPool) -> psutil.Process:
    """The pool's process, once it has done a job without being starved."""
    while not own_children():
        pool.compile(regex("a+"))
    (child,) = own_children()
    return child


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    made = WorkerPool(ByteVocabulary(), vocab_size=257, size=1, limits=Limits(compile_s=5.0))
    yield made
    made.close()


@contextlib.contextmanager
def silent_pipe() -> Iterator[IO[bytes]]:
    """The end to read from of a pipe into which nobody writes."""
    read, write = os.pipe()
    with open(read, "rb") as end, open(write, "wb"):
        yield end


def regex(text: str) -> Job:
    return Job("llguidance", Constraint(kind="regex", text=text))


def ebnf(text: str) -> Job:
    return Job("xgrammar", Constraint(kind="ebnf", text=text))


def test_jobs_of_every_backend_and_errors_that_keep_their_type(pool: WorkerPool) -> None:
    assert b"grammars" in pool.compile(regex("a+"))
    assert b"__VERSION__" in pool.compile(ebnf('root ::= "a"'))
    assert len(pool.compile(Job("outlines", Constraint(kind="regex", text="ab")))) > 20
    with pytest.raises(InvalidRequest, match="not closed"):
        pool.compile(regex("(a"))
    with pytest.raises(UnsupportedConstraint, match="lookahead"):
        pool.compile(regex("(?=a)b"))
    with pytest.raises(UnsupportedConstraint, match="never end"):
        pool.compile(ebnf("root ::= root"))
    assert (processes(pool), pool.killed) == (1, 0)


def test_a_compile_that_takes_too_long_is_killed_and_the_next_one_works() -> None:
    pool = WorkerPool(EveryPair(), vocab_size=933, size=1, limits=Limits(compile_s=0.5))
    try:
        begun = time.monotonic()
        with pytest.raises(UnsupportedConstraint, match="limit compile_s"):
            pool.compile(Job("outlines", Constraint(kind="regex", text="(.*a.{14}){3}")))
        assert time.monotonic() - begun < 20
        assert b"grammars" in pool.compile(regex("a+"))
        # A starved job takes a process of its own, which is the one that is killed here.
        assert (pool.started - pool.starved, pool.killed) == (2, 1)
    finally:
        pool.close()


def test_a_compile_that_takes_too_much_memory_ends_alone() -> None:
    limits = Limits(compile_s=60.0, worker_bytes=64 << 20)
    pool = WorkerPool(EveryPair(), vocab_size=933, size=1, limits=limits)
    try:
        with pytest.raises(UnsupportedConstraint, match="limit worker_bytes"):
            pool.compile(Job("outlines", Constraint(kind="regex", text="(.*a.{14}){3}")))
        assert b"grammars" in pool.compile(regex("a+"))
    finally:
        pool.close()


def test_a_result_that_is_too_large_is_refused() -> None:
    limits = Limits(compiled_bytes=1000)
    pool = WorkerPool(ByteVocabulary(), vocab_size=257, size=1, limits=limits)
    try:
        with pytest.raises(UnsupportedConstraint, match="limit compiled_bytes"):
            pool.compile(ebnf("root ::= [a-z]{1,100}"))
    finally:
        pool.close()


def test_a_worker_without_work_ends_and_another_one_starts() -> None:
    limits = Limits(worker_idle_s=0.1)
    pool = WorkerPool(ByteVocabulary(), vocab_size=257, size=1, limits=limits)
    try:
        pool.compile(regex("a+"))
        starved = pool.starved  # then its worker is gone already, and none ends for want of work
        for _ in range(200):
            if not [one for one in own_children() if one.status() != "zombie"]:
                break
            time.sleep(0.02)
        else:
            raise AssertionError("the worker did not end")
        pool.compile(regex("b+"))
        assert (processes(pool), pool.killed) == (2 - starved, 0)
    finally:
        pool.close()


def test_more_callers_than_workers_take_turns(pool: WorkerPool) -> None:
    done: list[bytes] = []
    threads = [
        threading.Thread(target=lambda i=i: done.append(pool.compile(regex(f"a{i}"))))  # type: ignore[misc]
        for i in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(done) == 6 and processes(pool) == 1


def test_closing_ends_processes_and_calls() -> None:
    pool = WorkerPool(EveryPair(), vocab_size=933, size=1, limits=Limits(compile_s=60.0))
    pool.compile(regex("a+"))
    failed: list[Exception] = []

    def call() -> None:
        try:
            pool.compile(Job("outlines", Constraint(kind="regex", text="(.*a.{14}){3}")))
        except BackendError as error:
            failed.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    time.sleep(0.3)
    children = own_children()
    pool.close()
    thread.join(20)
    assert not thread.is_alive() and len(failed) == 1
    gone, alive = psutil.wait_procs(children, timeout=10)
    assert gone and not alive
    with pytest.raises(BackendError, match="closed"):
        pool.compile(regex("a"))


@pytest.mark.parametrize(
    ("code", "start_s", "why"),
    [("import time; time.sleep(60)", 0.5, "0.5 s"), ("raise SystemExit(3)", 60.0, "with 3")],
)
def test_a_worker_that_does_not_start_is_no_fault_of_the_constraint(
    code: str, start_s: float, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "COMMAND", ("-c", code))
    monkeypatch.setattr(worker, "START_S", start_s)
    pool = WorkerPool(ByteVocabulary(), vocab_size=257, size=1)
    try:
        with pytest.raises(BackendError, match=why) as raised:
            pool.compile(regex("a+"))
        assert raised.value.retryable and not own_children()
        monkeypatch.undo()
        assert b"grammars" in pool.compile(regex("a+"))
    finally:
        pool.close()


def test_closing_ends_a_process_that_is_just_being_started(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = WorkerPool(ByteVocabulary(), vocab_size=257, size=1)
    ensure = worker._Process.ensure

    def closed_before(process: worker._Process, *, background: bool = True) -> bool:
        pool.close()  # finds nothing to stop yet
        return ensure(process, background=background)

    monkeypatch.setattr(worker._Process, "ensure", closed_before)
    pool.compile(regex("a+"))
    assert not own_children()


def test_what_an_engine_prints_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    """xgrammar says on stderr alone what it ignores; our own readers give it nothing of the kind,
    so that one is taken away here."""
    code = (
        "from branchline.runtime.grammar import worker_main, xgrammar_backend\n"
        "xgrammar_backend.engine_source = lambda constraint, limits: 't' + constraint.text\n"
        "worker_main.main()\n"
    )
    monkeypatch.setattr("branchline.runtime.grammar.worker.COMMAND", ("-c", code))
    schema = {"type": "string", "pattern": "a", "maxLength": 3}
    tag = {"type": "structural_tag", "format": {"type": "json_schema", "json_schema": schema}}
    pool = WorkerPool(ByteVocabulary(), vocab_size=257, size=1)
    try:
        constraint = Constraint(kind="structural_tag", text=msgspec.json.encode(tag).decode())
        with pytest.raises(UnsupportedConstraint, match="would not enforce all of it"):
            pool.compile(Job("xgrammar", constraint))
    finally:
        pool.close()


def test_a_worker_takes_only_time_that_nobody_else_wants(pool: WorkerPool) -> None:
    child = idle_worker(pool)
    assert os.sched_getscheduler(child.pid) == os.SCHED_IDLE
    assert os.sched_getscheduler(0) != os.SCHED_IDLE


def test_a_starved_job_is_done_again_by_a_process_that_takes_its_turns(
    pool: WorkerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What makes a machine too busy cannot be had here: the clock of its processes stands still."""
    first, starved, started = idle_worker(pool), pool.starved, pool.started
    monkeypatch.setattr(worker, "PATIENCE_S", 0.001)
    monkeypatch.setattr(worker, "_cpu_seconds", lambda pid: 0.0)
    policies: list[int] = []
    asked = worker._Process.ask

    def ask(process: worker._Process, job: Job, limit_s: float) -> Answer:
        policies.append(os.sched_getscheduler(process.pid))
        return asked(process, job, limit_s)

    monkeypatch.setattr(worker._Process, "ask", ask)
    assert b"__VERSION__" in pool.compile(ebnf("root ::= [a-z]{1,2000}"))
    assert (pool.starved, pool.started, pool.killed) == (starved + 1, started + 1, 0)
    assert policies == [os.SCHED_IDLE, os.SCHED_OTHER]
    assert not own_children() and not psutil.pid_exists(first.pid)
    monkeypatch.undo()
    assert b"grammars" in pool.compile(regex("b+"))


def test_a_worker_that_hardly_starts_is_started_again_with_turns_of_its_own(
    pool: WorkerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while it takes in the vocabulary, which is larger than what a pipe holds."""
    monkeypatch.setattr(worker, "PATIENCE_S", 0.01)
    monkeypatch.setattr(worker, "_cpu_seconds", lambda pid: 0.0)
    asked = worker._Process.ask
    turns: list[tuple[int, int]] = []

    def ask(process: worker._Process, job: Job, limit_s: float) -> Answer:
        nice = os.getpriority(os.PRIO_PROCESS, process.pid)
        turns.append((os.sched_getscheduler(process.pid), nice))
        return asked(process, job, limit_s)

    monkeypatch.setattr(worker._Process, "ask", ask)
    pool._hello = msgspec.structs.replace(pool._hello, tokens=[b"x" * 4000] * 257)
    assert b"__VERSION__" in pool.compile(ebnf('root ::= "a"'))
    assert (pool.starved, pool.started, pool.killed) == (1, 2, 0)
    assert turns == [(os.SCHED_OTHER, os.getpriority(os.PRIO_PROCESS, 0))]


def test_a_job_that_gets_little_of_the_processor_is_starved_at_the_second_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begin = time.monotonic()
    monkeypatch.setattr(worker, "_cpu_seconds", lambda pid: 0.1 * (time.monotonic() - begin))
    monkeypatch.setattr(worker, "PATIENCE_S", 0.05)
    with silent_pipe() as pipe:
        watch = worker._Watch(os.getpid(), 60.0, worker.STARVED_SHARE)
        with pytest.raises(worker.WorkerStarved):
            watch.wait(pipe, select.POLLIN)
    assert time.monotonic() - begin >= 0.15


@pytest.mark.parametrize(
    ("share", "background", "limits", "error"),
    [
        (1.0, True, 1.0, TimeoutError),
        (0.3, True, 1.0, worker.WorkerStarved),
        (1.0, False, 1.0, TimeoutError),
        (0.1, False, worker.OVERTIME, TimeoutError),
    ],
)
def test_a_limit_counts_from_when_a_job_gets_the_processor(
    share: float,
    background: bool,
    limits: float,
    error: type[Exception],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begin, limit_s = time.monotonic(), 0.1
    monkeypatch.setattr(worker, "_cpu_seconds", lambda pid: share * (time.monotonic() - begin))
    with silent_pipe() as pipe:
        watch = worker._Watch(os.getpid(), limit_s, worker.STARVED_SHARE if background else 0.0)
        with pytest.raises(error):
            watch.wait(pipe, select.POLLIN)
    assert time.monotonic() - begin >= limits * limit_s


def test_files_of_the_working_folder_are_no_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("msgspec.py", "branchline/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("raise SystemExit('imported from the working folder')")
    monkeypatch.chdir(tmp_path)
    pool = WorkerPool(ByteVocabulary(), vocab_size=257, size=1)
    try:
        assert b"grammars" in pool.compile(regex("a+"))
    finally:
        pool.close()
