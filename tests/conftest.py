"""Fixtures that every room's tests may use."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import torch

if not Path("/dev/nvidiactl").exists():
    # Read when a kernel is defined: without a GPU, Triton's kernels run in its interpreter.
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session")
def default_model() -> Path:
    """The default model's file; fetched once into the user's cache folder if it is not there."""
    from branchline.runtime.loading.catalog import resolve_model

    return resolve_model("smollm2-135m")


@pytest.fixture(scope="session")
def kernel_device() -> torch.device:
    """Where Triton's kernels run: the GPU, or the CPU under the interpreter."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
