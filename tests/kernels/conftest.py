"""Shared kernel fixtures."""

from collections.abc import Iterator

import pytest

from branchline.kernels.cpu.binding import Runner, load_library
from branchline.kernels.cpu.native_ops import NativeOps


@pytest.fixture(scope="session")
def runner() -> Iterator[Runner]:
    """Two threads, whatever the machine has."""
    made = Runner(load_library(), 2)
    yield made
    made.close()


@pytest.fixture(scope="session")
def native(runner: Runner) -> NativeOps:
    """The native ops on two threads."""
    return NativeOps(runner)
