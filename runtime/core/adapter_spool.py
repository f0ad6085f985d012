"""Adapters that were sent, kept as folders of their own until they are unloaded.

Invariant: the folder of the spool is this process's own and private (mode 0700), and nothing is
left of it after `close`. Knows nothing of what the files say.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
from pathlib import Path

from branchline.runtime.core.adapters import AdapterFiles
from branchline.runtime.errors import BackendError

_PREFIX = "branchline-adapters-"


class AdapterSpool:
    """Folders made as adapters come; one thread at a time."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._numbers = itertools.count(1)

    def put(self, files: AdapterFiles) -> Path:
        """A new folder with these files.

        Raises:
            BackendError: they cannot be written.
        """
        try:
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
            path = self._folder / str(next(self._numbers))
            path.mkdir()
            (path / "adapter_config.json").write_bytes(files.config)
            (path / "adapter_model.safetensors").write_bytes(files.weights)
        except OSError as error:
            raise BackendError(
                f"the adapter's files cannot be kept: {error.strerror}",
                hint="Make room in the folder for temporary files, or load from a folder.",
            ) from error
        return path

    def close(self) -> None:
        """Remove everything."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


def remove_sent(path: Path) -> None:
    """Remove a folder that some spool made, in whatever process; others are left alone."""
    if path.parent.name.startswith(_PREFIX):
        shutil.rmtree(path, ignore_errors=True)
