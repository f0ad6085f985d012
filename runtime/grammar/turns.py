"""Python work beside an engine's loop. Invariant: the loop never waits long for the interpreter.

A thread that computes in Python is asked to let others run only after `sys.getswitchinterval()`,
5 ms, and an engine's loop must ask several times for each token. While constraints are translated
the interval is shorter. The garbage collector pauses meanwhile: the many short-lived objects of a
translation would have it look through all that there is, which takes it 50 to 100 ms beside torch.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

TURN_S = 0.0002

_lock = threading.Lock()
_open = 0
_before = 0.0
_collecting = True


@contextmanager
def short_turns() -> Iterator[None]:
    """Computing in Python here holds up other threads for `TURN_S` at a time."""
    global _open, _before, _collecting
    with _lock:
        if _open == 0:
            _before = sys.getswitchinterval()
            sys.setswitchinterval(min(_before, TURN_S))
            _collecting = gc.isenabled()
            gc.disable()
        _open += 1
    try:
        yield
    finally:
        with _lock:
            _open -= 1
            if _open == 0:
                sys.setswitchinterval(_before)
                if _collecting:
                    gc.enable()
