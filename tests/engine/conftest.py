"""Engines on the default model, shared by the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from branchline.runtime.engine import Engine


@pytest.fixture(scope="module")
def engine(default_model: Path) -> Iterator[Engine]:
    """The default model as a user gets it, with a small cache."""
    with Engine(str(default_model), kv_tokens=9000) as made:
        yield made
