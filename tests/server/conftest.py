"""Servers on loopback: over a tiny random model, and over the default model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from branchline.runtime.engine import Engine
from tests.server.spelled import CALLS, Spelled, spelled_server
from tests.support.http_server import RunningServer, serve_engine
from tests.support.tiny_engine import tiny_engine


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A random model whose tokens are bytes."""
    with tiny_engine(tmp_path_factory.mktemp("model") / "tiny") as made:
        yield made


@pytest.fixture(scope="module")
def server(engine: Engine) -> Iterator[RunningServer]:
    """A server over `engine`."""
    with serve_engine(engine) as running:
        yield running


@pytest.fixture(scope="module")
def spelled() -> Iterator[Spelled]:
    """Answers with two calls."""
    with spelled_server(lambda prompt, index: CALLS) as made:
        yield made


@pytest.fixture(scope="session")
def model_server(default_model: Path) -> Iterator[RunningServer]:
    """A server over the default model."""
    with (
        Engine(str(default_model), kv_tokens=9000) as made,
        serve_engine(made, model_names=("smollm2-135m",)) as running,
    ):
        yield running
