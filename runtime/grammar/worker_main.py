"""A process that compiles what might not end. Invariant: it says nothing but answers.

It may take only so much memory, takes only processor time that nobody else wants, and is killed by
its owner when it takes too long. What an engine prints on stderr while it compiles is a warning
that something is ignored: such a grammar is refused. Run as
`python -m branchline.runtime.grammar.worker_main` with pipes.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.util
import os
import resource
import select
import sys
import time
import types
from functools import cached_property
from typing import Any

import msgspec

from branchline.runtime.errors import BranchlineError, UnsupportedConstraint, wrap
from branchline.runtime.grammar.base import Compile
from branchline.runtime.grammar.limits import is_tame
from branchline.runtime.grammar.worker_protocol import (
    BACKGROUND,
    HEADER_BYTES,
    Answer,
    Hello,
    Job,
    framed,
)


class VocabularyTokenizer:
    """A `GrammarTokenizer` of bare token bytes; its encoding is greedy, which compiles alike."""

    def __init__(self, hello: Hello) -> None:
        self.eos_ids = frozenset(hello.eos_ids)
        self.special_ids = frozenset(hello.special_ids)
        self.vocab_size = len(hello.tokens)
        self._tokens = hello.tokens
        barred = self.eos_ids | self.special_ids
        self._ids = {token: i for i, token in enumerate(hello.tokens) if i not in barred}
        self._longest = max(map(len, self._ids), default=0)

    def all_token_bytes(self) -> list[bytes]:
        return self._tokens

    def encode(self, text: str) -> list[int]:
        rest, ids = text.encode(), []
        while rest:
            for length in range(min(self._longest, len(rest)), 0, -1):
                if rest[:length] in self._ids:
                    ids.append(self._ids[rest[:length]])
                    break
            else:
                return ids
            rest = rest[length:]
        return ids


class _Compilers:
    """The engines, each made when it is first needed."""

    def __init__(self, hello: Hello) -> None:
        self._hello = hello
        self._tokenizer = VocabularyTokenizer(hello)

    def run(self, job: Job) -> bytes:
        """Compile.

        Raises:
            BranchlineError: it cannot be done.
        """
        limits = self._hello.limits
        if job.backend == "xgrammar":
            return self._xgrammar(job.constraint)
        if job.backend == "outlines":
            from branchline.runtime.grammar.outlines_backend import compile_automaton

            return compile_automaton(job.constraint, self._tokenizer, limits)
        from branchline.runtime.grammar.llguidance_backend import engine_grammar

        grammar = engine_grammar(job.constraint, limits)
        if not is_tame(job.constraint, grammar):
            self._llguidance.load(job.constraint, grammar)
        return grammar.encode()

    @cached_property
    def _llguidance(self) -> Any:
        from branchline.runtime.grammar.llguidance_backend import LLGuidanceBackend

        return LLGuidanceBackend(
            self._tokenizer,
            vocab_size=self._hello.vocab_size,
            threads=1,
            limits=self._hello.limits,
        )

    @cached_property
    def _xgrammar(self) -> Compile:
        from branchline.runtime.grammar.xgrammar_backend import compiler

        hello = self._hello
        return compiler(_native_xgrammar(), self._tokenizer, hello.vocab_size, hello.limits)


def _native_xgrammar() -> Any:
    """The native module alone: the package imports torch and transformers, which take seconds and
    hundreds of megabytes and compile nothing."""
    spec = importlib.util.find_spec("xgrammar")
    if spec is None or spec.submodule_search_locations is None:
        raise UnsupportedConstraint(
            "the grammar backend xgrammar is not installed", hint="Install branchline[grammars]."
        )
    package = types.ModuleType("xgrammar")
    package.__path__ = list(spec.submodule_search_locations)
    package.__spec__ = spec
    kept = sys.modules.get("torch")
    sys.modules["xgrammar"] = package
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        importlib.import_module("xgrammar.load_binding")
        return importlib.import_module("xgrammar.base")._core
    except (ImportError, AttributeError):
        # Laid out differently from the releases known: take all of it.
        for name in [name for name in sys.modules if name.split(".")[0] == "xgrammar"]:
            del sys.modules[name]
        del sys.modules["torch"]
        importlib.import_module("xgrammar")
        return importlib.import_module("xgrammar.base")._core
    finally:
        if sys.modules.get("torch", kept) is None:
            del sys.modules["torch"]
        if kept is not None:
            sys.modules["torch"] = kept


def _read(fd: int, count: int) -> bytes:
    parts: list[bytes] = []
    while count:
        part = os.read(fd, count)
        if not part:
            raise SystemExit(0)  # the owner is gone
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _message(fd: int) -> bytes:
    return _read(fd, int.from_bytes(_read(fd, HEADER_BYTES), "big"))


def _send(fd: int, answer: Answer) -> None:
    data = memoryview(framed(answer))
    while data:
        data = data[os.write(fd, data) :]


def _printed() -> str:
    """What was written to stderr (a file) since the last call."""
    size = os.fstat(2).st_size
    text = os.pread(2, min(size, 2000), 0).decode(errors="replace")
    os.ftruncate(2, 0)
    os.lseek(2, 0, os.SEEK_SET)
    return text


def _limit_memory(extra: int) -> None:
    """Allow this much address space beyond what is taken now."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        taken = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + extra, resource.RLIM_INFINITY))


