"""A model in one GGUF file: spec, tensors and tokenizer, streamed from a mapping of the file.

Invariant: F32, F16, BF16, Q4_0, Q4_1 and Q8_0 are handed out as the file's own bytes (query and
key rows of Llama files put back in order); every other type is dequantised to float32 by the
`gguf` package, which is imported only then.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any, get_args

import numpy as np

from branchline.runtime.config.model_spec import ModelSpec, from_gguf
from branchline.runtime.errors import ModelLoadError
from branchline.runtime.loading.checkpoint import TokenizerSource
from branchline.runtime.loading.gguf_header import (
    GGML_TYPES,
    GgufHeader,
    TensorEntry,
    read_header,
)
from branchline.runtime.loading.gguf_tokenizer import tokenizer_from_gguf
from branchline.runtime.loading.raw_tensor import BLOCK_BYTES, Kind, RawTensor
from branchline.runtime.loading.weight_map import (
    canonical_from_gguf,
    gguf_interleaved_heads,
    halves_from_pairs,
)

_KINDS: frozenset[str] = frozenset(get_args(Kind))
_VALUE_TYPES: dict[str, Any] = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16}


class GgufCheckpoint:
    """A `Checkpoint` over one GGUF file.

    Args:
        path: the .gguf file; it must not change while the checkpoint or its tensors live.

    Raises:
        ModelLoadError: not readable, not GGUF, damaged, cut short, split over several files, or
            of an unsupported architecture or tokenizer.
    """

    def __init__(self, path: Path) -> None:
        self.location = str(path)
        self._map: mmap.mmap | None = _map_file(path)
        header = read_header(self._map, self.location)
        parts = header.metadata.get("split.count", 1)
        if parts > 1:
            raise ModelLoadError(
                f"{path} is one of {parts} files of a split model.",
                hint="Merge them into one file first (llama-gguf-split --merge).",
            )
        self.tokenizer_source: TokenizerSource | None = tokenizer_from_gguf(header.metadata)
        self.spec = self._make_spec(header)
        self._entries: dict[str, TensorEntry] = {}
        for entry in header.tensors:
            name = canonical_from_gguf(entry.name)
            if name is not None:
                self._entries[name] = entry

    def _make_spec(self, header: GgufHeader) -> ModelSpec:
        metadata = header.metadata
        by_name = {entry.name: entry for entry in header.tensors}
        embedding = by_name.get("token_embd.weight")
        size_key = f"{metadata.get('general.architecture')}.vocab_size"
        if embedding is not None and size_key not in metadata:
            # The embedding may be padded beyond the tokenizer's last id.
            metadata[size_key] = embedding.shape[0]
        factors = by_name.get("rope_freqs.weight")
        source = self.tokenizer_source
        return from_gguf(
            metadata,
            by_name.keys(),
            rope_factors=[] if factors is None else self._raw(factors).to_numpy().tolist(),
            extra_eos=() if source is None else source.eos_ids,
        )

    def tensor_names(self) -> list[str]:
        """Canonical names in file order."""
        return list(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """Logical shape."""
        return self._entry(name).shape

    def read(self, name: str) -> RawTensor:
        """The tensor, as stored where `RawTensor` has a kind for it, else as float32."""
        tensor = self._raw(self._entry(name))
        heads = gguf_interleaved_heads(name, self.spec)
        if not heads:
            return tensor
        rows = heads * self.spec.head_dim
        if rows != tensor.shape[0]:
            raise ModelLoadError(
                f"{name} of {self.location} has {tensor.shape[0]} rows instead of {rows}."
            )
        return tensor.permute_rows(halves_from_pairs(heads, self.spec.head_dim))

    def close(self) -> None:
        """Let go of the mapping; it goes away with the last tensor that views it."""
        self._map = None

    def _entry(self, name: str) -> TensorEntry:
        try:
            return self._entries[name]
        except KeyError:
            raise ModelLoadError(f"{self.location} has no tensor {name!r}.") from None

    def _raw(self, entry: TensorEntry) -> RawTensor:
        if self._map is None:
            raise ModelLoadError(f"{self.location} is closed.")
        kind: Any = GGML_TYPES[entry.type_id].name
        raw = np.frombuffer(self._map, np.uint8, entry.nbytes, entry.offset)
        if kind not in _KINDS:
            return RawTensor("f32", entry.shape, _dequantize_other(raw, entry))
        if kind in BLOCK_BYTES:
            rows = entry.nbytes // (entry.shape[-1] // 32 * BLOCK_BYTES[kind])
            return RawTensor(kind, entry.shape, raw.reshape(rows, -1))
        if entry.offset % 4:
            raw = raw.copy()
        values = raw.view(_VALUE_TYPES[kind]).reshape(entry.shape)
        return RawTensor(kind, entry.shape, values)


def _dequantize_other(raw: np.ndarray[Any, Any], entry: TensorEntry) -> np.ndarray[Any, Any]:
    kind = GGML_TYPES[entry.type_id]
    if kind.name == "f64":
        return raw.view(np.float64).astype(np.float32).reshape(entry.shape)
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    rows = raw.reshape(*entry.shape[:-1], entry.shape[-1] // kind.block * kind.nbytes)
    try:
        values: np.ndarray[Any, Any] = dequantize(rows, GGMLQuantizationType(entry.type_id))
    except NotImplementedError as error:
        raise ModelLoadError(
            f"Tensor {entry.name!r} is stored as {kind.name}, which cannot be read: {error}.",
            hint="Quantise the model as Q4_1 or Q8_0.",
        ) from error
    return values


def _map_file(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            # A private copy-on-write mapping: arrays over it are writable, the file is not.
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except ValueError:
        raise ModelLoadError(
            f"{path} is empty.", hint="Delete the file and fetch it again."
        ) from None
    except OSError as error:
        raise ModelLoadError(
            f"{path} cannot be read: {error.strerror}.",
            hint="Check the path and its permissions.",
        ) from error
