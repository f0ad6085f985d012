"""A draft head in a directory: config.json and safetensors, as its authors and engines keep them.

Invariant: names are those of the head alone (a "model." in front is dropped), the map of a smaller
vocabulary is read as the target's ids, and what follows from it (`t2d`) is left out.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from branchline.runtime.config.eagle_spec import EagleSpec, eagle_spec
from branchline.runtime.errors import ModelLoadError
from branchline.runtime.loading.raw_tensor import RawTensor
from branchline.runtime.loading.safetensors import SafetensorsFiles, read_json

Int64Array = np.ndarray[tuple[int], np.dtype[np.int64]]


class EagleCheckpoint:
    """Tensors of a head and the facts about it.

    Args:
        directory: holds config.json and the weights.

    Raises:
        ModelLoadError: a file is missing, damaged, or no draft head.
    """

    def __init__(self, directory: Path) -> None:
        self.location = str(directory)
        config = read_json(directory / "config.json")
        self._files = SafetensorsFiles(directory, lambda name: name.removeprefix("model."))
        names = self._files.tensor_names()
        try:
            self.spec: EagleSpec = eagle_spec(config, names)
        except ModelLoadError as error:
            error.add_note(f"The draft head is {directory}.")
            raise

    def tensor_names(self) -> list[str]:
        """Names of the weights, in file order."""
        return [name for name in self._files.tensor_names() if name not in ("d2t", "t2d")]

    def shape(self, name: str) -> tuple[int, ...]:
        """Logical shape."""
        return self._files.shape(name)

    def read(self, name: str) -> RawTensor:
        """The tensor as stored."""
        return self._files.read(name)

    def vocabulary(self) -> Int64Array | None:
        """The target's id of each of the head's ids: int64 [draft_vocab]; None = all ids."""
        if not self.spec.mapped:
            return None
        offsets: Int64Array = self._files.integers("d2t").reshape(-1)
        return offsets + np.arange(len(offsets), dtype=np.int64)

    def close(self) -> None:
        """Let go of the files; tensors already handed out stay valid."""
        self._files.close()
