"""The one tree of errors a user can meet. Lowest room: imports nothing of the project.

    BranchlineError
    ├── ProgramError            a program broke a rule of the language (names, roles, joins)
    ├── BackendError            the engine or server could not do it; `.retryable`: worth a new try
    │   ├── InvalidRequest      a value outside what is allowed; nothing was run
    │   ├── ModelLoadError      a model file is missing, damaged or not supported
    │   │   └── CatalogError    no source of a model could be reached
    │   ├── OutOfMemory         the settings ask for more memory than there is
    │   ├── AdapterError        something about an adapter; requests without it go on
    │   │   ├── AdapterNotFound     no adapter of this name is loaded
    │   │   ├── AdapterInUse        sequences use it, so it cannot be unloaded
    │   │   ├── AdapterDamaged      its files are missing, cut short, or contradict themselves
    │   │   ├── AdapterUnsupported  it is of a kind that cannot be run
    │   │   ├── AdapterMismatch     it was made for another model
    │   │   └── AdapterTooLarge     its rank, or its size, is more than the engine holds
    │   ├── QueueFull           too many requests wait (retryable)
    │   └── CorruptMessage      bytes between processes that are no message; never ends a request
    ├── ConstraintError         a constraint and an output, or a constraint and a backend, disagree
    │   ├── UnsupportedConstraint   names the keyword and its path
    │   └── TruncatedError      a typed value was cut by max_tokens
    ├── UnsupportedFeature      this backend cannot do that; said before anything is sent
    ├── DeadlineExceeded
    └── Cancelled

Every error carries `hint` (what to do), `value` (the offending value, printable), and, where known,
the `program` and `variable` it belongs to. `to_wire`/`from_wire` carry them over a socket by name.
"""

from __future__ import annotations

from typing import Any

_ENDS = (".", "!", "?", ":", "]", ")")


class BranchlineError(Exception):
    """Base of all errors raised on purpose.

    Args:
        message: what failed, one sentence.
        hint: what the reader can do about it.
        value: the offending value; stored as text so that it can cross a socket.
        program: name of the program in which it happened.
        variable: name of the variable that could not be computed.
    """

    retryable: bool = False

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        value: object = None,
        program: str = "",
        variable: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.value = None if value is None else _short(value)
        self.program = program
        self.variable = variable

    def __str__(self) -> str:
        where = ""
        if self.program or self.variable:
            parts = [f"program {self.program!r}"] if self.program else []
            parts += [f"variable {self.variable!r}"] if self.variable else []
            where = f" (in {', '.join(parts)})"
        got = f" [got {self.value}]" if self.value is not None else ""
        said = f"{self.message}{where}{got}"
        if not self.hint:
            return said
        return f"{said}{'' if said.endswith(_ENDS) else '.'} {self.hint}"

    def located(self, *, program: str = "", variable: str = "") -> BranchlineError:
        """Fill in the place of the failure where it is not known yet; returns self."""
        self.program = self.program or program
        self.variable = self.variable or variable
        return self

    def to_wire(self) -> dict[str, Any]:
        """Plain fields for msgpack: `code` is the class name."""
        wire: dict[str, Any] = {"code": type(self).__name__, "message": self.message}
        for key in ("hint", "value", "program", "variable"):
            if getattr(self, key):
                wire[key] = getattr(self, key)
        if self.retryable:
            wire["retryable"] = True
        return wire


class ProgramError(BranchlineError):
    """A program broke a rule of the language."""


class BackendError(BranchlineError):
    """The backend could not do it. `retryable` is true when the same call may succeed later."""

    def __init__(self, message: str, *, retryable: bool | None = None, **where: Any) -> None:
        super().__init__(message, **where)
        if retryable is not None:
            self.retryable = retryable


class InvalidRequest(BackendError, ValueError):
    """A value outside what is allowed; nothing was run."""


class ModelLoadError(BackendError):
    """A model file is missing, damaged or not supported."""


class CatalogError(ModelLoadError):
    """No source of a model could be reached."""


class OutOfMemory(BackendError):
    """The settings ask for more memory than there is."""


class AdapterError(BackendError):
    """Something about an adapter."""


class AdapterNotFound(AdapterError, LookupError):
    """No adapter of this name is loaded."""


class AdapterInUse(AdapterError):
    """Sequences use the adapter, so it cannot be unloaded."""


class AdapterDamaged(AdapterError):
    """An adapter's files are missing, cut short, or contradict themselves."""


class AdapterUnsupported(AdapterError):
    """An adapter is of a kind that cannot be run."""


class AdapterMismatch(AdapterError):
    """An adapter was made for another model."""


class AdapterTooLarge(AdapterError):
    """An adapter's rank, or its size, is more than the engine holds."""


class QueueFull(BackendError):
    """Too many requests wait already."""

    retryable = True


class CorruptMessage(BackendError):
    """Bytes from another process that are no message of the schema; they were dropped."""


class ConstraintError(BranchlineError):
    """A constraint cannot be met."""


class UnsupportedConstraint(ConstraintError):
    """A constraint that cannot be enforced exactly; names the keyword and its path."""


class TruncatedError(ConstraintError):
    """A typed value was cut by `max_tokens` before it was complete."""


class UnsupportedFeature(BranchlineError):
    """This backend cannot do that; raised before anything is sent."""


class DeadlineExceeded(BranchlineError):
    """The request's or program's deadline passed."""


class Cancelled(BranchlineError):
    """The request, branch or program was cancelled."""


_BY_CODE: dict[str, type[BranchlineError]] = {
    cls.__name__: cls
    for cls in (
        BranchlineError,
        ProgramError,
        BackendError,
        InvalidRequest,
        ModelLoadError,
        CatalogError,
        OutOfMemory,
        AdapterError,
        AdapterNotFound,
        AdapterInUse,
        AdapterDamaged,
        AdapterUnsupported,
        AdapterMismatch,
        AdapterTooLarge,
        QueueFull,
        CorruptMessage,
        ConstraintError,
        UnsupportedConstraint,
        TruncatedError,
        UnsupportedFeature,
        DeadlineExceeded,
        Cancelled,
    )
}


def from_wire(wire: dict[str, Any]) -> BranchlineError:
    """Rebuild an error from `to_wire`; an unknown code becomes a `BackendError`."""
    cls = _BY_CODE.get(str(wire.get("code")), BackendError)
    where = {key: str(wire[key]) for key in ("hint", "value", "program", "variable") if key in wire}
    error = cls(str(wire.get("message", "unknown error")), **where)
    error.value = where.get("value")
    if wire.get("retryable"):
        error.retryable = True
    return error


def wrap(error: BaseException) -> BranchlineError:
    """Any exception as one of the tree: ours unchanged, others as `BackendError`."""
    if isinstance(error, BranchlineError):
        return error
    wrapped = BackendError(f"{type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped


def _short(value: object, limit: int = 200) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
