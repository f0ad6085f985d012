"""The default model in this process, and the same one behind a server, as program backends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import branchline as bl
from branchline.runtime.server.context import make_context
from tests.support.http_server import RunningServer, serve


@pytest.fixture(scope="module")
def engine(default_model: Path) -> Iterator[bl.Engine]:
    """The engine that all kinds of backend of a module share."""
    engine = bl.Engine(str(default_model), kv_tokens=9000)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def server(engine: bl.Engine) -> Iterator[RunningServer]:
    """A server over `engine`."""
    inner = engine._engine
    context = make_context(inner.core, inner.tokenizer, model_names=("smollm2-135m",))
    with serve(context) as running:
        yield running


@pytest.fixture(scope="module", params=["engine", "endpoint"])
def backend(
    request: pytest.FixtureRequest, engine: bl.Engine, server: RunningServer
) -> Iterator[bl.Engine | bl.Endpoint]:
    """Where programs run."""
    if request.param == "engine":
        yield engine
        return
    endpoint = bl.Endpoint(server.url)
    yield endpoint
    endpoint.close()
