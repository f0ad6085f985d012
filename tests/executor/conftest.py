"""A tiny model for the executor's tests; a file with an `ops` of its own gets it on those."""

from __future__ import annotations

import pytest

from branchline.kernels.dispatch import make_ops
from branchline.kernels.ops import Ops
from branchline.runtime.models.base import Model
from tests.support.model_driver import load_tiny, tiny_llama


@pytest.fixture(scope="module")
def ops() -> Ops:
    return make_ops("reference")


@pytest.fixture(scope="module")
def model(ops: Ops, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_tiny(tiny_llama(tmp_path_factory.mktemp("tiny")), ops)
