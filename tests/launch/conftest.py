"""A tiny model, and engines over it: in this process, and in processes of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from branchline.runtime.config.server import ServerSection
from branchline.runtime.engine import Engine
from branchline.runtime.launch.remote_engine import RemoteEngine
from tests.support.port_driver import PortDriver
from tests.support.tiny_engine import write_tiny_model

ENGINE: dict[str, Any] = {
    "load_format": "dummy",
    "kv_tokens": 8192,
    "threads": 1,
    "dtype": "float32",
    "max_queued_requests": 200,
    "max_running_requests": 16,
}
"""float32: greedy outputs are the same whatever else is in the batch or in the cache."""


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder: Path = write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")
    return {"model": str(folder), **ENGINE}


@pytest.fixture(scope="module")
def reference(settings: dict[str, Any]) -> Iterator[Engine]:
    """The oracle: the same model in this process."""
    with Engine(**settings) as engine:
        yield engine


@pytest.fixture(scope="module")
def remote(settings: dict[str, Any]) -> Iterator[RemoteEngine]:
    with RemoteEngine(settings, ServerSection(hang_timeout_s=60.0)) as engine:
        yield engine


@pytest.fixture(scope="module", params=["here", "remote"])
def driver(request: pytest.FixtureRequest) -> PortDriver:
    """A port of each kind over the same model."""
    if request.param == "here":
        return PortDriver(request.getfixturevalue("reference").core)
    return PortDriver(request.getfixturevalue("remote").port)
