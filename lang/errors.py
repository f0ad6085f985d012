"""Errors a program can meet: the runtime's tree, and the language's own leaves.

The leaves are also the builtin errors Python users expect in their place, so that both
`except KeyError` and `except ProgramError` work:

    ProgramError
    ├── UnknownVariable (KeyError)    nothing defines this variable
    └── NameInUse (NameError)         two things want the same variable name
    InvalidRequest
    └── InvalidOption (TypeError)     a keyword that does not exist
"""

from __future__ import annotations

from branchline.runtime.errors import (
    AdapterDamaged,
    AdapterError,
    AdapterInUse,
    AdapterMismatch,
    AdapterNotFound,
    AdapterTooLarge,
    AdapterUnsupported,
    BackendError,
    BranchlineError,
    Cancelled,
    CatalogError,
    ConstraintError,
    DeadlineExceeded,
    InvalidRequest,
    ModelLoadError,
    OutOfMemory,
    ProgramError,
    QueueFull,
    TruncatedError,
    UnsupportedConstraint,
    UnsupportedFeature,
    from_wire,
    wrap,
)

__all__ = [
    "AdapterDamaged",
    "AdapterError",
    "AdapterInUse",
    "AdapterMismatch",
    "AdapterNotFound",
    "AdapterTooLarge",
    "AdapterUnsupported",
    "BackendError",
    "BranchlineError",
    "Cancelled",
    "CatalogError",
    "ConstraintError",
    "DeadlineExceeded",
    "InvalidOption",
    "InvalidRequest",
    "ModelLoadError",
    "NameInUse",
    "OutOfMemory",
    "ProgramError",
    "QueueFull",
    "TruncatedError",
    "UnknownVariable",
    "UnsupportedConstraint",
    "UnsupportedFeature",
    "from_wire",
    "wrap",
]


class UnknownVariable(ProgramError, KeyError):
    """A variable was read that nothing defines."""


class NameInUse(ProgramError, NameError):
    """A variable name was given to two things."""


class InvalidOption(InvalidRequest, TypeError):
    """A keyword that does not exist here."""
