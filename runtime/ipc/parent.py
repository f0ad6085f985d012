"""The child's side of a process that another one watches: how it starts, and that it never stays.

Invariant: a child ends when its parent does, however that ends: its standard input is a pipe that
only the parent holds open, and on Linux the kernel ends it too. It leaves signals for the whole
group (Ctrl-C, a service manager's SIGTERM) to the parent, which stops it in order.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import threading
from typing import NoReturn, TypeVar

import msgspec

from branchline.runtime.errors import CorruptMessage

S = TypeVar("S")

_PR_SET_PDEATHSIG = 1


def read_start(kind: type[S]) -> S:
    """What the parent wrote first: one line of JSON. From now on the child ends with its parent.

    Raises:
        CorruptMessage: the line is not of that kind.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    line = sys.stdin.buffer.readline()
    try:
        start = msgspec.json.decode(line, type=kind)
    except msgspec.MsgspecError as error:
        raise CorruptMessage(f"the start message cannot be read: {error}") from error
    threading.Thread(target=_end_with_parent, name="branchline-parent", daemon=True).start()
    return start


def leave(status: int) -> NoReturn:
    """End this process now. Everything that matters has been closed; taking the interpreter apart
    would only keep the parent waiting (seconds, with torch loaded)."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _end_with_parent() -> None:
    while os.read(0, 4096):
        continue
    os._exit(0)
