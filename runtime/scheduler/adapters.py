"""What the scheduler asks of whoever holds the adapters. Knows no files and no devices.

Invariant: a sequence opens its version when it is taken and closes it when it has ended; a row
enters it when it is admitted and leaves it when its memory is released. Between enter and leave the
version's slot is its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from branchline.runtime.core.adapters import AdapterVersion, adapter_not_found
from branchline.runtime.errors import BranchlineError


class Adapters(Protocol):
    """Adapters of one engine (`lora.AdapterManager`). Loop thread only."""

    def find(self, name: str) -> AdapterVersion:
        """The version that requests get now. Raises `AdapterNotFound`."""

    def open(self, version: AdapterVersion) -> None:
        """A sequence of this version has been taken."""

    def close(self, version: AdapterVersion) -> None:
        """One has ended."""

    def ready(self, version: AdapterVersion, *, urgent: bool) -> bool:
        """Whether the version is in a slot; if not, it is brought into one as soon as may be.

        urgent: it may take the slot of a version that others wait for but no row uses.
        """

    def enter(self, version: AdapterVersion) -> None:
        """A row of a version that is ready is admitted."""

    def leave(self, version: AdapterVersion) -> None:
        """Its memory is released."""

    def connect(self, failed: Callable[[AdapterVersion, BranchlineError], None]) -> None:
        """`failed` is told of versions that cannot be brought into a slot."""

    def counters(self) -> dict[str, Any]:
        """What has been counted: plain data, a moment's view, from any thread."""


class NoAdapters:
    """An engine that takes none."""

    def find(self, name: str) -> AdapterVersion:
        """See `Adapters`."""
        raise adapter_not_found(name, [])

    def open(self, version: AdapterVersion) -> None:
        """Never called: nothing is found."""

    close = leave = enter = open

    def ready(self, version: AdapterVersion, *, urgent: bool) -> bool:
        """Never called."""
        return False

    def connect(self, failed: Callable[[AdapterVersion, BranchlineError], None]) -> None:
        """Nothing can fail."""

    def counters(self) -> dict[str, Any]:
        """There is nothing to count."""
        return {}
