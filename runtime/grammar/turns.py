"""Python work beside an engine's loop. Invariant: the loop never waits long for the interpreter.

A thread that computes in Python is asked to let others run only after `sys.getswitchinterval()`,
5 ms, and an engine's loop must ask several times for each token. While constraints are translated
the interval is shorter; nothing else changes.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

TURN_S = 0.0002

_lock = threading.Lock()
_open = 0
_before = 0.0


@contextmanager
def short_turns() -> Iterator[None]:
    """Computing in Python here holds up other threads for `TURN_S` at a time."""
    global _open, _before
    with _lock:
        if _open == 0:
            _before = sys.getswitchinterval()
            sys.setswitchinterval(min(_before, TURN_S))
        _open += 1
    try:
        yield
    finally:
        with _lock:
            _open -= 1
            if _open == 0:
                sys.setswitchinterval(_before)
