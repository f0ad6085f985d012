"""Which backend a program runs on when none is named.

Order: the one given, the one of the running program or innermost `with`, the default set by
`set_default_backend`, and at last an engine with the default model, started on first use.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Self

from branchline.lang.errors import InvalidRequest

if TYPE_CHECKING:
    from branchline.runtime.programs.protocol import OpenProgram, ProgramBackend, Session, Sink

_scoped: ContextVar[tuple[ProgramBackend, ...]] = ContextVar("branchline_backend", default=())


class _Default:
    """The process's default backend. The one place where the language keeps something global."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.backend: ProgramBackend | None = None


_default = _Default()


class Backend(ABC):
    """Base of the backends users make: a `ProgramBackend` that `with` makes the current one.

    Leaving the `with` block does not close it.

    Attributes:
        name: for messages.
        features: see `ProgramBackend`.
        sampling_defaults: weakest layer of sampling options of every program that runs here.
    """

    name: str
    features: frozenset[str]
    sampling_defaults: dict[str, Any]

    @abstractmethod
    def open(self, program: OpenProgram, sink: Sink) -> Session:
        """Start a program; see `ProgramBackend`."""

    @abstractmethod
    def flush_cache(self) -> None:
        """Forget all cached prefixes."""

    @abstractmethod
    def info(self) -> dict[str, Any]:
        """What runs here."""

    @abstractmethod
    def close(self) -> None:
        """End all programs and free everything. May be called again."""

    def __enter__(self) -> Self:
        _scoped.set((*_scoped.get(), self))
        return self

    def __exit__(self, *_: object) -> None:
        _scoped.set(_scoped.get()[:-1])


@contextmanager
def using(backend: ProgramBackend) -> Iterator[None]:
    """Programs started inside run on `backend` unless they name another."""
    token = _scoped.set((*_scoped.get(), backend))
    try:
        yield
    finally:
        _scoped.reset(token)


def set_default_backend(backend: ProgramBackend | None) -> None:
    """Programs run on `backend` where no other is named; None = an engine on first use.

    Raises `InvalidRequest` for something that is not a backend.
    """
    if backend is not None:
        _check(backend)
    with _default.lock:
        _default.backend = backend


def resolve_backend(backend: ProgramBackend | None = None) -> ProgramBackend:
    """`backend`, or the current one."""
    if backend is not None:
        return _check(backend)
    scoped = _scoped.get()
    if scoped:
        return scoped[-1]
    with _default.lock:
        if _default.backend is None:
            from branchline.lang.backends.engine import Engine

            _default.backend = Engine()
        return _default.backend


def _check(backend: ProgramBackend) -> ProgramBackend:
    if not callable(getattr(backend, "open", None)):
        raise InvalidRequest(
            "not a backend", value=backend, hint="Use Engine(...), Mock(...) or another backend."
        )
    return backend
