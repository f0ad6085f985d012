"""`branchline serve` as a subprocess on a free port of loopback, and what it says of itself.

Invariant: when the block ends, by an error too, the server and all of its processes are gone.
"""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from branchline.runtime.errors import BackendError

START_S, STOP_S = 900.0, 30.0
_ROLES = ("scheduler", "detokenizer", "grammar")


@dataclass(frozen=True, slots=True)
class Served:
    """A running server.

    Attributes:
        admin_key: opens `/flush_cache`; made for this server alone.
        pid: of the process that listens.
    """

    url: str
    admin_key: str
    pid: int

    def processes(self) -> dict[int, str]:
        """Its processes: pid -> what each does."""
        import psutil

        found = {self.pid: "http"}
        for child in psutil.Process(self.pid).children(recursive=True):
            try:
                command = " ".join(child.cmdline())
            except psutil.NoSuchProcess:
                continue
            found[child.pid] = next((role for role in _ROLES if role in command), "other")
        return found


@contextmanager
def served(settings: dict[str, Any], **server: Any) -> Iterator[Served]:
    """Serve with these settings of the engine and of the server until the block ends.

    Raises:
        BackendError: it did not start; its own output says why.
    """
    import psutil

    key = secrets.token_hex(16)
    chosen = {"log_level": "error", "drain_timeout_s": 5} | settings | server
    command = [sys.executable, "-P", "-m", "branchline", "serve", "--port", "0"]
    for name, value in chosen.items():
        command += ["--" + name.replace("_", "-"), str(value)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"BRANCHLINE_ADMIN_KEY": key},
    )
    children: list[Any] = []
    try:
        url = _url(process)
        children = psutil.Process(process.pid).children(recursive=True)
        yield Served(url, key, process.pid)
    finally:
        if process.poll() is None:
            children += psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
        for child in psutil.wait_procs(children, 5)[1]:
            child.kill()


def _url(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    said: list[str] = []
    late = threading.Timer(START_S, process.kill)
    late.start()
    try:
        for line in process.stdout:
            said.append(line.rstrip())
            found = re.match(r"serving at (http://\S+)", line)
            if found:
                return found[1]
    finally:
        late.cancel()
    raise BackendError(
        "the server did not start",
        value=said[-1] if said else None,
        hint="Run the same settings with `branchline serve` and read what it says.",
    )