def _stand_back() -> None:
    """Let everybody else go first, from now on. At a mere low priority (`nice`) this process would
    take its turns of several milliseconds out of every token of the engine's streams."""
    if hasattr(os, "SCHED_IDLE"):
        with contextlib.suppress(OSError):  # a sandbox may forbid it; the low priority stays
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def _answer(compilers: _Compilers, job: Job, limits_bytes: int) -> Answer:
    _printed()
    begun = time.process_time()
    try:
        data = compilers.run(job)
    except BranchlineError as error:
        return Answer(error=error.to_wire(), seconds=time.process_time() - begun)
    except MemoryError:
        refusal = UnsupportedConstraint(
            "the constraint took more memory than the limit worker_bytes",
            hint="Simplify it.",
        )
        return Answer(error=refusal.to_wire())
    except Exception as error:
        return Answer(error=wrap(error).to_wire())
    seconds = time.process_time() - begun
    warning = " ".join(_printed().split())
    if warning:
        refusal = UnsupportedConstraint(
            f"{job.backend} would not enforce all of it: {warning[-300:]}",
            hint="Rewrite the constraint without that.",
        )
        return Answer(error=refusal.to_wire(), seconds=seconds)
    if len(data) > limits_bytes:
        refusal = UnsupportedConstraint(
            f"the compiled constraint takes {len(data)} bytes (limit compiled_bytes)",
            hint="Simplify it.",
        )
        return Answer(error=refusal.to_wire(), seconds=seconds)
    return Answer(data=data, seconds=seconds)


def main() -> None:
    """Answer jobs until the owner is gone or there is nothing to do."""
    source, out = os.dup(0), os.dup(1)
    os.dup2(2, 1)  # whatever an engine prints is no answer
    background = BACKGROUND in sys.argv[1:]
    if background:
        os.nice(10)  # while it starts; then it stands back altogether
    importlib.import_module("branchline.runtime.grammar.llguidance_backend")
    hello = msgspec.msgpack.decode(_message(source), type=Hello)
    compilers = _Compilers(hello)
    decoder = msgspec.msgpack.Decoder(Job)
    gc.freeze()  # what is there now stays
    gc.disable()
    _send(out, Answer())
    if background:
        _stand_back()
    while select.select([source], [], [], hello.limits.worker_idle_s)[0]:
        job = decoder.decode(_message(source))
        if sys.platform == "linux":
            _limit_memory(hello.limits.worker_bytes)
        _send(out, _answer(compilers, job, hello.limits.compiled_bytes))
        gc.collect()  # between jobs, not within them


if __name__ == "__main__":
    main()
