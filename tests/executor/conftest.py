"""A tiny model for the executor's tests, and builders that are quick on a CPU.

A file with an `ops` of its own gets the model on those.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from branchline.kernels.dispatch import make_ops
from branchline.kernels.ops import Ops
from branchline.runtime.executor.device_build import DeviceBuilder
from branchline.runtime.executor.torch_threads import torch_threads
from branchline.runtime.models.base import Model
from tests.support.model_driver import load_tiny, tiny_llama


@pytest.fixture(scope="module")
def ops() -> Ops:
    return make_ops("reference")


@pytest.fixture(scope="module")
def model(ops: Ops, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_tiny(tiny_llama(tmp_path_factory.mktemp("tiny")), ops)


@pytest.fixture
def swift(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """On a CPU: nothing is to be compiled ahead, and many threads are slow at small tensors."""
    if request.node.get_closest_marker("gpu"):
        yield
        return
    monkeypatch.setattr(DeviceBuilder, "_warm_eager", lambda self: None)
    monkeypatch.setattr(DeviceBuilder, "_warm_sampling", lambda self: None)
    with torch_threads(1):
        yield
