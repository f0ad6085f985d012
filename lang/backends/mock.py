"""The backend for tests of programs: scripted replies, no model, the real executor."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any

from branchline.lang.backends.base import Backend
from branchline.lang.backends.scripted import EventLoop, ScriptedEngine
from branchline.lang.errors import BackendError, InvalidRequest
from branchline.lang.sampling import DEFAULT_NAMES, check_names
from branchline.runtime.programs.executor import Executor
from branchline.runtime.programs.protocol import ENGINE_FEATURES
from branchline.runtime.responses.reasoning import format_named

if TYPE_CHECKING:
    from branchline.runtime.programs.executor import ExecutorStats
    from branchline.runtime.programs.protocol import OpenProgram, Session, Sink

Reply = str | int | float | Enum | BaseException
Replies = Reply | Sequence[Any] | Mapping[str, Any] | Callable[[str, str], Any]


class Mock(Backend):
    """A scripted backend.

    A token is a byte. Stop strings, max_tokens, constraints, deadlines and cancelling work as on an
    engine; a reply that a constraint does not allow is a `ConstraintError`.

    Args:
        replies: one text for everything; a list, used in order; a dict by variable name (each value
            again any of these); or a callable of (name, text so far). A reply that is an exception
            is raised by that variable. For `select`, the choice equal to the reply wins; with no
            reply for it, one that depends on the texts alone.
        latency_s: seconds until each reply.
        sampling_defaults: weakest layer of sampling options.
        adapters: names of the adapters it has; None = any name will do. Replies do not depend on
            them.
        reasoning: name of a reasoning format: replies to the first `gen` of an assistant's turn
            then begin inside a section ("hm</think>\n\n42").
    """

    def __init__(
        self,
        replies: Replies = "",
        *,
        latency_s: float = 0.0,
        sampling_defaults: Mapping[str, Any] | None = None,
        reasoning: str | None = None,
        adapters: Iterable[str] | None = None,
    ) -> None:
        if not latency_s >= 0.0:
            raise InvalidRequest("latency_s is negative", value=latency_s, hint="Use 0 or more.")
        if isinstance(adapters, str):
            raise InvalidRequest(
                "adapters is one text", value=adapters, hint="Give a list of names."
            )
        self.name = "mock"
        self.features = ENGINE_FEATURES
        self.sampling_defaults = dict(sampling_defaults or {})
        check_names(self.sampling_defaults, DEFAULT_NAMES, "sampling_defaults")
        loop = EventLoop()
        format = None if reasoning is None else format_named(reasoning)
        names = None if adapters is None else frozenset(adapters)
        engine = ScriptedEngine(Script(replies).reply, loop, latency_s, format, names)
        self._executor = Executor(engine)
        self._closed = False
        self._stop = weakref.finalize(self, loop.stop)
        self._stop.atexit = False

    def open(self, program: OpenProgram, sink: Sink) -> Session:
        """Start a program; see `ProgramBackend`."""
        if self._closed:
            raise BackendError("the mock is closed", hint="Make a new one.")
        return self._executor.open(program, sink)

    def flush_cache(self) -> None:
        """Nothing is cached."""

    def info(self) -> dict[str, Any]:
        """What this is."""
        return {"backend": self.name, **self._executor.port.info()}

    def stats(self) -> ExecutorStats:
        """Counts of the executor: programs, tokens tokenized, wakes."""
        return self._executor.stats()

    def close(self) -> None:
        """End all programs."""
        if not self._closed:
            self._closed = True
            self._executor.close()
            self._stop()


class Script:
    """Finds the reply of a variable. Lists are used up in order."""

    def __init__(self, replies: Replies) -> None:
        self._replies = replies
        self._used: dict[int, int] = {}
        self._lock = threading.Lock()

    def reply(self, name: str, text: str) -> str | None:
        """The text for variable `name` after `text`; None = nothing is scripted for it.

        Raises the reply when it is an exception, and `BackendError` when a list is used up.
        """
        return self._text(self._replies, name, text)

    def _text(self, replies: Any, name: str, text: str) -> str | None:
        if replies is None or isinstance(replies, str):
            return replies
        if isinstance(replies, BaseException):
            raise replies
        if isinstance(replies, Enum):
            return str(replies.value)
        if isinstance(replies, (bool, int, float)):
            return str(replies)
        if isinstance(replies, Mapping):
            return self._text(replies.get(name), name, text)
        if isinstance(replies, Sequence):
            return self._text(self._next(replies, name), name, text)
        if callable(replies):
            return self._text(replies(name, text), name, text)
        raise InvalidRequest(
            "not a reply", value=replies, variable=name, hint="Use a str, list, dict or callable."
        )

    def _next(self, replies: Sequence[Any], name: str) -> Any:
        with self._lock:
            used = self._used.get(id(replies), 0)
            if used == len(replies):
                raise BackendError(
                    f"the mock's {len(replies)} replies are used up",
                    variable=name,
                    hint="Give it more replies.",
                )
            self._used[id(replies)] = used + 1
        return replies[used]
