"""A model in a Hugging Face directory: config.json, safetensors shards, tokenizer.json.

Invariant: every byte range is checked against its file before use, and tensors are views of
private mappings of the shards. Pickled weights are never opened.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from branchline.runtime.config.model_spec import from_hf_config
from branchline.runtime.errors import ModelLoadError
from branchline.runtime.loading.checkpoint import TokenizerSource
from branchline.runtime.loading.hf_tokenizer import tokenizer_from_directory
from branchline.runtime.loading.raw_tensor import RawTensor
from branchline.runtime.loading.tensor_file import (
    DTYPES,
    TensorEntry,
    integers_at,
    parse_head,
    tensor_at,
)
from branchline.runtime.loading.weight_map import canonical_from_hf


class _Located(NamedTuple):
    """A tensor of a shard whose data begins at `base`."""

    entry: TensorEntry
    shard: str
    base: int


class SafetensorsFiles:
    """The tensors of a directory with one or several safetensors files.

    Args:
        directory: holds them.
        canonical: the name a tensor is known by, from the file's; None = it is left out.
        weights: false opens nothing; there are no tensors then.

    Raises:
        ModelLoadError: a file is missing, damaged or cut short.
    """

    def __init__(
        self, directory: Path, canonical: Callable[[str], str | None], *, weights: bool = True
    ) -> None:
        self.location = str(directory)
        self._canonical = canonical
        self._maps: dict[str, mmap.mmap] = {}
        self._entries: dict[str, _Located] = {}
        for shard in _shards(directory) if weights else ():
            self._open_shard(shard)

    def tensor_names(self) -> list[str]:
        """Canonical names, shard by shard, in file order."""
        return list(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """Logical shape."""
        return tuple(self._entry(name).entry.shape)

    def read(self, name: str) -> RawTensor:
        """The tensor as stored: kind "f32", "f16" or "bf16"."""
        entry, shard, base = self._entry(name)
        if entry.dtype not in DTYPES:
            raise ModelLoadError(
                f"{name} of {self.location} is stored as {entry.dtype}.",
                hint=f"Supported: {', '.join(DTYPES)}.",
            )
        return tensor_at(self._data(shard), base, entry)

    def integers(self, name: str) -> np.ndarray[Any, np.dtype[np.int64]]:
        """A tensor of whole numbers, a copy."""
        entry, shard, base = self._entry(name)
        return integers_at(self._data(shard), base, entry, f"{name} of {self.location}")

    def close(self) -> None:
        """Let go of the mappings; each goes away with the last tensor that views it."""
        self._maps.clear()

    def _data(self, shard: str) -> mmap.mmap:
        if shard not in self._maps:
            raise ModelLoadError(f"{self.location} is closed.")
        return self._maps[shard]

    def _entry(self, name: str) -> _Located:
        try:
            return self._entries[name]
        except KeyError:
            raise ModelLoadError(f"{self.location} has no tensor {name!r}.") from None

    def _open_shard(self, path: Path) -> None:
        data = _map(path)
        base, header = parse_head(data, len(data), path)
        self._maps[path.name] = data
        located = []
        for raw_name, entry in header.items():
            name = self._canonical(raw_name)
            if name is None:
                continue
            if name in self._entries:
                raise ModelLoadError(f"{self.location} has two tensors {name!r}.")
            located.append((name, _Located(entry, path.name, base)))
        self._entries.update(sorted(located, key=lambda item: item[1].entry.data_offsets))


class SafetensorsCheckpoint(SafetensorsFiles):
    """A `Checkpoint` over a Hugging Face directory with one or several safetensors files.

    Args:
        directory: holds config.json and the rest.
        weights: false reads the facts and the tokenizer alone; there are no tensors then.

    Raises:
        ModelLoadError: a file is missing, damaged, cut short, or says something unsupported.
    """

    def __init__(self, directory: Path, *, weights: bool = True) -> None:
        config = read_json(directory / "config.json")
        generation = directory / "generation_config.json"
        self.tokenizer_source: TokenizerSource | None = tokenizer_from_directory(directory, config)
        self.spec = from_hf_config(
            config,
            read_json(generation) if generation.exists() else None,
            extra_eos=self.tokenizer_source.eos_ids if self.tokenizer_source else (),
        )
        super().__init__(
            directory, lambda name: canonical_from_hf(name, self.spec), weights=weights
        )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ModelLoadError: missing, unreadable, not JSON or not an object.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        raise ModelLoadError(
            f"{path} is missing.",
            hint="A Hugging Face directory has config.json, tokenizer.json and *.safetensors.",
        ) from None
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror}.") from error
    except msgspec.MsgspecError as error:
        raise ModelLoadError(f"{path} is damaged: {error}.", hint="Fetch it again.") from error


def _shards(directory: Path) -> list[Path]:
    index = directory / "model.safetensors.index.json"
    if index.exists():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ModelLoadError(f"{index} has no weight_map.", hint="Fetch it again.")
        names = sorted({str(name) for name in weight_map.values()})
        outside = [name for name in names if Path(name).name != name]
        if outside:
            raise ModelLoadError(f"{index} names files outside its directory.", value=outside[0])
        missing = [name for name in names if not (directory / name).exists()]
        if missing:
            raise ModelLoadError(
                f"{directory} lacks {len(missing)} of {len(names)} weight files: "
                f"{', '.join(missing)}.",
                hint="The download is incomplete; fetch it again.",
            )
        return [directory / name for name in names]
    single = directory / "model.safetensors"
    found = [single] if single.exists() else sorted(directory.glob("*.safetensors"))
    if not found:
        pickled = sorted(p.name for p in directory.iterdir() if p.suffix in (".bin", ".pt", ".pth"))
        why = f" ({pickled[0]} can run code when opened and is not read)" if pickled else ""
        raise ModelLoadError(
            f"{directory} has no safetensors weights{why}.",
            hint="Save the model with safetensors, or pass a .gguf file.",
        )
    return found


def _map(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except ValueError:
        raise ModelLoadError(f"{path} is empty.", hint="Fetch it again.") from None
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror}.") from error
