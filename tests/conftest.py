"""Fixtures that every room's tests may use."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import torch

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    # Workers share the cores. torch's threads wait by spinning, so more threads than cores cost
    # more time than they save. Read when torch is loaded, here and in processes that tests start.
    share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))

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
