"""Fixtures that every room's tests may use."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def default_model() -> Path:
    """The default model's file; fetched once into the user's cache folder if it is not there."""
    from branchline.runtime.loading.catalog import resolve_model

    return resolve_model("smollm2-135m")
