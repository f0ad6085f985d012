"""Every test of this folder runs on each kind of backend: what a program means is the same on all.

Tests make scripted backends with `bl.Mock`; here that is, in turn, the mock itself and one at the
other end of a real connection.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import branchline as bl
from tests.support.served_mock import ServedMock, ServingLoop


@pytest.fixture(scope="session")
def serving_loop() -> Iterator[ServingLoop]:
    loop = ServingLoop()
    yield loop
    loop.close()


@pytest.fixture(params=["here", "endpoint"], autouse=True)
def where(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where programs run."""
    if request.param == "endpoint":
        ServedMock.loop = request.getfixturevalue("serving_loop")
        ServedMock.made = []
        monkeypatch.setattr(bl, "Mock", ServedMock)
    yield request.param
    if request.param == "endpoint":
        for backend in ServedMock.made:
            backend.tear_down()
