"""A bound on the time a chat template may take.

Invariant: a template that runs too long is stopped at its next line, and its thread is free again.
Works on the thread that calls it, by following the template's own lines; what a single line does
inside a filter is not interrupted.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

from branchline.runtime.errors import ProgramError

T = TypeVar("T")
_TEMPLATE_FILE = "<template>"


class _TooLong(BaseException):
    """Not an `Exception`: nothing in a template's environment catches it."""


def run_bounded(render: Callable[[], T], limit_s: float) -> T:
    """`render()`, whose template may take `limit_s` seconds.

    Raises:
        ProgramError: it took longer.
    """
    end = time.monotonic() + limit_s

    def line(frame: FrameType, event: str, argument: Any) -> Any:
        if time.monotonic() > end:
            raise _TooLong
        return line

    def call(frame: FrameType, event: str, argument: Any) -> Any:
        return line if frame.f_code.co_filename == _TEMPLATE_FILE else None

    before = sys.gettrace()
    sys.settrace(call)
    try:
        return render()
    except _TooLong:
        raise ProgramError(
            f"The model's chat template took longer than {limit_s:g} s for these turns.",
            hint="Send fewer turns, or start the server with --limit template_timeout_s=….",
        ) from None
    finally:
        sys.settrace(before)
