"""Short time slices for threads that pass messages on, beside threads that compute.

A thread that wakes up may have to wait until the running one has used up its slice, some
milliseconds. Since Linux 6.12 a thread may ask for shorter slices of its own: it then gets its turn
at once, and gives it back as soon. Its share of the processor stays the same, and no privilege is
needed. Where the system cannot, nothing changes.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager

SLICE_NS = 100_000
_SET_ATTRIBUTES = {"x86_64": 314, "aarch64": 274}  # numbers of the system call sched_setattr


def take_short_turns() -> bool:
    """The calling thread, and threads and processes it starts; False where the system cannot."""
    return _slice(SLICE_NS)


@contextmanager
def ordinary_turns() -> Iterator[None]:
    """Threads that the block starts take ordinary turns; the calling thread short ones after."""
    _slice(0)
    try:
        yield
    finally:
        take_short_turns()


def _slice(ns: int) -> bool:
    number = _SET_ATTRIBUTES.get(platform.machine())
    if sys.platform != "linux" or number is None:
        return False
    policy = os.sched_getscheduler(0)
    if policy not in (os.SCHED_OTHER, os.SCHED_BATCH):
        return False
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    # size, policy, flags, nice, priority, runtime (the slice), deadline, period
    attributes = struct.pack("=IIQiIQQQ", 48, policy, 0, nice, 0, ns, 0, 0)
    return bool(ctypes.CDLL(None).syscall(number, 0, attributes, 0) == 0)
