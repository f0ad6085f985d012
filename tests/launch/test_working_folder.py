"""Files that lie where a program is started do not stand in for modules of its processes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from branchline.runtime.bench.start import start
from branchline.runtime.config.server import ServerSection
from branchline.runtime.launch.remote_engine import RemoteEngine


@pytest.fixture
def folder_of_false_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("msgspec.py", "branchline/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("raise SystemExit('imported from the working folder')")
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("folder_of_false_modules")
def test_an_engine_in_processes_starts_in_any_folder(settings: dict[str, Any]) -> None:
    with RemoteEngine(settings, ServerSection(hang_timeout_s=60.0)) as engine:
        assert engine.port is not None


@pytest.mark.usefixtures("folder_of_false_modules")
def test_the_measured_process_starts_in_any_folder(settings: dict[str, Any]) -> None:
    (found,) = start({**settings, "kv_tokens": 4096}, repeats=1, stream=io.StringIO())
    assert found.first_token > found.ready > found.imported
