"""A tiny target, and torch on one thread: these tests share a machine with others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from branchline.runtime.executor.torch_threads import torch_threads
from branchline.runtime.training.target import Target
from tests.support.model_driver import tiny_llama


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with torch_threads(1):
        yield


@pytest.fixture(scope="session")
def target_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of four layers."""
    return tiny_llama(tmp_path_factory.mktemp("target"), num_hidden_layers=4)


@pytest.fixture(scope="session")
def target(target_folder: Path) -> Target:
    """The same as a target."""
    return Target(target_folder, torch.device("cpu"))
