"""Waiting for what another thread or process does."""

from __future__ import annotations

import time
from collections.abc import Callable

from branchline.runtime.engine import Engine


def wait_for(what: Callable[[], object], seconds: float = 10.0) -> None:
    """Return when `what` is true; fails when it does not come true in time."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


def is_idle(engine: Engine) -> bool:
    """Whether nothing runs, and nothing is held."""
    info = engine.info()
    return not info["scheduler"]["unfinished"] and not info["cache"]["leases"]


def wait_until_idle(engine: Engine, seconds: float = 20.0) -> None:
    """Return when nothing runs; fails when something goes on that nobody waits for."""
    wait_for(lambda: is_idle(engine), seconds)
