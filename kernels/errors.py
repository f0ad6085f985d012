"""Errors of the kernel room: every one names the offending value and says what to do.

KernelError
├── KernelInputError (ValueError)   a shape, dtype or layout an op cannot take
├── KernelBuildError (RuntimeError) the native library could not be compiled or loaded
└── CaptureError (RuntimeError)     something that a recorded graph cannot hold

The room knows nothing of requests or users; higher rooms translate these where a user can see them.
"""


class KernelError(Exception):
    """Root of the errors raised by kernels."""


class KernelInputError(KernelError, ValueError):
    """An operand has a shape, dtype or layout that the op does not take."""


class KernelBuildError(KernelError, RuntimeError):
    """The native library could not be compiled or loaded on this machine."""


class CaptureError(KernelError, RuntimeError):
    """A captured forward did something that a recorded graph cannot hold."""
