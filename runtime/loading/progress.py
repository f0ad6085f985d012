"""Shows how far a download is: a bar on a terminal, a line now and then elsewhere.

Invariant: showing never changes what is fetched; a progress object is used by one download at a
time and closed after it.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

_LINE_EVERY_S = 5.0
_LOOK_EVERY_S = 0.1


class Progress(Protocol):
    """Receives how far a download is; all sizes in bytes, total 0 when it is not known."""

    def update(self, label: str, done: int, total: int) -> None:
        """`done` of `total` bytes of `label` are here."""

    def close(self) -> None:
        """The download ended, well or not."""


class LogProgress:
    """One line at the start, every five seconds and at the end, through `logging`."""

    def __init__(self) -> None:
        self._log = logging.getLogger("branchline.fetch")
        self._label = ""
        self._next_line = 0.0
        self._last = (0, 0)

    def update(self, label: str, done: int, total: int) -> None:
        """Say so if five seconds have passed or something new began."""
        now = time.monotonic()
        self._last = (done, total)
        if label != self._label or now >= self._next_line:
            self._label, self._next_line = label, now + _LINE_EVERY_S
            self._say()

    def close(self) -> None:
        """Say where it ended."""
        if self._label:
            self._say()
            self._label = ""

    def _say(self) -> None:
        done, total = self._last
        of = f" of {total / 1e6:.0f}" if total else ""
        self._log.info("%s: %.0f%s MB", self._label, done / 1e6, of)


class BarProgress:
    """A bar with size, speed and remaining time on standard error."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task = self._bar.add_task("", total=None, visible=False)
        self._started = False

    def update(self, label: str, done: int, total: int) -> None:
        """Move the bar."""
        if not self._started:
            self._bar.start()
            self._started = True
        self._bar.update(
            self._task, description=label, completed=done, total=total or None, visible=True
        )

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._started:
            self._bar.stop()
            self._started = False


def default_progress() -> Progress:
    """A bar if standard error is a terminal, else log lines."""
    return BarProgress() if sys.stderr.isatty() else LogProgress()


@contextmanager
def watch_folder(folder: Path, label: str, total: int, progress: Progress) -> Iterator[None]:
    """Report the growth of the files under `folder` while the body runs.

    For downloads that another program or library makes: what is already there counts as done.
    """
    stop = threading.Event()

    def look() -> None:
        while True:
            done = folder_size(folder)
            progress.update(label, min(done, total) if total else done, total)
            if stop.wait(_LOOK_EVERY_S):
                return

    watcher = threading.Thread(target=look, name="branchline-download-progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()
        progress.close()


def folder_size(folder: Path) -> int:
    """Bytes in the plain files under `folder`; links are not followed, vanished files are 0."""
    total = 0
    for path in folder.rglob("*"):
        try:
            if path.is_file() and not path.is_symlink():
                total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total
