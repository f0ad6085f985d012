"""Threads that pass messages on take short turns; those they start to compute do not."""

from __future__ import annotations

import ctypes
import platform
import struct
import sys
import threading
from collections.abc import Callable

import pytest

from branchline.runtime.ipc.short_turns import SLICE_NS, ordinary_turns, take_short_turns

_GET_ATTRIBUTES = {"x86_64": 315, "aarch64": 275}.get(platform.machine())
_VERSION = tuple(int(part) for part in platform.release().split(".")[:2] if part.isdigit())


def slice_ns() -> int:
    """The calling thread's time slice, as the kernel says."""
    held = ctypes.create_string_buffer(48)
    assert ctypes.CDLL(None).syscall(_GET_ATTRIBUTES, 0, held, 48, 0) == 0
    return int(struct.unpack("=IIQiIQQQ", held.raw)[5])


def in_thread(run: Callable[[], None]) -> None:
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()


@pytest.mark.skipif(
    sys.platform != "linux" or _GET_ATTRIBUTES is None or _VERSION < (6, 12),
    reason="slices of a thread's own came with Linux 6.12",
)
def test_slices_are_inherited_but_by_those_that_compute() -> None:
    found: dict[str, int] = {}

    def note(name: str) -> None:
        found[name] = slice_ns()

    def run() -> None:
        note("before")
        assert take_short_turns()
        note("after")
        in_thread(lambda: note("its thread"))
        with ordinary_turns():
            in_thread(lambda: note("computing"))
        note("at the end")

    in_thread(run)
    assert found["after"] == found["its thread"] == found["at the end"] == SLICE_NS
    assert found["before"] == found["computing"] != SLICE_NS
    assert slice_ns() == found["before"], "other threads stay as they were"


def test_where_it_cannot_be_had_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert not take_short_turns()
    with ordinary_turns():
        pass
