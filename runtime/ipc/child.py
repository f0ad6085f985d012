"""The parent's side of a child process: start it, look whether it lives, end it.

Invariant: no child outlives its parent (see `ipc.parent`), and `kill` always works.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys

import msgspec


class Child:
    """One process that runs a module of the project.

    Args:
        module: run as `python -P -m module`.
        start: its first line of input, as JSON.
    """

    def __init__(self, module: str, start: msgspec.Struct) -> None:
        self.process = subprocess.Popen(
            # -P: a file of the working folder must not stand in for a module.
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            bufsize=0,
            # A group of its own: Ctrl-C reaches the parent alone.
            process_group=0,
        )
        self._write(msgspec.json.encode(start) + b"\n")

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def ended(self) -> bool:
        """It runs no more, and nothing of it is left."""
        return self.process.poll() is not None

    @property
    def how_it_ended(self) -> str:
        """For messages: "exit status 1", "signal SIGKILL"."""
        code = self.process.poll()
        if code is None:
            return "still running"
        if code >= 0:
            return f"exit status {code}"
        try:
            return f"signal {signal.Signals(-code).name}"
        except ValueError:
            return f"signal {-code}"

    def kill(self) -> None:
        """Have the kernel end it, also when it is stopped or hangs; does not wait."""
        if not self.ended:
            self.process.kill()
        self._close_input()

    def wait(self, timeout_s: float) -> bool:
        """Whether it has ended, after at most `timeout_s` seconds."""
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        self._close_input()
        return True

    def _write(self, data: bytes) -> None:
        assert self.process.stdin is not None
        # It may have ended already; whoever watches it will see that.
        with contextlib.suppress(BrokenPipeError):
            view = memoryview(data)
            while view:
                view = view[os.write(self.process.stdin.fileno(), view) :]

    def _close_input(self) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
